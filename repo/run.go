package repo

import (
	"context"
	"errors"
	"maps"
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
	reclaim *ReclaimOptions     // of a run that lacked space
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
		s.failed, s.streams, s.reclaim = false, map[string]struct{}{}, nil
	}
	s.active++
	return &Run{r}
}

// Removed is what the end of a run has removed.
type Removed struct {
	Streams []string // names, in byte order
	Objects int
	Bytes   int64 // that the objects took on the medium
	// Of these, objects that were there before the runs, or are another handle's.
	OldObjects int
	OldBytes   int64
	// Damaged are names that lead to what is damaged. What that names is kept as far
	// as it can be read; where it cannot, only what the runs have stored was removed.
	Damaged []RootProblem
}

// Keep ends a run that succeeded. It does what an overlapping run that failed has
// left to do, see Undo.
func (u *Run) Keep(ctx context.Context) (Removed, error) { return u.end(ctx, false, nil, nil) }

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
	return u.end(ctx, true, streams, nil)
}

// UndoAll is Undo for a run that lacked space: it removes all objects without a
// name, and the streams that o gives up. See Reclaim.
func (u *Run) UndoAll(ctx context.Context, o ReclaimOptions, streams ...string) (Removed, error) {
	return u.end(ctx, true, streams, &o)
}

func (u *Run) end(ctx context.Context, failed bool, streams []string, all *ReclaimOptions) (removed Removed, err error) {
	r := u.r
	s := &r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active--
	s.failed = s.failed || failed
	for _, name := range streams {
		s.streams[name] = struct{}{}
	}
	if all != nil {
		s.reclaim = all
	}
	if s.active > 0 || !s.failed {
		return removed, nil
	}
	return r.takeBack(ctx, s.reclaim)
}

// ErrRunning says that another run of the handle is open.
var ErrRunning = errors.New("other work stores objects through this handle")

// ReclaimOptions are those of Run.Reclaim and Run.UndoAll.
type ReclaimOptions struct {
	// LockWait is how long to wait for others to close the repository.
	LockWait time.Duration
	// Waiting is called before that, if it is needed; may be nil.
	Waiting func(*LockedError)
	// Streams says which names may go if neither a ref nor another stream leads to
	// them; nil: none. It is not asked while anything is damaged.
	Streams func(name string) bool
}

// Reclaim makes room in the middle of a run: it removes all objects to which no
// image and no stream leads, those of this run too, of which the caller must not
// use any that it has not published. Names that o gives up go before.
//
// It takes the exclusive lock: *LockedError if others have handles for longer than
// the wait. The error is ErrRunning if another run of this handle is open. For
// crashes see Undo.
func (u *Run) Reclaim(ctx context.Context, o ReclaimOptions) (Removed, error) {
	s := &u.r.runs
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active > 1 {
		return Removed{}, ErrRunning
	}
	return u.r.takeBack(ctx, &o)
}

// takeBack removes what the runs of this handle have stored, and with all what
// anybody has left. The caller has the lock of the runs.
func (r *Repository) takeBack(ctx context.Context, all *ReclaimOptions) (removed Removed, err error) {
	objects, streams := r.known.made(), maps.Clone(r.runs.streams)
	wait, waiting := undoWait, func(*LockedError) {}
	if all != nil {
		wait = all.LockWait
		if all.Waiting != nil {
			waiting = all.Waiting
		}
	} else if len(objects) == 0 && len(streams) == 0 {
		return removed, nil
	}
	err = r.exclusively(ctx, wait, waiting, func() error {
		// The names on the medium are to be those that are read here.
		if err := r.settle(levelRefs); err != nil {
			return err
		}
		removed, err = r.collect(ctx, objects, streams, all)
		return err
	})
	return removed, err
}
