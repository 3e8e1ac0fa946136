// Package progress carries what a long operation is doing from the libraries,
// which only emit events, to the command line, which renders them for a
// terminal, as plain lines or as JSON lines.
//
// A component is one unit of work with a name that is unique while it is
// active, for example a layer. Its life is one [Start], any number of
// [Advance] and one [End]. A [Message] belongs to no component.
//
// Every renderer of this package may be used by several goroutines at once. It
// starts no goroutine of its own: it draws when an event arrives. Write errors
// of the output are ignored, because a closed terminal must not stop an update.
package progress

import (
	"context"
	"errors"
)

// Unit says what the numbers of a component count.
type Unit string

// The units that renderers know.
const (
	Bytes Unit = "bytes"
	Items Unit = "items"
)

// Event is one of [Start], [Advance], [End] and [Message]. Receivers ignore
// kinds that they do not know.
type Event interface{ event() }

// Start begins a component. Total is the expected final value of Advance.Done
// in Unit; 0 means unknown.
type Start struct {
	Component string
	Unit      Unit
	Total     int64
}

// Advance reports the amount done since Start, not since the last Advance.
type Advance struct {
	Component string
	Done      int64
}

// End finishes a component; Err is nil if it succeeded.
type End struct {
	Component string
	Err       error
}

// Message is one line of text for people, without a newline.
type Message struct{ Text string }

func (Start) event()   {}
func (Advance) event() {}
func (End) event()     {}
func (Message) event() {}

// Reporter receives events. Implementations are safe for concurrent use and
// return quickly.
type Reporter interface{ Event(e Event) }

// Report sends e to r. A nil r drops it, so that callers need no check.
func Report(r Reporter, e Event) {
	if r != nil {
		r.Event(e)
	}
}

// Counter counts what is done of one component and reports at most one
// Advance for every step units, so that a caller may add every small read.
// It belongs to one goroutine.
type Counter struct {
	reporter  Reporter
	component string
	done      int64
	reported  int64
	step      int64
}

// NewCounter sends the Start of a component and returns its counter. step is
// the smallest difference that is worth an event; less than 1 means 1.
func NewCounter(r Reporter, s Start, step int64) *Counter {
	Report(r, s)
	return &Counter{reporter: r, component: s.Component, step: max(step, 1)}
}

// Add counts n more units.
func (c *Counter) Add(n int64) {
	c.done += n
	if c.done-c.reported >= c.step {
		c.reported = c.done
		Report(c.reporter, Advance{Component: c.component, Done: c.done})
	}
}

// Done returns the count.
func (c *Counter) Done() int64 { return c.done }

// End reports the last value and the end of the component. What was only stopped,
// because of something else, reports no value.
func (c *Counter) End(err error) {
	if c.done != c.reported && !errors.Is(err, context.Canceled) {
		c.reported = c.done
		Report(c.reporter, Advance{Component: c.component, Done: c.done})
	}
	Report(c.reporter, End{Component: c.component, Err: err})
}
