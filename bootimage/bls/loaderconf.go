package bls

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxLoaderConf bounds loader.conf, in bytes.
const MaxLoaderConf = 64 << 10

// MaxPattern bounds a pattern for ids, in bytes: twice what a file name has.
const MaxPattern = 512

// LoaderConf is what loader.conf of systemd-boot says about the entry to start. ""
// is nothing.
type LoaderConf struct {
	Default   string // pattern for ids of entries, or "@saved"
	Preferred string // likewise; systemd-boot 260 and newer
}

// LoaderConfError reports a loader.conf that cannot be read.
type LoaderConfError struct {
	Line   int    // 1 is the first, 0 if the whole file is meant
	Detail string // what was found and what was expected
}

func (e *LoaderConfError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("loader.conf line %d: %s", e.Line, e.Detail)
	}
	return "loader.conf: " + e.Detail
}

// ParseLoaderConf reads loader.conf as systemd-boot does: lines as in a Type 1
// entry, the value perhaps in double quotes, the last one counts, what begins with
// "@" and is not "@saved" does not. Unknown keys are skipped. The only errors
// (*LoaderConfError) are a file that is too large, has a NUL byte or is not UTF-8:
// nobody knows what the loader makes of it.
func ParseLoaderConf(data []byte) (c LoaderConf, err error) {
	if len(data) > MaxLoaderConf {
		return LoaderConf{}, &LoaderConfError{Detail: fmt.Sprintf("%d bytes, want at most %d", len(data), MaxLoaderConf)}
	}
	for i, line := range bytes.Split(bytes.ReplaceAll(data, []byte("\r"), []byte("\n")), []byte("\n")) {
		if !utf8.Valid(line) || bytes.IndexByte(line, 0) >= 0 {
			return LoaderConf{}, &LoaderConfError{Line: i + 1, Detail: "not text in UTF-8"}
		}
		text := strings.Trim(string(line), " \t")
		n := strings.IndexAny(text, " \t")
		if n < 0 || strings.HasPrefix(text, "#") {
			continue
		}
		key, value := text[:n], strings.TrimLeft(text[n:], " \t")
		if len(value) > 1 && value[0] == '"' && value[len(value)-1] == '"' {
			value = value[1 : len(value)-1]
		}
		value = strings.ToLower(value)
		if strings.HasPrefix(value, "@") && value != "@saved" {
			continue
		}
		switch key {
		case "default":
			c.Default = value
		case "preferred":
			c.Preferred = value
		}
	}
	return c, nil
}

// MatchID tells whether the id of an entry (MenuItem.ID) matches a pattern of the
// loader: "*", "?", sets with ranges in brackets, "\" before a character that is
// meant as it is. Case does not matter. A pattern of more than MaxPattern bytes
// matches nothing.
func MatchID(pattern, id string) bool {
	if len(pattern) > MaxPattern {
		return false
	}
	p, h := []rune(strings.ToLower(pattern)), []rune(strings.ToLower(id))
	star, mark := -1, 0 // where to go on after a mismatch
	i, j := 0, 0
	for j < len(h) {
		if i < len(p) && p[i] == '*' {
			star, mark = i, j
			i++
			continue
		}
		if n, ok := matchOne(p[i:], h[j]); ok {
			i, j = i+n, j+1
			continue
		}
		if star < 0 {
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// matchOne compares one character with what a pattern begins with, which is n
// characters long.
func matchOne(p []rune, c rune) (n int, ok bool) {
	switch {
	case len(p) == 0:
		return 0, false
	case p[0] == '?':
		return 1, true
	case p[0] == '\\':
		return 2, len(p) > 1 && p[1] == c
	case p[0] == '[':
		return matchSet(p, c)
	}
	return 1, p[0] == c
}

// matchSet does so for a set in brackets. A "]" that stands first is a member, and
// so is a "-" at either end. A set that does not end matches nothing.
func matchSet(p []rune, c rune) (n int, ok bool) {
	low, ranged := rune(-1), true // what a range may begin with
	for i := 1; i < len(p); i++ {
		x := p[i]
		if x == ']' && i > 1 {
			return i + 1, ok
		}
		if x == '-' && !ranged && i+1 < len(p) && p[i+1] != ']' {
			if i++; p[i] == '\\' && i+1 < len(p) {
				i++
			}
			ok, ranged = ok || low <= c && c <= p[i], true
			continue
		}
		if x == '\\' {
			if i++; i == len(p) {
				break
			}
			x = p[i]
		}
		ok, low, ranged = ok || x == c, x, false
	}
	return 0, false
}
