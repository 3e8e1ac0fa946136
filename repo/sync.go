package repo

import (
	"context"
	"fmt"
	"sync"
)

// order keeps data before names and names before refs with as few syncs as
// possible. Each level counts what was changed and what a syncfs has covered.
// It starts unsynced: what an earlier process left may be in the cache only.
type order struct {
	mu      sync.Mutex
	changed [levels]uint64
	synced  [levels]uint64
	// one lets a single goroutine sync; the others find the work done.
	one sync.Mutex
	// broken is the error of a sync. It is told once only, and what was not written
	// by then never is, so that no later sync of this handle may succeed.
	broken error
}

type level int

const (
	levelObjects level = iota
	levelNames         // first-level entries of streams/ and images/
	levelRefs
	levels
)

func (o *order) init() {
	for i := range o.changed {
		o.changed[i] = 1
	}
}

// touch notes a change of a level, after it was made.
func (o *order) touch(l level) {
	o.mu.Lock()
	o.changed[l]++
	o.mu.Unlock()
}

func (o *order) pending(upTo level) ([levels]uint64, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for l := range upTo + 1 {
		if o.changed[l] != o.synced[l] {
			return o.changed, true
		}
	}
	return o.changed, false
}

// settle makes all changes of the levels up to upTo durable.
func (r *Repository) settle(upTo level) error {
	if _, dirty := r.order.pending(upTo); !dirty {
		return nil
	}
	r.order.one.Lock()
	defer r.order.one.Unlock()
	seen, dirty := r.order.pending(upTo)
	if !dirty {
		return nil
	}
	if r.order.broken != nil {
		return fmt.Errorf("an earlier sync failed: %w", r.order.broken)
	}
	if err := r.dir.SyncFS(); err != nil {
		r.order.broken = err
		return err
	}
	r.order.mu.Lock()
	defer r.order.mu.Unlock()
	r.order.synced = seen
	return nil
}

// Sync makes everything that was stored and published through r durable, with
// at most one syncfs. Call it once before success is reported.
func (r *Repository) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.settle(levelRefs)
}
