package selabel

// search matches one expression by trying its ways in order. It visits each pair of
// an instruction and a position at most once per expression or look-around, which is
// allowed because nothing else decides how a match goes on: there are no back
// references.
type search struct {
	subject []byte
	visited []uint64
	stack   []way
	code    *program
	work    *int64
	limit   int64
	failed  bool
	large   bool // that was why
}

// way is where one goes on.
type way struct {
	pc  uint32
	pos int
}

// match reports whether x matches path with the letter behind it. It is not ok if
// that takes too much memory, or the work done beyond limit.
func (s *search) match(code *program, x *expression, path string, letter byte, work *int64, limit int64) (matched, ok bool) {
	s.subject = append(append(s.subject[:0], path...), letter)
	s.code, s.work, s.limit, s.failed, s.large = code, work, limit, false, false
	end := s.run(x.start, x.lo, x.hi, 0, len(s.subject))
	return end >= 0, !s.failed
}

// run goes from the instruction start, all in lo to hi, at position pos. It returns
// where the first way ends that ends at want, or anywhere if want is negative; -1 if
// none does.
func (s *search) run(start, lo, hi uint32, pos, want int) int {
	width := len(s.subject) + 1
	bits := int(hi-lo) * width
	if bits > maxBits {
		s.failed, s.large = true, true
		return -1
	}
	base, words := len(s.visited), (bits+63)/64
	s.visited = append(s.visited, make([]uint64, words)...)
	floor := len(s.stack)
	defer func() { s.visited, s.stack = s.visited[:base], s.stack[:floor] }()
	*s.work += int64(words)
	s.stack = append(s.stack, way{start, pos})
	for len(s.stack) > floor && !s.failed {
		at := s.stack[len(s.stack)-1]
		s.stack = s.stack[:len(s.stack)-1]
		bit := int(at.pc-lo)*width + at.pos
		word, mask := &s.visited[base+bit/64], uint64(1)<<(bit%64)
		if *word&mask != 0 {
			continue
		}
		*word |= mask
		if *s.work++; *s.work > s.limit {
			s.failed = true
			break
		}
		if s.code.insts[at.pc].code == codeMatch {
			if want < 0 || at.pos == want {
				return at.pos
			}
			continue
		}
		s.step(at)
	}
	return -1
}

// step puts on the stack how the search goes on from at, the first way last.
func (s *search) step(at way) {
	in := &s.code.insts[at.pc]
	switch in.code {
	case codeByte:
		if at.pos < len(s.subject) && uint32(s.subject[at.pos]) == in.arg {
			s.stack = append(s.stack, way{in.out, at.pos + 1})
		}
	case codeSet:
		if at.pos < len(s.subject) && s.code.sets[in.arg].has(s.subject[at.pos]) {
			s.stack = append(s.stack, way{in.out, at.pos + 1})
		}
	case codeSplit:
		s.stack = append(s.stack, way{in.arg, at.pos}, way{in.out, at.pos})
	case codeAssert:
		if s.holds(byte(in.arg), at.pos) {
			s.stack = append(s.stack, way{in.out, at.pos})
		}
	case codeLook:
		if pos := s.look(&s.code.looks[in.arg], at.pos); pos >= 0 {
			s.stack = append(s.stack, way{in.out, pos})
		}
	}
}

// look returns the position to go on at, -1 if there is none.
func (s *search) look(l *look, pos int) int {
	from, want := pos, -1
	if l.behind {
		if from, want = pos-l.width, pos; from < 0 {
			if l.not {
				return pos
			}
			return -1
		}
	}
	end := s.run(l.start, l.lo, l.hi, from, want)
	switch {
	case s.failed:
		return -1
	case l.atomic:
		return end
	case (end >= 0) != l.not:
		return pos
	}
	return -1
}

// holds reports whether an assertion holds at a position of the subject.
func (s *search) holds(what byte, pos int) bool {
	before := pos > 0 && wordSet.has(s.subject[pos-1])
	after := pos < len(s.subject) && wordSet.has(s.subject[pos])
	switch what {
	case '^':
		return pos == 0
	case '$':
		return pos == len(s.subject)
	case 'b':
		return before != after
	}
	return before == after
}
