package repo

import (
	"context"
	"maps"
	"sync"
)

// Run is a piece of work whose objects are removed again if it fails: a full file
// system would otherwise stay full. It ends in Keep or Undo.
//
// Runs of one handle may overlap. Then nothing is removed before the last of them
// ends, and what they stored counts as that of all. Outside of a run nothing must
// be stored through the handle while one ends.
type Run struct{ r *Repository }

// runs are those of one handle.
type runs struct {
	mu      sync.Mutex // held while something is removed, too
	active  int
	failed  bool
	streams map[string]struct{} // that may go
}

// Begin starts a run.
func (r *Repository) Begin() *Run {
	s := &r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active == 0 {
		r.known.nextPeriod()
		s.failed, s.streams = false, map[string]struct{}{}
	}
	s.active++
	return &Run{r}
}

// Removed is what Undo has removed.
type Removed struct {
	Streams []string // names, in byte order
	Objects int
	Bytes   int64 // that the objects took on the medium
}

// Keep ends a run that succeeded. It does what an overlapping run that failed has
// left to do, see Undo.
func (u *Run) Keep(ctx context.Context) (Removed, error) { return u.end(ctx, false, nil) }

// Undo ends a run that failed. Of the objects that were stored since it began
// those are removed to which no image and no stream in the repository leads.
// Streams are names that the run made and that may go with their objects: those
// stay to which a ref or another stream leads.
//
// That takes the exclusive lock. Where somebody else has a handle on the
// repository, nothing is removed and the error is a *LockedError; so it is where
// a stream or an image cannot be read, with another error. What stays is for
// garbage collection.
//
// A crash at any moment leaves names with all of their objects, as before: what
// is to be kept is durable before anything is removed, and names are durably gone
// before their objects.
func (u *Run) Undo(ctx context.Context, streams ...string) (Removed, error) {
	return u.end(ctx, true, streams)
}

func (u *Run) end(ctx context.Context, failed bool, streams []string) (removed Removed, err error) {
	r := u.r
	s := &r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.failed = s.failed || failed
	for _, name := range streams {
		s.streams[name] = struct{}{}
	}
	if s.active > 0 || !s.failed {
		return removed, nil
	}
	objects := r.known.made()
	if len(objects) == 0 && len(s.streams) == 0 {
		return removed, nil
	}
	err = r.exclusively(ctx, 0, func() error {
		// The names on the medium are to be those that are read here.
		if err := r.settle(levelRefs); err != nil {
			return err
		}
		removed, err = r.collect(ctx, objects, maps.Clone(s.streams))
		return err
	})
	return removed, err
}
