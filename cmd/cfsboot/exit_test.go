package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		name string
		exit int
	}{
		{errors.New("anything"), "failed", 1},
		{usageError{"cfsboot", errors.New("x")}, "usage", 2},
		{&fsverity.BlockSizeError{}, "refused", 3},
		{&pull.LeftError{Err: &durable.SpaceError{}, Left: &repo.LockedError{}}, "no-space", 4},
		{&remote.ReferenceError{Err: errors.New("x")}, "usage", 2},
		{oci.CheckTag("a\nb"), "usage", 2},
		{&deploy.RefusedError{}, "refused", 3},
		{&keyring.PolicyError{}, "refused", 3},
		{&tree.RequiredError{Path: "/usr"}, "refused", 3},
		{&bootimage.ResourceError{}, "refused", 3},
		{&oci.PlatformError{}, "refused", 3},
		{&uki.InputError{What: "stub", Err: &uki.FormatError{}}, "refused", 3},
		{&uki.FormatError{}, "integrity", 8},
		{&durable.SpaceError{}, "no-space", 4},
		{&remote.Error{}, "network", 5},
		{&deploy.ConflictError{}, "conflict", 6},
		{&repo.ConflictError{}, "conflict", 6},
		{&repo.InsecureError{}, "refused", 3},
		{&remote.LayoutError{Err: fs.ErrNotExist}, "layout", 1},
		{&remote.Error{Err: remote.ErrPlainHTTP}, "network", 5},
		{&repo.LockedError{}, "locked", 7},
		{&fsverity.MismatchError{}, "integrity", 8},
		{&erofs.FormatError{}, "integrity", 8},
		{&splitstream.FormatError{}, "integrity", 8},
		{&oci.DigestError{}, "integrity", 8},
		{&oci.FormatError{}, "integrity", 8},
		// A blob whose digest is wrong came over the network, but is an integrity failure.
		{&remote.Error{Err: &oci.DigestError{}}, "integrity", 8},
		{fmt.Errorf("kernel: %w", errors.ErrUnsupported), "unsupported", 1},
		{fs.ErrNotExist, "not-found", 1},
		{context.Canceled, "interrupted", 130},
		{interrupted{&remote.Error{}}, "interrupted", 130},
	} {
		if got := classify(fmt.Errorf("wrapped: %w", c.err)); got.name != c.name || got.exit != c.exit {
			t.Errorf("%T: got %s, status %d, want %s, status %d", c.err, got.name, got.exit, c.name, c.exit)
		}
	}
}

// TestAdvice: who can do something about a failure, and what.
func TestAdvice(t *testing.T) {
	euid, spaceRoom := os.Geteuid(), roomOfRepository
	said := func(err error) string {
		f, cerr := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if cerr != nil {
			t.Fatal(cerr)
		}
		defer f.Close()
		e := newEnv(nil, f, f)
		e.euid, e.room = euid, spaceRoom
		e.fail(err)
		b, cerr := os.ReadFile(f.Name())
		if cerr != nil {
			t.Fatal(cerr)
		}
		return string(b)
	}
	for want, err := range map[string]error{
		"cfsboot: something on this machine's disk is damaged": &fsverity.MismatchError{},
		"incomplete: no space left at \"\"\ncfsboot: free space there, or use a larger file system; `cfsboot repo gc` removes what the repository holds for nothing, and run the command again with --wipe\n": &deploy.IncompleteError{Path: "/dev/x", Err: &durable.SpaceError{}},
		"cfsboot: interrupted: /dev/x was wiped (ext4 \"a\"; swap) and is incomplete\ncfsboot: run the command again with --wipe\n":                                                                           interrupted{&deploy.IncompleteError{Path: "/dev/x", Destroyed: []string{`ext4 "a"`, "swap"}, Err: context.Canceled}},
		"cfsboot: interrupted: the new file \"x\" is removed again\ncfsboot: run the command again\n":                                                                                                         interrupted{&deploy.IncompleteError{Path: "x", Removed: true, Err: context.Canceled}},
		"tell who publishes the image":     &oci.DigestError{},
		"; `cfsboot repo gc` removes what": &durable.SpaceError{},
		"what the pull has stored stays (\"/r\" is locked by process 7): `cfsboot repo gc`": &pull.LeftError{Err: &remote.Error{}, Left: &repo.LockedError{Path: "/r", PID: 7}},
	} {
		if got := said(err); !strings.Contains(got, want) {
			t.Errorf("%T: got %q, want %q", err, got, want)
		}
	}
	// Space is made otherwise on a machine, and not on a disk that is installed to.
	full := &pull.LeftError{Err: &durable.SpaceError{}, Left: &repo.LockedError{Path: "/r", PID: 7}}
	for room, want := range map[string]string{roomOfMachine: "`cfsboot gc` removes deployments", roomOfInstall: "use a larger disk"} {
		spaceRoom = room
		if got := said(full); !strings.Contains(got, want) || strings.Contains(got, "`cfsboot repo gc` removes what the repository") || (room == roomOfInstall) == strings.Contains(got, "gc") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	e := newEnv(nil, nil, nil)
	if e.machine(); e.room != roomOfMachine {
		t.Errorf("a command of the machine says %q", e.room)
	}
	for uid, want := range map[int]bool{0: false, 1000: true} {
		euid = uid
		if got := said(fs.ErrPermission); strings.Contains(got, "run it as root") != want {
			t.Errorf("user %d: got %q", uid, got)
		}
	}
}

// TestInterruptedText: what was being done, not how it was told to stop.
func TestInterruptedText(t *testing.T) {
	for err, want := range map[error]string{
		context.Canceled: "interrupted",
		fmt.Errorf("wait for the lock of %q: %w", "r", context.Canceled): `interrupted: wait for the lock of "r"`,
		errors.New("the line was cut"):                                   "interrupted: the line was cut",
	} {
		if got := (interrupted{err}).Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestHangup: a terminal that goes away interrupts a command like Ctrl-C.
func TestHangup(t *testing.T) {
	if signal.Ignored(syscall.SIGHUP) {
		t.Skip("the tests run under nohup")
	}
	t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	t.Chdir(t.TempDir())
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if status := run([]string{"repo", "init", "--repo", "r", "--insecure"}, null, null, null); status != 0 {
		t.Fatalf("status %d", status)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	go func() {
		c, err := silent.Accept() // so the command runs, and has its handler
		if err != nil {
			return
		}
		defer c.Close()
		_ = syscall.Kill(os.Getpid(), syscall.SIGHUP)
		_, _ = c.Read(make([]byte, 1))
		_, _ = c.Read(make([]byte, 1<<20))
	}()
	if status := run([]string{"oci", "pull", silent.Addr().String() + "/os:1", "os", "--repo", "r"}, null, null, null); status != 130 {
		t.Errorf("status %d, want 130", status)
	}
}
