package progress_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/internal/progress"
)

// clock is a hand-driven clock.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func newClock() *clock { return &clock{t: time.Unix(1700000000, 0)} }

func TestCount(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]string{0: "0 objects", 1: "1 object", 2: "2 objects"} {
		if got := progress.Count(n, "object"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestFormatBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1048575: "1.0 MiB", 1 << 20: "1.0 MiB",
		428 << 20: "428.0 MiB", 5 << 30: "5.0 GiB", 3 << 40: "3.0 TiB", 4000 << 40: "4000.0 TiB",
	} {
		if got := progress.FormatBytes(n); got != want {
			t.Errorf("FormatBytes(%d) = %q, want %q", n, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 800: "800 B", 1500000: "1.43 MiB", 1048575: "1.00 MiB", 1048570: "1023.99 KiB"} {
		if got := progress.FormatSize(n, 2); got != want {
			t.Errorf("FormatSize(%d, 2) = %q, want %q", n, got, want)
		}
	}
}

func TestNilReporter(t *testing.T) {
	t.Parallel()
	c := progress.NewCounter(nil, progress.Start{Component: "x"}, 0)
	c.Add(3)
	c.End(nil)
	if c.Done() != 3 {
		t.Errorf("Done = %d, want 3", c.Done())
	}
}

// recorder keeps what it is told.
type recorder []progress.Event

func (r *recorder) Event(e progress.Event) { *r = append(*r, e) }

func TestCounterLimitsEvents(t *testing.T) {
	t.Parallel()
	var got recorder
	c := progress.NewCounter(&got,
		progress.Start{Component: "layer", Unit: progress.Bytes, Total: 25}, 10)
	for range 25 {
		c.Add(1)
	}
	c.End(nil)
	want := recorder{
		progress.Start{Component: "layer", Unit: progress.Bytes, Total: 25},
		progress.Advance{Component: "layer", Done: 10},
		progress.Advance{Component: "layer", Done: 20},
		progress.Advance{Component: "layer", Done: 25},
		progress.End{Component: "layer"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("events mismatch (-want +got):\n%s", d)
	}
}

// TestCounterStopped: after something else has failed nothing is told about what is
// stopped.
func TestCounterStopped(t *testing.T) {
	t.Parallel()
	var got recorder
	c := progress.NewCounter(&got, progress.Start{Component: "layer"}, 10)
	c.Add(5)
	c.End(context.Canceled)
	want := recorder{progress.Start{Component: "layer"}, progress.End{Component: "layer", Err: context.Canceled}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := newClock()
	p := progress.NewPlain(&out, c.now)
	p.Event(progress.Start{Component: "layer a", Unit: progress.Bytes, Total: 1000})
	for done := int64(50); done <= 1000; done += 50 { // 5 percent steps: every second one is printed
		p.Event(progress.Advance{Component: "layer a", Done: done})
	}
	p.Event(progress.End{Component: "layer a"})
	p.Event(progress.Start{Component: "list", Unit: progress.Items})
	p.Event(progress.Advance{Component: "list", Done: 1})
	c.advance(31 * time.Second)
	p.Event(progress.Advance{Component: "list", Done: 2})
	p.Event(progress.End{Component: "list", Err: errors.New("why is told by the command")})
	p.Event(progress.Start{Component: "other", Unit: progress.Items})
	p.Event(progress.End{Component: "other", Err: fmt.Errorf("list: %w", context.Canceled)})
	p.Event(progress.Message{Text: "bye\x1b[2J\nand \u202eall"})
	p.Close()
	p.Event(progress.Message{Text: "dropped"})
	want := `layer a: start, 1000 B
layer a: 100 B of 1000 B, 10%
layer a: 200 B of 1000 B, 20%
layer a: 300 B of 1000 B, 30%
layer a: 400 B of 1000 B, 40%
layer a: 500 B of 1000 B, 50%
layer a: 600 B of 1000 B, 60%
layer a: 700 B of 1000 B, 70%
layer a: 800 B of 1000 B, 80%
layer a: 900 B of 1000 B, 90%
layer a: done, 1000 B
list: start
list: 2
list: failed
other: start
bye?[2J?and ?all
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("output mismatch (-want +got):\n%s", d)
	}
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := newClock()
	term := progress.NewTerminal(&out, 40, c.now)
	term.Event(progress.Start{Component: "layer sha256:0123456789abcdef0123456789", Unit: progress.Bytes, Total: 2048})
	before := out.Len()
	for range 50 { // no time passes: nothing is drawn
		term.Event(progress.Advance{Component: "layer sha256:0123456789abcdef0123456789", Done: 1024})
	}
	if out.Len() != before {
		t.Errorf("drew within %v: %q", 100*time.Millisecond, out.String()[before:])
	}
	c.advance(time.Second)
	term.Event(progress.Start{Component: "b", Unit: progress.Items})
	frame := out.String()[before:]
	want := "\x1b[1A\r\x1b[Jlayer sha256:…  1.0 KiB of 2.0 KiB, 50%\nb                                     0\n"
	if frame != want {
		t.Errorf("frame = %q, want %q", frame, want)
	}
	for _, line := range strings.Split(frame, "\n") {
		if n := len([]rune(line)); n > 40+len("\x1b[1A\r\x1b[J") {
			t.Errorf("line of %d columns on a terminal of 40: %q", n, line)
		}
	}
	before = out.Len()
	term.Event(progress.Message{Text: "note"})
	if got := out.String()[before:]; !strings.HasPrefix(got, "\x1b[2A\r\x1b[Jnote\n") {
		t.Errorf("message = %q", got)
	}
	before = out.Len()
	term.Close()
	term.Close()
	if got := out.String()[before:]; got != "\x1b[2A\r\x1b[J" {
		t.Errorf("close = %q", got)
	}
}

// TestTerminalUntouched: where nothing was drawn nothing is erased.
func TestTerminalUntouched(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	term := progress.NewTerminal(&out, 40, newClock().now)
	term.Event(progress.Message{Text: "note"})
	term.Event(progress.End{Component: "unknown"})
	term.Close()
	if got := out.String(); got != "note\n" {
		t.Errorf("got %q, want the message alone", got)
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	c := newClock()
	j := progress.NewJSON(&out, c.now)
	j.Event(progress.Start{Component: "a", Unit: progress.Bytes, Total: 10})
	for done := range int64(5) {
		j.Event(progress.Advance{Component: "a", Done: done})
	}
	c.advance(time.Second)
	j.Event(progress.Advance{Component: "a", Done: 7})
	j.Event(progress.Advance{Component: "unknown", Done: 7})
	j.Event(progress.End{Component: "a", Err: errors.New("x")})
	j.Event(progress.Message{Text: "m"})
	j.Result(map[string]int{"n": 1})
	j.Result(2)
	j.Event(progress.Message{Text: "dropped"})
	want := `{"event":"start","component":"a","unit":"bytes","total":10}
{"event":"advance","component":"a","done":0}
{"event":"advance","component":"a","done":7}
{"event":"end","component":"a","done":7,"error":"x"}
{"event":"message","text":"m"}
{"event":"result","result":{"n":1}}
`
	if d := cmp.Diff(want, out.String()); d != "" {
		t.Errorf("output mismatch (-want +got):\n%s", d)
	}
}

// TestConcurrent makes the race detector look at every renderer.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	for _, r := range []progress.Renderer{
		progress.NewTerminal(&strings.Builder{}, 80, nil), progress.NewPlain(&strings.Builder{}, nil), progress.NewJSON(&strings.Builder{}, nil),
	} {
		var wg sync.WaitGroup
		for i := range 4 {
			name := string(rune('a' + i))
			wg.Go(func() {
				r.Event(progress.Start{Component: name, Total: 100})
				for n := range int64(100) {
					r.Event(progress.Advance{Component: name, Done: n})
				}
				r.Event(progress.End{Component: name})
			})
		}
		wg.Wait()
		r.Close()
	}
}
