package setuproot

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode/utf8"
)

// maxLine keeps a line below what one write to /dev/kmsg may have (976 bytes with the prefix).
const maxLine = 900

// KernelLog is a slog.Handler for a program that runs before there is a journal: one write to /dev/kmsg for each
// line, and the same line to the console. It is safe for concurrent use if its writers are.
type KernelLog struct {
	Name    string    // in front of each line, for example "cfsboot-setup-root"
	PID     int       // behind the name
	Kmsg    io.Writer // /dev/kmsg, or nil
	Console io.Writer // usually stderr, or nil
	attrs   string
}

var _ slog.Handler = (*KernelLog)(nil)

// Enabled is true from Info on.
func (k *KernelLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle writes one record. Neither writer's error can be reported anywhere, so both are dropped.
func (k *KernelLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message + k.attrs
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	priority := 6 // KERN_INFO
	switch {
	case r.Level >= slog.LevelError:
		priority = 3 // KERN_ERR: shown on the console even with "quiet"
	case r.Level >= slog.LevelWarn:
		priority = 4 // KERN_WARNING
	}
	for line := range strings.Lines(text) {
		line = cut(strings.TrimSuffix(line, "\n"))
		if k.Kmsg != nil {
			fmt.Fprintf(k.Kmsg, "<%d>%s[%d]: %s\n", priority, k.Name, k.PID, line)
		}
		if k.Console != nil {
			fmt.Fprintf(k.Console, "%s: %s\n", k.Name, line)
		}
	}
	return nil
}

// cut shortens a line at a character boundary.
func cut(line string) string {
	if len(line) <= maxLine {
		return line
	}
	end := maxLine
	for end > 0 && !utf8.RuneStart(line[end]) {
		end--
	}
	return line[:end] + " …"
}

// WithAttrs returns a handler that adds attrs to each line.
func (k *KernelLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *k
	for _, a := range attrs {
		c.attrs += " " + a.String()
	}
	return &c
}

// WithGroup ignores the group: lines are for people.
func (k *KernelLog) WithGroup(string) slog.Handler { return k }

// LogFailure writes the line of a failure and its notes. An error that is not a *Failure is written as it is.
func LogFailure(log *slog.Logger, err error) {
	log.Error(strings.ReplaceAll(err.Error(), "\n", "; "))
	if f, ok := err.(*Failure); ok { //nolint:errorlint // Run promises the type itself
		for _, n := range f.Notes {
			log.Warn("  " + n)
		}
	}
}
