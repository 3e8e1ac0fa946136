package dump

import (
	"bytes"
	"errors"
)

const hexDigits = "0123456789abcdef"

// appendEscaped writes s so that it is one field: printable ASCII stays, but for
// the backslash and, in extended attributes, "=".
func appendEscaped(b []byte, s string, equals bool) []byte {
	start := 0
	for i := range len(s) {
		c := s[i]
		if c > 0x20 && c < 0x7f && c != '\\' && (c != '=' || !equals) {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '\\':
			b = append(b, `\\`...)
		case '\n':
			b = append(b, `\n`...)
		case '\r':
			b = append(b, `\r`...)
		case '\t':
			b = append(b, `\t`...)
		default:
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(b, s[start:]...)
}

// appendOptional is appendEscaped for the fields where "-" means absent.
func appendOptional(b []byte, s string) []byte {
	switch s {
	case "":
		return append(b, '-')
	case "-":
		return append(b, `\x2d`...)
	}
	return appendEscaped(b, s, false)
}

var (
	errEscapeEnd   = errors.New("backslash at the end")
	errEscapeHex   = errors.New(`\x without two hexadecimal digits`)
	errEscapeOther = errors.New(`backslash before something other than \, n, r, t, x`)
)

// unescape returns field with its escapes resolved: field itself if there are
// none, else bytes appended to scratch.
func unescape(scratch, field []byte) (text, newScratch []byte, err error) {
	i := bytes.IndexByte(field, '\\')
	if i < 0 {
		return field, scratch, nil
	}
	out := scratch[:0]
	for i >= 0 {
		out = append(out, field[:i]...)
		field = field[i+1:]
		if len(field) == 0 {
			return nil, out, errEscapeEnd
		}
		used := 1
		switch field[0] {
		case '\\':
			out = append(out, '\\')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'x':
			if len(field) < 3 || unhex[field[1]] > 15 || unhex[field[2]] > 15 {
				return nil, out, errEscapeHex
			}
			out = append(out, unhex[field[1]]<<4|unhex[field[2]])
			used = 3
		default:
			return nil, out, errEscapeOther
		}
		field = field[used:]
		i = bytes.IndexByte(field, '\\')
	}
	out = append(out, field...)
	return out, out, nil
}

// unhex maps a digit in either case to its value, everything else to 255.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i := range 10 {
		t['0'+i] = byte(i)
	}
	for i := range 6 {
		t['a'+i], t['A'+i] = byte(10+i), byte(10+i)
	}
	return t
}()
