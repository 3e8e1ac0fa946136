package selabel

import (
	"fmt"
	"strings"
)

type opcode uint8

const (
	codeByte   opcode = iota // one byte, arg
	codeSet                  // one byte of sets[arg]
	codeSplit                // go on at out, or else at arg
	codeAssert               // go on at out if the place is as arg says: ^ $ b B
	codeLook                 // go on at out if looks[arg] holds
	codeMatch                // the end; arg is the spec
)

// inst is one instruction. Those that consume a byte go on at out.
type inst struct {
	code     opcode
	arg, out uint32
}

// look is a part with an end of its own: a look-around or an atomic group.
type look struct {
	start  uint32
	lo, hi uint32 // its instructions: lo <= index < hi
	width  int    // of a look-behind
	not    bool
	behind bool
	atomic bool // go on where it ends
}

// program is the instructions of all expressions.
type program struct {
	insts   []inst
	sets    []byteSet
	setSeen map[byteSet]uint32
	looks   []look
}

// expression is one that the DFA cannot match. Its program ends behind the letter of
// the type, since a look-ahead may see it.
type expression struct {
	spec   int32
	place  int
	start  uint32
	lo, hi uint32 // its instructions
	prefix string // of every path it matches
}

// add parses and compiles the expression of a spec. The error is a *syntaxError or
// a *LimitError.
func (p *Policy) add(text string, spec int32, place int) error {
	n, pcre, bad := parse(text)
	if bad != nil {
		return bad
	}
	prefix, whole := literalPrefix(n)
	if whole {
		have, ok := p.literals[prefix]
		if !ok {
			have = noPlaces
		}
		have.add(spec, place)
		p.literals[prefix] = have
		return nil
	}
	size := programSize(n)
	if size > maxProgram {
		return &syntaxError{detail: fmt.Sprintf("bad expression: it stands for more than %d instructions", maxProgram)}
	}
	if len(p.code.insts)+size > maxPrograms {
		return &LimitError{"instructions for the expressions of a policy", maxPrograms}
	}
	x := expression{spec: spec, place: place, lo: uint32(len(p.code.insts)), prefix: prefix}
	end := p.code.emit(inst{code: codeMatch, arg: uint32(spec)})
	if regular(n) {
		p.dfa.starts = append(p.dfa.starts, p.code.compile(n, end))
		return nil
	}
	x.start = p.code.compile(n, p.code.compile(letter(place, pcre), end))
	x.hi = uint32(len(p.code.insts))
	p.slow = append(p.slow, x)
	return nil
}

// letter is what stands behind the expression in a spec of a type, and in one
// without.
func letter(place int, pcre bool) *node {
	switch {
	case place != anyType:
		return &node{op: opByte, b: types[place]}
	case pcre:
		return &node{op: opSet, set: &dotLine}
	}
	return &node{op: opSet, set: &dot}
}

// regular reports whether the DFA can match n.
func regular(n *node) bool {
	if n.op == opLook || n.op == opAtomic || n.op == opAssert && n.b != '^' && n.b != '$' {
		return false
	}
	for _, sub := range n.sub {
		if !regular(sub) {
			return false
		}
	}
	return true
}

// literalPrefix returns the bytes with which every match of n starts, and whether
// that is all that n matches.
func literalPrefix(n *node) (prefix string, whole bool) {
	switch n.op {
	case opByte:
		return string([]byte{n.b}), true
	case opString:
		return n.text, true
	case opConcat:
		var all strings.Builder
		for _, sub := range n.sub {
			s, whole := literalPrefix(sub)
			all.WriteString(s)
			if !whole {
				return all.String(), false
			}
		}
		return all.String(), true
	}
	return "", false
}

// programSize returns how many instructions n compiles to, at most a little more
// than maxProgram.
func programSize(n *node) int {
	sum := 0
	for _, sub := range n.sub {
		if sum += programSize(sub); sum > maxProgram {
			return maxProgram + 1
		}
	}
	switch n.op {
	case opConcat:
	case opString:
		sum = len(n.text)
	case opAlt:
		sum += len(n.sub)
	case opRepeat:
		// At most maxProgram squared, which an int holds.
		sum = (sum+1)*max(n.min, n.max, 1) + 1
	case opLook, opAtomic:
		sum += 2
	default:
		sum = 1
	}
	return min(sum, maxProgram+1)
}

func (c *program) emit(i inst) uint32 {
	c.insts = append(c.insts, i)
	return uint32(len(c.insts) - 1)
}

func (c *program) set(s *byteSet) uint32 {
	if c.setSeen == nil {
		c.setSeen = make(map[byteSet]uint32)
	}
	i, ok := c.setSeen[*s]
	if !ok {
		i = uint32(len(c.sets))
		c.sets = append(c.sets, *s)
		c.setSeen[*s] = i
	}
	return i
}

// compile emits n, to be followed by the instruction next, and returns the
// instruction it starts with.
func (c *program) compile(n *node, next uint32) uint32 {
	switch n.op {
	case opByte:
		return c.emit(inst{codeByte, uint32(n.b), next})
	case opString:
		for i := len(n.text) - 1; i >= 0; i-- {
			next = c.emit(inst{codeByte, uint32(n.text[i]), next})
		}
		return next
	case opSet:
		return c.emit(inst{codeSet, c.set(n.set), next})
	case opAssert:
		return c.emit(inst{codeAssert, uint32(n.b), next})
	case opConcat:
		for i := len(n.sub) - 1; i >= 0; i-- {
			next = c.compile(n.sub[i], next)
		}
		return next
	case opAlt:
		start := c.compile(n.sub[len(n.sub)-1], next)
		for i := len(n.sub) - 2; i >= 0; i-- {
			start = c.emit(inst{codeSplit, start, c.compile(n.sub[i], next)})
		}
		return start
	case opRepeat:
		return c.repeat(n, next)
	}
	l := look{lo: uint32(len(c.insts)), width: n.min, not: n.not, behind: n.behind, atomic: n.op == opAtomic}
	l.start = c.compile(n.sub[0], c.emit(inst{code: codeMatch}))
	l.hi = uint32(len(c.insts))
	c.looks = append(c.looks, l)
	return c.emit(inst{codeLook, uint32(len(c.looks) - 1), next})
}

// repeat emits n.sub[0] as often as it must come, followed by a loop or by as many
// as may come, one inside the other.
func (c *program) repeat(n *node, next uint32) uint32 {
	body, start, must := n.sub[0], next, n.min
	if n.max < 0 {
		loop := c.emit(inst{code: codeSplit})
		in := c.compile(body, loop)
		c.choose(loop, in, next, n.lazy)
		if start = loop; must > 0 {
			start, must = in, must-1
		}
	}
	for range n.max - n.min {
		in := c.compile(body, start)
		start = c.emit(inst{code: codeSplit})
		c.choose(start, in, next, n.lazy)
	}
	for range must {
		start = c.compile(body, start)
	}
	return start
}

// choose makes a split that tries in before out, or the other way round.
func (c *program) choose(split, in, out uint32, lazy bool) {
	if lazy {
		in, out = out, in
	}
	c.insts[split].out, c.insts[split].arg = in, out
}
