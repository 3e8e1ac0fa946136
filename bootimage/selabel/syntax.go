package selabel

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// syntaxError is about the byte at of an expression.
type syntaxError struct {
	at     int
	detail string
	// other says that composefs-rs gives the expression to PCRE2, because its
	// first engine cannot read it.
	other bool
}

func (e *syntaxError) Error() string { return e.detail }

type op uint8

const (
	opByte   op = iota // one byte
	opString           // text
	opSet              // one byte of a set
	opConcat           // sub, one after the other
	opAlt              // one of sub
	opRepeat           // sub[0], min to max times (max < 0: without limit)
	opAssert           // an assertion about the place
	opLook             // sub[0] matches from here on, or up to here (behind), or not (not)
	opAtomic           // sub[0], the first way that matches and no other
)

// node is a part of an expression.
type node struct {
	op          op
	text        string   // opString
	b           byte     // opByte; opAssert: one of ^ $ b B
	lazy        bool     // opRepeat: as few as possible first
	not, behind bool     // opLook
	min, max    int      // opRepeat
	set         *byteSet // opSet
	sub         []*node
}

// reader reads one expression, in one of two dialects: that of the automaton of
// composefs-rs (regex-syntax without Unicode, line terminator NUL) or that of PCRE2
// without UTF. What the two would not read alike, or what a version might change, is
// refused; so is what no policy needs.
type reader struct {
	text string
	pos  int
	pcre bool
	fold bool // (?i)
	all  bool // (?s), of PCRE2 only
	deep int
	name map[string]bool // of groups
}

// parse reads an expression the way composefs-rs does: with its first engine, or
// with PCRE2 what that one cannot read.
func parse(text string) (n *node, pcre bool, err *syntaxError) {
	for _, pcre := range []bool{false, true} {
		r := &reader{text: text, pcre: pcre}
		n, err = r.alternation()
		if err == nil && r.pos < len(text) {
			err = r.bad("a ) without its (")
		}
		if err == nil || !err.other {
			return n, pcre, err
		}
	}
	return nil, true, err
}

func (r *reader) bad(format string, args ...any) *syntaxError {
	return &syntaxError{at: r.pos, detail: "bad expression: " + fmt.Sprintf(format, args...)}
}

// elsewhere is the error for what only PCRE2 can read.
func (r *reader) elsewhere(what string) *syntaxError {
	err := r.bad("%s is not supported", what)
	err.other = !r.pcre
	return err
}

// peek returns the byte i places ahead, 0 at the end.
func (r *reader) peek(i int) byte {
	if r.pos+i < len(r.text) {
		return r.text[r.pos+i]
	}
	return 0
}

func (r *reader) accept(s string) bool {
	if !strings.HasPrefix(r.text[r.pos:], s) {
		return false
	}
	r.pos += len(s)
	return true
}

func (r *reader) alternation() (*node, *syntaxError) {
	alt := &node{op: opAlt}
	for {
		n, err := r.concat()
		if err != nil {
			return nil, err
		}
		alt.sub = append(alt.sub, n)
		if !r.accept("|") {
			break
		}
	}
	if len(alt.sub) == 1 {
		return alt.sub[0], nil
	}
	return alt, nil
}

func (r *reader) concat() (*node, *syntaxError) {
	all := &node{op: opConcat}
	for r.pos < len(r.text) && r.peek(0) != '|' && r.peek(0) != ')' {
		if text := r.plain(); text != "" {
			all.sub = append(all.sub, &node{op: opString, text: text})
			continue
		}
		n, err := r.atom()
		if err != nil {
			return nil, err
		}
		if n == nil { // flags
			if strings.IndexByte("*+?{", r.peek(0)) >= 0 && r.pos < len(r.text) {
				return nil, r.bad("nothing to repeat")
			}
			continue
		}
		if n, err = r.repeats(n); err != nil {
			return nil, err
		}
		all.sub = append(all.sub, n)
	}
	return all, nil
}

const special = `\.+*?()|[]{}^$`

// plain reads characters that stand for themselves, each once.
func (r *reader) plain() string {
	if r.fold {
		return ""
	}
	end := r.pos
	for end < len(r.text) && r.text[end] < utf8.RuneSelf && strings.IndexByte(special, r.text[end]) < 0 {
		end++
	}
	if end > r.pos && end < len(r.text) && strings.IndexByte("*+?{", r.text[end]) >= 0 {
		end--
	}
	text := r.text[r.pos:end]
	r.pos = end
	return text
}

// repeats reads the quantifiers after n. In the automaton's dialect each one repeats
// what the one before made; PCRE2 has one, which may be lazy or possessive.
func (r *reader) repeats(n *node) (*node, *syntaxError) {
	for {
		least, most, ok, err := r.quantifier()
		if err != nil || !ok {
			return n, err
		}
		if r.pcre && (n.op == opAssert || n.op == opLook) {
			return nil, r.bad("a quantifier after an assertion")
		}
		n = &node{op: opRepeat, min: least, max: most, sub: []*node{n}}
		n.lazy = r.accept("?")
		if !r.pcre {
			continue
		}
		if !n.lazy && r.accept("+") {
			n = &node{op: opAtomic, sub: []*node{n}}
		}
		if _, _, more, err := r.quantifier(); err != nil || more {
			return nil, r.bad("a quantifier after a quantifier")
		}
		return n, nil
	}
}

// quantifier reads *, +, ? or {n}, {n,}, {n,m}.
func (r *reader) quantifier() (least, most int, ok bool, err *syntaxError) {
	switch r.peek(0) {
	case '*':
		least, most = 0, -1
	case '+':
		least, most = 1, -1
	case '?':
		least, most = 0, 1
	case '{':
		return r.count()
	default:
		return 0, 0, false, nil
	}
	r.pos++
	return least, most, true, nil
}

// count reads {n}, {n,} or {n,m}. A brace that starts something else is a character
// in PCRE2.
func (r *reader) count() (least, most int, ok bool, err *syntaxError) {
	body, _, closed := strings.Cut(r.text[r.pos+1:], "}")
	low, high, comma := strings.Cut(body, ",")
	least, okLow := number(low)
	most, okHigh := number(high)
	switch {
	case closed && comma && low == "" && okHigh:
		return 0, 0, false, r.bad("{,%s} means one thing or another, depending on the version of the engine", high)
	case !closed || !okLow || comma && high != "" && !okHigh:
		if !r.pcre {
			return 0, 0, false, r.elsewhere("a brace that is no count")
		}
		return 0, 0, false, nil
	case !comma:
		most = least
	case high == "":
		most = -1
	}
	if least > maxProgram || most > maxProgram {
		return 0, 0, false, r.bad("a count above %d", maxProgram)
	}
	if most >= 0 && most < least {
		return 0, 0, false, r.bad("the count {%s} goes down", body)
	}
	r.pos += len(body) + 2
	return least, most, true, nil
}

// number returns the value of one to nine digits.
func number(s string) (n int, ok bool) {
	if s == "" || len(s) > 9 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// atom reads what a quantifier repeats. Nil without an error stands for flags.
func (r *reader) atom() (*node, *syntaxError) {
	switch c := r.peek(0); c {
	case '(':
		return r.group()
	case '[':
		return r.class()
	case '\\':
		return r.escape()
	case '.':
		r.pos++
		switch {
		case !r.pcre:
			return &node{op: opSet, set: &dot}, nil
		case r.all:
			return &node{op: opSet, set: &anyByte}, nil
		}
		return &node{op: opSet, set: &dotLine}, nil
	case '^', '$':
		r.pos++
		return &node{op: opAssert, b: c}, nil
	case '*', '+', '?':
		return nil, r.bad("nothing to repeat")
	case '{':
		at := r.pos
		if _, _, ok, err := r.count(); err != nil {
			return nil, err
		} else if ok {
			r.pos = at
			return nil, r.bad("nothing to repeat")
		}
	}
	return r.literal(), nil
}

// literal reads a character for itself. In the automaton's dialect a character
// beyond ASCII is repeated as a whole; for PCRE2 there are only bytes.
func (r *reader) literal() *node {
	_, size := utf8.DecodeRuneInString(r.text[r.pos:])
	if r.pcre {
		size = 1
	}
	all := &node{op: opConcat}
	for range size {
		all.sub = append(all.sub, r.byteNode(r.peek(0)))
		r.pos++
	}
	if size == 1 {
		return all.sub[0]
	}
	return all
}

// byteNode matches b, or either case of it.
func (r *reader) byteNode(b byte) *node {
	var set byteSet
	if set.add(b); !r.fold || !named["alpha"].has(b) {
		return &node{op: opByte, b: b}
	}
	set.fold()
	return &node{op: opSet, set: &set}
}

// escape reads a backslash and what belongs to it, outside of a class.
func (r *reader) escape() (*node, *syntaxError) {
	switch c := r.peek(1); c {
	case 'A', 'z':
		r.pos += 2
		return &node{op: opAssert, b: map[byte]byte{'A': '^', 'z': '$'}[c]}, nil
	case 'b', 'B':
		if r.peek(2) == '{' {
			return nil, r.bad(`\%c{ is not supported`, c)
		}
		r.pos += 2
		return &node{op: opAssert, b: c}, nil
	}
	set, b, err := r.escaped()
	switch {
	case err != nil:
		return nil, err
	case set != nil:
		return &node{op: opSet, set: set}, nil
	}
	return r.byteNode(b), nil
}

// escaped reads an escape that stands for a byte or a set of bytes, the ones that a
// class may hold too.
func (r *reader) escaped() (*byteSet, byte, *syntaxError) {
	if r.pos+1 >= len(r.text) {
		return nil, 0, r.bad("a backslash at the end")
	}
	c := r.text[r.pos+1]
	if set, ok := perlSets[c]; ok {
		r.pos += 2
		return &set, 0, nil
	}
	b := c
	switch {
	case c == 'x':
		return r.hex()
	case c == 't':
		b = '\t'
	case c == 'n':
		b = '\n'
	case c == 'r':
		b = '\r'
	case c == 'f':
		b = '\f'
	case c == 'a':
		b = '\a'
	case c == 'v' && !r.pcre:
		b = '\v'
	case c >= '0' && c <= '9':
		return nil, 0, r.bad("back references and octal numbers are not supported")
	case (c == '<' || c == '>') && !r.pcre:
		return nil, 0, r.bad(`\%c is a word boundary here, which is not supported`, c)
	case c >= utf8.RuneSelf || wordSet.has(c) && c != '_':
		_, size := utf8.DecodeRuneInString(r.text[r.pos+1:])
		return nil, 0, r.bad("the escape %q is not supported", r.text[r.pos:r.pos+1+size])
	}
	r.pos += 2
	return nil, b, nil
}

// hex reads \xHH, or \x{H} up to 7f, beyond which the engines differ.
func (r *reader) hex() (*byteSet, byte, *syntaxError) {
	digits, size, limit := "", 4, 0xff
	if rest := r.text[r.pos+2:]; strings.HasPrefix(rest, "{") {
		var closed bool
		digits, _, closed = strings.Cut(rest[1:], "}")
		size, limit = len(digits)+4, 0x7f
		if !closed || len(digits) > 8 {
			digits = ""
		}
	} else if len(rest) >= 2 {
		digits = rest[:2]
	}
	value, ok := 0, digits != ""
	for _, c := range []byte(digits) {
		v := strings.IndexByte("0123456789abcdef", c|0x20)
		ok = ok && v >= 0 && c >= '0'
		value = value<<4 | max(v, 0)
	}
	if !ok || value > limit {
		return nil, 0, r.bad(`want \xHH, or \x{HH} up to \x{7f}`)
	}
	r.pos += size
	return nil, byte(value), nil
}
