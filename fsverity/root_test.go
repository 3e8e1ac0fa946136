package fsverity_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
)

// verityDir returns a folder on a file system with fs-verity. The TestRoot tests
// need a kernel with CONFIG_FS_VERITY and TMPDIR on such a file system (ext4 made
// with -O verity and 4096-byte blocks); tests/vm provides both.
func verityDir(t *testing.T) string {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs a kernel with fs-verity: set CFSBOOT_ROOT_TESTS=1, see tests/vm")
	}
	return t.TempDir()
}

func readOnly(t *testing.T, dir, name string, data []byte) *os.File {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRootEnableMeasure(t *testing.T) {
	dir := verityDir(t)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		f := readOnly(t, dir, a.Name(), []byte("hello world"))
		if _, err := fsverity.Measure(f); !errors.Is(err, fsverity.ErrNotEnabled) {
			t.Errorf("measure before: got %v, want %v", err, fsverity.ErrNotEnabled)
		}
		if err := fsverity.Enable(f, a); err != nil {
			t.Fatalf("enable: %v (is TMPDIR on a file system with fs-verity?)", err)
		}
		want := fsverity.Sum(a, []byte("hello world"))
		if got, err := fsverity.Measure(f); err != nil || got != want {
			t.Errorf("measure: got %v, %v; want %v", got, err, want)
		}
		if err := fsverity.Enable(f, a); !errors.Is(err, fsverity.ErrAlreadyEnabled) {
			t.Errorf("enable again: got %v, want %v", err, fsverity.ErrAlreadyEnabled)
		}
		// The other algorithm: refused as already enabled, and the digest tells.
		if err := fsverity.Enable(f, fsverity.SHA256+fsverity.SHA512-a); !errors.Is(err, fsverity.ErrAlreadyEnabled) {
			t.Errorf("enable with the other algorithm: got %v, want %v", err, fsverity.ErrAlreadyEnabled)
		}
		if got, err := fsverity.Measure(f); err != nil || got.Algorithm() != a {
			t.Errorf("measure: algorithm %v, %v; want %v", got.Algorithm(), err, a)
		}
	}
}

// TestRootKernelAgrees compares the kernel's digest with ours for sizes around
// all block and level borders: a3*A^3 + a2*A^2 + a1*A + a0 bytes.
func TestRootKernelAgrees(t *testing.T) {
	dir := verityDir(t)
	sizes := map[int]bool{}
	for _, arity := range []int{32, 64} {
		for i := range 81 {
			n, pow := 0, 1
			for k, rest := 0, i; k < 4; k, rest, pow = k+1, rest/3, pow*arity {
				n += (rest%3 - 1) * pow
			}
			if n >= 0 {
				sizes[n] = true
			}
		}
	}
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		for size := range sizes {
			data := bytes.Repeat([]byte{0x5a}, size)
			f := readOnly(t, dir, fmt.Sprintf("%s-%d", a.Name(), size), data)
			if err := fsverity.Enable(f, a); err != nil {
				t.Fatal(err)
			}
			got, err := fsverity.Measure(f)
			if want := fsverity.Sum(a, data); err != nil || got != want {
				t.Errorf("%s, %d bytes: kernel says %v, %v; we say %v", a, size, got, err, want)
			}
			f.Close()
		}
	}
}

func TestRootWriterOpen(t *testing.T) {
	dir := verityDir(t)
	f := readOnly(t, dir, "f", []byte("x"))
	w, err := os.OpenFile(f.Name(), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := fsverity.Enable(f, fsverity.SHA256); !errors.Is(err, unix.ETXTBSY) {
		t.Errorf("enable with a writer: got %v, want ETXTBSY", err)
	}
	if spent := time.Since(start); spent > 5*time.Second {
		t.Errorf("gave up after %v, want about a second", spent)
	}
	// A writer that goes away within the second is waited for.
	closed := make(chan error, 1)
	go func() {
		time.Sleep(100 * time.Millisecond)
		closed <- w.Close()
	}()
	if err := fsverity.Enable(f, fsverity.SHA256); err != nil {
		t.Errorf("enable with a writer for 100 ms: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestRootErrno(t *testing.T) {
	dir := verityDir(t)
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := fsverity.Enable(d, fsverity.SHA256); !errors.Is(err, unix.EISDIR) {
		t.Errorf("directory: got %v, want EISDIR", err)
	}

	appendOnly := readOnly(t, dir, "append-only", []byte("x"))
	const appendFlag = 0x20 // FS_APPEND_FL
	flags, err := unix.IoctlGetInt(int(appendOnly.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(appendOnly.Fd()), unix.FS_IOC_SETFLAGS, flags|appendFlag); err != nil {
		t.Fatal(err)
	}
	if err := fsverity.Enable(appendOnly, fsverity.SHA256); !errors.Is(err, unix.EPERM) {
		t.Errorf("append-only file: got %v, want EPERM", err)
	}
	if err := unix.IoctlSetPointerInt(int(appendOnly.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatal(err)
	}

	readOnly(t, dir, "on-read-only-mount", []byte("x"))
	bind := t.TempDir()
	if err := unix.Mount(dir, bind, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(bind, unix.MNT_DETACH)
	if err := unix.Mount("", bind, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(bind, "on-read-only-mount"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := fsverity.Enable(f, fsverity.SHA256); !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only mount: got %v, want EROFS", err)
	}

	tmpfs := t.TempDir()
	if err := unix.Mount("tmpfs", tmpfs, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(tmpfs, unix.MNT_DETACH)
	g := readOnly(t, tmpfs, "f", []byte("x"))
	if err := fsverity.Enable(g, fsverity.SHA256); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.ENOTTY) {
		t.Errorf("enable on tmpfs: got %v, want ENOTTY as unsupported", err)
	}
	if _, err := fsverity.Measure(g); !errors.Is(err, errors.ErrUnsupported) || !errors.Is(err, unix.ENOTTY) {
		t.Errorf("measure on tmpfs: got %v, want ENOTTY as unsupported", err)
	}
	g.Close()
}

// TestRootForking enables while other goroutines start processes, whose copies
// of the writers make the kernel answer ETXTBSY at random.
func TestRootForking(t *testing.T) {
	dir := verityDir(t)
	stop := make(chan struct{})
	var forkers sync.WaitGroup
	for range 2 {
		forkers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/proc/self/exe", "-test.run=^$").Run() // only the fork matters
				}
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 25 {
				path := filepath.Join(dir, fmt.Sprintf("%d-%d", w, i))
				if err := os.WriteFile(path, []byte(path), 0o644); err != nil {
					t.Error(err)
					return
				}
				f, err := os.Open(path)
				if err != nil {
					t.Error(err)
					return
				}
				if err := fsverity.Enable(f, fsverity.SHA256); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				f.Close()
			}
		})
	}
	writers.Wait()
	close(stop)
	forkers.Wait()
}
