// Package durabletest runs code that changes files through internal/durable
// against faults: any mutating call can be made to fail, the process can be
// "killed" before or after any of them, and a power cut leaves a new directory
// that holds only what was synced, or any mixture the file system may leave.
//
// The model works on a real directory and follows every mutating call. On a
// journaled file system ([New]) names become durable by a sync of their
// directory, a rename is atomic, and the content of a file becomes durable by
// fsync or syncfs only; a name whose content is not durable shows an empty file.
// On vfat ([NewFAT]) fsync of a file makes its name durable too, a rename is
// several independent writes, and the file it moved has size 0 until the file
// itself or the file system is synced (lifecycle.md 6.1, 6.2). Not modelled:
// reuse of freed clusters, names that differ in case only.
//
// Calls are serialised, so code under test may use several goroutines.
package durabletest

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// ErrKilled is what every mutating call returns once the process is dead.
var ErrKilled = errors.New("durabletest: the process was killed")

// When says on which side of a call the process is killed.
type When int

// The two sides of a call.
const (
	Before When = iota
	After
)

// FS is a directory under observation.
type FS struct {
	t    testing.TB
	path string
	dir  *durable.Dir
	fat  bool

	mu        sync.Mutex
	ops       []string
	faultAt   int // index into ops, -1 for none
	fault     error
	killAt    int
	killWhen  When
	killed    bool
	triggered bool
	model     model
}

// New returns an empty directory with the semantics of a journaled file system.
func New(t testing.TB) *FS { return open(t, tempDir(t), false) }

// NewFAT returns an empty directory with the semantics of vfat: no symbolic
// links, hard links, devices or unnamed files.
func NewFAT(t testing.TB) *FS { return open(t, tempDir(t), true) }

// Over returns a view of an existing directory; what it holds counts as synced.
func Over(t testing.TB, path string) *FS { return open(t, path, false) }

// OverFAT is Over with the semantics of vfat.
func OverFAT(t testing.TB, path string) *FS { return open(t, path, true) }

// tempDir makes a directory in memory if it can: syncs cost nothing there.
func tempDir(t testing.TB) string {
	t.Helper()
	path, err := os.MkdirTemp("/dev/shm", "durabletest-") //nolint:usetesting // TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Errorf("durabletest: %v", err)
		}
	})
	return path
}

func open(t testing.TB, path string, fat bool) *FS {
	t.Helper()
	f := &FS{t: t, path: path, fat: fat, faultAt: -1, killAt: -1}
	f.model.init(t, path, fat)
	f.dir = f.Open()
	return f
}

// Dir returns the observed directory. It is closed with the test.
func (f *FS) Dir() *durable.Dir { return f.dir }

// Path returns where the directory is, to look at it without the hook.
func (f *FS) Path() string { return f.path }

// Open opens the directory once more, as a restarted process would.
func (f *FS) Open() *durable.Dir {
	f.t.Helper()
	plain, err := durable.OpenDir(f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	d, err := plain.WithHook(f)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := plain.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = d.Close() })
	return d
}

// FailAt makes the n-th mutating call from now on (the first is 0) fail with err,
// usually an errno. A failed write has written half of its bytes.
func (f *FS) FailAt(n int, err error) {
	f.Disarm()
	f.faultAt, f.fault = n, err
}

// KillAt ends the process at the n-th mutating call from now on: that call does
// not happen (Before) or does (After), and every later one, of cleanup code too,
// returns ErrKilled and changes nothing.
func (f *FS) KillAt(n int, when When) {
	f.Disarm()
	f.killAt, f.killWhen = n, when
}

// Disarm forgets faults and counts from 0 again. A killed process is alive again.
func (f *FS) Disarm() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops, f.faultAt, f.killAt, f.killed, f.triggered = nil, -1, -1, false, false
}

// Triggered says whether the fault or kill has happened.
func (f *FS) Triggered() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.triggered
}

// Count returns how many mutating calls were tried since the last FailAt, KillAt
// or Disarm.
func (f *FS) Count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.ops)
}

// Op describes the n-th of these calls.
func (f *FS) Op(n int) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n < 0 || n >= len(f.ops) {
		return "none"
	}
	return f.ops[n]
}

// Before implements durable.Hook. On success the lock is held until After.
func (f *FS) Before(op durable.Op) error {
	f.mu.Lock()
	if err := f.before(op); err != nil {
		f.mu.Unlock()
		return err
	}
	return nil
}

func (f *FS) before(op durable.Op) error {
	if f.killed {
		return ErrKilled
	}
	n := len(f.ops)
	f.ops = append(f.ops, fmt.Sprintf("%s %s", op.Kind, op.Path))
	switch n {
	case f.faultAt:
		f.triggered = true
		return f.fault
	case f.killAt:
		f.triggered, f.killed = true, true
		if f.killWhen == Before {
			return ErrKilled
		}
	}
	if f.fat {
		return fatRefuses(op.Kind)
	}
	return nil
}

// fatRefuses gives the errno of a call that vfat does not have.
func fatRefuses(kind durable.Kind) error {
	switch kind {
	case durable.OpTemp:
		return unix.EOPNOTSUPP
	case durable.OpSymlink, durable.OpLink, durable.OpMknod:
		return unix.EPERM
	}
	return nil
}

// After implements durable.Hook.
func (f *FS) After(op durable.Op, err error) {
	defer f.mu.Unlock()
	if err == nil {
		f.model.record(op)
	}
}

// PowerLoss cuts the power and returns a new directory that holds only what was
// synced: the least that may be left.
func (f *FS) PowerLoss() *FS { return f.powerLoss(view{}) }

// PowerLossNames cuts the power and returns a new directory with all names and
// links but, of files, only content that was synced: what is left when the
// journal was committed and the data was not written.
func (f *FS) PowerLossNames() *FS { return f.powerLoss(view{allNames: true}) }

// PowerLossRandom cuts the power and returns a new directory in which each
// unsynced change has happened or not, as seed decides.
func (f *FS) PowerLossRandom(seed uint64) *FS { return f.powerLoss(randomView(seed)) }

func (f *FS) powerLoss(v view) *FS {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	path := tempDir(f.t)
	if err := f.model.materialise(path, f.path, v); err != nil {
		f.t.Fatalf("lay out the directory after a power cut: %v", err)
	}
	return open(f.t, path, f.fat)
}
