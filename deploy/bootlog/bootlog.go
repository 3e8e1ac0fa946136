// Package bootlog keeps what is written down about boots that failed
// (docs/design/boot-failure.md) on the physical root file system: the records, the
// messages that go with them, and the count of failed boots in a row. Initramfs and
// running system use it, and both read the journal through it. The content of the
// files is that of deploy/record.
package bootlog

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

const (
	jsonSuffix = ".json"
	logSuffix  = ".log"

	recordPerm  = 0o644 // status reads records without root
	messagePerm = 0o600 // whatever a service has written into the log
)

// Log is the open directory of the records.
type Log struct{ dir *durable.Dir }

// Open opens the directory of the records below the top of the root file system, and
// makes it durably if it is not there. Without our state there the error wraps
// fs.ErrNotExist.
func Open(top *durable.Dir) (*Log, error) {
	parent, base := path.Split(record.BootFailureDir)
	state, err := top.Sub(path.Clean(parent))
	if err != nil {
		return nil, err
	}
	defer state.Close() //nolint:errcheck // synced where it was changed
	err = state.Mkdir(base, 0o755)
	if err == nil {
		err = state.Sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	dir, err := state.Sub(base)
	if err != nil {
		return nil, err
	}
	return &Log{dir}, nil
}

// Close releases the directory. Everything in it was synced.
func (l *Log) Close() error { return l.dir.Close() }

// Write keeps a record and the end of the messages that go with it, if there are
// any, and forgets the oldest records. One that fails does not keep it from the
// others.
func (l *Log) Write(f record.BootFailure, messages []byte) error {
	data, err := f.Encode()
	if err != nil {
		return err
	}
	errs := []error{l.forgetOld(), l.dir.WriteFile(f.Name()+jsonSuffix, data, recordPerm)}
	if len(messages) > 0 { // after the record, since they may take the last space
		end := messages[max(0, len(messages)-record.MaxBootLog):]
		errs = append(errs, l.dir.WriteFile(f.Name()+logSuffix, end, messagePerm))
	}
	return errors.Join(errs...)
}

// forgetOld makes room for one record more.
func (l *Log) forgetOld() error {
	names, err := l.newestFirst()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range record.PrunableBootFailures(names) {
		errs = append(errs, l.dir.Remove(name))
	}
	return errors.Join(errs...)
}

// newestFirst lists the files by the time of their last change. What is no file is
// not ours.
func (l *Log) newestFirst() ([]string, error) {
	list, err := l.dir.ReadDir()
	if err != nil {
		return nil, err
	}
	times := map[string]unix.Timespec{}
	var names []string
	for _, x := range list {
		if !x.IsRegular() {
			continue
		}
		st, err := l.dir.Lstat(x.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		times[x.Name] = st.Mtim
		names = append(names, x.Name)
	}
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := times[a], times[b]
		return cmp.Or(cmp.Compare(y.Sec, x.Sec), cmp.Compare(y.Nsec, x.Nsec))
	})
	return names, nil
}

// AddToStreak counts a failure of the deployment, unless that is "", and returns the
// count as it is on the disk. A file that is no streak counts from the start. Where
// the file system is full, the messages of earlier boots make room.
func (l *Log) AddToStreak(deployment string) (record.Streak, error) {
	var s record.Streak
	data, err := l.dir.ReadFile(record.StreakName, record.MaxBootFailure)
	if err == nil {
		s, err = record.ParseStreak(data)
	}
	var bad *record.FormatError
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.As(err, &bad) {
		return s, err
	}
	if deployment == "" {
		return s, nil
	}
	s = s.Add(deployment)
	if data, err = s.Encode(); err != nil {
		return s, err
	}
	err = l.dir.WriteFile(record.StreakName, data, 0o600)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		if rerr := l.dropMessages(); rerr != nil {
			return s, errors.Join(err, rerr)
		}
		err = l.dir.WriteFile(record.StreakName, data, 0o600)
	}
	return s, err
}

// dropMessages removes the messages of all records. A file system that is full may
// need the space for the count of failures, without which a machine starts a broken
// release for ever.
func (l *Log) dropMessages() error {
	names, err := l.newestFirst()
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, logSuffix) {
			if err := l.dir.Remove(name); err != nil {
				return err
			}
		}
	}
	return l.dir.Sync()
}

// EndStreak forgets the failed boots in a row below the top of the root file system.
// It is durable.
func EndStreak(top *durable.Dir) error {
	dir, err := top.Sub(record.BootFailureDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	err = dir.Remove(record.StreakName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, dir.Sync())
}

// Read reads the records below the top of the root file system, oldest first, and
// gives an error for each one that cannot be read.
func Read(top *durable.Dir) ([]record.BootFailure, []error) {
	list, err := top.ReadSubDir(record.BootFailureDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{err}
	}
	var out []record.BootFailure
	var problems []error
	for _, x := range list {
		if !strings.HasSuffix(x.Name, jsonSuffix) || !x.IsRegular() {
			continue
		}
		name := path.Join(record.BootFailureDir, x.Name)
		data, err := top.ReadFile(name, record.MaxBootFailure)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		f, err := record.ParseBootFailure(data)
		if err != nil {
			problems = append(problems, fmt.Errorf("read %q: %w", name, err))
			continue
		}
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b record.BootFailure) int { return a.Time.Compare(b.Time) })
	return out, problems
}

// ReadMessages reads the messages that were kept of a failed boot. Without any the
// error wraps fs.ErrNotExist, and only root may read them.
func ReadMessages(top *durable.Dir, f record.BootFailure) ([]byte, error) {
	return top.ReadFile(path.Join(record.BootFailureDir, f.Name()+logSuffix), 2*record.MaxBootLog)
}

// ReadJournal reads the journal below the top of the root file system. Without a
// record the error is record.ErrNoJournal.
func ReadJournal(top *durable.Dir) (*record.Journal, error) {
	list, err := top.ReadSubDir(record.JournalDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, record.ErrNoJournal
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name
	}
	return record.ReadJournal(names, func(name string) ([]byte, error) {
		return top.ReadFile(record.JournalDir+"/"+name, record.MaxRecordSize)
	})
}
