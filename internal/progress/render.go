package progress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// redrawInterval limits terminal and JSON output to 10 updates a second.
const redrawInterval = 100 * time.Millisecond

// plainInterval is the longest silence of the plain renderer about a component
// that advances.
const plainInterval = 30 * time.Second

// Renderer is a Reporter that draws. Close ends the drawing; events behind it
// are dropped.
type Renderer interface {
	Reporter
	Close()
}

var (
	_ Renderer = (*Terminal)(nil)
	_ Renderer = (*Plain)(nil)
	_ Renderer = (*JSON)(nil)
)

// tracker holds the active components in order of their start.
type tracker struct {
	mu     sync.Mutex
	out    io.Writer
	now    func() time.Time
	active []*state
	closed bool
}

func (t *tracker) find(name string) *state {
	if i := slices.IndexFunc(t.active, func(s *state) bool { return s.name == name }); i >= 0 {
		return t.active[i]
	}
	return nil
}

func (t *tracker) start(e Start) *state {
	t.end(e.Component)
	s := &state{name: e.Component, unit: e.Unit, total: e.Total}
	t.active = append(t.active, s)
	return s
}

func (t *tracker) end(name string) {
	t.active = slices.DeleteFunc(t.active, func(s *state) bool { return s.name == name })
}

// Terminal draws one line for each active component and keeps them up to date
// in place; the lines are gone after Close, messages stay.
type Terminal struct {
	tracker
	width int
	lines int // lines drawn below the last message
	drawn time.Time
}

// NewTerminal draws on w, a terminal with the given width in columns. A width
// below 20 counts as 80. now is the clock; nil means time.Now.
func NewTerminal(w io.Writer, width int, now func() time.Time) *Terminal {
	if width < 20 {
		width = 80
	}
	if now == nil {
		now = time.Now
	}
	return &Terminal{tracker: tracker{out: w, now: now}, width: width}
}

// Event redraws if the last drawing is long enough ago. A message, and a
// failed component, are always written.
func (t *Terminal) Event(e Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	line := ""
	switch e := e.(type) {
	case Start:
		t.start(e)
	case Advance:
		if s := t.find(e.Component); s != nil {
			s.done = e.Done
		}
	case End:
		t.end(e.Component)
		line = failure(e)
	case Message:
		line = e.Text
	default:
		return
	}
	if line == "" && t.now().Sub(t.drawn) < redrawInterval {
		return
	}
	t.draw(line)
}

// failure is the line about a component that failed, or "". Why it did is in the
// error of the whole operation; one that only stopped because another failed has
// nothing to tell.
func failure(e End) string {
	if e.Err == nil || errors.Is(e.Err, context.Canceled) {
		return ""
	}
	return e.Component + ": failed"
}

// Close removes the lines. What was never drawn on stays untouched.
func (t *Terminal) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.active = nil
	t.draw("")
	t.closed = true
}

// draw writes everything in one call, so that the screen never shows half of it.
func (t *Terminal) draw(message string) {
	var b strings.Builder
	if t.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r\x1b[J", t.lines) // cursor up, erase to the end of the screen
	}
	if message != "" {
		b.WriteString(Printable(message) + "\n")
	}
	for _, s := range t.active {
		b.WriteString(t.line(s) + "\n")
	}
	t.lines = len(t.active)
	t.drawn = t.now()
	if b.Len() > 0 {
		_, _ = io.WriteString(t.out, b.String())
	}
}

// line fits in the terminal: a wrapped line would break the cursor arithmetic.
func (t *Terminal) line(s *state) string {
	name, amount := []rune(Printable(s.name)), s.amount()
	room := t.width - 1 - len(amount) - 2
	if room < 8 {
		r := []rune(Printable(s.name) + "  " + amount)
		return string(r[:min(len(r), t.width-1)])
	}
	if len(name) > room {
		name = append(name[:room-1], '…')
	}
	return string(name) + strings.Repeat(" ", room-len(name)+2) + amount
}

// Plain writes a line at start, end and every 10 percent or 30 seconds.
type Plain struct {
	tracker
	last map[string]plainMark
}

type plainMark struct {
	tenth int64
	at    time.Time
}

// NewPlain writes to w. now is the clock; nil means time.Now.
func NewPlain(w io.Writer, now func() time.Time) *Plain {
	if now == nil {
		now = time.Now
	}
	return &Plain{tracker: tracker{out: w, now: now}, last: map[string]plainMark{}}
}

// Event writes a line if e is worth one.
func (p *Plain) Event(e Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	switch e := e.(type) {
	case Start:
		s := p.start(e)
		p.last[e.Component] = plainMark{at: p.now()}
		if s.total > 0 {
			p.print(e.Component + ": start, " + formatAmount(s.total, s.unit))
		} else {
			p.print(e.Component + ": start")
		}
	case Advance:
		p.advance(e)
	case End:
		p.finish(e)
	case Message:
		p.print(e.Text)
	}
}

func (p *Plain) advance(e Advance) {
	s := p.find(e.Component)
	if s == nil {
		return
	}
	s.done = e.Done
	mark := p.last[e.Component]
	tenth := s.percent() / 10
	if (tenth <= mark.tenth || tenth >= 10) && p.now().Sub(mark.at) < plainInterval {
		return
	}
	p.last[e.Component] = plainMark{tenth: tenth, at: p.now()}
	p.print(e.Component + ": " + s.amount())
}

func (p *Plain) finish(e End) {
	s := p.find(e.Component)
	p.end(e.Component)
	delete(p.last, e.Component)
	switch {
	case e.Err != nil:
		if line := failure(e); line != "" {
			p.print(line)
		}
	case s != nil && s.done > 0:
		p.print(e.Component + ": done, " + formatAmount(s.done, s.unit))
	default:
		p.print(e.Component + ": done")
	}
}

func (p *Plain) print(line string) { _, _ = io.WriteString(p.out, Printable(line)+"\n") }

// Close stops the output.
func (p *Plain) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
}

// JSON writes one object a line. The key "event" is "start", "advance", "end",
// "message" or, for the last line, "result".
type JSON struct {
	tracker
	sent map[string]time.Time
}

// NewJSON writes to w. now is the clock; nil means time.Now.
func NewJSON(w io.Writer, now func() time.Time) *JSON {
	if now == nil {
		now = time.Now
	}
	return &JSON{tracker: tracker{out: w, now: now}, sent: map[string]time.Time{}}
}

type jsonLine struct {
	Event     string `json:"event"`
	Component string `json:"component,omitempty"`
	Unit      Unit   `json:"unit,omitempty"`
	Total     *int64 `json:"total,omitempty"` // null or absent: unknown
	Done      *int64 `json:"done,omitempty"`
	Text      string `json:"text,omitempty"`
	Error     string `json:"error,omitempty"`
	Result    any    `json:"result,omitempty"`
}

// Event writes a line; of the advances of a component at most 10 a second.
func (j *JSON) Event(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return
	}
	switch e := e.(type) {
	case Start:
		j.start(e)
		delete(j.sent, e.Component)
		l := jsonLine{Event: "start", Component: e.Component, Unit: e.Unit}
		if e.Total > 0 {
			l.Total = &e.Total
		}
		j.write(l)
	case Advance:
		s := j.find(e.Component)
		if s == nil {
			return
		}
		s.done = e.Done
		if at, ok := j.sent[e.Component]; ok && j.now().Sub(at) < redrawInterval {
			return
		}
		j.sent[e.Component] = j.now()
		j.write(jsonLine{Event: "advance", Component: e.Component, Done: &e.Done})
	case End:
		l := jsonLine{Event: "end", Component: e.Component}
		if s := j.find(e.Component); s != nil {
			l.Done = &s.done
		}
		if e.Err != nil {
			l.Error = e.Err.Error()
		}
		j.end(e.Component)
		j.write(l)
	case Message:
		j.write(jsonLine{Event: "message", Text: e.Text})
	}
}

// Result writes the last line, the result of the command, and closes.
func (j *JSON) Result(v any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed {
		j.write(jsonLine{Event: "result", Result: v})
		j.closed = true
	}
}

func (j *JSON) write(l jsonLine) {
	if b, err := json.Marshal(l); err == nil {
		_, _ = j.out.Write(append(b, '\n'))
	}
}

// Close stops the output.
func (j *JSON) Close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
}
