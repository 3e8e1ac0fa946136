package selabel

import (
	"encoding/binary"
	"slices"
	"strings"
)

// dfa matches all expressions at once. A state is a set of places in the programs;
// states and their transitions are made when a path first needs them. Matches are of
// whole paths, so the order of ways through an expression is of no account.
type dfa struct {
	code   *program
	starts []uint32
	places []uint8 // by spec: the index of its type
	start  *state
	states map[string]*state
	size   int // bytes, about
	limit  int // of size
	floods int // how often that was reached

	// The state after dir, the directory of the path that came last: the next one is
	// most often beside it.
	dir   string
	inDir *state

	seen  []uint32 // by instruction: the generation in which it was visited
	gen   uint32
	stack []uint32
	set   []uint32
	key   []byte
}

// state is the instructions that may consume the next byte, ascending, and the specs
// that match if there is none.
type state struct {
	set  []uint32
	best places
	next [256]*state // nil: not known yet
}

// match returns the last spec that matches path and a type, -1 if none does. It is
// not ok if that takes the work done beyond limit.
func (d *dfa) match(path string, place int, work *int64, limit int64) (spec int32, ok bool) {
	if len(d.starts) == 0 {
		return -1, true
	}
	s, at := d.inDir, len(d.dir)
	if s == nil || !strings.HasPrefix(path, d.dir) {
		at = 0
		if s = d.start; s == nil {
			s = d.first(work)
			d.start = s
		}
	}
	slash := strings.LastIndexByte(path, '/') + 1
	for i := at; i < len(path); i++ {
		if i == slash {
			d.dir, d.inDir = path[:slash], s
		}
		next := s.next[path[i]]
		if next == nil {
			if *work > limit {
				return -1, false
			}
			next = d.step(s, path[i], work)
			s.next[path[i]] = next
		}
		if s = next; len(s.set) == 0 && i < len(path)-1 {
			return -1, true
		}
	}
	return s.best[place], true
}

// first returns the state before the first byte.
func (d *dfa) first(work *int64) *state {
	d.begin()
	best := noPlaces
	for _, pc := range d.starts {
		d.close(pc, true, &best, work)
	}
	return d.intern(best)
}

// step returns the state after the byte b.
func (d *dfa) step(s *state, b byte, work *int64) *state {
	d.begin()
	best := noPlaces
	*work += int64(len(s.set))
	for _, pc := range s.set {
		in := &d.code.insts[pc]
		if in.code == codeByte && in.arg == uint32(b) || in.code == codeSet && d.code.sets[in.arg].has(b) {
			d.close(in.out, false, &best, work)
		}
	}
	return d.intern(best)
}

// begin starts a new set.
func (d *dfa) begin() {
	if d.seen == nil {
		d.seen = make([]uint32, len(d.code.insts))
	}
	if d.gen++; d.gen == 0 {
		clear(d.seen)
		d.gen = 1
	}
	d.set = d.set[:0]
}

// close adds what can be reached from pc without a byte. Asserting the end never
// holds there: the letter of the type is still to come.
func (d *dfa) close(pc uint32, atStart bool, best *places, work *int64) {
	d.stack = append(d.stack[:0], pc)
	for len(d.stack) > 0 {
		pc := d.stack[len(d.stack)-1]
		d.stack = d.stack[:len(d.stack)-1]
		if d.seen[pc] == d.gen {
			continue
		}
		d.seen[pc] = d.gen
		*work++
		switch in := &d.code.insts[pc]; in.code {
		case codeByte, codeSet:
			d.set = append(d.set, pc)
		case codeSplit:
			d.stack = append(d.stack, in.arg, in.out)
		case codeAssert:
			if in.arg == '^' && atStart {
				d.stack = append(d.stack, in.out)
			}
		case codeMatch:
			best.add(int32(in.arg), int(d.places[in.arg]))
		}
	}
}

// intern returns the state of the set that was made. When the states take too much
// memory, all are forgotten; those in use live on until their path ends.
func (d *dfa) intern(best places) *state {
	slices.Sort(d.set)
	d.key = d.key[:0]
	for _, pc := range d.set {
		d.key = binary.LittleEndian.AppendUint32(d.key, pc)
	}
	for _, spec := range best {
		d.key = binary.LittleEndian.AppendUint32(d.key, uint32(spec))
	}
	if s, ok := d.states[string(d.key)]; ok {
		return s
	}
	size := 8*len(d.set) + 2300
	if d.states == nil || d.size+size > d.limit {
		if d.states != nil {
			d.floods++
		}
		d.states, d.size, d.start, d.inDir = make(map[string]*state), 0, nil, nil
	}
	s := &state{set: slices.Clone(d.set), best: best}
	d.states[string(d.key)] = s
	d.size += size
	return s
}
