package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"
)

// ErrEnded is returned by Expect when the machine ended before a match.
var ErrEnded = errors.New("the machine ended")

// ExpectError says what a machine did not print, or printed although it must not.
type ExpectError struct {
	Want []string // patterns that were waited for
	Bad  string   // the forbidden pattern that matched, or ""
	Line string   // the line it matched
	Last string   // end of what was printed
	Err  error    // time limit, ErrEnded, ...; nil for a forbidden pattern
}

func (e *ExpectError) Error() string {
	if e.Bad != "" {
		return fmt.Sprintf("console: forbidden pattern %q matched %q while waiting for %q", e.Bad, e.Line, e.Want)
	}
	return fmt.Sprintf("console: wait for %q: %v; last output:\n%s", e.Want, e.Err, e.Last)
}

func (e *ExpectError) Unwrap() error { return e.Err }

// Console is the serial line of a machine. Everything printed is kept in the log
// with times; Expect looks at what was printed since its last match. One
// goroutine may use it.
type Console struct {
	w      io.Writer
	log    io.Writer
	start  time.Time
	mu     sync.Mutex
	text   []byte // cleaned, not yet consumed by Expect
	line   []byte // the unfinished line for the log
	more   chan struct{}
	ended  bool
	forbid []*regexp.Regexp
	seen   int // bytes of text already checked for forbidden lines
}

// escape are terminal control sequences; programs paint with them.
var escape = regexp.MustCompile("\x1b(?:\\[[0-9;?=]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[()][0-9A-Za-z]|[=>78cMDEHNOZ]|P[^\x1b]*\x1b\\\\)")

// partial is the beginning of an escape sequence at the end of a chunk.
var partial = regexp.MustCompile("\x1b[^@-Z\\\\^-~]{0,40}$|\x1b\\[[0-9;?=]{0,40}$|\x1b[\\]P][^\x07\x1b]{0,200}$")

func newConsole(r io.Reader, w, log io.Writer) *Console {
	c := &Console{w: w, log: log, start: time.Now(), more: make(chan struct{}, 1)}
	go c.read(r)
	return c
}

func (c *Console) read(r io.Reader) {
	buf := make([]byte, 64<<10)
	var rest []byte
	for {
		n, err := r.Read(buf)
		rest = append(rest, buf[:n]...)
		hold := len(rest)
		if err == nil {
			if loc := partial.FindIndex(rest); loc != nil {
				hold = loc[0]
			}
		}
		clean := escape.ReplaceAll(rest[:hold], nil)
		clean = bytes.ReplaceAll(clean, []byte("\r"), nil)
		clean = bytes.ReplaceAll(clean, []byte("\x00"), nil)
		rest = append([]byte(nil), rest[hold:]...)
		c.mu.Lock()
		c.text = append(c.text, clean...)
		c.logText(clean)
		if err != nil {
			c.ended = true
			c.logText([]byte("\n"))
		}
		c.mu.Unlock()
		select {
		case c.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// logText writes finished lines with the seconds since the start.
func (c *Console) logText(b []byte) {
	c.line = append(c.line, b...)
	for {
		i := bytes.IndexByte(c.line, '\n')
		if i < 0 {
			return
		}
		if i > 0 {
			// The log is for people; a full disk shows in other ways.
			_, _ = fmt.Fprintf(c.log, "%8.2f %s\n", time.Since(c.start).Seconds(), c.line[:i])
		}
		c.line = append(c.line[:0], c.line[i+1:]...)
	}
}

// Forbid makes every later Expect fail as soon as a line matches.
func (c *Console) Forbid(patterns ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range patterns {
		c.forbid = append(c.forbid, regexp.MustCompile(p))
	}
}

// Allow takes back what Forbid forbade.
func (c *Console) Allow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forbid = nil
}

// Expect waits until one of the patterns matches and returns its index and the
// text since the last match, up to the end of this one. The limit is hard.
func (c *Console) Expect(ctx context.Context, limit time.Duration, patterns ...string) (int, string, error) {
	res := make([]*regexp.Regexp, len(patterns))
	for i, p := range patterns {
		res[i] = regexp.MustCompile(p)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("nothing after %v", limit))
	defer cancel()
	for {
		i, text, err := c.match(res)
		if i >= 0 || err != nil {
			var ee *ExpectError
			if errors.As(err, &ee) {
				ee.Want = patterns
			}
			return i, text, err
		}
		select {
		case <-c.more:
		case <-ctx.Done():
			return -1, "", &ExpectError{Want: patterns, Last: c.tail(), Err: context.Cause(ctx)}
		}
	}
}

func (c *Console) match(res []*regexp.Regexp) (int, string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	best, end := -1, 0
	var first int
	for i, re := range res {
		if loc := re.FindIndex(c.text); loc != nil && (best < 0 || loc[0] < first) {
			best, first, end = i, loc[0], loc[1]
		}
	}
	checked := len(c.text)
	if best >= 0 {
		checked = end
	}
	for _, re := range c.forbid {
		if c.seen >= checked {
			break
		}
		from := bytes.LastIndexByte(c.text[:c.seen], '\n') + 1
		if loc := re.FindIndex(c.text[from:checked]); loc != nil {
			line := c.text[from+loc[0] : checked]
			if i := bytes.IndexByte(line, '\n'); i >= 0 {
				line = line[:i]
			}
			return -1, "", &ExpectError{Bad: re.String(), Line: string(line)}
		}
	}
	if best >= 0 {
		text := string(c.text[:end])
		c.text = append(c.text[:0], c.text[end:]...)
		c.seen = 0
		return best, text, nil
	}
	c.seen = len(c.text)
	if c.ended {
		return -1, "", &ExpectError{Last: tail(c.text), Err: ErrEnded}
	}
	return -1, "", nil
}

func (c *Console) tail() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return tail(c.text)
}

func tail(b []byte) string {
	if len(b) > 3000 {
		b = b[len(b)-3000:]
	}
	return string(b)
}

// Send types text.
func (c *Console) Send(text string) error {
	_, err := io.WriteString(c.w, text)
	return err
}
