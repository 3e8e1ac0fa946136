package record

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Op is what a transaction does.
type Op string

// The operations.
const (
	OpInstall  Op = "install"
	OpUpgrade  Op = "upgrade"
	OpSwitch   Op = "switch"
	OpRollback Op = "rollback"
)

// Valid tells whether o is one of the operations.
func (o Op) Valid() bool {
	return o == OpInstall || o == OpUpgrade || o == OpSwitch || o == OpRollback
}

// Stages tells whether the operation ends with a staged deployment, so that it
// makes no boot entry itself.
func (o Op) Stages() bool { return o == OpUpgrade || o == OpSwitch }

// EventKind names one step of the commit protocol (lifecycle.md 6.5).
type EventKind string

// maxEventKind bounds the length of a kind, in bytes.
const maxEventKind = 64

// named tells whether k can be a kind of event, perhaps of a newer program.
func (k EventKind) named() bool {
	return k != "" && len(k) <= maxEventKind && !strings.ContainsFunc(string(k), func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

// The events, in the order in which they usually come. Each comment says what
// must be durable before the event is recorded.
const (
	// EventInit starts the journal of a new installation. Sets the entry token.
	EventInit EventKind = "init"
	// EventBegin opens a transaction. Nothing has been changed yet.
	EventBegin EventKind = "begin"
	// EventTarget says which deployment the transaction makes and reserves the
	// sequence number of its entry. Objects and images are in the repository;
	// nothing of the deployment has a final name outside of it.
	EventTarget EventKind = "target"
	// EventPrepared stages the deployment: objects, images, refs, state, /etc and
	// the payload on the boot partition are durable and were read back.
	EventPrepared EventKind = "prepared"
	// EventRenumber gives the staged deployment or the transaction another
	// sequence number, because the file with the old one is damaged.
	EventRenumber EventKind = "renumber"
	// EventFinalizeFailed notes why the staged deployment could not be armed. It
	// stays staged.
	EventFinalizeFailed EventKind = "finalize-failed"
	// EventArmed says that the boot entry exists and was read back: the loader
	// will choose it.
	EventArmed EventKind = "armed"
	// EventBlessed says that the entry's deployment booted and is healthy.
	EventBlessed EventKind = "blessed"
	// EventFailed says that the loader gave up on the entry. Its deployment is
	// not tried again.
	EventFailed EventKind = "failed"
	// EventDownloadOnly makes the staged deployment wait, or no longer wait, for a
	// command before finalize takes it.
	EventDownloadOnly EventKind = "download-only"
	// EventReference says that a deployment follows another reference, or another
	// manifest of the same files: its records were changed.
	EventReference EventKind = "reference"
	// EventAborted closes a transaction that changed nothing that boots.
	EventAborted EventKind = "aborted"
	// EventDropped gives up the staged deployment.
	EventDropped EventKind = "dropped"
	// EventRetire announces that the deployment's entries, payload and state are
	// going to be removed.
	EventRetire EventKind = "retire"
	// EventUnretire takes EventRetire back: the deployment runs.
	EventUnretire EventKind = "unretire"
	// EventRetired says that nothing of the deployment is left.
	EventRetired EventKind = "retired"
)

// Event is one step. Which fields count depends on the kind; see State.Apply.
type Event struct {
	Kind        EventKind `json:"kind"`
	Transaction string    `json:"transaction,omitempty"` // id of the transaction
	Op          Op        `json:"op,omitempty"`
	Token       string    `json:"token,omitempty"`
	Reference   string    `json:"reference,omitempty"`   // image as the user named it
	Deployment  string    `json:"deployment,omitempty"`  // id
	BootDigest  string    `json:"boot_digest,omitempty"` // of the payload, hex sha256
	Entry       uint64    `json:"entry,omitempty"`       // sequence number
	Tries       uint      `json:"tries,omitempty"`       // 0: the entry is not counted
	Reason      string    `json:"reason,omitempty"`      // for people

	DownloadOnly bool     `json:"download_only,omitempty"` // of what is staged
	Gone         []uint64 `json:"gone,omitempty"`          // sequence numbers of entries that are not there any more
}

// Transaction is work that was begun and is neither done nor undone.
type Transaction struct {
	ID         string    `json:"id"`
	Op         Op        `json:"op"`
	Reference  string    `json:"reference"`
	Started    time.Time `json:"started"`
	Deployment string    `json:"deployment"`  // "" before EventTarget
	BootDigest string    `json:"boot_digest"` // ""
	Entry      uint64    `json:"entry"`       // 0
}

// Staged is the deployment that finalize arms.
type Staged struct {
	Deployment  string    `json:"deployment"`
	BootDigest  string    `json:"boot_digest"`
	Entry       uint64    `json:"entry"` // reserved sequence number
	Transaction string    `json:"transaction"`
	Prepared    time.Time `json:"prepared"`
	Failure     string    `json:"failure"` // why the last finalize failed, "" if it did not

	DownloadOnly bool `json:"download_only"` // finalize leaves it alone until a command takes this away
}

// ArmedEntry is a boot entry that was created.
type ArmedEntry struct {
	Seq        uint64    `json:"seq"`
	Deployment string    `json:"deployment"`
	BootDigest string    `json:"boot_digest"`
	Armed      time.Time `json:"armed"`
	Tries      uint      `json:"tries"`   // at creation; 0: not counted
	Blessed    bool      `json:"blessed"` // booted and healthy at least once
	Failed     bool      `json:"failed"`  // the loader gave up on it
	Retiring   bool      `json:"retiring"`
}

// Failure is a deployment that must not be tried again.
type Failure struct {
	Deployment string    `json:"deployment"`
	Reason     string    `json:"reason"`
	Time       time.Time `json:"time"`
}

// State is what the journal says about the machine. Each record carries the
// state after its event, so the last complete record is enough.
type State struct {
	Token       string       `json:"token"`      // in the names of boot entries
	NextEntry   uint64       `json:"next_entry"` // lowest sequence number never reserved
	Transaction *Transaction `json:"transaction"`
	Staged      *Staged      `json:"staged"`
	Entries     []ArmedEntry `json:"entries"` // by Seq, ascending
	Failed      []Failure    `json:"failed"`  // oldest first
	Orphans     []string     `json:"orphans"` // deployments with state or payload, but neither staged nor with an entry
}

const (
	maxListed = 256  // entries, failures, orphans
	maxReason = 4096 // bytes
)

// TransitionError reports an event that does not fit the state: a bug, or two
// programs that work at the same time.
type TransitionError struct {
	Event  EventKind
	Detail string // what was found and what was expected
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("journal event %s: %s", e.Event, e.Detail)
}

// Apply returns the state after event e, which happened at now. The receiver
// does not change. Errors are *TransitionError.
func (s State) Apply(e Event, now time.Time) (State, error) {
	step, ok := transitions[e.Kind]
	if !ok {
		return State{}, &TransitionError{e.Kind, "unknown"}
	}
	if (s.Token == "") != (e.Kind == EventInit) {
		return State{}, &TransitionError{e.Kind, fmt.Sprintf("the entry token is %q: init comes first and only once", s.Token)}
	}
	e.Reason = clip(e.Reason)
	next := s.clone()
	if err := step(&next, e, now.UTC().Truncate(time.Second)); err != nil {
		return State{}, err
	}
	if field, detail := next.check(); field != "" {
		return State{}, &TransitionError{e.Kind, field + ": " + detail}
	}
	return next, nil
}

// clip makes a text for people fit into a record.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "")
	}
	return s
}

// clone copies s so that changes do not reach the original. Lists are not nil
// afterwards, which gives "[]" in JSON.
func (s State) clone() State {
	if s.Transaction != nil {
		t := *s.Transaction
		s.Transaction = &t
	}
	if s.Staged != nil {
		st := *s.Staged
		s.Staged = &st
	}
	s.Entries = append([]ArmedEntry{}, s.Entries...)
	s.Failed = append([]Failure{}, s.Failed...)
	s.Orphans = append([]string{}, s.Orphans...)
	return s
}

// Newest is the entry with the highest sequence number that has not failed: what
// the loader should start. Nil if there is none.
func (s State) Newest() *ArmedEntry {
	for i := len(s.Entries) - 1; i >= 0; i-- {
		if !s.Entries[i].Failed && !s.Entries[i].Retiring {
			return &s.Entries[i]
		}
	}
	return nil
}

// Entry finds an entry by its sequence number, nil if it is not known.
func (s State) Entry(seq uint64) *ArmedEntry {
	i, ok := slices.BinarySearchFunc(s.Entries, seq, func(e ArmedEntry, seq uint64) int {
		switch {
		case e.Seq < seq:
			return -1
		case e.Seq > seq:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &s.Entries[i]
}

// LatestOf is the newest entry of a deployment, nil if it has none.
func (s State) LatestOf(deployment string) *ArmedEntry {
	for i := len(s.Entries) - 1; i >= 0; i-- {
		if s.Entries[i].Deployment == deployment {
			return &s.Entries[i]
		}
	}
	return nil
}

// FailureOf tells why a deployment must not be tried again, nil if it may.
func (s State) FailureOf(deployment string) *Failure {
	for i := len(s.Failed) - 1; i >= 0; i-- {
		if s.Failed[i].Deployment == deployment {
			return &s.Failed[i]
		}
	}
	return nil
}

// Deployments lists all deployments that the journal holds, each once: those
// with entries, newest entry first, then the staged one, then that of an
// unfinished transaction, then orphans. They are the roots of a garbage
// collection.
func (s State) Deployments() []string {
	var out []string
	add := func(id string) {
		if id != "" && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	for i := len(s.Entries) - 1; i >= 0; i-- {
		add(s.Entries[i].Deployment)
	}
	if s.Staged != nil {
		add(s.Staged.Deployment)
	}
	if s.Transaction != nil {
		add(s.Transaction.Deployment)
	}
	for _, id := range s.Orphans {
		add(id)
	}
	return out
}

// Rollback chooses what `rollback` without argument goes back to when booted
// runs: the deployment of the newest blessed entry that is not of the booted
// deployment, has not failed and is not being retired. Nil if there is none.
func (s State) Rollback(booted string) *ArmedEntry {
	for i := len(s.Entries) - 1; i >= 0; i-- {
		e := &s.Entries[i]
		if e.Deployment != booted && e.Blessed && !e.Failed && !e.Retiring && s.FailureOf(e.Deployment) == nil {
			return e
		}
	}
	return nil
}

// check gives the first field that breaks a rule of the format, and how.
func (s State) check() (field, detail string) {
	if !ValidToken(s.Token) {
		return "token", fmt.Sprintf("%q, want 1 to %d of a-z 0-9 . _ -", s.Token, maxToken)
	}
	if s.NextEntry == 0 || s.NextEntry > MaxEntrySeq {
		return "next_entry", fmt.Sprintf("%d, want 1 to %d", s.NextEntry, uint64(MaxEntrySeq))
	}
	if n := max(len(s.Entries), len(s.Failed), len(s.Orphans)); n > maxListed {
		return "entries", fmt.Sprintf("%d entries, failures or orphans, want at most %d", n, maxListed)
	}
	if t := s.Transaction; t != nil {
		if field, detail := t.check(s.NextEntry); field != "" {
			return "transaction." + field, detail
		}
	}
	if st := s.Staged; st != nil {
		if field, detail := checkTarget(st.Deployment, st.BootDigest, st.Entry, s.NextEntry); field != "" {
			return "staged." + field, detail
		}
	}
	last := uint64(0)
	for i, e := range s.Entries {
		if field, detail := checkTarget(e.Deployment, e.BootDigest, e.Seq, s.NextEntry); field != "" {
			return fmt.Sprintf("entries[%d].%s", i, field), detail
		}
		if e.Seq <= last {
			return fmt.Sprintf("entries[%d].seq", i), fmt.Sprintf("%d after %d, want ascending numbers", e.Seq, last)
		}
		last = e.Seq
	}
	for i, f := range s.Failed {
		if !isDigest(f.Deployment) {
			return fmt.Sprintf("failed[%d].deployment", i), badDigest(f.Deployment)
		}
	}
	for i, id := range s.Orphans {
		if !isDigest(id) {
			return fmt.Sprintf("orphans[%d]", i), badDigest(id)
		}
	}
	return "", ""
}

func (t *Transaction) check(nextEntry uint64) (field, detail string) {
	if !ValidToken(t.ID) {
		return "id", fmt.Sprintf("%q, want 1 to %d of a-z 0-9 . _ -", t.ID, maxToken)
	}
	if !t.Op.Valid() {
		return "op", fmt.Sprintf("%q, want install, upgrade, switch or rollback", t.Op)
	}
	if len(t.Reference) > maxReason {
		return "reference", fmt.Sprintf("%d bytes, want at most %d", len(t.Reference), maxReason)
	}
	if t.Deployment == "" && t.BootDigest == "" && t.Entry == 0 {
		return "", ""
	}
	return checkTarget(t.Deployment, t.BootDigest, t.Entry, nextEntry)
}

func checkTarget(deployment, bootDigest string, entry, nextEntry uint64) (field, detail string) {
	switch {
	case !isDigest(deployment):
		return "deployment", badDigest(deployment)
	case len(bootDigest) != 64 || !isLowerHex(bootDigest):
		return "boot_digest", fmt.Sprintf("%q, want 64 lower-case hex digits", bootDigest)
	case entry == 0 || entry >= nextEntry:
		return "entry", fmt.Sprintf("sequence number %d, want 1 to %d", entry, nextEntry-1)
	}
	return "", ""
}

func badDigest(s string) string {
	return fmt.Sprintf("%q, want 64 or 128 lower-case hex digits", s)
}
