// Package record holds what cfsboot writes down about deployments, and nothing
// else: the journal with the state that follows from it, deployment.json, the
// origin file that bootc reads too, the names and contents of boot entries, and
// the booted.json of the initramfs.
//
// All of it is pure: values in, bytes out, and back. Reading and writing files
// is the business of the callers (deploy, deploy/esp, systemd/setuproot), so
// that the initramfs program can link the package. Parsers of bytes from the
// disk are strict and bounded; their errors are *FormatError. Within one format
// number fields are only added and unknown ones are ignored, because a machine
// that rolls back reads what a newer program wrote.
//
// Words: a deployment is one boot image and is named by the image's ID; an
// entry is one file in loader/entries and has a sequence number that only
// grows; a transaction is one run of install, upgrade or rollback. The formats
// are described in docs/design/{journal,deployment,boot-entry}.md.
//
// Values may be read by several goroutines, not changed.
package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// FormatError reports a record that no conforming writer produces.
type FormatError struct {
	What   string // kind of record, for example "journal record"
	Field  string // JSON name or INI key, "" for the whole record
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	if e.Field == "" {
		return e.What + ": " + e.Detail
	}
	return fmt.Sprintf("%s: %s: %s", e.What, e.Field, e.Detail)
}

// decodeJSON reads exactly one JSON value of at most limit bytes into v.
// Unknown fields are ignored.
func decodeJSON(what string, data []byte, limit int, v any) error {
	if len(data) > limit {
		return &FormatError{What: what, Detail: fmt.Sprintf("%d bytes, want at most %d", len(data), limit)}
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return &FormatError{What: what, Detail: fmt.Sprintf("cut off after %d bytes", len(data))}
		}
		return &FormatError{What: what, Detail: err.Error()}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return &FormatError{What: what, Detail: fmt.Sprintf("more bytes after the record, which ends at byte %d", dec.InputOffset())}
	}
	return nil
}

// isDigest tells whether s is an fs-verity digest in lower-case hex, the only
// spelling in names and records.
func isDigest(s string) bool { return (len(s) == 64 || len(s) == 128) && isLowerHex(s) }

func isLowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return s != ""
}
