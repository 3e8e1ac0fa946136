package erofs

import (
	"fmt"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// check walks the tree depth-first. It refuses what the format cannot hold, finds
// the first name of every node that may have several, and marks the digests that
// may belong to several files.
func (e *encoder) check() error {
	if !e.root.IsDir() {
		return &TreeError{Path: "/", Field: "type", Detail: fmt.Sprintf("%s, want a directory", e.root.Kind)}
	}
	var seen digestSet
	if err := checkNode(e.root); err != nil {
		return err.at("/")
	}
	walk := walker{levels: []walkLevel{{dir: e.root}}}
	for {
		name, n, ok := walk.next()
		if !ok {
			break
		}
		if err := checkName(name); err != nil {
			return err.at(walk.path(name))
		}
		dir := walk.levels[len(walk.levels)-1].dir
		if n.MaybeLinked() || n == e.root {
			first, err := e.linked(n, dir)
			if err != nil {
				return err.at(walk.path(name))
			}
			if !first {
				continue
			}
		}
		if err := checkNode(n); err != nil {
			return err.at(walk.path(name))
		}
		e.nodes++
		if n.IsDir() {
			e.subdirs++
			if len(walk.levels) >= maxDepth {
				return &TreeError{Path: walk.path(name), Field: "depth", Detail: fmt.Sprintf("more than %d levels", maxDepth)}
			}
			walk.push(name, n)
		}
		if n.IsExternal() && seen.add(n.Digest.Raw()) {
			e.markDup(n.Digest.Raw())
		}
	}
	for n, l := range e.links {
		if l.names > 1 && n.IsWhiteout() {
			return &TreeError{Path: e.findPath(n), Field: "links", Detail: fmt.Sprintf("whiteout with %d names, want 1", l.names)}
		}
	}
	return nil
}

// linked counts a name of n and reports whether it is the first.
func (e *encoder) linked(n, dir *tree.Node) (bool, *nodeError) {
	l := e.links[n]
	if l == nil && n != e.root {
		e.links[n] = &link{home: dir, names: 1}
		return true, nil
	}
	if n.IsDir() {
		return false, &nodeError{"links", "a directory with two names"}
	}
	l.names++
	return false, nil
}

// walker goes through a tree depth-first without recursion: trees may be deep.
type walker struct {
	levels []walkLevel
	names  []string // of the levels, without the root's
}

type walkLevel struct {
	dir  *tree.Node
	next int
}

// next returns the next entry of the innermost directory that has one left.
func (w *walker) next() (string, *tree.Node, bool) {
	for len(w.levels) > 0 {
		top := &w.levels[len(w.levels)-1]
		if top.next < top.dir.Len() {
			name, n := top.dir.At(top.next)
			top.next++
			return name, n, true
		}
		w.levels = w.levels[:len(w.levels)-1]
		if len(w.names) > 0 {
			w.names = w.names[:len(w.names)-1]
		}
	}
	return "", nil, false
}

// push makes the directory n, entered as name, the innermost one.
func (w *walker) push(name string, n *tree.Node) {
	w.levels = append(w.levels, walkLevel{dir: n})
	w.names = append(w.names, name)
}

// path returns the path of an entry of the innermost directory.
func (w *walker) path(name string) string {
	if len(w.names) == 0 {
		return "/" + name
	}
	return "/" + strings.Join(w.names, "/") + "/" + name
}

// findPath returns a path of n, for error messages.
func (e *encoder) findPath(n *tree.Node) string {
	if n == e.root {
		return "/"
	}
	walk := walker{levels: []walkLevel{{dir: e.root}}}
	for {
		name, c, ok := walk.next()
		switch {
		case !ok:
			return "?"
		case c == n:
			return walk.path(name)
		case c.IsDir():
			walk.push(name, c)
		}
	}
}

// nodeError is a TreeError whose path is not known yet.
type nodeError struct{ field, detail string }

func (e *nodeError) at(path string) error {
	return &TreeError{Path: path, Field: e.field, Detail: e.detail}
}

func nodeErrorf(field, format string, args ...any) *nodeError {
	return &nodeError{field, fmt.Sprintf(format, args...)}
}

func checkName(name string) *nodeError {
	switch {
	case name == "" || name == "." || name == "..":
		return nodeErrorf("name", "%q is no name", name)
	case len(name) > tree.MaxName:
		return nodeErrorf("name", "%d bytes, limit %d", len(name), tree.MaxName)
	case strings.IndexByte(name, '/') >= 0 || strings.IndexByte(name, 0) >= 0:
		return nodeErrorf("name", "%q has a slash or a NUL", name)
	}
	return nil
}

func checkNode(n *tree.Node) *nodeError {
	if n.MtimeSec < 0 || n.MtimeNsec > maxNsec {
		return nodeErrorf("mtime", "%d s and %d ns, want no negative number and below one second", n.MtimeSec, n.MtimeNsec)
	}
	if len(n.Xattrs) > 0 {
		if err := checkXattrs(n.Xattrs); err != nil {
			return err
		}
	}
	switch n.Kind {
	case tree.Regular:
		return checkRegular(n)
	case tree.Symlink:
		if len(n.Target) == 0 || len(n.Target) > maxTarget {
			return nodeErrorf("target", "%d bytes, want 1 to %d", len(n.Target), maxTarget)
		}
		if strings.IndexByte(n.Target, 0) >= 0 {
			return nodeErrorf("target", "NUL in %q", n.Target)
		}
	case tree.Directory, tree.CharDevice, tree.BlockDevice, tree.Fifo, tree.Socket:
	default:
		return nodeErrorf("type", "%s", n.Kind)
	}
	return nil
}

func checkRegular(n *tree.Node) *nodeError {
	switch {
	case n.IsExternal() || n.Sparse:
		if len(n.Inline) > 0 || n.IsExternal() && n.Sparse {
			return nodeErrorf("contents", "given in two ways")
		}
		if n.Size > maxExternal || n.Size < 0 || n.Size == 0 && n.IsExternal() {
			return nodeErrorf("size", "%d bytes in an object, want 1 to %d", n.Size, int64(maxExternal))
		}
	case n.NoVerity:
		return nodeErrorf("contents", "no object named")
	case len(n.Inline) > maxInline:
		return nodeErrorf("size", "%d bytes inside the image, limit %d", len(n.Inline), maxInline)
	case n.Size != int64(len(n.Inline)):
		return nodeErrorf("size", "%d bytes, but the contents have %d", n.Size, len(n.Inline))
	}
	return nil
}

func checkXattrs(xattrs []tree.Xattr) *nodeError {
	if len(xattrs) > maxXattrs {
		return nodeErrorf("xattr", "%d attributes, limit %d", len(xattrs), maxXattrs)
	}
	for i, x := range xattrs {
		switch {
		case len(x.Name) == 0 || len(x.Name) > maxXattrName:
			return nodeErrorf("xattr", "name of %d bytes, want 1 to %d", len(x.Name), maxXattrName)
		case strings.IndexByte(x.Name, 0) >= 0:
			return nodeErrorf("xattr", "NUL in the name %q", x.Name)
		case len(x.Value) > maxXattrValue:
			return nodeErrorf("xattr", "value of %q has %d bytes, limit %d", x.Name, len(x.Value), maxXattrValue)
		case i > 0 && x.Name <= xattrs[i-1].Name:
			return nodeErrorf("xattr", "%q is not after %q in byte order", x.Name, xattrs[i-1].Name)
		case strings.HasPrefix(x.Name, nameACLAccess) && x.Name != nameACLAccess, strings.HasPrefix(x.Name, nameACLDefault) && x.Name != nameACLDefault:
			return nodeErrorf("xattr", "%q would be read as an ACL", x.Name)
		}
	}
	return nil
}

// digestSet is a filter that tells which digests were surely not seen before. It
// saves a map of all files for the few that are the same. Digests are random, so
// a few of their bits choose a place; when a filter gets too full for that to say
// much, one eight times as large is put before it.
type digestSet struct {
	filters [][]uint64
	added   int // to the last filter
}

const (
	firstFilter = 1 << 8 // words: 16 Ki bits
	lastFilter  = 1 << 20
)

// add reports whether raw may have been added before.
func (s *digestSet) add(raw string) bool {
	maybe := false
	var last []uint64
	for _, last = range s.filters {
		bit := le32(raw) % uint32(len(last)*64)
		maybe = maybe || last[bit/64]>>(bit%64)&1 != 0
	}
	if len(last) == 0 || len(last) < lastFilter && s.added > len(last)*4 {
		last = make([]uint64, max(firstFilter, len(last)*8))
		s.filters, s.added = append(s.filters, last), 0
	}
	bit := le32(raw) % uint32(len(last)*64)
	last[bit/64] |= 1 << (bit % 64)
	s.added++
	return maybe
}
