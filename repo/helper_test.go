package repo_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

var insecure = repo.InitOptions{Insecure: true}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the repository in dir until the end of the test.
func open(t testing.TB, dir *durable.Dir) *repo.Repository {
	t.Helper()
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func openDir(t testing.TB, path string) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(path)
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// newRepo makes an insecure repository.
func newRepo(t testing.TB) *repo.Repository {
	t.Helper()
	d := openDir(t, t.TempDir())
	must(t, repo.Init(t.Context(), d, insecure))
	return open(t, d)
}

func newFaultyRepo(t testing.TB, fs *durabletest.FS) *repo.Repository {
	t.Helper()
	must(t, repo.Init(t.Context(), fs.Dir(), insecure))
	return open(t, fs.Open())
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((i*7 + i/251 + seed) % 256)
	}
	return b
}

func put(t testing.TB, r *repo.Repository, data []byte) fsverity.Digest {
	t.Helper()
	d, err := r.PutObject(t.Context(), data)
	must(t, err)
	return d
}

// store writes data piece by piece.
func store(ctx context.Context, r *repo.Repository, data []byte, step int) (fsverity.Digest, repo.Method, error) {
	w, err := r.NewObject(ctx)
	if err != nil {
		return fsverity.Digest{}, 0, err
	}
	defer w.Abort()
	for i := 0; i < len(data); i += step {
		if _, err := w.Write(data[i:min(i+step, len(data))]); err != nil {
			return fsverity.Digest{}, 0, err
		}
	}
	d, size, err := w.Commit()
	if err == nil && size != int64(len(data)) {
		err = errors.New("Commit says another size")
	}
	return d, w.Method(), err
}

// stream stores a splitstream with an inline piece and external objects.
func stream(ctx context.Context, r *repo.Repository, objects ...[]byte) (fsverity.Digest, error) {
	w, err := r.NewStream(ctx, splitstream.Layer)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer w.Abort()
	for _, o := range objects {
		d, _, err := store(ctx, r, o, 50_000)
		if err != nil {
			return fsverity.Digest{}, err
		}
		if _, err := w.Write([]byte("inline")); err != nil {
			return fsverity.Digest{}, err
		}
		if err := w.External(d, int64(len(o))); err != nil {
			return fsverity.Digest{}, err
		}
	}
	return w.Commit(ctx)
}

// openStream opens the splitstream that has this name.
func openStream(ctx context.Context, r *repo.Repository, name string, want splitstream.ContentType) (*repo.StreamReader, error) {
	id, err := r.LookupStream(name)
	if err != nil {
		return nil, err
	}
	return r.OpenStreamByID(ctx, id, want)
}

// objectFile returns where an object is.
func objectFile(r *repo.Repository, d fsverity.Digest) string {
	return filepath.Join(r.Path(), "objects", d.ObjectPath())
}

// files lists all files below the repository, to see leftovers.
func files(t testing.TB, path string) []string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !e.IsDir() {
			rel, _ := filepath.Rel(path, p)
			list = append(list, rel)
		}
		return nil
	}))
	return list
}

func check(t testing.TB, r *repo.Repository) *repo.Report {
	t.Helper()
	rep, err := r.Check(t.Context())
	must(t, err)
	for _, p := range rep.Problems {
		t.Errorf("check: %v", p)
	}
	return rep
}

func sum(data []byte) fsverity.Digest { return fsverity.Sum(fsverity.SHA512, data) }
