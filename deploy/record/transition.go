package record

import (
	"fmt"
	"slices"
	"time"
)

// transitions says for each event what it does to the state.
var transitions = map[EventKind]func(s *State, e Event, now time.Time) error{
	EventInit:           (*State).applyInit,
	EventBegin:          (*State).applyBegin,
	EventTarget:         (*State).applyTarget,
	EventPrepared:       (*State).applyPrepared,
	EventRenumber:       (*State).applyRenumber,
	EventFinalizeFailed: (*State).applyFinalizeFailed,
	EventArmed:          (*State).applyArmed,
	EventBlessed:        (*State).applyBlessed,
	EventFailed:         (*State).applyFailed,
	EventDownloadOnly:   (*State).applyDownloadOnly,
	EventReference:      (*State).applyReference,
	EventAborted:        (*State).applyAborted,
	EventDropped:        (*State).applyDropped,
	EventRetire:         (*State).applyRetire,
	EventUnretire:       (*State).applyUnretire,
	EventRetired:        (*State).applyRetired,
}

// maxFailed bounds the memory for failed deployments: the oldest is forgotten.
const maxFailed = 64

func refuse(e Event, format string, args ...any) error {
	return &TransitionError{e.Kind, fmt.Sprintf(format, args...)}
}

// applyInit needs Token.
func (s *State) applyInit(e Event, _ time.Time) error {
	s.Token, s.NextEntry = e.Token, 1
	return nil
}

// applyBegin needs Transaction, Op; Reference may be given.
func (s *State) applyBegin(e Event, now time.Time) error {
	if s.Transaction != nil {
		return refuse(e, "transaction %s (%s) is unfinished", s.Transaction.ID, s.Transaction.Op)
	}
	if n := len(s.Entries); n >= maxListed-1 { // one for what is staged, one for this
		return refuse(e, "the journal has %d boot entries, want less than %d", n, maxListed-1)
	}
	s.Transaction = &Transaction{ID: e.Transaction, Op: e.Op, Reference: e.Reference, Started: now}
	return nil
}

// applyTarget needs Transaction, Deployment, BootDigest. It reserves the
// sequence number.
func (s *State) applyTarget(e Event, _ time.Time) error {
	t, err := s.current(e)
	if err != nil {
		return err
	}
	if t.Deployment != "" {
		return refuse(e, "the transaction already makes deployment %s", t.Deployment)
	}
	if t.Op == OpRollback && s.LatestOf(e.Deployment) == nil {
		return refuse(e, "deployment %q has no entry to roll back to", e.Deployment)
	}
	t.Deployment, t.BootDigest, t.Entry = e.Deployment, e.BootDigest, s.NextEntry
	s.NextEntry++
	s.Orphans = without(s.Orphans, e.Deployment)
	return nil
}

// applyPrepared needs Transaction, after EventTarget; DownloadOnly may be set. An older staged deployment
// becomes an orphan.
func (s *State) applyPrepared(e Event, now time.Time) error {
	t, err := s.current(e)
	if err != nil {
		return err
	}
	if t.Deployment == "" {
		return refuse(e, "transaction %s has no target yet", t.ID)
	}
	s.unstage(t.Deployment)
	s.Staged = &Staged{Deployment: t.Deployment, BootDigest: t.BootDigest, Entry: t.Entry, Transaction: t.ID, Prepared: now, DownloadOnly: e.DownloadOnly}
	s.Transaction = nil
	return nil
}

// applyRenumber needs Deployment.
func (s *State) applyRenumber(e Event, _ time.Time) error {
	switch {
	case s.Transaction != nil && s.Transaction.Deployment == e.Deployment && e.Deployment != "":
		s.Transaction.Entry = s.NextEntry
	case s.Staged != nil && s.Staged.Deployment == e.Deployment && e.Deployment != "":
		s.Staged.Entry = s.NextEntry
	default:
		return refuse(e, "deployment %q is neither staged nor being made", e.Deployment)
	}
	s.NextEntry++
	return nil
}

// applyFinalizeFailed needs Deployment, Reason.
func (s *State) applyFinalizeFailed(e Event, _ time.Time) error {
	if err := s.needStaged(e); err != nil {
		return err
	}
	s.Staged.Failure = e.Reason
	if e.Reason == "" {
		s.Staged.Failure = "unknown"
	}
	return nil
}

// applyDownloadOnly needs Deployment and DownloadOnly, as it is to be.
func (s *State) applyDownloadOnly(e Event, _ time.Time) error {
	if err := s.needStaged(e); err != nil {
		return err
	}
	s.Staged.DownloadOnly = e.DownloadOnly
	return nil
}

// applyReference needs Deployment, Reference. What a deployment follows is in its
// own records, so the state stays as it is.
func (s *State) applyReference(e Event, _ time.Time) error {
	if e.Reference == "" || !slices.Contains(s.Deployments(), e.Deployment) {
		return refuse(e, "deployment %q is not known, or reference %q is empty", e.Deployment, e.Reference)
	}
	return nil
}

// applyArmed needs Deployment, Entry; Tries as in the entry's name. The entry is
// that of the staged deployment, or of an install or rollback under way. An
// entry without tries is of a deployment that was blessed before.
func (s *State) applyArmed(e Event, now time.Time) error {
	armed := ArmedEntry{Seq: e.Entry, Deployment: e.Deployment, Armed: now, Tries: e.Tries}
	switch {
	case s.Staged != nil && s.Staged.Deployment == e.Deployment && s.Staged.Entry == e.Entry:
		armed.BootDigest = s.Staged.BootDigest
		s.Staged = nil
	case s.Transaction != nil && !s.Transaction.Op.Stages() && s.Transaction.Deployment == e.Deployment && s.Transaction.Entry == e.Entry:
		armed.BootDigest = s.Transaction.BootDigest
		s.Transaction = nil
	default:
		return refuse(e, "deployment %q with entry %d is neither staged nor being made", e.Deployment, e.Entry)
	}
	if old := s.LatestOf(e.Deployment); old != nil && e.Tries == 0 {
		armed.Blessed = slices.ContainsFunc(s.Entries, func(a ArmedEntry) bool { return a.Deployment == e.Deployment && a.Blessed })
	}
	s.Entries = append(s.Entries, armed)
	slices.SortFunc(s.Entries, func(a, b ArmedEntry) int {
		if a.Seq < b.Seq {
			return -1
		}
		return 1
	})
	s.Orphans = without(s.Orphans, e.Deployment)
	return nil
}

// applyBlessed needs Entry. All entries of the deployment become blessed, and an
// earlier failure of it is forgotten: it did boot.
func (s *State) applyBlessed(e Event, _ time.Time) error {
	entry, err := s.needEntry(e)
	if err != nil {
		return err
	}
	id := entry.Deployment
	for i := range s.Entries {
		if s.Entries[i].Deployment == id {
			s.Entries[i].Blessed, s.Entries[i].Failed = true, false
		}
	}
	s.Failed = slices.DeleteFunc(s.Failed, func(f Failure) bool { return f.Deployment == id })
	return nil
}

// applyFailed needs Entry, Reason.
func (s *State) applyFailed(e Event, now time.Time) error {
	entry, err := s.needEntry(e)
	if err != nil {
		return err
	}
	entry.Failed = true
	id := entry.Deployment
	s.Failed = slices.DeleteFunc(s.Failed, func(f Failure) bool { return f.Deployment == id })
	s.Failed = append(s.Failed, Failure{Deployment: id, Reason: e.Reason, Time: now})
	if n := len(s.Failed) - maxFailed; n > 0 {
		s.Failed = slices.Delete(s.Failed, 0, n)
	}
	return nil
}

// applyAborted needs Transaction.
func (s *State) applyAborted(e Event, _ time.Time) error {
	t, err := s.current(e)
	if err != nil {
		return err
	}
	id := t.Deployment
	s.Transaction = nil
	s.orphan(id)
	return nil
}

// applyDropped needs Deployment.
func (s *State) applyDropped(e Event, _ time.Time) error {
	if err := s.needStaged(e); err != nil {
		return err
	}
	s.unstage("")
	return nil
}

// applyRetire needs Deployment.
func (s *State) applyRetire(e Event, _ time.Time) error {
	if !slices.Contains(s.Deployments(), e.Deployment) {
		return refuse(e, "deployment %q is not known", e.Deployment)
	}
	if s.busy(e.Deployment) {
		return refuse(e, "deployment %s is staged or being made", e.Deployment)
	}
	for i := range s.Entries {
		if s.Entries[i].Deployment == e.Deployment {
			s.Entries[i].Retiring = true
		}
	}
	return nil
}

// applyUnretire needs Deployment, after EventRetire; Gone may list some of its
// entries, which are forgotten.
func (s *State) applyUnretire(e Event, _ time.Time) error {
	of := func(a ArmedEntry) bool { return a.Deployment == e.Deployment }
	if !slices.ContainsFunc(s.Entries, func(a ArmedEntry) bool { return of(a) && a.Retiring }) {
		return refuse(e, "deployment %q is not being retired", e.Deployment)
	}
	for _, seq := range e.Gone {
		if a := s.Entry(seq); a == nil || !of(*a) {
			return refuse(e, "entry %d is not one of deployment %s", seq, e.Deployment)
		}
	}
	s.Entries = slices.DeleteFunc(s.Entries, func(a ArmedEntry) bool { return slices.Contains(e.Gone, a.Seq) })
	if s.LatestOf(e.Deployment) == nil {
		return refuse(e, "no entry of deployment %s would be left", e.Deployment)
	}
	for i := range s.Entries {
		if of(s.Entries[i]) {
			s.Entries[i].Retiring = false
		}
	}
	return nil
}

// applyRetired needs Deployment, after EventRetire (orphans excepted).
func (s *State) applyRetired(e Event, _ time.Time) error {
	if !slices.Contains(s.Deployments(), e.Deployment) || s.busy(e.Deployment) {
		return refuse(e, "deployment %q is not being retired", e.Deployment)
	}
	for _, entry := range s.Entries {
		if entry.Deployment == e.Deployment && !entry.Retiring {
			return refuse(e, "entry %d of deployment %s is not being retired", entry.Seq, e.Deployment)
		}
	}
	s.Entries = slices.DeleteFunc(s.Entries, func(a ArmedEntry) bool { return a.Deployment == e.Deployment })
	s.Orphans = without(s.Orphans, e.Deployment)
	return nil
}

// current is the transaction that e names.
func (s *State) current(e Event) (*Transaction, error) {
	if s.Transaction == nil || s.Transaction.ID != e.Transaction {
		return nil, refuse(e, "transaction %q is not the unfinished one", e.Transaction)
	}
	return s.Transaction, nil
}

func (s *State) needStaged(e Event) error {
	if s.Staged == nil || s.Staged.Deployment != e.Deployment {
		return refuse(e, "deployment %q is not staged", e.Deployment)
	}
	return nil
}

func (s *State) needEntry(e Event) (*ArmedEntry, error) {
	entry := s.Entry(e.Entry)
	if entry == nil {
		return nil, refuse(e, "entry %d is not known", e.Entry)
	}
	return entry, nil
}

// busy tells whether a deployment is staged or the target of a transaction.
func (s *State) busy(id string) bool {
	return s.Staged != nil && s.Staged.Deployment == id || s.Transaction != nil && s.Transaction.Deployment == id
}

// unstage takes away the staged deployment; unless it is next, it is then held
// by its entries only, or is an orphan.
func (s *State) unstage(next string) {
	if s.Staged == nil {
		return
	}
	id := s.Staged.Deployment
	s.Staged = nil
	if id != next {
		s.orphan(id)
	}
}

// orphan remembers a deployment that nothing else holds.
func (s *State) orphan(id string) {
	if id != "" && !slices.Contains(s.Deployments(), id) {
		s.Orphans = append(s.Orphans, id)
	}
}

func without(list []string, s string) []string {
	return slices.DeleteFunc(list, func(x string) bool { return x == s })
}
