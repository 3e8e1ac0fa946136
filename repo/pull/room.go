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
	var space *durable.SpaceError
	full := errors.As(failed, &space) && p.started
	var streams []string // that go, too
	if full {
		streams = slices.Sorted(maps.Keys(p.named))
	}
	var own repo.Removed
	if failed == nil {
		own, err = p.work.Keep(ctx)
	} else {
		own, err = p.work.Undo(ctx, streams...)
	}
	left := errors.Join(p.left, p.undone(own))
	var locked *repo.LockedError
	if full && (err == nil || errors.As(err, &locked)) {
		// What could not be removed as this pull's own may go as anybody's.
		known := err == nil
		var old repo.Removed
		old, err = p.reclaim(ctx, func(string) bool { return true })
		room = known && err == nil && p.worthwhile(own, old)
	}
	left = errors.Join(left, err)
	switch {
	case failed == nil && left != nil: // nothing is wrong with what stays of another pull
		p.opts.Logger.Warn("what a failed pull has stored stays", "error", left)
	case failed != nil && left != nil:
		return false, &LeftError{failed, left}
	}
	return room, failed
}

// worthwhile tells whether what was removed is not little beside what the pull had
// stored, and nothing of it is what the pull would have to fetch again.
func (p *puller) worthwhile(own, old repo.Removed) bool {
	for _, name := range old.Streams {
		if _, own := p.named[name]; !own && p.has(name) {
			return false
		}
	}
	const share = 8
	return old.Objects > 0 && (old.Objects >= own.Objects/share || old.Bytes >= own.Bytes/share)
}

// has tells whether the image has this layer.
func (p *puller) has(stream string) bool {
	d, ok := oci.LayerOf(stream)
	return ok && slices.Contains(p.img.Config.RootFS.DiffIDs, d)
}

// makeRoom removes what nothing leads to, before anything is fetched. It keeps the
// layers of this image that are complete. It returns whether it has removed any.
func (p *puller) makeRoom(ctx context.Context) bool {
	undone, err := p.work.Keep(ctx) // nothing is stored yet
	old, rerr := p.reclaim(ctx, func(stream string) bool { return !p.has(stream) })
	p.work = p.r.Begin()
	p.left = errors.Join(err, p.undone(undone), rerr)
	return old.Objects > 0
}

// reclaim removes what nothing leads to, and gives up the layers, of any image, that
// are not needed and for which giveUp is true. While another pull runs it does
// nothing: that one says what it leaves.
func (p *puller) reclaim(ctx context.Context, giveUp func(stream string) bool) (repo.Removed, error) {
	removed, err := p.r.Reclaim(ctx, repo.ReclaimOptions{
		LockWait: reclaimWait,
		Waiting: func(e *repo.LockedError) {
			p.say("space is short, and %v: waiting %v for it to end, to remove what nothing needs", e, reclaimWait)
		},
		Streams: func(name string) bool {
			_, ok := oci.LayerOf(name)
			return ok && giveUp(name)
		},
	})
	if errors.Is(err, repo.ErrRunning) {
		return removed, nil
	}
	return removed, errors.Join(err, p.removed("what nothing in the repository needs is removed", removed))
}

// undone tells what was removed of what a pull has stored.
func (p *puller) undone(r repo.Removed) error {
	return p.removed("what the failed pull has stored is removed again", r)
}

// removed tells what was removed, and forgets what is known about it.
func (p *puller) removed(what string, r repo.Removed) (err error) {
	for _, name := range r.Streams {
		if d, ok := oci.LayerOf(name); ok {
			err = errors.Join(err, oci.ForgetLayer(p.r, d))
		}
	}
	for _, x := range r.Damaged {
		p.opts.Logger.Warn("damaged: what it may need is kept; pull its image again", "name", x.Name, "error", x.Err)
	}
	if r.Objects > 0 {
		p.say("%s: %s, %s", what, progress.Count(r.Objects, "object"), progress.FormatSize(r.Bytes, 1))
	}
	return err
}
