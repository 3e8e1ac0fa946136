// Package repotest makes repositories for tests.
package repotest

import (
	"testing"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
)

// New returns an insecure repository in a temporary directory. It is closed when
// the test ends.
func New(tb testing.TB, a fsverity.Algorithm) *repo.Repository {
	tb.Helper()
	return NewFormat(tb, a, erofs.V1)
}

// NewFormat is New for images of format v.
func NewFormat(tb testing.TB, a fsverity.Algorithm, v erofs.Version) *repo.Repository {
	tb.Helper()
	dir, err := durable.OpenDir(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { dir.Close() })
	return newIn(tb, dir, repo.InitOptions{Algorithm: a, Formats: &repo.Formats{Default: v}, Insecure: true})
}

// NewIn is New in a directory of the caller's, which keeps the fault hook of dir.
func NewIn(tb testing.TB, dir *durable.Dir, a fsverity.Algorithm) *repo.Repository {
	tb.Helper()
	return newIn(tb, dir, repo.InitOptions{Algorithm: a, Insecure: true})
}

func newIn(tb testing.TB, dir *durable.Dir, o repo.InitOptions) *repo.Repository {
	tb.Helper()
	if err := repo.Init(tb.Context(), dir, o); err != nil {
		tb.Fatal(err)
	}
	return Open(tb, dir)
}

// Open opens a repository that exists.
func Open(tb testing.TB, dir *durable.Dir) *repo.Repository {
	tb.Helper()
	r, err := repo.Open(tb.Context(), dir, repo.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

// Check fails the test if the repository is damaged.
func Check(tb testing.TB, r *repo.Repository) {
	tb.Helper()
	report, err := r.Check(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	for _, p := range report.Problems {
		tb.Errorf("repository: %s", p)
	}
}
