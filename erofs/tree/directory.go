package tree

import (
	"iter"
	"slices"
	"strings"
)

// directory keeps entries sorted by name. Most sources add names in order, so
// that is an append. What comes out of order waits in added, and what is removed
// leaves a hole; both are cleaned up when they outgrow a share of the whole or
// when somebody iterates. So no order of calls makes n of them cost more than
// about n log n.
type directory struct {
	entries []entry          // sorted; node nil: removed
	added   map[string]*Node // names not in entries
	holes   int
}

type entry struct {
	name string
	node *Node
}

const minPending = 32 // below this, sorting is cheaper than thinking about it

func (d *directory) search(name string) (int, bool) {
	lo, hi := 0, len(d.entries)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		if d.entries[mid].name < name {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(d.entries) && d.entries[lo].name == name
}

func (d *directory) lookup(name string) *Node {
	if last := len(d.entries); last == 0 || d.entries[last-1].name < name {
		return d.added[name] // the usual case of a source in order
	}
	if i, ok := d.search(name); ok {
		return d.entries[i].node
	}
	return d.added[name]
}

func (d *directory) set(name string, n *Node) {
	if last := len(d.entries); last == 0 || d.entries[last-1].name < name {
		// An added name may be larger; that is fine, it is merged later. It must
		// not be the same, though.
		if d.added[name] == nil {
			d.entries = append(d.entries, entry{name, n})
			return
		}
		d.added[name] = n
		return
	}
	if i, ok := d.search(name); ok {
		if d.entries[i].node == nil {
			d.holes--
		}
		d.entries[i].node = n
		return
	}
	if d.added == nil {
		d.added = make(map[string]*Node)
	}
	d.added[name] = n
	if len(d.added) > minPending && len(d.added) > len(d.entries)/2 {
		d.settle()
	}
}

func (d *directory) remove(name string) {
	i, ok := d.search(name)
	if !ok {
		delete(d.added, name)
		return
	}
	if d.entries[i].node == nil {
		return
	}
	if i == len(d.entries)-1 {
		d.entries[i] = entry{}
		d.entries = d.entries[:i]
		return
	}
	d.entries[i].node = nil
	d.holes++
	if d.holes > minPending && d.holes > len(d.entries)/2 {
		d.settle()
	}
}

// settle merges the added names and drops the holes.
func (d *directory) settle() {
	if d.holes > 0 {
		d.entries = slices.DeleteFunc(d.entries, func(e entry) bool { return e.node == nil })
		d.holes = 0
	}
	if len(d.added) == 0 {
		return
	}
	fresh := make([]entry, 0, len(d.added))
	for name, n := range d.added {
		fresh = append(fresh, entry{name, n})
	}
	d.added = nil
	slices.SortFunc(fresh, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	// Merge from the end, in place.
	i, j := len(d.entries)-1, len(fresh)-1
	d.entries = slices.Grow(d.entries, len(fresh))[:len(d.entries)+len(fresh)]
	for k := len(d.entries) - 1; j >= 0; k-- {
		if i >= 0 && d.entries[i].name > fresh[j].name {
			d.entries[k] = d.entries[i]
			i--
		} else {
			d.entries[k] = fresh[j]
			j--
		}
	}
}

// directory returns the entries; a directory made without NewDir gets them here.
func (n *Node) directory() *directory {
	if n.dir == nil {
		if n.Kind != Directory {
			panic("tree: entries of a " + n.Kind.String())
		}
		n.dir = new(directory)
	}
	return n.dir
}

// Lookup returns the node entered as name, or nil. n must be a directory.
func (n *Node) Lookup(name string) *Node { return n.directory().lookup(name) }

// Set enters child as name and replaces what was there. The same child may be
// entered elsewhere too, then it is a hard link; a directory may not, which the
// encoder reports. n must be a directory. The name is not checked here: Builder,
// the dumpfile reader and the encoder do.
func (n *Node) Set(name string, child *Node) {
	if child.entered < 2 {
		child.entered++
	}
	n.directory().set(name, child)
}

// Remove removes the entry name, with everything below it; an absent name is
// fine. n must be a directory.
func (n *Node) Remove(name string) { n.directory().remove(name) }

// Clear removes all entries. n must be a directory.
func (n *Node) Clear() { *n.directory() = directory{} }

// Len returns the number of entries. n must be a directory.
func (n *Node) Len() int {
	d := n.directory()
	return len(d.entries) - d.holes + len(d.added)
}

// All yields the entries in byte order of their names. The directory must not be
// changed meanwhile, but replacing the node of the name just seen is allowed.
// n must be a directory.
func (n *Node) All() iter.Seq2[string, *Node] {
	d := n.directory()
	d.settle()
	return func(yield func(string, *Node) bool) {
		for _, e := range d.entries {
			if !yield(e.name, e.node) {
				return
			}
		}
	}
}

// At returns the entry at index i of the byte order, 0 <= i < Len. It lets
// walkers keep a position instead of an iterator. n must be a directory.
func (n *Node) At(i int) (string, *Node) {
	d := n.directory()
	if d.holes > 0 || len(d.added) > 0 {
		d.settle()
	}
	e := &d.entries[i]
	return e.name, e.node
}
