package deploy

import (
	"context"
	"fmt"
	"slices"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// Why a deployment stays. A deployment may stay for several reasons; the first
// one counts.
const (
	WhyBooted     = "booted"
	WhyStaged     = "staged"
	WhyDefault    = "default"  // of the next boot
	WhyRollback   = "rollback" // what `rollback` goes to
	WhyUnfinished = "unfinished"
	WhyForeign    = "foreign-entry" // a boot entry of somebody else starts it
	WhyFailed     = "failed"        // the machine fell back from it: status tells why
	WhyKeep       = "keep"          // one of the others that are configured to stay
)

// Kept is a deployment that stays.
type Kept struct {
	Deployment string `json:"deployment"`
	Title      string `json:"title"`
	Version    string `json:"version"`
	Why        string `json:"why"` // one of the Why constants
}

// held lists the deployments that are in use and why. It holds whatever is short.
func held(f Facts) []Kept {
	var out []Kept
	add := func(id, why string) {
		if id == "" || slices.ContainsFunc(out, func(k Kept) bool { return k.Deployment == id }) {
			return
		}
		d := f.Deployments[id]
		out = append(out, Kept{id, d.Title, d.OSVersion, why})
	}
	add(f.BootedID(), WhyBooted)
	if st := f.State.Staged; st != nil {
		add(st.Deployment, WhyStaged)
	}
	add(f.nextID(), WhyDefault)
	if n := f.State.Newest(); n != nil {
		add(n.Deployment, WhyDefault) // if its entry is damaged, the next command makes another
	}
	if t := f.State.Transaction; t != nil {
		add(t.Deployment, WhyUnfinished)
	}
	if r := f.rollbackTarget(); r != nil {
		add(r.Deployment, WhyRollback)
	}
	if id := f.fallback(); id != "" {
		add(id, WhyRollback) // another one only if the entry of the first is gone
	}
	for _, id := range f.State.Deployments() {
		if len(foreignStarters(f, id)) > 0 {
			add(id, WhyForeign)
		}
	}
	return out
}

// foreignStarters lists the files on the boot partition that may start a deployment
// and are not in the journal: those that name its image. Of one that cannot be read
// nobody knows.
func foreignStarters(f Facts, id string) []string {
	var files []string
	for _, e := range f.Entries {
		if f.known(e) == nil && !e.Unread() && e.MayName(id) {
			files = append(files, e.File)
		}
	}
	return files
}

// planRetire decides which deployments go when keep others are to stay, the
// first one first: failed ones, then the oldest. What is being removed already is
// in neither list.
func planRetire(f Facts, keep int) (retire []string, kept []Kept) {
	kept = held(f)
	has := func(id string) bool {
		return slices.ContainsFunc(kept, func(k Kept) bool { return k.Deployment == id })
	}
	add := func(id, why string) {
		d := f.Deployments[id]
		kept = append(kept, Kept{id, d.Title, d.OSVersion, why})
	}
	good, fell := 0, fellBack(f.State)
	for _, a := range slices.Backward(f.State.Entries) {
		id := a.Deployment
		if has(id) || a.Retiring || slices.Contains(retire, id) {
			continue
		}
		switch {
		case id == fell:
			add(id, WhyFailed)
		case !a.Failed && good < keep:
			good++
			add(id, WhyKeep)
		default:
			retire = append(retire, id)
		}
	}
	slices.Reverse(retire)
	slices.SortStableFunc(retire, func(a, b string) int {
		return boolOrder(f.State.LatestOf(b).Failed) - boolOrder(f.State.LatestOf(a).Failed)
	})
	return retire, kept
}

// fellBack is the deployment that the machine fell back from last, until one that
// is newer than it has booted well. "": there is none.
func fellBack(s record.State) string {
	newer := map[string]bool{} // deployments with a good entry above
	for _, a := range slices.Backward(s.Entries) {
		if a.Failed && !a.Retiring {
			for id := range newer {
				first := slices.IndexFunc(s.Entries, func(x record.ArmedEntry) bool { return x.Deployment == id })
				if s.Entries[first].Seq > a.Seq {
					return ""
				}
			}
			return a.Deployment
		}
		if a.Blessed {
			newer[a.Deployment] = true
		}
	}
	return ""
}

func boolOrder(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lostEntry finds a deployment none of whose boot entries is on the partition any
// more, though nobody has begun to remove it: then this may be the wrong one, or
// its directory is damaged, and what the journal says is not what starts.
func lostEntry(f Facts) string {
	for _, id := range f.State.Deployments() {
		a := f.State.LatestOf(id)
		if a == nil || a.Retiring {
			continue
		}
		if !slices.ContainsFunc(f.State.Entries, func(a record.ArmedEntry) bool { return a.Deployment == id && f.whole(a) }) {
			return id
		}
	}
	return ""
}

// whole tells whether the file of an entry is there and complete.
func (f Facts) whole(a record.ArmedEntry) bool {
	e := f.EntryOf(a.Seq)
	return e != nil && isEntryOf(e, a.Deployment, a.BootDigest)
}

// good tells whether a deployment has booted well and can be started: its entry is
// whole, and nothing is seen to be missing of what that needs.
func (f Facts) good(id string) bool { return f.proved(id) && f.bootable(id) }

// proved tells whether a deployment has booted well and its entry is whole.
func (f Facts) proved(id string) bool {
	return slices.ContainsFunc(f.State.Entries, func(a record.ArmedEntry) bool {
		return a.Deployment == id && a.Blessed && !a.Failed && !a.Retiring && f.whole(a)
	})
}

// standing is how well a deployment will do as the one to fall back to: the more the
// better. 0: it was never found healthy, or its entry is not whole.
func (f Facts) standing(id string) int {
	switch {
	case !f.proved(id):
		return 0
	case !f.bootable(id):
		return 1 // what it lacks may come back
	case f.broken(id):
		return 2 // the menu starts it
	}
	return 3
}

// fallback is the newest deployment but the running one that has booted well and
// can be started as it is. "": there is none.
func (f Facts) fallback() string {
	for _, a := range slices.Backward(f.State.Entries) {
		if a.Deployment != f.BootedID() && f.good(a.Deployment) {
			return a.Deployment
		}
	}
	return ""
}

// checkEntries refuses to retire by policy while the partition does not show what
// the journal says (lifecycle.md 6.3 G4).
func checkEntries(f Facts) error {
	id := lostEntry(f)
	if id == "" {
		return nil
	}
	return refuse(CodeEntries, "no boot entry of deployment %s can be read on the boot partition, so nothing is removed by rule; `cfsboot delete %s` gives it up", short(id), short(id))
}

// retiringKeep is how many deployments stay beside those in use. The error is why
// nothing is removed by rule.
func (m *machine) retiringKeep() (int, error) {
	keep, err := m.keepCount()
	if err != nil {
		return 0, err
	}
	return keep, checkEntries(m.facts)
}

// retireOld retires what the configuration does not keep. It is a part of
// cleaning up, so it does nothing where it may not.
func (m *machine) retireOld(ctx context.Context) error {
	if m.facts.Booted == nil || m.facts.State.Transaction != nil {
		return nil // an installation, or a failure that is told already
	}
	keep, err := m.retiringKeep()
	if err != nil {
		m.Logger.Warn("old deployments stay", "error", err)
		return nil
	}
	ids, _ := planRetire(m.facts, keep)
	for _, id := range ids {
		if err := m.retire(ctx, id); err != nil {
			return fmt.Errorf("retire deployment %s: %w", short(id), err)
		}
	}
	return nil
}
