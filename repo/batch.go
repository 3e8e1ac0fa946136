package repo

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/cfsboot/cfsboot/fsverity"
)

// batchWorkers is how many small objects are stored at once where fs-verity is
// enabled on them: the kernel writes each to the medium and waits for it, so the
// time goes into waiting.
const batchWorkers = 16

// Batch stores many objects. Where storing means waiting for the medium, the small
// ones are stored in the background. It is used by one goroutine, which ends it by
// Wait.
type Batch struct {
	r       *Repository
	workers errgroup.Group
	inline  bool
	failed  atomic.Bool
}

// NewBatch returns a Batch with this number of workers; 0 lets the file system
// decide, and where it has no fs-verity there are none.
func (r *Repository) NewBatch(workers int) *Batch {
	b := &Batch{r: r}
	if workers == 0 && r.verity != verityNone {
		workers = batchWorkers
	}
	b.inline = workers < 1
	if !b.inline {
		b.workers.SetLimit(workers)
	}
	return b
}

// NewObject is Repository.NewObject, but Commit may return before the object is
// stored: what it returns is right, errors come from Wait. An object must not be
// opened, and nothing that leads to it be published, before Wait. Once an object
// could not be stored the error is ErrBatchFailed.
func (b *Batch) NewObject(ctx context.Context) (*ObjectWriter, error) {
	if b.failed.Load() {
		return nil, ErrBatchFailed
	}
	w, err := b.r.NewObject(ctx)
	if err == nil && !b.inline {
		w.batch = b
	}
	return w, err
}

// put stores the first n bytes of array, whose digest is d, and releases array.
func (b *Batch) put(d fsverity.Digest, array *[writerBuffer]byte, n int) {
	if b.r.known.has(d) {
		b.r.stats.add(AlreadyPresent, int64(n))
		writerBuffers.Put(array)
		return
	}
	b.workers.Go(func() error {
		defer writerBuffers.Put(array)
		_, err := b.r.putBytes(d, array[:n])
		if err != nil {
			b.failed.Store(true)
		}
		return err
	})
}

// Wait waits until all objects are stored and returns the first error. It must be
// called in any case, after an error too.
func (b *Batch) Wait() error { return b.workers.Wait() }
