package qemu

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// console returns a console that prints what is written to the returned writer.
func console(t *testing.T) (*Console, *io.PipeWriter, *bytes.Buffer) {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	var log bytes.Buffer
	return newConsole(r, io.Discard, &log), w, &log
}

func say(t *testing.T, w io.Writer, parts ...string) {
	t.Helper()
	go func() {
		for _, p := range parts {
			_, _ = io.WriteString(w, p) // the pipe is closed at the end of the test
		}
	}()
}

func TestExpectConsumesAndCleans(t *testing.T) {
	c, w, _ := console(t)
	say(t, w, "\x1b[2J\x1b[01;01Hone\r\n\x1b[0", ";32mtwo\x1b[0m\r\n", "login: ")
	i, text, err := c.Expect(t.Context(), time.Second, "never", `(?m)^two$`)
	if i != 1 || err != nil || text != "one\ntwo" {
		t.Fatalf("got %d, %q, %v", i, text, err)
	}
	// What was consumed does not match again.
	if _, text, err := c.Expect(t.Context(), time.Second, `(?m)^\S+ $`); err != nil || strings.Contains(text, "two") {
		t.Errorf("got %q, %v", text, err)
	}
}

func TestExpectTakesTheFirstInTheText(t *testing.T) {
	c, w, _ := console(t)
	say(t, w, "a b c\n")
	if i, _, err := c.Expect(t.Context(), time.Second, "c\n", "b"); i != 1 || err != nil {
		t.Errorf("got %d, %v, want the pattern that matches first", i, err)
	}
}

func TestForbid(t *testing.T) {
	for name, parts := range map[string][]string{
		"before the match": {"ok\n", "Kernel panic - not syncing\n", "done\n"},
		"in two pieces":    {"ok\nKernel pa", "nic - not syncing\ndone\n"},
	} {
		t.Run(name, func(t *testing.T) {
			c, w, _ := console(t)
			c.Forbid("Kernel panic")
			say(t, w, parts...)
			_, _, err := c.Expect(t.Context(), time.Second, "done")
			var ee *ExpectError
			if !errors.As(err, &ee) || ee.Bad != "Kernel panic" || !strings.HasPrefix(ee.Line, "Kernel panic") {
				t.Errorf("got %v, want the forbidden pattern", err)
			}
		})
	}
	c, w, _ := console(t)
	c.Forbid("panic")
	say(t, w, "done\npanic\n")
	if _, _, err := c.Expect(t.Context(), time.Second, "done\n"); err != nil {
		t.Errorf("a forbidden line after the match: %v", err)
	}
	if _, _, err := c.Expect(t.Context(), time.Second, "more"); err == nil {
		t.Error("the next Expect did not see the forbidden line")
	}
}

func TestExpectEnds(t *testing.T) {
	c, w, _ := console(t)
	say(t, w, "something\n")
	start := time.Now()
	_, _, err := c.Expect(t.Context(), 50*time.Millisecond, "nothing")
	var ee *ExpectError
	if !errors.As(err, &ee) || !strings.Contains(ee.Last, "something") || time.Since(start) > time.Second {
		t.Errorf("after %v: %v, want the last output", time.Since(start), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := c.Expect(ctx, time.Minute, "nothing"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	_ = w.Close()
	if _, _, err := c.Expect(t.Context(), time.Minute, "nothing"); !errors.Is(err, ErrEnded) {
		t.Errorf("got %v, want %v", err, ErrEnded)
	}
}

func TestLogHasWholeLines(t *testing.T) {
	c, w, log := console(t)
	say(t, w, "first ", "line\r\n\r\nsec", "ond\r\n", "end")
	if _, _, err := c.Expect(t.Context(), time.Second, "end"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	if _, _, err := c.Expect(t.Context(), time.Second, "x"); !errors.Is(err, ErrEnded) {
		t.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(log.String()) {
		_, text, _ := strings.Cut(strings.TrimLeft(strings.TrimSpace(l), " "), " ")
		lines = append(lines, text)
	}
	if got := strings.Join(lines, "|"); got != "first line|second|end" {
		t.Errorf("log is %q", got)
	}
}

// TestShell plays the guest's side of a shell.
func TestShell(t *testing.T) {
	r, w := io.Pipe()
	typed, typing := io.Pipe()
	t.Cleanup(func() { _, _ = w.Close(), typed.Close() })
	c := newConsole(r, typing, io.Discard)
	s := &Shell{c: c}
	go func() {
		buf := make([]byte, 4096)
		for _, answer := range []string{
			"\r\n@BEGIN-1@\r\nhello\r\n[   12.3] a kernel message\r\nno newline\r\n@END-1 0@\r\n",
			"\r\n@BEGIN-2@\r\n\r\n@END-2 3@\r\n",
		} {
			if _, err := typed.Read(buf); err != nil {
				return
			}
			_, _ = io.WriteString(w, answer)
		}
	}()
	res, err := s.Run(t.Context(), time.Second, "echo hello")
	if err != nil || res.Status != 0 || !strings.HasPrefix(res.Output, "hello\n") || !strings.HasSuffix(res.Output, "no newline\n") {
		t.Errorf("got %+v, %v", res, err)
	}
	if _, err := s.Must(t.Context(), time.Second, "false"); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want exit status 3", err)
	}
}
