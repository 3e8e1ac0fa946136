package deploy

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// stateTop is cfsboot's own directory below the top of the root file system.
const stateTop = "state/cfsboot"

// stateFilePerm and stateDirPerm let status read records without root.
const (
	stateFilePerm = 0o644
	stateDirPerm  = 0o755
)

// journal is the journal on the disk with the state that follows from it.
type journal struct {
	record.Journal
	dir    *durable.Dir // JournalDir
	clock  Clock
	bootID string
	log    *slog.Logger
}

// openJournal opens the journal for writing. A new one, which has no record
// yet, takes only the init event.
func openJournal(top *durable.Dir, o Options) (*journal, error) {
	j := &journal{clock: o.Clock, bootID: o.bootID(), log: o.Logger}
	old, err := bootlog.ReadJournal(top)
	switch {
	case err == nil:
		j.Journal = *old
	case !errors.Is(err, record.ErrNoJournal):
		return nil, fmt.Errorf("read journal: %w", err)
	}
	for _, err := range j.Damaged() {
		j.log.Warn("a journal record is damaged, the one before it counts", "error", err)
	}
	if j.dir, err = top.MkdirAll(record.JournalDir, stateDirPerm); err != nil {
		return nil, err
	}
	return j, nil
}

func (j *journal) close() { _ = j.dir.Close() } // every record was synced

// add writes the record of an event durably. On a full disk old records make room.
func (j *journal) add(e record.Event) error {
	r, err := j.Next(e, j.clock.Now(), j.bootID)
	if err != nil {
		return err
	}
	data, err := r.Encode()
	if err != nil {
		return err
	}
	err = j.dir.WriteFile(r.Name(), data, stateFilePerm)
	if errors.Is(err, unix.ENOSPC) && j.prune(record.KeepFewRecords) {
		err = j.dir.WriteFile(r.Name(), data, stateFilePerm)
	}
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	j.Wrote(r)
	j.log.Debug("journal", "event", e.Kind, "deployment", e.Deployment, "record", r.Seq)
	return nil
}

// has tells whether any complete record is of this kind.
func (j *journal) has(kind record.EventKind) (bool, error) {
	list, err := j.dir.ReadDir()
	if err != nil {
		return false, err
	}
	for _, x := range list {
		seq, ok := record.ParseRecordName(x.Name)
		if !ok {
			continue
		}
		data, err := j.dir.ReadFile(x.Name, record.MaxRecordSize)
		if err != nil {
			return false, err
		}
		if r, err := record.ParseRecord(seq, data); err == nil && r.Event.Kind == kind {
			return true, nil
		}
	}
	return false, nil
}

// prune removes all but the newest records, keep of them, and tells whether any
// went. Failing to is not an error of the work that was done.
func (j *journal) prune(keep int) (some bool) {
	list, err := j.dir.ReadDir()
	if err != nil {
		return false
	}
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name
	}
	for _, name := range record.Prunable(names, keep) {
		if err := j.dir.Remove(name); err != nil {
			j.log.Warn("remove an old journal record", "error", err)
			break
		}
		some = true
	}
	return some
}
