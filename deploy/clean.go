package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
)

// trashDir holds state on its way out.
const trashDir = stateTop + "/trash"

// clean follows a command that has done what it was asked for: it removes what is
// no longer needed, old deployments beyond those that are to be kept included.
// Removing is not what the user asked for, so a failure is only logged: the next run
// tries again.
func (m *machine) clean(ctx context.Context) {
	m.logged(m.cleanSteps(ctx, m.cleanLeftovers, m.retireOld, m.collectPending))
}

// tidy follows a command that was refused, has failed or found nothing to do: it
// finishes what a run that was killed after its last record has left, and gives no
// deployment up.
func (m *machine) tidy(ctx context.Context) {
	m.logged(m.tidyNow(ctx))
}

// tidyNow is tidy for the command that does nothing else.
func (m *machine) tidyNow(ctx context.Context) error {
	return m.cleanSteps(ctx, m.cleanLeftovers, m.collectPending)
}

func (m *machine) logged(err error) {
	if err != nil {
		m.Logger.Warn("clean up", "error", err)
	}
}

func (m *machine) cleanSteps(ctx context.Context, steps ...func(context.Context) error) error {
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	m.journal.prune(record.KeepRecords)
	return nil
}

// cleanLeftovers removes what no deployment of the journal needs: half-made and
// dropped state, orphans, payloads that nobody names, refs of deployments that are
// gone.
func (m *machine) cleanLeftovers(ctx context.Context) error {
	for _, step := range []func(context.Context) error{m.cleanStaged, m.cleanEtc, m.cleanTemps, m.cleanOrigins, m.cleanOrphans, m.cleanRetiring, m.cleanPayloads, m.cleanRefs, m.cleanTrash} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// cleanStaged removes staged state that is not of the staged deployment. That of
// orphans goes when they do: it says which tag they have. So does an older state of a
// deployment that changed places with what was staged.
func (m *machine) cleanStaged(ctx context.Context) error {
	list, err := m.top.ReadSubDir(stagedDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	s := m.facts.State
	for _, x := range list {
		if s.Staged != nil && s.Staged.Deployment == x.Name || s.Transaction != nil && s.Transaction.Deployment == x.Name || slices.Contains(s.Orphans, x.Name) {
			continue
		}
		if d, err := readDeployment(m.top, stagedDir, x.Name); err == nil && d.Reference != m.facts.Deployments[d.ID].Reference {
			if err := m.untag(ctx, d); err != nil {
				return err
			}
		}
		if err := m.top.RemoveAll(stagedDir + "/" + x.Name); err != nil {
			return err
		}
	}
	return nil
}

// cleanEtc removes what a killed finalize has left of a merge.
func (m *machine) cleanEtc(context.Context) error {
	for _, parent := range []string{record.StateDir, stagedDir} {
		list, err := m.top.ReadSubDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, x := range list {
			name := parent + "/" + x.Name + "/" + newEtc
			if ok, err := m.top.Exists(name); err != nil || !ok {
				continue // not a deployment, or nothing to remove
			}
			if err := m.top.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanTemps removes the temporary files that a killed run has left of records.
// Their names are never those of anything else.
func (m *machine) cleanTemps(context.Context) error {
	dirs := []string{record.JournalDir}
	for _, parent := range []string{record.StateDir, stagedDir} {
		list, err := m.top.ReadSubDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, x := range list {
			if x.IsDir() {
				dirs = append(dirs, parent+"/"+x.Name)
			}
		}
	}
	for _, dir := range dirs {
		list, err := m.top.ReadSubDir(dir)
		if err != nil {
			return err
		}
		for _, x := range list {
			if x.IsDir() || !strings.HasPrefix(x.Name, durable.DefaultTempPrefix) {
				continue
			}
			if err := m.top.Remove(dir + "/" + x.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// cleanOrigins makes the origin of a deployment, which is for bootc, say what its
// record says: a killed run may have replaced only one of them.
func (m *machine) cleanOrigins(context.Context) error {
	for _, parent := range []string{record.StateDir, stagedDir} {
		list, err := m.top.ReadSubDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, x := range list {
			if !x.IsDir() || !isID(x.Name) {
				continue
			}
			d, err := readDeployment(m.top, parent, x.Name)
			if err != nil {
				continue // the record is what counts, and look has reported it
			}
			if err := m.cleanOrigin(parent+"/"+x.Name, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *machine) cleanOrigin(name string, d record.Deployment) error {
	want, err := originOf(d)
	if err != nil {
		return err
	}
	got, err := m.top.ReadFile(name+"/"+record.OriginName(d.ID), maxStateFile)
	if err == nil && bytes.Equal(got, want) {
		return nil
	}
	dir, err := m.top.Sub(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // WriteFile syncs
	return dir.WriteFile(record.OriginName(d.ID), want, stateFilePerm)
}

// cleanOrphans removes deployments that were prepared or begun and then given
// up, unless an entry starts them all the same.
func (m *machine) cleanOrphans(ctx context.Context) error {
	for _, id := range slices.Clone(m.facts.State.Orphans) {
		if m.facts.Startable(id) {
			continue
		}
		if err := m.forget(ctx, id); err != nil {
			return err
		}
	}
	return m.look()
}

// cleanRetiring finishes retirements that a killed run began. That of what runs was
// taken back by recover.
func (m *machine) cleanRetiring(ctx context.Context) error {
	for _, id := range retiring(m.facts) {
		if err := m.finishRetire(ctx, id); err != nil {
			return err
		}
		if x, ok := asRepaired(m.facts.State, record.Event{Kind: record.EventRetired, Deployment: id}); ok {
			m.note(x)
		}
	}
	return nil
}

// retiring lists the deployments whose removal was interrupted.
func retiring(f Facts) (ids []string) {
	for _, a := range f.State.Entries {
		if a.Retiring && a.Deployment != f.BootedID() && !slices.Contains(ids, a.Deployment) {
			ids = append(ids, a.Deployment)
		}
	}
	return ids
}

func (m *machine) cleanPayloads(context.Context) error {
	return m.removeStale("")
}

// removeStale removes the payloads that nobody needs but keep.
func (m *machine) removeStale(keep string) error {
	for _, digest := range stalePayloads(m.facts, keep) {
		if err := m.esp.RemovePayload(digest); err != nil {
			return err
		}
	}
	return m.look()
}

// cleanRefs removes the refs of deployments that the journal does not know and
// nothing starts.
func (m *machine) cleanRefs(ctx context.Context) error {
	gone, err := m.strayRefs(m.facts.State.Deployments())
	if err != nil {
		return err
	}
	for _, id := range gone {
		if err := m.removeRefs(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// strayRefs lists the deployments that have refs, or a directory for them, and are
// not among the known ones. What an entry may start is not listed.
func (m *machine) strayRefs(known []string) (gone []string, err error) {
	for _, kind := range []repo.Kind{repo.Images, repo.Streams} {
		// Not Refs: a directory without refs has to go too.
		list, err := m.repo.Dir().ReadSubDir(refPath(kind, ""))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, x := range list {
			if isID(x.Name) && !slices.Contains(known, x.Name) && !m.facts.Startable(x.Name) && !slices.Contains(gone, x.Name) {
				gone = append(gone, x.Name)
			}
		}
	}
	return gone, nil
}

// cleanTrash removes state that a killed run had taken away already.
func (m *machine) cleanTrash(context.Context) error {
	list, err := m.top.ReadSubDir(trashDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, x := range list {
		if err := m.top.RemoveAll(trashDir + "/" + x.Name); err != nil {
			return err
		}
	}
	return nil
}

// retire removes a deployment for good: its entries first, durably, then what
// they need (lifecycle.md 6.7). The caller has made sure that it may go. Its
// objects go with the next garbage collection.
func (m *machine) retire(ctx context.Context, id string) error {
	m.say("removing deployment %s", short(id))
	if err := m.add(record.Event{Kind: record.EventRetire, Deployment: id}); err != nil {
		return err
	}
	return m.finishRetire(ctx, id)
}

func (m *machine) finishRetire(ctx context.Context, id string) error {
	if err := m.checkNotRunning(id); err != nil {
		return err
	}
	for _, a := range m.facts.State.Entries {
		if a.Deployment != id {
			continue
		}
		// A torn rename of the counter leaves two files with one number.
		for _, e := range m.facts.Entries {
			if m.facts.ours(e) && e.Name.Seq == a.Seq {
				if err := m.esp.RemoveEntry(e.File); err != nil {
					return err
				}
			}
		}
	}
	// Those that a killed run has removed are gone from memory, perhaps not from the medium.
	if err := m.esp.Dir().SyncFS(); err != nil {
		return err
	}
	if err := m.look(); err != nil {
		return err
	}
	if err := m.removeStale(""); err != nil {
		return err
	}
	return m.forget(ctx, id)
}

// forget removes state, tag and refs of a deployment that no entry boots, and
// says so in the journal.
func (m *machine) forget(ctx context.Context, id string) error {
	if err := m.checkNotRunning(id); err != nil {
		return err
	}
	if err := m.untag(ctx, m.facts.Deployments[id]); err != nil {
		return err
	}
	for _, name := range []string{stateOf(id), stagedOf(id)} {
		if err := m.removeState(name); err != nil {
			return err
		}
	}
	if err := m.removeRefs(ctx, id); err != nil {
		return err
	}
	if err := m.add(record.Event{Kind: record.EventRetired, Deployment: id}); err != nil {
		return err
	}
	return m.look()
}

func (m *machine) checkNotRunning(id string) error {
	if id == m.facts.BootedID() {
		return fmt.Errorf("remove deployment %s: it is running", short(id))
	}
	return nil
}

// removeState removes the directory of a deployment: under another name first,
// so that no half of it is ever taken for a deployment.
func (m *machine) removeState(name string) error {
	ok, err := m.top.Exists(name)
	if err != nil || !ok {
		return err
	}
	trash, err := m.top.MkdirAll(trashDir, stateDirPerm)
	if err != nil {
		return err
	}
	defer trash.Close() //nolint:errcheck // what is in it goes anyway
	if err := trash.RemoveAll("state"); err != nil {
		return err
	}
	if err := m.top.Rename(name, trash, "state"); err != nil {
		return err
	}
	if err := trash.SyncFS(); err != nil {
		return err
	}
	return trash.RemoveAll("state")
}

// makeRoom makes need more bytes fit on the boot partition, next to the payload
// keep: by removing what nobody needs, then old deployments. If it cannot, the
// error wraps a *durable.SpaceError and no deployment was removed.
func (m *machine) makeRoom(ctx context.Context, need int64, keepID, keepPayload string) error {
	if err := m.removeStale(keepPayload); err != nil {
		return err
	}
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	ids, err := planRoom(m.esp.Dir().Path(), need, space, m.candidates(keepID, space.Cluster))
	if err != nil {
		return m.roomError(err, space)
	}
	for _, id := range crowding(m.facts, keepID) {
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		if err := m.retire(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// candidates are the deployments that may make room on the boot partition.
func (m *machine) candidates(keepID string, cluster int64) []candidate {
	return groups(m.facts, retirable(m.facts, keepID), func(digest string) int64 { return m.esp.PayloadSize(digest, cluster) })
}

func (m *machine) payloadBytes(cluster int64) int64 {
	var sum int64
	for _, digest := range m.facts.Payloads {
		sum += m.esp.PayloadSize(digest, cluster)
	}
	return sum
}
