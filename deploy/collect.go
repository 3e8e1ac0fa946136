package deploy

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// pendingName says that the repository holds what a deployment that is gone has
// left: it is made before its refs go, and removed after a garbage collection.
const pendingName = stateTop + "/collect"

func (m *machine) notePending() error {
	ok, err := m.top.Exists(pendingName)
	if err != nil || ok {
		return err
	}
	return m.top.WriteFile(pendingName, nil, stateFilePerm)
}

// collectPending collects garbage if something was given up since the last time.
// While somebody else uses the repository it stays for the next run, and so it
// does at a shutdown, which must not take long, and where a ref leads to nothing.
func (m *machine) collectPending(ctx context.Context) error {
	if m.hurry {
		return nil
	}
	ok, err := m.top.Exists(pendingName)
	if err != nil || !ok {
		return err
	}
	_, err = m.collectGarbage(ctx, false)
	var locked *repo.LockedError
	if errors.As(err, &locked) {
		m.Logger.Info("objects of deployments that are gone stay for now", "why", err)
		return nil
	}
	var roots *repo.RootsError
	if errors.As(err, &roots) { // a name of somebody else, perhaps: `cfsboot gc` says it as an error
		m.Logger.Warn("objects of deployments that are gone stay", "error", err)
		return nil
	}
	return err
}

// freeing calls do, which frees space but writes a little before that. Where the
// disk is too full for it, what needs no writing goes first: what is on its way out,
// and garbage in the repository.
func (m *machine) freeing(ctx context.Context, dropDangling bool, do func() error) error {
	err := do()
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	m.Logger.Info("no room to write: collecting garbage first", "error", err)
	_, err2 := m.collectGarbage(ctx, dropDangling)
	if err2 = errors.Join(m.cleanTrash(ctx), err2); err2 != nil {
		m.Logger.Warn("collect garbage", "error", err2)
	}
	return do()
}

// collectGarbage removes what nothing in the repository needs. Images of all that the
// machine knows stay, with and without refs. A machine whose running image is not in
// the repository is not one to remove anything from. The result has what this run
// has collected before, too.
func (m *machine) collectGarbage(ctx context.Context, dropDangling bool) (*repo.Collected, error) {
	o := m.collectOptions(ctx)
	o.DropDangling, o.LockWait = dropDangling, m.LockWait
	if err := oci.Forget(ctx, m.repo); err != nil {
		m.Logger.Warn("forget what is known about layers", "error", err)
	}
	c, err := m.repo.Collect(ctx, o)
	if err != nil {
		return nil, err
	}
	if e := m.collected; e != nil {
		c.Objects, c.Bytes, c.Images, c.Streams, c.Temporaries = c.Objects+e.Objects, c.Bytes+e.Bytes, c.Images+e.Images, c.Streams+e.Streams, c.Temporaries+e.Temporaries
		c.Dangling = append(e.Dangling, c.Dangling...)
	}
	m.collected = c
	if err := m.top.Remove(pendingName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return c, nil
}

func (m *machine) collectOptions(ctx context.Context) repo.CollectOptions {
	return repo.CollectOptions{Images: func() ([]string, error) {
		if id := m.facts.BootedID(); id != "" {
			if err := m.checkImage(ctx, id); err != nil {
				return nil, &RefusedError{Code: CodeRoots, Detail: "the running image " + short(id) + " is not in the repository, so nothing is removed from it", Err: err}
			}
		}
		return HeldImages(m.repo, m.top, m.Root)
	}}
}

// foreseeCollect says what a garbage collection would remove if deployments were
// gone.
func (m *machine) foreseeCollect(ctx context.Context, gone []string) (*repo.Collected, error) {
	o := m.collectOptions(ctx)
	images := o.Images
	o.DryRun, o.Without = true, m.without(gone)
	o.Images = func() ([]string, error) {
		ids, err := images()
		return slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(gone, id) }), err
	}
	return m.repo.Collect(ctx, o)
}
