package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf16"

	"github.com/cfsboot/cfsboot/internal/progress"
)

// result is what a command returns: one struct with JSON tags from which both forms are made.
type result interface {
	// table writes the form for people. Its text is not an interface.
	table(p *page)
}

// warner is a result with something that a person should know and that is no part of the table.
type warner interface{ warnings() []string }

// render prints the result of a command on standard output, as JSON with --json. The progress display is cleared before: the
// result must stand, and nothing may be drawn over it. Progress in JSON lines ends with the result too, so that a program that
// follows them needs no second stream.
func (e *env) render(r result) error {
	if lines, ok := e.renderer.(*progress.JSON); ok {
		lines.Result(r)
	}
	e.finish()
	if e.opts.json {
		return printError(writeJSON(e.stdout, r))
	}
	if w, ok := r.(warner); ok {
		for _, text := range w.warnings() {
			if e.jsonLines() {
				continue // the result has them
			}
			fmt.Fprintf(e.stderr, "cfsboot: warning: %s\n", progress.Printable(text))
		}
	}
	var p page
	r.table(&p)
	_, err := e.stdout.Write(p.text.Bytes())
	return printError(err)
}

// printError is the error of a result that could not be printed: what the command did is done all the same.
func printError(err error) error {
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error { return encodeJSON(w, v, "  ") }

// encodeJSON writes a document and a line break. It escapes what encoding/json does not and a terminal may obey: control and
// formatting characters above ASCII, which can only stand in strings.
func encodeJSON(w io.Writer, v any, indent string) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", indent)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	var out bytes.Buffer
	for _, r := range b.String() {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out.WriteRune(r)
		case r < 0x10000:
			fmt.Fprintf(&out, "\\u%04x", r)
		default:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, "\\u%04x\\u%04x", high, low)
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

// page is text for a terminal. Tags, labels, titles and the like come from images that nobody vouches for, so every line and
// every cell is made printable here, and only here.
type page struct{ text bytes.Buffer }

// line adds one line.
func (p *page) line(format string, args ...any) {
	p.text.WriteString(progress.Printable(fmt.Sprintf(format, args...)) + "\n")
}

// columns adds rows as an aligned table; the first is the header.
func (p *page) columns(rows ...[]string) {
	tw := tabwriter.NewWriter(&p.text, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		cells := make([]string, len(row))
		for i, cell := range row {
			cells[i] = progress.Printable(cell)
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	tw.Flush()
}

// short cuts a digest to 12 hex digits for tables; a prefix such as "sha256:" is dropped.
func short(digest string) string {
	if _, hex, ok := strings.Cut(digest, ":"); ok {
		digest = hex
	}
	return digest[:min(12, len(digest))]
}
