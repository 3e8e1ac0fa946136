package repo

import (
	"context"
	"errors"
	"time"
)

// CollectOptions are those of Collect. The zero value removes everything that no
// ref leads to.
type CollectOptions struct {
	// DryRun only counts. It takes no lock but the shared one of the handle.
	DryRun bool
	// Images returns the digests, in hex, of listed images that are in use without a
	// ref; nil: there are none. One that is not there is a problem. It is called under
	// the lock; an error of it is returned as it is.
	Images func() ([]string, error)
	// Without are refs, or directories of refs with a slash at the end, that count
	// as gone in a dry run: "streams/refs/oci/os", "images/refs/cfsboot/<id>/".
	Without []string
	// DropDangling removes refs that lead to nothing; without it they are a problem.
	DropDangling bool
	// LockWait is how long to wait for others to close the repository.
	LockWait time.Duration
}

// Collected is what Collect has removed, or would.
type Collected struct {
	Objects     int
	Bytes       int64 // that objects and temporaries took on the medium
	Images      int   // first-level names
	Streams     int   // first-level names
	Dangling    []Ref // refs to nothing that were dropped; Name begins with the kind's directory and "refs/"
	Temporaries int   // files and links of killed programs
	KeptObjects int
	KeptImages  int // first-level names
	KeptStreams int
}

// Collect removes what no ref leads to: names of streams and images, objects, and
// temporaries of killed programs that are older than a day (repository.md 4).
//
// An image is in use by a ref, by Options.Images, or by a stream that names it; a
// stream by a ref or by a stream that names it. Names are followed by digest.
// Unless everything that is in use can be followed to its end, nothing is removed
// and the error is a *RootsError with all that is in the way. What is not of a
// repository, files with other names for example, is left alone.
//
// It takes the exclusive lock: *LockedError while another handle is open. No run
// of this handle may be open. A crash at any moment leaves names with all of their
// objects, and a second call does the rest. On success it is durable.
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (*Collected, error) {
	c := &collector{r: r, o: o}
	if o.DryRun {
		err := c.run(ctx)
		return &c.out, err
	}
	if err := r.mayWrite(ctx); err != nil {
		return nil, err
	}
	if err := r.Writable(); err != nil {
		return nil, err
	}
	if len(o.Without) > 0 {
		return nil, errors.New("refs can be left out in a dry run only")
	}
	r.runs.mu.Lock()
	defer r.runs.mu.Unlock()
	if r.runs.active > 0 {
		return nil, ErrRunning
	}
	err := c.exclusively(ctx, o.LockWait, nil)
	return &c.out, err
}
