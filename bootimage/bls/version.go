package bls

import (
	"cmp"
	"strings"
)

// CompareVersions orders two version strings as systemd implements UAPI.10 and
// returns -1, 0 or 1. Unlike in the text of the specification, a number beats a
// letter even if the number is 0 ("0" > "B"), as systemd-boot does it. Bytes
// outside of a-z A-Z 0-9 - . ~ ^ only separate.
func CompareVersions(a, b string) int {
	for {
		a, b = skipForeign(a), skipForeign(b)
		if c := compareSeparator(&a, &b, '~'); c != 0 {
			return c
		}
		if a == "" || b == "" {
			return cmp.Compare(len(a), len(b))
		}
		for _, sep := range []byte{'-', '^', '.'} {
			if c := compareSeparator(&a, &b, sep); c != 0 {
				return c
			}
		}
		if c := compareRun(&a, &b); c != 0 {
			return c
		}
	}
}

func skipForeign(s string) string {
	return strings.TrimLeftFunc(s, func(r rune) bool {
		return r > 0x7f || !isDigit(byte(r)) && !isLetter(byte(r)) && !strings.ContainsRune("-.~^", r)
	})
}

// compareSeparator steps over sep where both have it; the one that alone has it
// is lower.
func compareSeparator(a, b *string, sep byte) int {
	ra, inA := strings.CutPrefix(*a, string(sep))
	rb, inB := strings.CutPrefix(*b, string(sep))
	switch {
	case inA && !inB:
		return -1
	case inB && !inA:
		return 1
	}
	*a, *b = ra, rb
	return 0
}

// compareRun compares and steps over the leading digits of both if either has
// any, else over the leading letters.
func compareRun(a, b *string) int {
	da, db := takeRun(a, isDigit), takeRun(b, isDigit)
	if da != "" || db != "" {
		if da == "" || db == "" {
			return cmp.Compare(len(da), len(db))
		}
		da, db = strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
		return cmp.Or(cmp.Compare(len(da), len(db)), cmp.Compare(da, db))
	}
	return cmp.Compare(takeRun(a, isLetter), takeRun(b, isLetter))
}

func takeRun(s *string, in func(byte) bool) string {
	n := 0
	for n < len(*s) && in((*s)[n]) {
		n++
	}
	run := (*s)[:n]
	*s = (*s)[n:]
	return run
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }
