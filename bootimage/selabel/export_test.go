package selabel

// WithWorkLimit returns p with another limit of work.
func (p *Policy) WithWorkLimit(limit int64) *Policy {
	p.limit = limit
	return p
}

// Specs returns the number of specs.
func (p *Policy) Specs() int { return len(p.contexts) }

// Work returns the work that p has done.
func (p *Policy) Work() int64 { return p.work }

// Engine names what matches the first spec: "literal", "dfa" or "search".
func (p *Policy) Engine() string {
	switch {
	case len(p.literals) > 0:
		return "literal"
	case len(p.slow) > 0:
		return "search"
	}
	return "dfa"
}

// Searching returns a policy of one spec that the backtracking matcher has to match,
// whatever it is.
func Searching(text string) (*Policy, error) {
	p := &Policy{limit: maxWork, contexts: []string{"x"}}
	n, pcre, bad := parse(text)
	if bad != nil {
		return nil, bad
	}
	x := expression{place: anyType}
	end := p.code.emit(inst{code: codeMatch})
	x.start = p.code.compile(n, p.code.compile(letter(anyType, pcre), end))
	x.hi = uint32(len(p.code.insts))
	p.slow = append(p.slow, x)
	return p, nil
}

// WithStateLimit returns p with another limit, in bytes, of the tables of the DFA.
func (p *Policy) WithStateLimit(limit int) *Policy {
	p.dfa.limit = limit
	return p
}

// Floods returns how often that limit was reached.
func (p *Policy) Floods() int { return p.dfa.floods }
