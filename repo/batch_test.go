package repo_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
)

// storeBatch stores count contents, some of them twice, and returns what Commit
// said.
func storeBatch(ctx context.Context, b *repo.Batch, count int) (list []fsverity.Digest, err error) {
	defer func() { err = errors.Join(err, b.Wait()) }()
	for i := range count {
		w, err := b.NewObject(ctx)
		if err != nil {
			return list, err
		}
		if _, err := w.Write(pattern(i*1500, i%20)); err != nil {
			return list, errors.Join(err, w.Abort())
		}
		d, size, err := w.Commit()
		if err != nil || size != int64(i*1500) {
			return list, fmt.Errorf("object %d: %d bytes, %w", i, size, err)
		}
		list = append(list, d)
	}
	return list, nil
}

func testBatch(t *testing.T, r *repo.Repository, workers int) {
	t.Helper()
	ctx := t.Context()
	for range 2 {
		list, err := storeBatch(ctx, r.NewBatch(workers), 60) // the last ones exceed the buffer
		must(t, err)
		for i, d := range list {
			b, err := r.ReadObject(ctx, d, 1<<20)
			if err != nil || fsverity.Sum(r.Algorithm(), b) != d || len(b) != i*1500 {
				t.Errorf("%d workers, object %d: %d bytes, %v", workers, i, len(b), err)
			}
		}
	}
	if rep := check(t, r); rep.Objects != 60 || len(rep.Unused) > 0 {
		t.Errorf("%d workers: got %+v", workers, rep)
	}
}

func TestBatch(t *testing.T) {
	for _, workers := range []int{0, 1, 8} {
		testBatch(t, newRepo(t), workers)
	}
}

func TestRootBatch(t *testing.T) {
	testBatch(t, newSecureRepo(t, fsverity.SHA256), 0)
}

// TestBatchReportsEveryFault: an error in the background reaches Wait.
func TestBatchReportsEveryFault(t *testing.T) {
	everyCall(t, func(t *testing.T, n int) bool {
		fs := durabletest.New(t)
		r := newFaultyRepo(t, fs)
		fs.FailAt(n, unix.EIO)
		_, err := storeBatch(t.Context(), r.NewBatch(4), 5)
		if !fs.Triggered() {
			must(t, err)
			return false
		}
		if !errors.Is(err, unix.EIO) {
			t.Errorf("fault %d (%s): got %v", n, fs.Op(n), err)
		}
		fs.Disarm()
		_, err = storeBatch(t.Context(), r.NewBatch(4), 5)
		must(t, err)
		if rep := check(t, r); rep.Objects != 5 {
			t.Errorf("fault %d (%s): got %d objects, want 5", n, fs.Op(n), rep.Objects)
		}
		return true
	})
}
