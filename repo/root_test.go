package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// needsVerity skips unless TMPDIR is on a file system with fs-verity, as tests/vm
// provides it.
func needsVerity(t *testing.T) {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root and a kernel with fs-verity: set CFSBOOT_ROOT_TESTS=1, see tests/vm")
	}
}

func newSecureRepo(t *testing.T, a fsverity.Algorithm) *repo.Repository {
	t.Helper()
	needsVerity(t)
	dir := openDir(t, t.TempDir())
	if err := repo.Init(t.Context(), dir, repo.InitOptions{Algorithm: a}); err != nil {
		t.Fatalf("%v (is TMPDIR on a file system with fs-verity?)", err)
	}
	return open(t, dir)
}

func measure(t *testing.T, path string) (fsverity.Digest, error) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	return fsverity.Measure(f)
}

func TestRootInit(t *testing.T) {
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		r := newSecureRepo(t, a)
		d, err := measure(t, filepath.Join(r.Path(), "meta.json"))
		if err != nil || d.Algorithm() != a || !r.Secure() {
			t.Errorf("%v: got %v, %v, secure %v", a, d, err, r.Secure())
		}
		must(t, repo.Init(t.Context(), openDir(t, r.Path()), repo.InitOptions{Algorithm: a}))
		must(t, repo.Init(t.Context(), openDir(t, r.Path()), repo.InitOptions{Algorithm: a, Insecure: true}))
		strict, err := repo.Open(t.Context(), openDir(t, r.Path()), repo.Options{RequireVerity: true})
		must(t, err)
		must(t, strict.Close())
	}
	plain := newRepo(t)
	if _, err := measure(t, filepath.Join(plain.Path(), "meta.json")); !errors.Is(err, fsverity.ErrNotEnabled) || plain.Secure() {
		t.Errorf("insecure: got %v, secure %v", err, plain.Secure())
	}
}

// TestRootObjects: every object of a secure repository is enforced, by each way in.
func TestRootObjects(t *testing.T) {
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		ctx := t.Context()
		r := newSecureRepo(t, a)
		for i, size := range sizes {
			data := pattern(size, 3)
			want := fsverity.Sum(a, data)
			if i%2 == 0 {
				put(t, r, data)
			}
			for range 2 {
				if d, _, err := store(ctx, r, data, 5000); err != nil || d != want {
					t.Fatalf("%v, %d bytes: got %v, %v, want %v", a, size, d, err, want)
				}
			}
			if got, err := measure(t, objectFile(r, want)); err != nil || got != want {
				t.Errorf("%v, %d bytes: the kernel says %v, %v", a, size, got, err)
			}
		}
		id, err := stream(ctx, r, pattern(300_000, 1))
		must(t, err)
		must(t, r.PublishStream(ctx, "s", id))
		must(t, r.PublishImage(ctx, put(t, r, imageBytes(t, r))))
		if rep := check(t, r); len(rep.Unused) > 0 {
			t.Errorf("got %v", rep.Unused)
		}
	}
}

func imageBytes(t *testing.T, r *repo.Repository) []byte {
	t.Helper()
	b, err := r.ReadObject(t.Context(), image(t, r, pattern(5000, 1)), 1<<20)
	must(t, err)
	return b
}

// TestRootOpenTable: what opening says for each state of a file, in both modes.
func TestRootOpenTable(t *testing.T) {
	needsVerity(t)
	data := pattern(5000, 1)
	plant := func(t *testing.T, r *repo.Repository, content []byte, a fsverity.Algorithm) {
		t.Helper()
		path := objectFile(r, sum(data))
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, content, 0o600))
		if a != 0 {
			f, err := os.Open(path)
			must(t, err)
			must(t, errors.Join(fsverity.Enable(f, a), f.Close()))
		}
	}
	isMismatch := func(err error) bool { var e *fsverity.MismatchError; return errors.As(err, &e) }
	isAlgorithm := func(err error) bool { var e *repo.AlgorithmError; return errors.As(err, &e) }
	isNil := func(err error) bool { return err == nil }
	for _, c := range []struct {
		name             string
		content          []byte
		verity           fsverity.Algorithm
		secure, insecure func(error) bool
	}{
		{"right", data, fsverity.SHA512, isNil, isNil},
		{"other content", pattern(5000, 2), fsverity.SHA512, isMismatch, isMismatch},
		{"not enabled", data, 0, isMismatch, isNil},
		{"other algorithm", data, fsverity.SHA256, isAlgorithm, isAlgorithm},
	} {
		t.Run(c.name, func(t *testing.T) {
			for mode, r := range map[string]*repo.Repository{"secure": newSecureRepo(t, fsverity.SHA512), "insecure": newRepo(t)} {
				ok := c.secure
				if mode == "insecure" {
					ok = c.insecure
				}
				plant(t, r, c.content, c.verity)
				f, err := r.OpenObject(sum(data))
				if !ok(err) {
					t.Errorf("%s: got %v", mode, err)
				}
				if err == nil {
					must(t, f.Close())
				}
				// Storing the content repairs each of them.
				if d, _, err := store(t.Context(), r, data, 1000); err != nil || d != sum(data) {
					t.Errorf("%s: store: got %v, %v", mode, d, err)
				}
				if d, err := measure(t, objectFile(r, sum(data))); err != nil || d != sum(data) {
					t.Errorf("%s: after storing the kernel says %v, %v", mode, d, err)
				}
			}
		})
	}
}

// TestRootTamper: content that changes below fs-verity is an I/O error, also for
// a splitstream.
func TestRootTamper(t *testing.T) {
	needsVerity(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Fatal("mkfs.ext4 is not installed")
	}
	// A file system of our own, because the medium is changed behind its back.
	base := t.TempDir()
	disk, mountPoint := filepath.Join(base, "disk"), filepath.Join(base, "mnt")
	must(t, os.Mkdir(mountPoint, 0o700))
	f, err := os.Create(disk)
	must(t, err)
	must(t, errors.Join(f.Truncate(32<<20), f.Close()))
	run(t, nil, "mkfs.ext4", "-q", "-b", "4096", "-O", "verity,^has_journal", disk)
	run(t, nil, "mount", "-o", "loop", disk, mountPoint)
	mounted := true
	defer func() {
		if mounted {
			_ = unix.Unmount(mountPoint, 0)
		}
	}()
	dir, err := repo.MakeDir(filepath.Join(mountPoint, "repo"))
	must(t, err)
	must(t, repo.Init(t.Context(), dir, repo.InitOptions{}))
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	marker := bytes.Repeat([]byte("tamper with this"), 256)
	d, err := r.PutObject(t.Context(), marker)
	must(t, err)
	must(t, r.Sync(t.Context()))
	must(t, errors.Join(r.Close(), dir.Close()))
	run(t, nil, "umount", mountPoint)
	mounted = false
	raw, err := os.ReadFile(disk)
	must(t, err)
	at := bytes.Index(raw, marker)
	if at < 0 {
		t.Fatal("the content is not on the disk")
	}
	raw[at] ^= 1
	must(t, os.WriteFile(disk, raw, 0o600))
	run(t, nil, "mount", "-o", "loop", disk, mountPoint)
	mounted = true
	dir = openDir(t, filepath.Join(mountPoint, "repo"))
	r, err = repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	if _, err := r.ReadObject(t.Context(), d, 1<<20); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
	must(t, errors.Join(r.Close(), dir.Close()))
}

// TestRootSmallBlocks: ext4 with blocks of 1 KiB says that it knows fs-verity, and
// cannot use it with blocks of 4 KiB.
func TestRootSmallBlocks(t *testing.T) {
	needsVerity(t)
	disk, mountPoint := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	must(t, os.WriteFile(disk, nil, 0o600))
	must(t, os.Truncate(disk, 32<<20))
	run(t, nil, "mkfs.ext4", "-q", "-b", "1024", "-O", "verity,^has_journal", disk)
	run(t, nil, "mount", "-o", "loop", disk, mountPoint)
	defer run(t, nil, "umount", mountPoint)
	path := filepath.Join(mountPoint, "r")
	dir, err := repo.Create(t.Context(), path, repo.InitOptions{})
	var size *fsverity.BlockSizeError
	if !errors.As(err, &size) || size.Got != 1024 || size.Want != 4096 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, %v, want a *BlockSizeError", dir, err)
	}
	t.Log(err)
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a directory is left: %v", err)
	}
	dir, err = repo.Create(t.Context(), path, insecure)
	must(t, err)
	defer dir.Close()
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	defer r.Close()
	_, _, err = store(t.Context(), r, pattern(200_000, 1), 9000)
	must(t, err)
	id, err := stream(t.Context(), r, pattern(70_000, 2))
	must(t, err)
	must(t, r.PublishStream(t.Context(), "s", id))
	check(t, r)
}

// TestRootFaults: the faults of TestPublishSurvivesEveryFault in a secure
// repository. Power cuts are left to the insecure one: the model knows no
// fs-verity.
func TestRootFaults(t *testing.T) {
	needsVerity(t)
	for _, s := range steps {
		if s.name == "damaged object" {
			continue // the kernel does not let anyone damage it
		}
		for n := 0; ; n++ {
			fs := durabletest.Over(t, t.TempDir())
			must(t, repo.Init(t.Context(), fs.Dir(), repo.InitOptions{}))
			r := open(t, fs.Open())
			if s.prepare != nil {
				must(t, s.prepare(t.Context(), r))
			}
			must(t, r.Close())
			r = open(t, fs.Open())
			fs.FailAt(n, unix.EIO)
			err := s.full(t.Context(), r)
			if !fs.Triggered() {
				must(t, err)
				break
			}
			when := fmt.Sprintf("%s: fault %d (%s)", s.name, n, fs.Op(n))
			if !errors.Is(err, unix.EIO) {
				t.Fatalf("%s: got %v", when, err)
			}
			fs.Disarm()
			must(t, r.Close())
			after := open(t, fs.Open())
			if rep, err := after.Check(t.Context()); err != nil || !rep.OK() {
				t.Fatalf("%s: %v, %v", when, rep, err)
			}
			if err := errors.Join(s.full(t.Context(), after), s.done(after)); err != nil {
				t.Fatalf("%s: repeated: %v", when, err)
			}
			must(t, after.Close())
		}
	}
}

// TestRootForks stores objects while other goroutines start processes, which hold
// copies of writers for a moment.
func TestRootForks(t *testing.T) {
	r := newSecureRepo(t, fsverity.SHA512)
	stop := make(chan struct{})
	var forks, writers sync.WaitGroup
	for range 2 {
		forks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/bin/true").Run()
				}
			}
		})
	}
	for worker := range 4 {
		writers.Go(func() {
			for i := range 50 {
				if _, _, err := store(t.Context(), r, pattern(70_000+i, worker), 10_000); err != nil {
					t.Errorf("worker %d, object %d: %v", worker, i, err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	forks.Wait()
	check(t, r)
}

// keep holds a second writer of the first temporary, as a process does that was
// forked at the wrong moment and then hangs.
type keep struct{ fd int }

func (*keep) Before(durable.Op) error { return nil }

func (k *keep) After(op durable.Op, err error) {
	if op.Kind == durable.OpTemp && err == nil && k.fd < 0 {
		if k.fd, err = unix.FcntlInt(uintptr(op.FD), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			panic(err)
		}
	}
}

// TestRootWriterStays: where fs-verity cannot be enabled, because somebody else
// keeps the file open for writing, it is enabled on a copy.
func TestRootWriterStays(t *testing.T) {
	path := newSecureRepo(t, fsverity.SHA512).Path()
	for _, data := range [][]byte{pattern(5000, 1), pattern(100_000, 2)} {
		k := &keep{-1}
		dir, err := openDir(t, path).WithHook(k)
		must(t, err)
		defer dir.Close()
		d, method, err := store(t.Context(), open(t, dir), data, 10_000)
		if err != nil || d != sum(data) || method != repo.Copied {
			t.Errorf("%d bytes: got %v, %v, %v", len(data), d, method, err)
		}
		if k.fd < 0 {
			t.Fatal("no temporary was seen")
		}
		must(t, unix.Close(k.fd))
		if got, err := measure(t, filepath.Join(path, "objects", sum(data).ObjectPath())); err != nil || got != sum(data) {
			t.Errorf("%d bytes: the kernel says %v, %v", len(data), got, err)
		}
	}
}

// TestRootReadOnlyMount: a repository on a read-only bind mount is read, and every
// write says why not before it begins.
func TestRootReadOnlyMount(t *testing.T) {
	r := newSecureRepo(t, fsverity.SHA512)
	ctx := t.Context()
	id, err := stream(ctx, r, pattern(5000, 1))
	must(t, err)
	must(t, r.PublishStream(ctx, "s", id))
	must(t, r.Sync(ctx))
	target := t.TempDir()
	must(t, unix.Mount(r.Path(), target, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(target, unix.MNT_DETACH)) }()
	must(t, unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	ro, err := repo.Open(ctx, openDir(t, target), repo.Options{RequireVerity: true})
	must(t, err)
	defer ro.Close()
	if err := ro.Writable(); !errors.Is(err, unix.EROFS) {
		t.Errorf("Writable: got %v, want EROFS", err)
	}
	if _, err := ro.PutObject(ctx, []byte("new")); !errors.Is(err, unix.EROFS) {
		t.Errorf("PutObject: got %v, want EROFS", err)
	}
	s, err := openStream(ctx, ro, "s", splitstream.Layer)
	must(t, err)
	must(t, s.Close())
}

// TestRootOverlay: overlayfs has neither O_TMPFILE in old kernels nor fs-verity; an
// insecure repository works there.
func TestRootOverlay(t *testing.T) {
	needsVerity(t)
	base := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		must(t, os.Mkdir(filepath.Join(base, name), 0o755))
	}
	merged := filepath.Join(base, "merged")
	err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base))
	must(t, err)
	defer func() { must(t, unix.Unmount(merged, unix.MNT_DETACH)) }()
	dir, err := repo.MakeDir(filepath.Join(merged, "repo"))
	must(t, err)
	defer dir.Close()
	must(t, repo.Init(t.Context(), dir, insecure))
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	defer r.Close()
	for range 2 {
		must(t, publishStream(t.Context(), r, "s", 1))
	}
	must(t, r.Sync(t.Context()))
	check(t, r)
}

// TestRootFullDisk: a full file system is a SpaceError, and what was there stays
// sound.
func TestRootFullDisk(t *testing.T) {
	needsVerity(t)
	target := t.TempDir()
	must(t, unix.Mount("tmpfs", target, "tmpfs", 0, "size=1m"))
	defer func() { must(t, unix.Unmount(target, unix.MNT_DETACH)) }()
	dir, err := repo.MakeDir(filepath.Join(target, "repo"))
	must(t, err)
	defer dir.Close()
	must(t, repo.Init(t.Context(), dir, insecure))
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	defer r.Close()
	must(t, publishStream(t.Context(), r, "s", 1))
	_, _, err = store(t.Context(), r, pattern(2<<20, 1), 10_000)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v, want ENOSPC", err)
	}
	check(t, r)
}

// tamper changes each file after it was written and before it is sealed.
type tamper struct{}

func (tamper) Before(durable.Op) error { return nil }

func (tamper) After(op durable.Op, err error) {
	if op.Kind == durable.OpWrite && err == nil {
		_, _ = unix.Pwrite(op.FD, []byte("changed"), 0)
	}
}

// TestRootChangedBeforeEnable: an object whose file has other content than what was
// hashed gets no name.
func TestRootChangedBeforeEnable(t *testing.T) {
	path := newSecureRepo(t, fsverity.SHA512).Path()
	dir, err := openDir(t, path).WithHook(tamper{})
	must(t, err)
	defer dir.Close()
	r := open(t, dir)
	var mismatch *fsverity.MismatchError
	if _, err := r.PutObject(t.Context(), pattern(5000, 1)); !errors.As(err, &mismatch) {
		t.Errorf("got %v, want a MismatchError", err)
	}
	if got := files(t, path); len(got) != 1 {
		t.Errorf("got the files %v, want meta.json only", got)
	}
}
