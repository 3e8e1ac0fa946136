package pull

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// reclaimWait is how long a pull that lacks space waits for others to close the
// repository. Tests shorten it.
var reclaimWait = 5 * time.Second

// LeftError is the error of a pull after which something stays in the repository to
// which nothing leads, because it could not be removed. Garbage collection can.
type LeftError struct {
	Err  error // of the pull
	Left error // why something stays
}

// Error is that of the pull.
func (e *LeftError) Error() string { return e.Err.Error() }

// Unwrap returns that of the pull.
func (e *LeftError) Unwrap() error { return e.Err }

func (p *puller) say(format string, args ...any) {
	progress.Report(p.opts.Progress, progress.Message{Text: fmt.Sprintf(format, args...)})
}

// end takes back what a pull that failed has stored, and returns its error. Room is
// true if it failed for lack of space and there is so much more now that it may be
// worth trying again.
func (p *puller) end(ctx context.Context, failed error) (room bool, err error) {
	var removed repo.Removed
	left := p.left
	var space *durable.SpaceError
	switch {
	case failed == nil:
		removed, err = p.work.Keep(ctx)
	case errors.As(failed, &space) && p.started:
		removed, err = p.work.UndoAll(ctx, p.reclaim(func(string) bool { return true }), slices.Sorted(maps.Keys(p.named))...)
	default:
		removed, err = p.work.Undo(ctx)
	}
	left = errors.Join(left, err, p.removed(removed))
	if failed == nil {
		if left != nil { // nothing is wrong with what stays of another pull
			p.opts.Logger.Warn("what a failed pull has stored stays", "error", left)
		}
		return false, nil
	}
	if left != nil {
		return false, &LeftError{failed, left}
	}
	return p.started && space != nil && p.worthwhile(removed), failed
}

// worthwhile tells whether what was removed is not little beside what the pull had
// stored, and nothing of it is what the pull would have to fetch again.
func (p *puller) worthwhile(removed repo.Removed) bool {
	for _, name := range removed.Streams {
		if _, own := p.named[name]; !own && p.has(name) {
			return false
		}
	}
	const share = 8
	ownObjects, ownBytes := removed.Objects-removed.OldObjects, removed.Bytes-removed.OldBytes
	return removed.OldObjects > 0 && (removed.OldObjects >= ownObjects/share || removed.OldBytes >= ownBytes/share)
}

// has tells whether the image has this layer.
func (p *puller) has(stream string) bool {
	d, ok := oci.LayerOf(stream)
	return ok && slices.Contains(p.img.Config.RootFS.DiffIDs, d)
}

// makeRoom removes what nothing leads to, before anything is fetched. It keeps the
// layers of this image that are complete. It returns whether it has removed any.
func (p *puller) makeRoom(ctx context.Context) bool {
	removed, err := p.work.Reclaim(ctx, p.reclaim(func(stream string) bool { return !p.has(stream) }))
	if !errors.Is(err, repo.ErrRunning) { // the other pull says what it leaves
		p.left = err
	}
	p.left = errors.Join(p.left, p.removed(removed))
	return removed.Objects > 0
}

// reclaim gives up the layers, of any image, that are not needed and for which
// giveUp is true.
func (p *puller) reclaim(giveUp func(stream string) bool) repo.ReclaimOptions {
	return repo.ReclaimOptions{
		LockWait: reclaimWait,
		Waiting: func(e *repo.LockedError) {
			p.say("space is short, and %v: waiting %v for it to end, to remove what nothing needs", e, reclaimWait)
		},
		Streams: func(name string) bool {
			_, ok := oci.LayerOf(name)
			return ok && giveUp(name)
		},
	}
}

// removed tells what was removed, and forgets what is known about it.
func (p *puller) removed(r repo.Removed) (err error) {
	for _, name := range r.Streams {
		if d, ok := oci.LayerOf(name); ok {
			err = errors.Join(err, oci.ForgetLayer(p.r, d))
		}
	}
	for _, x := range r.Damaged {
		p.opts.Logger.Warn("damaged: what it may need is kept; pull its image again", "name", x.Name, "error", x.Err)
	}
	if n := r.Objects - r.OldObjects; n > 0 {
		p.say("what the failed pull has stored is removed again: %s, %s", progress.Count(n, "object"), progress.FormatSize(r.Bytes-r.OldBytes, 1))
	}
	if r.OldObjects > 0 {
		p.say("what nothing in the repository needs is removed: %s, %s", progress.Count(r.OldObjects, "object"), progress.FormatSize(r.OldBytes, 1))
	}
	return err
}
