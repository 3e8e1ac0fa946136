package bls

import "strings"

// Cmdline is a kernel command line split into its tokens. Each token is kept
// verbatim, quotes included, so that String gives back what was parsed but for
// the white space between the tokens.
type Cmdline []string

// ParseCmdline splits s at ASCII white space (space, tab, LF, FF, CR) outside
// of double quotes. Quotes toggle, there are no escapes, empty tokens vanish.
// An unterminated quote reaches to the end of s. It never fails, as the kernel
// does not.
func ParseCmdline(s string) Cmdline {
	var (
		out    Cmdline
		start  = -1
		quoted bool
	)
	for i := range len(s) {
		c := s[i]
		if !quoted && isSpace(c) {
			if start >= 0 {
				out = append(out, s[start:i])
				start = -1
			}
			continue
		}
		if start < 0 {
			start = i
		}
		if c == '"' {
			quoted = !quoted
		}
	}
	if start >= 0 {
		out = append(out, s[start:])
	}
	return out
}

func isSpace(c byte) bool {
	return c == ' ' || c == '\t' || c == '\n' || c == '\f' || c == '\r'
}

// SplitToken gives key and value of one token as the kernel sees them: a token
// that starts with '"' loses that quote and one at its end, and so does a value
// that starts with one. hasValue tells "key=" from the flag "key".
func SplitToken(token string) (key, value string, hasValue bool) {
	key, value, hasValue = strings.Cut(dequote(token), "=")
	return key, dequote(value), hasValue
}

// dequote drops a leading double quote and, only then, one trailing quote.
func dequote(s string) string {
	rest, quoted := strings.CutPrefix(s, `"`)
	if !quoted {
		return s
	}
	return strings.TrimSuffix(rest, `"`)
}

// String joins the tokens by single blanks.
func (c Cmdline) String() string { return strings.Join(c, " ") }

// Lookup returns the value of the last token whose key is exactly key, as the
// kernel and systemd let later parameters win. A flag has the value "".
func (c Cmdline) Lookup(key string) (value string, ok bool) {
	for _, token := range c {
		if k, v, _ := SplitToken(token); k == key {
			value, ok = v, true
		}
	}
	return value, ok
}

// Has tells whether any token has exactly this key.
func (c Cmdline) Has(key string) bool {
	_, ok := c.Lookup(key)
	return ok
}

// SetComposefs returns a copy in which karg, a token made by
// KargImage.String, is the only composefs token. It takes the place of the first
// one, so that the order of the other tokens is kept; without one it is appended.
// Keys are compared as a whole, "composefsx=" stays (the peers' defect P6).
func (c Cmdline) SetComposefs(karg string) Cmdline {
	out := make(Cmdline, 0, len(c)+1)
	placed := false
	for _, token := range c {
		key, _, hasValue := SplitToken(token)
		if !hasValue || (key != kargOld && key != kargNew) {
			out = append(out, token)
			continue
		}
		if !placed {
			out, placed = append(out, karg), true
		}
	}
	if !placed {
		out = append(out, karg)
	}
	return out
}
