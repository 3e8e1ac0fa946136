package selabel

import "strings"

// group reads "(" up to its ")", or flags for the rest of the group around it (then
// the node is nil).
func (r *reader) group() (*node, *syntaxError) {
	if r.deep == maxNesting {
		return nil, r.bad("groups more than %d deep", maxNesting)
	}
	start, fold, all := r.pos, r.fold, r.all
	r.pos++
	n := &node{op: opConcat} // a group that is nothing else
	switch {
	case r.peek(0) == '*':
		return nil, r.bad("nothing to repeat")
	case !r.accept("?"):
	case r.peek(0) == '=' || r.peek(0) == '!' || r.peek(0) == '<' && (r.peek(1) == '=' || r.peek(1) == '!'):
		if !r.pcre {
			return nil, r.elsewhere("a look-around")
		}
		n.op, n.behind = opLook, r.accept("<")
		n.not = r.peek(0) == '!'
		r.pos++
	case r.peek(0) == '>':
		if !r.pcre {
			return nil, r.elsewhere("an atomic group")
		}
		n.op = opAtomic
		r.pos++
	case r.accept("P<") || r.accept("<"):
		if err := r.groupName(); err != nil {
			return nil, err
		}
	default:
		if only, err := r.flags(); err != nil || only {
			return nil, err
		}
	}
	r.deep++
	inner, err := r.alternation()
	if err != nil {
		return nil, err
	}
	r.deep--
	if !r.accept(")") {
		r.pos = start
		return nil, r.bad("a ( without its )")
	}
	r.fold, r.all = fold, all
	n.sub = []*node{inner}
	if n.op == opLook && n.behind {
		if n.min = width(inner); n.min < 0 {
			r.pos = start
			return nil, r.bad("a look-behind of different lengths is not supported")
		}
	}
	return n, nil
}

// groupName reads the name of a group up to ">". Names mean nothing here, but one
// that is there twice is an error of both engines.
func (r *reader) groupName() *syntaxError {
	name, _, ok := strings.Cut(r.text[r.pos:], ">")
	for i, c := range []byte(name) {
		ok = ok && wordSet.has(c) && (i > 0 || c < '0' || c > '9')
	}
	if !ok || name == "" || len(name) > 32 {
		return r.bad("a bad name of a group")
	}
	if r.name[name] {
		return r.bad("a second group %q", name)
	}
	if r.name == nil {
		r.name = make(map[string]bool)
	}
	r.name[name] = true
	r.pos += len(name) + 1
	return nil
}

// flags reads the flags of "(?i)" or "(?i:". only says that it was the former.
func (r *reader) flags() (only bool, err *syntaxError) {
	seen := ""
	for on := true; ; r.pos++ {
		c := r.peek(0)
		switch {
		case c == ':' || c == ')' && seen != "":
			if strings.HasSuffix(seen, "-") {
				return false, r.bad("no flag after the minus")
			}
			r.pos++
			return c == ')', nil
		case c == 0 || strings.IndexByte(seen, c) >= 0:
			return false, r.bad("bad flags of a group")
		case c == '-':
			on = false
		case c == 'i':
			r.fold = on
		case c == 's':
			r.all = on
		case c == 'U' && !r.pcre: // which way is tried first: nothing to a whole match
		default:
			return false, r.bad("the group (?%c is not supported", c)
		}
		seen += string(rune(c))
	}
}

// width returns the number of bytes that n matches, -1 if it is not always the same
// or large.
func width(n *node) int {
	switch n.op {
	case opByte, opSet:
		return 1
	case opString:
		return len(n.text)
	case opConcat, opAtomic:
		sum := 0
		for _, sub := range n.sub {
			w := width(sub)
			if w < 0 || sum+w > maxProgram {
				return -1
			}
			sum += w
		}
		return sum
	case opAlt:
		first := width(n.sub[0])
		for _, sub := range n.sub[1:] {
			if width(sub) != first {
				return -1
			}
		}
		return first
	case opRepeat:
		w := width(n.sub[0])
		if w < 0 || n.min != n.max || w*n.min > maxProgram {
			return -1
		}
		return w * n.min
	}
	return 0 // assertions and look-arounds
}

// class reads "[" up to its "]".
func (r *reader) class() (*node, *syntaxError) {
	start := r.pos
	if c := r.peek(1); r.pcre && (c == ':' || c == '.' || c == '=') {
		if end := strings.IndexByte(r.text[r.pos+2:], ']'); end > 0 && r.text[r.pos+1+end] == c {
			return nil, r.bad("a named class outside of a class")
		}
	}
	r.pos++
	not := r.accept("^")
	var set byteSet
	first := true
	if !r.pcre {
		for r.accept("-") { // any number of them, for themselves
			set.add('-')
			first = false
		}
		if first && r.accept("]") { // for itself, and no start of a range
			set.add(']')
			first = false
		}
	}
	for ; ; first = false {
		if r.pos >= len(r.text) {
			r.pos = start
			return nil, r.bad("a [ without its ]")
		}
		if r.peek(0) == ']' && !first {
			break
		}
		if err := r.classItem(&set); err != nil {
			return nil, err
		}
	}
	r.pos++
	if r.fold {
		set.fold()
	}
	if not {
		set.negate()
	}
	return &node{op: opSet, set: &set}, nil
}

// classItem adds a byte, a range or a named class.
func (r *reader) classItem(set *byteSet) *syntaxError {
	if r.peek(0) == '[' {
		switch r.peek(1) {
		case ':':
			return r.namedClass(set)
		case '.', '=':
			return r.bad("a class within a class is not supported")
		}
		if !r.pcre {
			return r.bad("a class within a class is not supported")
		}
	}
	if c := r.peek(0); !r.pcre && (c == '&' || c == '-' || c == '~') && r.peek(1) == c {
		return r.bad("the class operator %c%c is not supported", c, c)
	}
	named, lo, err := r.classByte()
	if err != nil {
		return err
	}
	isRange := r.peek(0) == '-' && r.pos+1 < len(r.text) && r.peek(1) != ']'
	if !r.pcre && r.peek(1) == '-' {
		isRange = false // the operator "--" is next, which is refused there
	}
	if !isRange {
		if named != nil {
			set.union(*named)
		} else {
			set.add(lo)
		}
		return nil
	}
	r.pos++
	if r.pcre && r.peek(0) == '[' && r.peek(1) == ':' {
		return r.bad("a range that ends in a class")
	}
	end, hi, err := r.classByte()
	switch {
	case err != nil:
		return err
	case named != nil || end != nil:
		return r.bad("a range from or to a class")
	case hi < lo:
		return r.bad("a range that goes down")
	}
	set.addRange(lo, hi)
	return nil
}

// classByte reads one character of a class, or an escape that stands for several.
func (r *reader) classByte() (*byteSet, byte, *syntaxError) {
	c := r.peek(0)
	switch {
	case r.pos >= len(r.text):
		return nil, 0, r.bad("a class without its ]")
	case c == '\\':
		return r.escaped()
	case c >= 0x80 && !r.pcre:
		return nil, 0, r.elsewhere("a character beyond ASCII in a class")
	}
	r.pos++
	return nil, c, nil
}

// namedClass adds [:NAME:] or [:^NAME:].
func (r *reader) namedClass(set *byteSet) *syntaxError {
	name, _, ok := strings.Cut(r.text[r.pos+2:], ":]")
	plain := strings.TrimPrefix(name, "^")
	members, known := named[plain]
	if !ok || !known {
		return r.bad("a class within a class is not supported")
	}
	if plain != name {
		// Case comes before the complement; so it does in both engines.
		if r.fold {
			members.fold()
		}
		members.negate()
	}
	set.union(members)
	r.pos += len(name) + 4
	if r.pcre && r.peek(0) == '-' && r.peek(1) != ']' {
		return r.bad("a range that starts in a class")
	}
	return nil
}
