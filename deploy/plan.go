package deploy

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// repair is one thing that the disk shows and the journal does not say yet.
type repair struct {
	RemoveEntry string // a torn file on the boot partition, removed before the event is recorded; or ""
	Event       record.Event
}

// nextRepair finds what a killed run, the loader or systemd-bless-boot did since
// the journal was written. Each one changes the state, so the caller applies it
// and asks again until there is none.
func nextRepair(f Facts) (repair, bool) {
	if t := f.State.Transaction; t != nil {
		return repairTransaction(f, t), true
	}
	if st := f.State.Staged; st != nil {
		switch e := f.EntryOf(st.Entry); {
		case e == nil && f.StagedGone:
			return repair{Event: record.Event{Kind: record.EventDropped, Deployment: st.Deployment, Reason: "its state is gone"}}, true
		case e == nil:
		case isEntryOf(e, st.Deployment, st.BootDigest):
			return repair{Event: record.Event{Kind: record.EventArmed, Deployment: st.Deployment, Entry: st.Entry, Tries: record.DefaultTries}}, true
		default:
			return repair{fileOfTorn(e), record.Event{Kind: record.EventRenumber, Deployment: st.Deployment}}, true
		}
	}
	for _, a := range f.State.Entries {
		e := f.EntryOf(a.Seq)
		if e == nil || e.Err != nil {
			continue
		}
		running := f.BootedID() == a.Deployment
		counter := e.Name.Counter
		switch {
		// systemd-bless-boot took the counter away, or an uncounted entry runs.
		case !a.Blessed && !counter.Present && (a.Tries > 0 || running):
			return repair{Event: record.Event{Kind: record.EventBlessed, Entry: a.Seq}}, true
		// While it runs, "+0-3" is its last try and may still turn out well.
		case !a.Failed && counter.Bad() && f.Booted != nil && !running:
			return repair{Event: record.Event{
				Kind: record.EventFailed, Entry: a.Seq,
				Reason: failedReason(f, a, counter.Done),
			}}, true
		}
	}
	return unretire(f)
}

// unretire takes a removal back that was interrupted while entries of its
// deployment were there, one of which has started it since. Of several entries
// those that are gone are forgotten; if none is left they are missed, as any other.
func unretire(f Facts) (repair, bool) {
	id := f.BootedID()
	retiring, whole := false, false
	var gone []uint64
	for _, a := range f.State.Entries {
		switch {
		case a.Deployment != id:
			continue
		case f.EntryOf(a.Seq) == nil:
			gone = append(gone, a.Seq)
		case f.whole(a):
			whole = true
		}
		retiring = retiring || a.Retiring
	}
	if !retiring {
		return repair{}, false
	}
	if !whole {
		gone = nil
	}
	return repair{Event: record.Event{Kind: record.EventUnretire, Deployment: id, Gone: gone}}, true
}

func repairTransaction(f Facts, t *record.Transaction) repair {
	aborted := repair{Event: record.Event{Kind: record.EventAborted, Transaction: t.ID, Reason: "the program did not finish"}}
	e := f.EntryOf(t.Entry)
	switch {
	case e == nil:
	case !t.Op.Stages() && isEntryOf(e, t.Deployment, t.BootDigest):
		tries := uint(0)
		if c := e.Name.Counter; c.Present {
			tries = c.Left + c.Done
		}
		return repair{Event: record.Event{Kind: record.EventArmed, Deployment: t.Deployment, Entry: t.Entry, Tries: tries}}
	default:
		aborted.RemoveEntry = fileOfTorn(e)
	}
	return aborted
}

// fileOfTorn is the file of an entry that starts nothing: all that a killed run
// can leave of one beside the whole. A whole one that is not what was to be made
// is of a journal that is lost, and stays. "": it stays.
func fileOfTorn(e *esp.Entry) string {
	if _, _, err := e.Entry.Kind(); err == nil && e.Err == nil {
		return ""
	}
	return e.File
}

// isEntryOf tells whether the file is complete: the loader boots this
// deployment with it.
func isEntryOf(e *esp.Entry, deployment, bootDigest string) bool {
	return fileOfTorn(e) == "" && e.ImageID() == deployment && e.Payload() == bootDigest
}

// action is what an upgrade comes down to once the manifest is known.
type action string

const (
	actNothing action = "nothing" // the default is this image already
	actKeep    action = "keep"    // it is staged already
	actDrop    action = "drop"    // only the staged deployment is in the way
	actRearm   action = "rearm"   // it runs, but something else is the default
	actStage   action = "stage"   // it has to be pulled and staged
)

// decideUpgrade compares the manifest that the reference stands for now with
// what is deployed.
func decideUpgrade(f Facts, manifest string, retry bool) (action, error) {
	has := func(id string) bool { return id != "" && f.Deployments[id].ManifestDigest == manifest }
	next := f.nextID()
	staged := f.State.Staged
	switch {
	case staged != nil && has(staged.Deployment):
		return actKeep, nil
	case next != f.BootedID() && f.broken(next): // it would not boot
		if has(f.BootedID()) {
			return actRearm, nil
		}
	case has(next) && staged != nil:
		return actDrop, nil
	case has(next):
		return actNothing, nil
	case has(f.BootedID()):
		return actRearm, nil
	}
	for _, x := range f.State.Failed {
		if has(x.Deployment) {
			return actStage, refuseFailed(f.State, x.Deployment, retry)
		}
	}
	return actStage, nil
}

// refuseFailed refuses a deployment that the loader gave up on.
func refuseFailed(s record.State, id string, retry bool) error {
	if x := s.FailureOf(id); x != nil && !retry {
		return refuse(CodeFailed, "deployment %s did not boot on %s (%s); it is not tried again without --retry", short(id), x.Time.Format("2006-01-02"), x.Reason)
	}
	return nil
}

// rollbackPlan is what `rollback` does.
type rollbackPlan struct {
	Target  record.ArmedEntry // latest entry of the deployment to go to
	Tries   uint              // 0: it is known to be good
	Drop    string            // the staged deployment, given up after it; or ""
	Default bool              // Target is the default already: no new entry
}

// decideRollback chooses the deployment to go back to. id may be a prefix of
// one; "" means the previous good one, or the running one if the default is another
// one that was never booted or cannot boot. ErrNothingToDo: it is the default already.
func decideRollback(f Facts, id string) (rollbackPlan, error) {
	var p rollbackPlan
	if f.State.Staged != nil {
		p.Drop = f.State.Staged.Deployment
	}
	booted, next := f.BootedID(), f.nextID()
	var target *record.ArmedEntry
	switch latest := f.State.LatestOf(next); {
	case id != "":
		full, err := completeID(id, withEntries(f.State), "no deployment %q has a boot entry")
		if err != nil {
			return p, err
		}
		target = f.State.LatestOf(full)
	case latest != nil && next != booted && latest.Blessed && f.bootable(next):
		target = latest
	case latest != nil && next != booted:
		target = f.State.LatestOf(booted)
	default:
		target = f.rollbackTarget()
	}
	if target == nil {
		return p, refuse(CodeNoRollback, "no deployment to go back to: no other one has booted and was found healthy")
	}
	p.Target = *target
	if !target.Blessed {
		p.Tries = record.DefaultTries
	}
	p.Default = next == target.Deployment && (next == booted || f.bootable(next)) // else the command says what is wrong
	if p.Default && p.Drop == "" {
		return p, ErrNothingToDo
	}
	return p, nil
}

// minPrefix is how many digits of an id have to be given at least.
const minPrefix = 4

// completeID completes a prefix of one of the ids. none is what to say, with the
// prefix, if there is none.
func completeID(prefix string, ids []string, none string) (string, error) {
	prefix = strings.ToLower(prefix)
	found := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return !strings.HasPrefix(id, prefix) })
	switch {
	case len(prefix) < minPrefix:
		return "", refuse(CodeUnknown, "deployment %q: got %d digits, want at least %d", prefix, len(prefix), minPrefix)
	case len(found) == 0:
		return "", refuse(CodeUnknown, none, prefix)
	case len(found) > 1:
		return "", refuse(CodeUnknown, "%q is the beginning of %d deployments, want more digits", prefix, len(found))
	}
	return found[0], nil
}

// withEntries lists the deployments that have a boot entry and are not being
// removed, each once.
func withEntries(s record.State) (ids []string) {
	for _, a := range s.Entries {
		if !a.Retiring && !slices.Contains(ids, a.Deployment) {
			ids = append(ids, a.Deployment)
		}
	}
	return ids
}

// retirable lists the deployments that may be removed to make room, the first
// one first: failed ones, then the oldest, and as a last resort the one that
// rollback goes to, if the running one is known to be good. The booted, the
// staged and the default stay, and so does keep.
func retirable(f Facts, keep string) []string {
	var hold []string
	var last []string
	for _, k := range held(f) {
		if k.Why == WhyRollback && k.Deployment != keep && f.good(f.BootedID()) {
			last = append(last, k.Deployment)
		}
		hold = append(hold, k.Deployment)
	}
	hold = append(hold, keep)
	var failed, old []string
	for _, e := range f.State.Entries {
		switch id := e.Deployment; {
		case slices.Contains(hold, id), slices.Contains(failed, id), slices.Contains(old, id):
		case f.State.LatestOf(id).Failed:
			failed = append(failed, id)
		default:
			old = append(old, id)
		}
	}
	return slices.Concat(failed, old, last)
}

// maxEntries is how many boot entries the machine keeps before old deployments
// go without need: far below what a record of the journal takes.
const maxEntries = 128

// crowding lists the deployments that go because there are too many entries.
func crowding(f Facts, keep string) []string {
	ids := retirable(f, keep)
	if r := f.rollbackTarget(); r != nil { // not for this
		ids = slices.DeleteFunc(ids, func(id string) bool { return id == r.Deployment || id == f.fallback() })
	}
	return ids[:min(len(ids), max(0, len(f.State.Entries)-maxEntries))]
}

// stalePayloads lists the payloads on the boot partition that no entry of
// anyone names and no deployment of the journal needs that stays. What an entry
// that cannot be read may name is not stale.
func stalePayloads(f Facts, keep string) []string {
	used := []string{keep}
	for _, a := range f.State.Entries {
		if !a.Retiring {
			used = append(used, a.BootDigest)
		}
	}
	if st := f.State.Staged; st != nil {
		used = append(used, st.BootDigest)
	}
	if t := f.State.Transaction; t != nil {
		used = append(used, t.BootDigest)
	}
	return slices.DeleteFunc(slices.Clone(f.Payloads), func(d string) bool {
		return slices.Contains(used, d) || slices.ContainsFunc(f.Entries, func(e esp.Entry) bool { return e.MayName(d) })
	})
}

// candidate are deployments that make room together: those that share a payload.
type candidate struct {
	IDs   []string
	Frees int64 // bytes on the boot partition
}

// groups makes candidates of deployments that may go, in their order: a payload
// is free when the last one goes that uses it. What a file of somebody else names
// does not become free. size tells what a payload takes.
func groups(f Facts, ids []string, size func(digest string) int64) []candidate {
	users := map[string][]string{} // of a payload
	use := func(digest, id string) {
		if id != "" && !slices.Contains(users[digest], id) {
			users[digest] = append(users[digest], id)
		}
	}
	for _, a := range f.State.Entries {
		use(a.BootDigest, a.Deployment)
	}
	if st := f.State.Staged; st != nil {
		use(st.BootDigest, st.Deployment)
	}
	if t := f.State.Transaction; t != nil {
		use(t.BootDigest, t.Deployment)
	}
	digests := slices.Sorted(maps.Keys(users))
	// What an entry names goes after the entry: see stalePayloads. One that is not in
	// the journal stays.
	for _, e := range f.Entries {
		user := esp.EntryDir
		if a := f.known(e); a != nil {
			user = a.Deployment
		}
		for _, digest := range digests {
			if e.MayName(digest) {
				use(digest, user)
			}
		}
	}
	var out []candidate
	gone := map[string]bool{}
	done := map[string]bool{}
	for _, id := range ids {
		gone[id] = true
		for _, digest := range digests {
			all := users[digest]
			if done[digest] || !slices.Contains(all, id) || slices.ContainsFunc(all, func(u string) bool { return !gone[u] }) {
				continue
			}
			done[digest] = true
			var together []string
			for _, x := range ids {
				if slices.Contains(all, x) {
					together = append(together, x)
				}
			}
			out = append(out, candidate{together, size(digest)})
		}
	}
	return out
}

// planRoom chooses the candidates to retire so that need bytes fit and the
// reserve stays, as few as possible. where names the partition. If it cannot
// fit the error is a *durable.SpaceError and nothing is to be retired.
func planRoom(where string, need int64, space esp.Space, candidates []candidate) ([]string, error) {
	want := need + esp.Reserve(space.Total)
	have := space.Free
	var retire []string
	for _, c := range candidates {
		if have >= want {
			break
		}
		if c.Frees > 0 {
			have += c.Frees
			for _, id := range c.IDs {
				if !slices.Contains(retire, id) {
					retire = append(retire, id)
				}
			}
		}
	}
	if have < want {
		return nil, &durable.SpaceError{Where: where, Need: want, Have: have, Err: unix.ENOSPC}
	}
	return retire, nil
}

// short cuts an id for messages.
func short(id string) string {
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// isNothing tells an error apart that is no failure.
func isNothing(err error) bool { return errors.Is(err, ErrNothingToDo) }
