package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
)

var sizes = []int{0, 1, 4095, 4096, 4097, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300_000}

// TestObjectFlows stores the same content through each way in: one file with the
// right name, and AlreadyPresent for all but the first, also by a new handle.
func TestObjectFlows(t *testing.T) {
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			ctx := t.Context()
			r := newRepo(t)
			data := pattern(size, 3)
			want := fsverity.Sum(fsverity.SHA512, data)
			source := filepath.Join(t.TempDir(), "source")
			must(t, os.WriteFile(source, data, 0o600))
			flows := map[string]func(*repo.Repository) (fsverity.Digest, repo.Method, error){
				"pieces of 1000": func(r *repo.Repository) (fsverity.Digest, repo.Method, error) { return store(ctx, r, data, 1000) },
				"one piece":      func(r *repo.Repository) (fsverity.Digest, repo.Method, error) { return store(ctx, r, data, 1<<30) },
				"file": func(r *repo.Repository) (fsverity.Digest, repo.Method, error) {
					f, err := os.Open(source)
					must(t, err)
					defer f.Close()
					return repo.PutFile(r, ctx, f)
				},
				"reader": func(r *repo.Repository) (d fsverity.Digest, _ repo.Method, err error) {
					w, err := r.NewObject(ctx)
					must(t, err)
					defer w.Abort()
					if _, err := w.ReadFrom(iotest.HalfReader(bytes.NewReader(data))); err != nil {
						return d, 0, err
					}
					d, _, err = w.Commit()
					return d, w.Method(), err
				},
				"memory": func(r *repo.Repository) (fsverity.Digest, repo.Method, error) {
					before := r.Stats()
					d, err := r.PutObject(ctx, data)
					if r.Stats().ObjectsPresent > before.ObjectsPresent {
						return d, repo.AlreadyPresent, err
					}
					return d, repo.Copied, err
				},
			}
			first := true
			for _, handle := range []*repo.Repository{r, open(t, openDir(t, r.Path()))} {
				for name, flow := range flows {
					d, method, err := flow(handle)
					if err != nil || d != want {
						t.Fatalf("%s: got %v, %v, want %v", name, d, err, want)
					}
					if (method == repo.AlreadyPresent) == first {
						t.Errorf("%s: got method %v, first %v", name, method, first)
					}
					first = false
				}
			}
			if got := files(t, r.Path()); len(got) != 2 {
				t.Errorf("got the files %v, want meta.json and one object", got)
			}
			got, err := r.ReadObject(ctx, want, int64(size))
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("read back: %v", err)
			}
			st, err := os.Stat(objectFile(r, want))
			if err != nil || st.Mode().Perm() != 0o644 {
				t.Errorf("got mode %v, %v, want 0644", st.Mode(), err)
			}
		})
	}
}

func TestObjectSourceFails(t *testing.T) {
	r := newRepo(t)
	broken := errors.New("connection lost")
	for name, want := range map[string]error{"cut": io.ErrUnexpectedEOF, "broken": broken} {
		w, err := r.NewObject(t.Context())
		must(t, err)
		_, err = w.ReadFrom(io.MultiReader(bytes.NewReader(pattern(100_000, 0)), iotest.ErrReader(want)))
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
		must(t, w.Abort())
		if _, _, err := w.Commit(); err == nil {
			t.Errorf("%s: Commit after Abort succeeded", name)
		}
	}
	if got := files(t, r.Path()); len(got) != 1 {
		t.Errorf("left behind: %v", got)
	}
}

func TestObjectNotFound(t *testing.T) {
	r := newRepo(t)
	d := fsverity.Sum(fsverity.SHA512, []byte("nowhere"))
	if _, err := r.OpenObject(d); !errors.Is(err, repo.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	if ok, err := r.HasObject(d); ok || err != nil {
		t.Errorf("HasObject: got %v, %v", ok, err)
	}
	var e *repo.AlgorithmError
	if _, err := r.OpenObject(fsverity.Sum(fsverity.SHA256, nil)); !errors.As(err, &e) {
		t.Errorf("other algorithm: got %v, want an AlgorithmError", err)
	}
	put(t, r, []byte("x"))
	if _, err := r.ReadObject(t.Context(), fsverity.Sum(fsverity.SHA512, []byte("x")), 0); !errors.Is(err, unix.EFBIG) {
		t.Errorf("limit: got %v, want EFBIG", err)
	}
}

// TestRepair: an existing object of wrong size or content, or one that is a link,
// is replaced when its content is stored again, and that is counted.
func TestRepair(t *testing.T) {
	for _, size := range []int{100, 200_000} {
		data := pattern(size, 5)
		// A file with fs-verity cannot be changed, so each makes another one.
		for name, damage := range map[string]func(path string) error{
			"truncated": func(p string) error { return os.WriteFile(p, data[:size/2], 0o600) },
			"empty":     func(p string) error { return os.WriteFile(p, nil, 0o600) },
			"longer":    func(p string) error { return os.WriteFile(p, append(data, 0), 0o600) },
			"changed":   func(p string) error { return os.WriteFile(p, pattern(size, 6), 0o600) },
			"link":      func(p string) error { return os.Symlink("/etc/passwd", p) },
		} {
			t.Run(fmt.Sprintf("%s %d", name, size), func(t *testing.T) {
				ctx := t.Context()
				r := newRepo(t)
				d := put(t, r, data)
				must(t, os.Remove(objectFile(r, d)))
				must(t, damage(objectFile(r, d)))
				r = open(t, openDir(t, r.Path())) // the first handle trusts what it has stored
				if _, err := r.ReadObject(ctx, d, 1<<20); err == nil {
					t.Fatal("the damage went unnoticed")
				}
				got, method, err := store(ctx, r, data, 7777)
				if err != nil || got != d || method != repo.Copied {
					t.Fatalf("got %v, %v, %v", got, method, err)
				}
				if s := r.Stats(); s.ObjectsRepaired != 1 {
					t.Errorf("got %d repaired objects, want 1", s.ObjectsRepaired)
				}
				if back, err := r.ReadObject(ctx, d, 1<<20); err != nil || !bytes.Equal(back, data) {
					t.Errorf("read back: %v", err)
				}
				if got := files(t, r.Path()); len(got) != 2 {
					t.Errorf("got the files %v, want meta.json and one object", got)
				}
			})
		}
	}
}

// TestPipesAreRefused: a pipe in place of a file, with somebody who writes nothing
// into it, does not keep us.
func TestPipesAreRefused(t *testing.T) {
	pipe := func(path string) {
		t.Helper()
		must(t, os.Remove(path))
		must(t, unix.Mkfifo(path, 0o600))
		w, err := os.OpenFile(path, os.O_RDWR, 0)
		must(t, err)
		t.Cleanup(func() { w.Close() })
	}
	r := newRepo(t)
	d := put(t, r, []byte("x"))
	pipe(objectFile(r, d))
	if _, err := r.ReadObject(t.Context(), d, 1); err == nil || !strings.Contains(err.Error(), "want a regular file") {
		t.Errorf("object: got %v", err)
	}
	if _, err := open(t, openDir(t, r.Path())).PutObject(t.Context(), []byte("x")); err == nil || !strings.Contains(err.Error(), "want a regular file") {
		t.Errorf("object that is stored again: got %v", err)
	}
	if rep, err := r.Check(t.Context()); err != nil || len(rep.Unused) != 1 {
		t.Errorf("check: got %v, %v", rep, err)
	}
	must(t, r.Close())
	pipe(filepath.Join(r.Path(), "meta.json"))
	if _, err := repo.Open(t.Context(), openDir(t, r.Path()), repo.Options{}); err == nil || !strings.Contains(err.Error(), "want a regular file") {
		t.Errorf("meta.json: got %v", err)
	}
}

// noTemp is a file system without O_TMPFILE.
type noTemp struct{}

func (noTemp) Before(op durable.Op) error {
	if op.Kind == durable.OpTemp {
		return unix.EOPNOTSUPP
	}
	return nil
}

func (noTemp) After(durable.Op, error) {}

func TestWithoutTmpfile(t *testing.T) {
	ctx := t.Context()
	dir, err := openDir(t, t.TempDir()).WithHook(noTemp{})
	must(t, err)
	defer dir.Close()
	must(t, repo.Init(ctx, dir, insecure))
	for i, want := range []repo.Method{repo.Copied, repo.AlreadyPresent} {
		r := open(t, dir)
		for _, size := range sizes {
			if _, method, err := store(ctx, r, pattern(size, 1), 5000); err != nil || method != want {
				t.Errorf("run %d, %d bytes: got %v, %v, want %v", i, size, method, err, want)
			}
		}
		id, err := stream(ctx, r, pattern(70_000, 2))
		must(t, err)
		must(t, r.PublishStream(ctx, "s", id))
		check(t, r)
	}
	for _, f := range files(t, dir.Path()) {
		if strings.Contains(f, ".tmp-") {
			t.Errorf("%s is left", f)
		}
	}
}

// TestTwoProcesses: processes that store the same and different contents at the
// same time do not disturb each other.
func TestTwoProcesses(t *testing.T) {
	const contents, path = 40, "CFSBOOT_TEST_WRITER"
	if path := os.Getenv(path); path != "" { // one of them
		must(t, storeMany(t.Context(), open(t, openDir(t, path)), os.Getpid()%5, contents))
		return
	}
	r := newRepo(t)
	var writers []*exec.Cmd
	for range 2 {
		w := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestTwoProcesses$")
		w.Env = append(os.Environ(), path+"="+r.Path())
		must(t, w.Start())
		writers = append(writers, w)
	}
	for _, w := range writers {
		must(t, w.Wait())
	}
	if rep := check(t, r); rep.Objects != contents+1 || rep.Streams != 1 || len(rep.Unused) > 0 {
		t.Errorf("got %d objects, %d streams and the damaged %v, want %d, 1 and none", rep.Objects, rep.Streams, rep.Unused, contents+1)
	}
}

// TestConcurrentWriters: several handles and goroutines store the same and
// different contents; there is one object for each and no error.
func TestConcurrentWriters(t *testing.T) {
	first := newRepo(t)
	const contents = 40
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for range 3 {
		r := open(t, openDir(t, first.Path()))
		for worker := range 4 {
			wg.Go(func() { errs <- storeMany(t.Context(), r, worker, contents) })
		}
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	if rep := check(t, first); rep.Objects != contents+1 || len(rep.Unused) > 0 {
		t.Errorf("got %d objects and the damaged %v, want %d and none", rep.Objects, rep.Unused, contents+1)
	}
}

func storeMany(ctx context.Context, r *repo.Repository, worker, contents int) error {
	for i := range contents {
		n := (i + worker*7) % contents
		if _, _, err := store(ctx, r, pattern(n*3000, n), 4096); err != nil {
			return err
		}
	}
	id, err := stream(ctx, r, pattern(3000, 1))
	if err != nil {
		return err
	}
	if err := r.PublishStream(ctx, "s", id); err != nil {
		return err
	}
	return r.SetRef(ctx, repo.Streams, "a/b", "s")
}
