package bls

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxEntrySize bounds a Type 1 file, in bytes. Those that cfsboot writes stay
// below one FAT cluster; systemd-boot reads much more.
const MaxEntrySize = 64 << 10

// Field is one line of a Type 1 entry.
type Field struct {
	Key   string // "#" for a comment
	Value string // literal to the end of the line, no white space around
}

// Entry is a Type 1 entry as its lines in order. Unknown keys and comments are
// kept, so parse and format do not lose what another tool wrote; blank lines
// are not kept.
type Entry struct {
	Fields []Field
}

// EntryError reports a Type 1 file that cannot be read or must not be written.
type EntryError struct {
	Line   int    // 1 is the first, 0 if the whole entry is meant
	Field  string // key, or "" for the whole entry
	Detail string // what was found and what was expected
}

func (e *EntryError) Error() string {
	where := "boot entry"
	if e.Line > 0 {
		where += fmt.Sprintf(" line %d", e.Line)
	}
	if e.Field != "" {
		where += fmt.Sprintf(" key %q", e.Field)
	}
	return where + ": " + e.Detail
}

// ParseEntry reads a Type 1 file as systemd-boot does: lines end with LF or CR,
// key and value are separated by blanks or tabs, a line without a value is
// skipped. Any keys are accepted: whether the entry boots something is the
// question of Kind. The only errors (*EntryError) are a file that is too large,
// has a NUL byte or is not UTF-8.
func ParseEntry(data []byte) (Entry, error) {
	if len(data) > MaxEntrySize {
		return Entry{}, &EntryError{Detail: fmt.Sprintf("%d bytes, want at most %d", len(data), MaxEntrySize)}
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	var e Entry
	for i, line := range bytes.Split(bytes.ReplaceAll(data, []byte("\r"), []byte("\n")), []byte("\n")) {
		if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
			return Entry{}, &EntryError{Line: i + 1, Detail: "not text in UTF-8"}
		}
		text := strings.Trim(string(line), " \t")
		if comment, ok := strings.CutPrefix(text, "#"); ok {
			e.Fields = append(e.Fields, Field{"#", strings.Trim(comment, " \t")})
			continue
		}
		n := strings.IndexAny(text, " \t")
		if n < 0 {
			continue
		}
		e.Fields = append(e.Fields, Field{text[:n], strings.TrimLeft(text[n:], " \t")})
	}
	return e, nil
}

// Format gives the bytes of the file: "key value" lines, each ended by LF. An
// entry that would not be read back as it is (line breaks, NUL, blanks in a
// key, white space at the ends of a value, an empty value) is an *EntryError.
func (e Entry) Format() ([]byte, error) {
	var b bytes.Buffer
	for i, f := range e.Fields {
		if f.Key == "#" {
			b.WriteString(strings.TrimRight("# "+f.Value, " ") + "\n")
		} else {
			fmt.Fprintf(&b, "%s %s\n", f.Key, f.Value)
		}
		if detail := checkField(f); detail != "" {
			return nil, &EntryError{i + 1, f.Key, detail}
		}
	}
	if b.Len() > MaxEntrySize {
		return nil, &EntryError{Detail: fmt.Sprintf("%d bytes, want at most %d", b.Len(), MaxEntrySize)}
	}
	return b.Bytes(), nil
}

func checkField(f Field) string {
	switch {
	case f.Key == "" || f.Key != "#" && strings.HasPrefix(f.Key, "#") || strings.HasPrefix(f.Key, "\ufeff"):
		return "a key that cannot be read back"
	case strings.ContainsAny(f.Key, " \t\r\n\x00"):
		return "white space in a key"
	case f.Value == "" && f.Key != "#":
		return "no value"
	case strings.ContainsAny(f.Value, "\r\n\x00"):
		return fmt.Sprintf("line break or NUL in value %q", f.Value)
	case strings.Trim(f.Value, " \t") != f.Value:
		return fmt.Sprintf("white space around value %q", f.Value)
	case !utf8.ValidString(f.Key) || !utf8.ValidString(f.Value):
		return "not UTF-8"
	}
	return ""
}

// Get returns the last value of key, or "".
func (e Entry) Get(key string) string {
	values := e.All(key)
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// All returns the values of key in the order of the file, nil if there are
// none.
func (e Entry) All(key string) []string {
	var out []string
	for _, f := range e.Fields {
		if f.Key == key {
			out = append(out, f.Value)
		}
	}
	return out
}

// Set replaces all lines of key by one a value, in the place of the first (or
// at the end); without values it removes them.
func (e *Entry) Set(key string, values ...string) {
	at := slices.IndexFunc(e.Fields, func(f Field) bool { return f.Key == key })
	if at < 0 {
		at = len(e.Fields)
	}
	e.Fields = slices.DeleteFunc(e.Fields, func(f Field) bool { return f.Key == key })
	lines := make([]Field, 0, len(values))
	for _, v := range values {
		lines = append(lines, Field{key, v})
	}
	e.Fields = slices.Insert(e.Fields, at, lines...)
}

// Options is the command line of the entry: all "options" lines joined, as the
// loader joins them.
func (e Entry) Options() Cmdline { return ParseCmdline(strings.Join(e.All("options"), " ")) }

// SetOptions writes the command line as one "options" line.
func (e *Entry) SetOptions(c Cmdline) {
	if len(c) == 0 {
		e.Set("options")
		return
	}
	e.Set("options", c.String())
}

// Kind tells what the entry starts: the key ("linux", "uki", "uki-url" or
// "efi") and its path. An entry that has not exactly one of them starts nothing
// and gives an *EntryError.
func (e Entry) Kind() (key, path string, err error) {
	for _, f := range e.Fields {
		switch f.Key {
		case "linux", "uki", "uki-url", "efi":
			if key != "" {
				return "", "", &EntryError{Field: f.Key, Detail: fmt.Sprintf("a second thing to start, the first is %s", key)}
			}
			key, path = f.Key, f.Value
		}
	}
	if key == "" {
		return "", "", &EntryError{Detail: "nothing to start: no linux, uki, uki-url or efi"}
	}
	return key, path, nil
}
