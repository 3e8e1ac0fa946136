package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/cfsboot/cfsboot/repo/oci"
)

// errStalled ends a transfer that is silent for too long.
var errStalled = errors.New("no data arrives")

// watchdog cancels its context when a read takes longer than the limit.
type watchdog struct {
	ctx    context.Context // of one request
	cancel context.CancelCauseFunc
	timer  *time.Timer
	limit  time.Duration
	fired  atomic.Bool
}

func newWatchdog(ctx context.Context, limit time.Duration) *watchdog {
	w := &watchdog{limit: limit}
	w.ctx, w.cancel = context.WithCancelCause(ctx)
	w.timer = time.AfterFunc(time.Hour, func() {
		w.fired.Store(true)
		w.cancel(errStalled)
	})
	w.timer.Stop()
	return w
}

func (w *watchdog) stop() {
	w.timer.Stop()
	w.cancel(nil)
}

// watchedBody is a response body under a watchdog. Of content, the time between
// reads does not count, only the time in them. What is small and read at once
// must be complete within the limit, or a registry that sends a byte from time to
// time would keep us for ever.
type watchedBody struct {
	body    io.ReadCloser
	w       *watchdog
	whole   bool
	started bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	if !b.whole || !b.started {
		b.w.timer.Reset(b.w.limit)
		b.started = true
	}
	n, err := b.body.Read(p)
	if !b.whole {
		b.w.timer.Stop()
	}
	if err != nil && !oci.IsEOF(err) && b.w.fired.Load() {
		err = fmt.Errorf("%w for %s", errStalled, b.w.limit)
		if b.whole {
			err = fmt.Errorf("the answer is not complete after %s: %w", b.w.limit, errStalled)
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	defer b.w.stop()
	return b.body.Close()
}

// deadlineKey marks the context of requests whose answers are small.
type deadlineKey struct{}

// withDeadline lets the answers to the requests of ctx take no longer than the
// stall time-out as a whole.
func withDeadline(ctx context.Context) context.Context {
	return context.WithValue(ctx, deadlineKey{}, true)
}

func hasDeadline(ctx context.Context) bool { return ctx.Value(deadlineKey{}) != nil }
