package oci

import (
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// DigestError says that bytes are not the ones that a descriptor or a diff_id
// names. Sizes are -1 where they were not compared.
type DigestError struct {
	Where             string // for example "blob", "layer 2 of 4, uncompressed"
	Got, Want         digest.Digest
	GotSize, WantSize int64 // bytes; GotSize may be a lower bound, because nothing is read past WantSize
}

// Error names the sizes if they differ, else the digests.
func (e *DigestError) Error() string {
	if e.GotSize != e.WantSize {
		rel := ""
		if e.GotSize > e.WantSize {
			rel = "at least "
		}
		return fmt.Sprintf("%s %s: got %s%d bytes, want %d bytes", e.Where, e.Want, rel, e.GotSize, e.WantSize)
	}
	return fmt.Sprintf("%s: got digest %s, want %s", e.Where, e.Got, e.Want)
}

// FormatError reports a manifest, config, index or layer that breaks the rules
// of its format.
type FormatError struct {
	Where  string // what was read: "manifest sha256:…", "layer sha256:…"
	Entry  string // name of the tar member, if there is one
	Offset int64  // byte offset in the uncompressed layer; 0 elsewhere
	Detail string
	Err    error // may be nil
}

func (e *FormatError) Error() string {
	var b strings.Builder
	b.WriteString(e.Where)
	if e.Entry != "" {
		fmt.Fprintf(&b, ", entry %q", e.Entry)
	}
	if e.Offset > 0 {
		fmt.Fprintf(&b, " at byte %d", e.Offset)
	}
	for _, s := range []string{e.Detail, errText(e.Err)} {
		if s != "" {
			b.WriteString(": " + s)
		}
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *FormatError) Unwrap() error { return e.Err }

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// MediaTypeError says that something is well-formed, but of a kind that this
// program does not handle. It wraps errors.ErrUnsupported.
type MediaTypeError struct {
	Where string
	Got   string
	Want  string // in words
}

func (e *MediaTypeError) Error() string {
	return fmt.Sprintf("%s: media type %q, want %s", e.Where, e.Got, e.Want)
}

// Unwrap returns errors.ErrUnsupported.
func (e *MediaTypeError) Unwrap() error { return errors.ErrUnsupported }

// PlatformError says that an image is for other machines.
type PlatformError struct {
	Where     string
	Want      string   // "linux/amd64"
	Available []string // at most 10, in order of the index
}

func (e *PlatformError) Error() string {
	return fmt.Sprintf("%s is not for %s, but for %s", e.Where, e.Want, strings.Join(e.Available, ", "))
}
