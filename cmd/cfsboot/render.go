package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/cfsboot/cfsboot/internal/progress"
)

// result is what a command returns: one struct with JSON tags from which both forms are made.
type result interface {
	// table writes the form for people. Its text is not an interface.
	table(w io.Writer)
}

// render prints the result of a command on standard output, as JSON with --json.
// Progress in JSON lines ends with it too, so that a program that follows them needs no second stream.
func (e *env) render(r result) error {
	if lines, ok := e.renderer.(*progress.JSON); ok {
		lines.Result(r)
	}
	if e.opts.json {
		return writeJSON(e.stdout, r)
	}
	r.table(e.stdout)
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// columns writes rows as an aligned table; the first is the header.
func columns(w io.Writer, rows ...[]string) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, strings.Join(row, "\t"))
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
