package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
)

// repoDir is the repository below the top of the root file system.
const repoDir = "composefs"

// machine is a machine under the lock: everything open that a change needs.
type machine struct {
	Options
	top     *durable.Dir
	repo    *repo.Repository
	esp     *esp.ESP
	journal *journal
	facts   Facts
	hurry   bool           // leave to the next run what takes long
	close   []func() error // in reverse order

	repaired  []Repaired      // what an interrupted command had left
	collected *repo.Collected // in this run; nil: nothing was
	gone      []string        // deployments that went to make room in the repository
}

// Close releases everything, the lock last.
func (m *machine) Close() error {
	var errs []error
	for _, c := range slices.Backward(m.close) {
		errs = append(errs, c())
	}
	m.close = nil
	return errors.Join(errs...)
}

func (m *machine) onClose(c func() error) { m.close = append(m.close, c) }

// openMachine opens the running machine for a change: it takes the lock and
// brings the journal up to date with the disk.
func openMachine(ctx context.Context, o Options) (*machine, error) {
	return open(ctx, o, (*machine).recover, nil)
}

// openFreeing is openMachine for what has to work on a full disk.
func openFreeing(ctx context.Context, o Options) (*machine, error) {
	return open(ctx, o, func(m *machine) error { return m.freeing(ctx, false, m.recover) }, nil)
}

// openLocked opens the running machine and takes the lock. The journal is as the
// last run left it.
func openLocked(ctx context.Context, o Options) (*machine, error) {
	return open(ctx, o, func(*machine) error { return nil }, nil)
}

// open takes the lock, opens everything, and calls then. If something cannot be
// done after the journal is open, failed may write that down; nil: nothing does.
func open(ctx context.Context, o Options, then func(*machine) error, failed func(*machine, error) error) (_ *machine, err error) {
	m := &machine{Options: o.withDefaults()}
	defer func() {
		if err != nil && m.journal != nil && failed != nil {
			err = errors.Join(err, failed(m, err))
		}
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	booted, err := ReadBooted(m.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, refuse(CodeNotManaged, "this machine was not booted by cfsboot: it has no %s", record.BootedPath)
	}
	if err != nil {
		return nil, err
	}
	m.facts.Booted = booted
	if err := m.openTop(); err != nil {
		return nil, err
	}
	if err := checkJournal(m.top, booted); err != nil {
		return nil, err
	}
	if err := m.start(ctx, repo.Options{RequireVerity: booted.Secure, LockWait: m.LockWait, Space: m.repoSpace, Logger: m.Logger}); err != nil {
		return nil, err
	}
	if err := m.openESP(); err != nil {
		return nil, err
	}
	return m, then(m)
}

// openTop opens the top of the physical root file system for writing. In the
// running system it is mounted read-only at /sysroot.
func (m *machine) openTop() error {
	if m.Sysroot != nil {
		m.top = m.Sysroot
		return writable(m.top)
	}
	path := m.path("/sysroot")
	if b := m.facts.Booted; b != nil {
		if err := checkSysroot(path, b); err != nil {
			return err
		}
	}
	dir, err := openWritable(path)
	if err != nil {
		return err
	}
	m.onClose(dir.Close)
	m.top = dir
	return writable(m.top)
}

// checkSysroot finds out whether path is without the root file system of a machine
// that was booted by cfsboot. What has a journal is it.
func checkSysroot(path string, booted *record.Booted) error {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if err == nil {
		err = unix.Access(filepath.Join(path, record.JournalDir), unix.F_OK)
		if dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)); dev == booted.Sysroot.Dev {
			return nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil // there, or what comes next says it
	}
	return refuse(CodeNoSysroot, "the root file system of this machine (device %s) is not mounted at %s", booted.Sysroot.Dev, path)
}

// checkJournal finds out whether there is a journal below the top of the root file
// system, and if not, what that means.
func checkJournal(top *durable.Dir, booted *record.Booted) error {
	_, err := bootlog.ReadJournal(top)
	if !errors.Is(err, record.ErrNoJournal) && !errors.Is(err, unix.ENOTDIR) {
		return nil // also if it is damaged: opening it says how
	}
	ours, err := top.Exists(stateTop)
	if !ours && err == nil {
		ours, err = top.Exists(stateOf(booted.Digest) + "/" + record.DeploymentName)
	}
	switch {
	case err != nil:
		return err
	case ours:
		return refuse(CodeNoJournal, "the journal %s/%s is gone, so it is not known what is deployed; the machine boots what its boot entries name", top.Path(), record.JournalDir)
	}
	return refuse(CodeNotManaged, "this machine was not installed by cfsboot: %s has no %s", top.Path(), record.JournalDir)
}

// openWritable opens a private writable copy of the mount at path.
func openWritable(path string) (*durable.Dir, error) {
	f, err := mnt.PrivateWritable(path)
	if errors.Is(err, unix.EROFS) {
		return nil, &RefusedError{Code: CodeReadOnly, Detail: fmt.Sprintf("the file system at %s is read-only", path), Err: err}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return dirOf(f, path)
}

// dirOf opens the directory that f is open on once more, for reading. path is
// for messages.
func dirOf(f *os.File, path string) (*durable.Dir, error) {
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) //nolint:gosec // a descriptor fits
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: path, Err: err}
	}
	return durable.NewDir(fd, path), nil
}

func writable(dir *durable.Dir) error {
	err := dir.Writable()
	if errors.Is(err, unix.EROFS) {
		return &RefusedError{Code: CodeReadOnly, Detail: fmt.Sprintf("%q cannot be written", dir.Path()), Err: err}
	}
	return err
}

// start takes the lock, and opens repository and journal.
func (m *machine) start(ctx context.Context, o repo.Options) error {
	lock, err := m.top.MkdirAll(stateTop, stateDirPerm)
	if err != nil {
		return err
	}
	m.onClose(lock.Close)
	if err := repo.Lock(ctx, lock, true, m.LockWait); err != nil {
		return err
	}
	if m.journal, err = openJournal(m.top, m.Options); err != nil {
		return err
	}
	m.onClose(func() error { m.journal.close(); return nil })
	dir, err := m.top.Sub(repoDir)
	if err != nil {
		return m.noRepository(err)
	}
	m.onClose(dir.Close)
	if m.repo, err = repo.Open(ctx, dir, o); err != nil {
		return m.noRepository(err)
	}
	m.onClose(m.repo.Close)
	return m.repo.Writable()
}

// noRepository makes a *RefusedError of an error that the repository is not there.
func (m *machine) noRepository(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return &RefusedError{Code: CodeNoRepository, Detail: "the repository of this machine, which holds its images, is gone", Err: err}
	}
	return fmt.Errorf("open repository: %w", err)
}

// look reads the facts again after something was changed.
func (m *machine) look() error {
	m.facts.State = m.journal.State()
	deployments, problems := readDeployments(m.top, m.facts.State)
	for _, err := range problems {
		m.Logger.Warn("a deployment cannot be read", "error", err)
	}
	m.facts.Deployments = deployments
	m.facts.BootFailures, problems = bootlog.Read(m.top)
	for _, err := range problems {
		m.Logger.Warn("a record of a failed boot cannot be read", "error", err)
	}
	m.facts.StagedGone = stagedGone(m.top, m.facts.State)
	m.facts.defects = findDefects(m.top, m.facts)
	if m.esp == nil {
		return nil
	}
	var err error
	if m.facts.Entries, err = m.esp.Entries(); err != nil {
		return inTheWay(err)
	}
	m.facts.EntriesRead = true
	addPayloadDefects(m.facts.defects, m.esp, m.facts)
	m.facts.Payloads, err = m.esp.Payloads()
	return inTheWay(err)
}

// inTheWay makes a *ConflictError of something on the boot partition that is of
// another type than what belongs there.
func inTheWay(err error) error {
	var other *esp.VerifyError
	if errors.As(err, &other) && (other.Got == esp.NoFile || other.Got == esp.NoDirectory) {
		return &ConflictError{What: "in the way on the boot partition", Paths: []string{other.Path}, Reasons: []string{other.Got}, Err: err}
	}
	return err
}

// add records an event and follows the state.
func (m *machine) add(e record.Event) error {
	if err := m.journal.add(e); err != nil {
		return err
	}
	m.facts.State = m.journal.State()
	return nil
}

// recover brings the journal up to date with what a killed run, the loader and
// systemd-bless-boot did.
func (m *machine) recover() error {
	return m.eachRepair(func(r repair) error {
		m.Logger.Info("repair", "event", r.Event.Kind, "deployment", r.Event.Deployment, "entry", r.Event.Entry, "remove", r.RemoveEntry)
		if r.RemoveEntry != "" {
			if err := m.esp.RemoveEntry(r.RemoveEntry); err != nil {
				return err
			}
		}
		// A killed run may have left it in memory only, and the journal says that it is on the medium.
		if r.Event.Kind == record.EventArmed {
			if err := m.esp.Dir().SyncFS(); err != nil {
				return err
			}
		}
		before := m.facts.State
		if err := m.add(r.Event); err != nil {
			return err
		}
		if x, ok := asRepaired(before, r.Event); ok {
			m.note(x)
		}
		return m.look()
	})
}

// foresee brings the facts up to date as recover does, in memory only.
func (m *machine) foresee() error {
	return m.eachRepair(func(r repair) error {
		if r.RemoveEntry != "" {
			m.facts.Entries = slices.DeleteFunc(m.facts.Entries, func(e esp.Entry) bool { return e.File == r.RemoveEntry })
		}
		next, err := m.facts.State.Apply(r.Event, m.Clock.Now())
		if err != nil {
			return err
		}
		m.facts.State = next
		return nil
	})
}

// eachRepair reads the facts and applies repairs to them until there is none.
func (m *machine) eachRepair(apply func(repair) error) error {
	if err := m.look(); err != nil {
		return err
	}
	for {
		r, ok := nextRepair(m.facts)
		if !ok {
			return nil
		}
		if err := apply(r); err != nil {
			return err
		}
	}
}

// say tells the user what happens.
func (m *machine) say(format string, args ...any) {
	progress.Report(m.Progress, progress.Message{Text: fmt.Sprintf(format, args...)})
}

// stateOf returns where the state of a deployment lies.
func stateOf(id string) string { return record.StateDir + "/" + id }

// stagedOf returns where the state of a deployment lies before it is armed.
func stagedOf(id string) string { return stagedDir + "/" + id }
