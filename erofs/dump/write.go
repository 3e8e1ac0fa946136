package dump

import (
	"bufio"
	"fmt"
	"io"
	"strconv"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Write writes root in the canonical form: depth-first, children in byte order,
// the first name of a hard-linked inode in full, the others as links to it. The
// text is that of composefs-rs, except that the digest of a NoVerity file stays
// away, so that reading the text gives the same tree. Errors are those of w, or
// tell which node is not of a valid kind.
func Write(w io.Writer, root *tree.Node) error {
	out := &writer{w: bufio.NewWriterSize(w, 64<<10), links: countLinks(root)}
	if err := out.entry("/", root); err != nil {
		return err
	}
	type level struct {
		dir  *tree.Node
		next int
		path int // length of the directory's path in out.path
	}
	stack := []level{{dir: root}}
	path := make([]byte, 0, maxPath)
	for len(stack) > 0 {
		top := &stack[len(stack)-1]
		if top.next == top.dir.Len() {
			stack = stack[:len(stack)-1]
			continue
		}
		name, child := top.dir.At(top.next)
		top.next++
		path = append(append(path[:top.path], '/'), name...)
		if err := out.entry(string(path), child); err != nil {
			return err
		}
		if child.IsDir() {
			stack = append(stack, level{dir: child, path: len(path)})
		}
	}
	return out.w.Flush()
}

// link tells of a node that several names refer to.
type link struct {
	count int
	first string // path of the first name, once it was written
}

// countLinks finds the nodes that have more than one name.
func countLinks(root *tree.Node) map[*tree.Node]*link {
	links := make(map[*tree.Node]*link)
	stack := []*tree.Node{root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, child := range dir.All() {
			switch {
			case child.IsDir():
				stack = append(stack, child)
			case child.MaybeLinked():
				if l := links[child]; l != nil {
					l.count++
				} else {
					links[child] = &link{count: 1}
				}
			}
		}
	}
	return links
}

type writer struct {
	w     *bufio.Writer
	links map[*tree.Node]*link
	line  []byte
}

func (w *writer) entry(path string, n *tree.Node) error {
	if !n.Kind.Valid() {
		return fmt.Errorf("dump %q: %s", path, n.Kind)
	}
	nlink := 1
	b := appendEscaped(w.line[:0], path, false)
	if n.IsDir() {
		nlink = 2
		for _, child := range n.All() {
			if child.IsDir() {
				nlink++
			}
		}
	} else if l := w.links[n]; l != nil {
		if l.first != "" {
			b = append(b, " 0 @120000 - - - - 0.0 "...)
			b = appendEscaped(b, l.first, false)
			b = append(b, " - -\n"...)
			w.line = b
			_, err := w.w.Write(b)
			return err
		}
		l.first, nlink = path, l.count
	}
	b = append(b, ' ')
	b = strconv.AppendInt(b, size(n), 10)
	b = append(b, ' ')
	b = strconv.AppendUint(b, uint64(n.Kind.ModeType()|n.Mode&0o7777), 8)
	for _, v := range [...]uint64{uint64(nlink), uint64(n.UID), uint64(n.GID), uint64(rdev(n))} {
		b = append(b, ' ')
		b = strconv.AppendUint(b, v, 10)
	}
	b = append(b, ' ')
	b = strconv.AppendInt(b, n.MtimeSec, 10)
	b = append(b, '.')
	b = strconv.AppendUint(b, uint64(n.MtimeNsec), 10)
	b = append(b, ' ')
	b = appendContents(b, n)
	for _, x := range n.Xattrs {
		b = append(b, ' ')
		b = appendEscaped(b, x.Name, true)
		b = append(b, '=')
		b = appendEscaped(b, x.Value, true)
	}
	b = append(b, '\n')
	w.line = b
	_, err := w.w.Write(b)
	return err
}

func size(n *tree.Node) int64 {
	switch n.Kind {
	case tree.Regular:
		if n.Sparse || n.IsExternal() {
			return n.Size
		}
		return int64(len(n.Inline))
	case tree.Symlink:
		return int64(len(n.Target))
	}
	return 0
}

func rdev(n *tree.Node) uint32 {
	if n.Kind == tree.CharDevice || n.Kind == tree.BlockDevice {
		return n.Rdev
	}
	return 0
}

// appendContents writes PAYLOAD, CONTENT and DIGEST.
func appendContents(b []byte, n *tree.Node) []byte {
	switch {
	case n.IsExternal():
		b = n.Digest.AppendObjectPath(b)
		b = append(b, " - "...)
		if n.NoVerity {
			return append(b, '-')
		}
		return n.Digest.AppendHex(b)
	case n.Kind == tree.Regular && !n.Sparse:
		b = append(b, "- "...)
		b = appendOptional(b, string(n.Inline))
		return append(b, " -"...)
	case n.Kind == tree.Symlink:
		b = appendOptional(b, n.Target)
		return append(b, " - -"...)
	}
	return append(b, "- - -"...)
}
