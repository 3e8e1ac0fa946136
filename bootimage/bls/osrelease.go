package bls

import (
	"strings"
)

// OSRelease is a parsed os-release file: raw, still quoted values by key.
type OSRelease map[string]string

// ParseOSRelease reads os-release text. Lines that start with '#' (after
// blanks) and lines without '=' are ignored, of equal keys the last wins. Keys
// are not trimmed, so " ID=x" does not define ID. It never fails; a value whose
// quotes do not close counts as absent.
func ParseOSRelease(data []byte) OSRelease {
	out := OSRelease{}
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			continue
		}
		out[key] = strings.TrimSpace(value)
	}
	return out
}

// Get returns the unquoted value of the first of keys that is present and well
// quoted, or "".
func (r OSRelease) Get(keys ...string) string {
	for _, key := range keys {
		if raw, ok := r[key]; ok {
			if value, ok := unquoteShell(raw); ok {
				return value
			}
		}
	}
	return ""
}

// ID is the identity of the operating system, "linux" if it has none
// (os-release(5)).
func (r OSRelease) ID() string {
	if id := r.Get("ID"); id != "" {
		return id
	}
	return "linux"
}

// Title is the text for a boot menu: the first of PRETTY_NAME, NAME, ID. It is
// "" if there is none.
func (r OSRelease) Title() string { return r.Get("PRETTY_NAME", "NAME", "ID") }

// Version is the first of IMAGE_VERSION, VERSION_ID, BUILD_ID and VERSION, or
// "".
func (r OSRelease) Version() string {
	return r.Get("IMAGE_VERSION", "VERSION_ID", "BUILD_ID", "VERSION")
}

// unquoteShell undoes the quoting of os-release: double quotes with a backslash
// escaping any next character, single quotes literal, adjacent parts
// concatenated, a backslash outside of quotes literal.
func unquoteShell(s string) (string, bool) {
	var (
		b     strings.Builder
		quote byte // 0, '"' or '\''
	)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case quote == '"' && c == '\\':
			i++
			if i == len(s) {
				return "", false
			}
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), quote == 0
}
