package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/repo"
)

// Removal is what Delete or GC removed from the machine, or GC would. Its fields
// are printed.
type Removal struct {
	DryRun  bool      `json:"dry_run"`
	Removed []Removed `json:"removed"` // deployments, in the order in which they went; never null
	Kept    []Kept    `json:"kept"`    // never null
	// BootFreedBytes is what has become free on the boot partition.
	BootFreedBytes int64    `json:"boot_freed_bytes"`
	Default        string   `json:"default"`  // deployment of the next boot
	Warnings       []string `json:"warnings"` // never null
	// Repaired is what an interrupted command had left; never null, and empty for a
	// dry run, which repairs nothing.
	Repaired []Repaired `json:"repaired"`
	// Repository is what was collected there; nil: nothing was looked for.
	Repository *repo.Collected `json:"-"`
}

// Removed is a deployment that went.
type Removed struct {
	Deployment string `json:"deployment"`
	Title      string `json:"title"`
	Version    string `json:"version"`
}

func (m *machine) newRemoval(ids []string) *Removal {
	r := &Removal{Removed: []Removed{}, Kept: []Kept{}, Warnings: []string{}, Repaired: []Repaired{}}
	for _, id := range ids {
		d := m.facts.Deployments[id]
		r.Removed = append(r.Removed, Removed{id, d.Title, d.OSVersion})
	}
	return r
}

// DeleteOptions are those of Delete.
type DeleteOptions struct {
	Options
	ID string // of the deployment, or its first digits
}

// Delete removes one deployment: its boot entries, payload, state, refs, and
// what nothing else needs of the repository. The running one, the staged one, and
// the last one that is known to boot are refused. What rollback would go to, or
// the default of the next boot, may be deleted; a warning says what takes its
// place.
//
// Errors: *RefusedError, *ConflictError (an entry of somebody else starts it),
// *repo.LockedError. A second call after an interrupted one finishes it.
func Delete(ctx context.Context, o DeleteOptions) (_ *Removal, err error) {
	m, err := openFreeing(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	plan, err := decideDelete(m.facts, o.ID)
	if err != nil {
		m.tidy(ctx)
		return nil, err
	}
	out := m.newRemoval([]string{plan.ID})
	out.Warnings = append(out.Warnings, plan.Warnings...)
	before, err := m.space(m.esp)
	if err != nil {
		return nil, err
	}
	if err := m.freeing(ctx, false, func() error { return m.retireOn(ctx, plan.ID) }); err != nil {
		return nil, fmt.Errorf("delete deployment %s: %w", short(plan.ID), err)
	}
	if err := m.cleanLeftovers(ctx); err != nil {
		return nil, fmt.Errorf("clean up after deployment %s: %w", short(plan.ID), err)
	}
	out.Repository, err = m.collectGarbage(ctx, false)
	if err := out.later(err); err != nil {
		return nil, err
	}
	m.journal.prune(record.KeepRecords)
	return out, m.finish(out, before.Free)
}

// later makes a warning of what keeps garbage collection from running now.
func (r *Removal) later(err error) error {
	var locked *repo.LockedError
	var roots *repo.RootsError
	if errors.As(err, &locked) || errors.As(err, &roots) {
		r.Warnings = append(r.Warnings, fmt.Sprintf("objects stay in the repository until the next garbage collection: %v", err))
		return nil
	}
	return err
}

// finish fills in what is left, and what the boot partition has gained.
func (m *machine) finish(out *Removal, free int64) error {
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	out.BootFreedBytes = max(0, space.Free-free)
	out.Default = m.facts.nextID()
	_, out.Kept = planRetire(m.facts, maxListed)
	out.Repaired = m.repairs()
	out.Warnings = append(out.Warnings, m.stateWarnings(0)...)
	return nil
}

// maxListed is more than there are deployments.
const maxListed = 1 << 16

// deletePlan is what `delete` does.
type deletePlan struct {
	ID       string
	Warnings []string
}

// decideDelete looks whether a deployment may go.
func decideDelete(f Facts, prefix string) (deletePlan, error) {
	id, err := completeID(prefix, f.State.Deployments(), "there is no deployment %q")
	if err != nil {
		return deletePlan{}, err
	}
	plan := deletePlan{ID: id}
	latest := f.State.LatestOf(id)
	switch st := f.State.Staged; {
	case id == f.BootedID():
		return plan, refuse(CodeBooted, "deployment %s is running; boot another one first (`cfsboot rollback` and a reboot)", short(id))
	case st != nil && st.Deployment == id:
		return plan, refuse(CodeStaged, "deployment %s is staged; `cfsboot rollback %s` gives it up", short(id), short(f.BootedID()))
	case latest != nil && latest.Retiring: // a killed run has begun it
		return plan, nil
	}
	if files := foreignStarters(f, id); len(files) > 0 {
		slices.Sort(files)
		return plan, &ConflictError{What: "boot entries that cfsboot did not make start deployment " + short(id), Paths: files}
	}
	if isLast(f, id) {
		what, running := "that is known to boot", "has not been found healthy yet"
		if !f.good(id) {
			what = "that was found healthy"
		}
		if f.proved(f.BootedID()) {
			running = "lacks something that it needs to boot"
		}
		return plan, refuse(CodeLast, "deployment %s is the only one %s; the running one %s", short(id), what, running)
	}
	plan.Warnings = deleteWarnings(f, id)
	return plan, nil
}

// isLast tells whether no other deployment would do as well to fall back to, while
// the running one may be none.
func isLast(f Facts, id string) bool {
	n := f.standing(id)
	return n > 0 && !f.good(f.BootedID()) && !slices.ContainsFunc(f.State.Entries, func(a record.ArmedEntry) bool {
		return a.Deployment != id && f.standing(a.Deployment) >= n
	})
}

// deleteWarnings says what takes the place of a deployment.
func deleteWarnings(f Facts, id string) (warnings []string) {
	after := f.without([]string{id})
	if f.nextID() == id {
		next := "nothing"
		if n := after.nextID(); n != "" {
			next = short(n)
		}
		warnings = append(warnings, fmt.Sprintf("deployment %s was the default of the next boot; now it is %s", short(id), next))
	}
	if r := f.rollbackTarget(); r != nil && r.Deployment == id {
		if r := after.rollbackTarget(); r != nil {
			warnings = append(warnings, fmt.Sprintf("deployment %s was what `cfsboot rollback` goes to; now it is %s", short(id), short(r.Deployment)))
		} else {
			warnings = append(warnings, fmt.Sprintf("deployment %s was what `cfsboot rollback` goes to; nothing is left to go back to", short(id)))
		}
	}
	return warnings
}

// GCOptions are those of GC.
type GCOptions struct {
	Options
	Keep         int // deployments beside those in use; negative: as configured
	DryRun       bool
	DropDangling bool // see repo.CollectOptions
}

// GC retires the deployments that are not to be kept, removes what killed runs
// and given up deployments have left, and collects garbage in the repository. The
// running deployment, the staged one, the default and the one that rollback goes
// to always stay. A dry run writes nothing.
//
// Nothing is removed by rule while the boot partition does not show an entry of a
// deployment of the journal, or what is in use cannot be followed: *RefusedError,
// *repo.RootsError. Other errors: *repo.LockedError.
func GC(ctx context.Context, o GCOptions) (_ *Removal, err error) {
	then := func(m *machine) error { return m.freeing(ctx, o.DropDangling, m.recover) }
	if o.DryRun {
		then = (*machine).foresee
	}
	m, err := open(ctx, o.Options, then, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	keep := o.Keep
	if keep < 0 {
		if keep, err = m.keepCount(); err != nil {
			return nil, err
		}
	}
	if err := checkEntries(m.facts); err != nil {
		return nil, err
	}
	if o.DryRun {
		return m.foreseeGC(ctx, keep)
	}
	ids, _ := planRetire(m.facts, keep)
	out := m.newRemoval(ids)
	before, err := m.space(m.esp)
	if err != nil {
		return nil, err
	}
	// What is in use is looked at before a deployment goes because of a rule.
	if err := m.checkRoots(ctx, o.DropDangling); err != nil {
		return nil, err
	}
	for _, id := range ids {
		if err := m.freeing(ctx, o.DropDangling, func() error { return m.retireOn(ctx, id) }); err != nil {
			return nil, fmt.Errorf("retire deployment %s: %w", short(id), err)
		}
	}
	if err := m.cleanLeftovers(ctx); err != nil {
		return nil, err
	}
	if out.Repository, err = m.collectGarbage(ctx, o.DropDangling); err != nil {
		return nil, err
	}
	m.journal.prune(record.KeepRecords)
	return out, m.finish(out, before.Free)
}

// retireOn retires a deployment, or goes on with it if that was begun.
func (m *machine) retireOn(ctx context.Context, id string) error {
	switch a := m.facts.State.LatestOf(id); {
	case a != nil && a.Retiring:
		return m.finishRetire(ctx, id)
	case slices.Contains(m.facts.State.Deployments(), id):
		return m.retire(ctx, id)
	}
	return nil // it is gone
}

// checkRoots finds out whether everything that is in use can be followed.
func (m *machine) checkRoots(ctx context.Context, dropDangling bool) error {
	opts := m.collectOptions(ctx)
	opts.DryRun, opts.DropDangling = true, dropDangling
	_, err := m.repo.Collect(ctx, opts)
	return err
}

// foreseeGC says what GC would do.
func (m *machine) foreseeGC(ctx context.Context, keep int) (*Removal, error) {
	ids, kept := planRetire(m.facts, keep)
	out := m.newRemoval(ids)
	out.DryRun, out.Kept, out.Default = true, kept, m.facts.nextID()
	space, err := m.space(m.esp)
	if err != nil {
		return nil, err
	}
	ids = append(ids, retiring(m.facts)...) // a run finishes these
	for _, digest := range stalePayloads(m.facts.without(ids), "") {
		out.BootFreedBytes += m.esp.PayloadSize(digest, space.Cluster)
	}
	known := m.facts.State.Deployments()
	gone, err := m.strayRefs(known)
	if err != nil {
		return nil, err
	}
	gone = append(gone, ids...)
	for _, id := range m.facts.State.Orphans {
		if !m.facts.Startable(id) {
			gone = append(gone, id)
		}
	}
	out.Repository, err = m.foreseeCollect(ctx, gone)
	return out, err
}
