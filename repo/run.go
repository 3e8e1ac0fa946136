package repo

import (
	"context"
	"errors"
	"sync"
	"time"
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

// undoWait is how long the end of a run waits for the exclusive lock, if nothing
// else was asked for. A process that was forked at the wrong moment has a copy of a
// handle that is closed until it executes its program.
const undoWait = time.Second

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

// Removed is what Undo, Keep or Reclaim has removed.
type Removed struct {
	Streams []string // names, in byte order
	Objects int
	Bytes   int64 // that the objects took on the medium
	// Damaged are names that lead to what is damaged. What that names is kept as far
	// as it can be read; where it cannot, only a run's own objects were removed.
	Damaged []RootProblem
}

// Keep ends a run that succeeded. It does what an overlapping run that failed has
// left to do, see Undo.
func (u *Run) Keep(ctx context.Context) (Removed, error) { return u.end(ctx, false, nil) }

// Undo ends a run that failed. Of the objects that were stored since it began
// those are removed to which no image and no stream in the repository leads.
// Streams are names that the run made and that may go with their objects: those
// stay to which a ref or another stream leads.
//
// That takes the exclusive lock. While somebody else has a handle on the
// repository, for more than a second, nothing is removed and the error is a
// *LockedError. What stays is for Reclaim or garbage collection.
//
// A crash at any moment leaves names with all of their objects, as before: what
// is to be kept is durable before anything is removed, and names are durably gone
// before their objects.
func (u *Run) Undo(ctx context.Context, streams ...string) (Removed, error) {
	return u.end(ctx, true, streams)
}

func (u *Run) end(ctx context.Context, failed bool, streams []string) (Removed, error) {
	r := u.r
	s := &r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.failed = s.failed || failed
	for _, name := range streams {
		s.streams[name] = struct{}{}
	}
	made := r.known.made()
	if s.active > 0 || !s.failed || len(made)+len(s.streams) == 0 {
		return Removed{}, nil
	}
	c := &collector{r: r, only: made, giveUp: func(name string) bool { _, ok := s.streams[name]; return ok }}
	err := c.exclusively(ctx, undoWait, nil)
	return c.removed(), err
}

// ErrRunning says that a run of the handle is open.
var ErrRunning = errors.New("other work stores objects through this handle")

// ReclaimOptions are those of Reclaim.
type ReclaimOptions struct {
	// LockWait is how long to wait for others to close the repository.
	LockWait time.Duration
	// Waiting is called before that, if it is needed; may be nil.
	Waiting func(*LockedError)
	// Streams says which names may go if neither a ref nor another stream leads to
	// them, and nothing is damaged; nil: none.
	Streams func(name string) bool
}

// Reclaim makes room: it removes all objects to which no image and no stream leads,
// whoever has stored them. Names that o gives up go before. Every other name is a
// root, not only what refs lead to: Collect is garbage collection of the whole.
//
// It takes the exclusive lock: *LockedError if others have handles for longer than
// the wait. The error is ErrRunning if a run of this handle is open. What is damaged
// and crashes: see Undo.
func (r *Repository) Reclaim(ctx context.Context, o ReclaimOptions) (Removed, error) {
	s := &r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active > 0 {
		return Removed{}, ErrRunning
	}
	c := &collector{r: r, giveUp: o.Streams}
	if c.giveUp == nil {
		c.giveUp = func(string) bool { return false }
	}
	err := c.exclusively(ctx, o.LockWait, o.Waiting)
	return c.removed(), err
}
