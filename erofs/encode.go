package erofs

import (
	"fmt"
	"io"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Encode writes the image of root in format v to w, from the first byte to the
// last; hash w to get the image ID. The same tree always gives the same bytes.
//
// The tree is laid out once and then streamed: beside the tree, Encode keeps 16
// bytes an inode, 28 a directory (36 in format 2), the extended attributes that
// inodes share, and buffers of constant size.
//
// What the format adds is not in the tree: overlay attributes of files with
// contents in objects, and in formats 0 and 1 also 256 whiteouts in the root that
// hide the folders of an object store, and the escaped form of the tree's own
// whiteouts. Format 2 drops the fractions of seconds, holds at most 512 bytes of a
// file, and symlinks only if they fit into one block.
//
// Errors: ErrVersion; *TreeError for a tree that no such image can hold, before
// anything is written; else those of w.
func Encode(w io.Writer, root *tree.Node, v Version) error {
	if v > V2 {
		return fmt.Errorf("encode format %d: %w", v, ErrVersion)
	}
	e := &encoder{version: v, root: root, links: make(map[*tree.Node]*link), dups: make(map[string]*dup), dupBits: make([]uint64, 1<<dupShift/64)}
	if err := e.check(); err != nil {
		return err
	}
	number := e.numberDepthFirst
	if v != V2 {
		e.addStubs()
		number = e.number
	}
	if err := number(); err != nil {
		return err
	}
	e.count()
	if err := e.layout(); err != nil {
		return err
	}
	return e.emit(w)
}

// encoder carries one tree through the passes, in this order: check (depth-first,
// all nodes), number (order of inodes), count (shared attributes, smallest time),
// layout (positions), emit.
type encoder struct {
	version     Version
	root        *tree.Node
	nodes       int                  // inodes of the tree
	subdirs     int                  // directories but for the root
	links       map[*tree.Node]*link // nodes that may have several names
	dups        map[string]*dup      // digests that several files may have
	dupBits     []uint64             // filter for dups: 1 << dupShift bits
	rootEntries []rootEntry          // entries of the root with the stubs; not in format 2
	stub        *tree.Node           // stands for each of the stubs; not in format 2
	raw         map[*tree.Node]bool  // whiteouts that stay character devices in formats 0 and 1

	inodes []inode
	dirs   []dirInode // the directories of inodes, in the same order
	ends   []dirEnd   // by index in dirs; format 2 only

	pairs  map[tree.Xattr]*pair
	shared []sharedXattr // in their order on disk
	hasACL bool
	attrs  []attr // scratch of list

	minMtime    tree.Meta // only the time counts
	moved       map[int]bool
	inodesEnd   int64
	dataStart   int64
	blocksTotal int64
}

// inode is the place of a node in the order of the image; its index is the inode
// number that the image records.
type inode struct {
	node  *tree.Node
	nid   uint32 // position in slots
	nlink uint32
}

// dirInode is what more is known of a directory.
type dirInode struct {
	inode     uint32 // index in inodes
	parent    uint32 // index in dirs
	first     uint32 // index in inodes of the first node numbered for it
	blocks    uint32 // full blocks of entries
	tail      uint32 // bytes of entries that follow the inode
	tailFrom  uint32 // index of the first entry there, "." and ".." counted
	whiteouts bool   // holds an escaped whiteout
}

// link is a node with several names.
type link struct {
	home  *tree.Node // directory of the first name in depth-first order
	names uint32
	inode uint32 // index in inodes once numbered; 0: not yet
}

type rootEntry struct {
	name string
	node *tree.Node
}

// addStubs makes the entries of the root as the image has them: with a whiteout
// for each of the names 00 to ff that the tree does not use.
func (e *encoder) addStubs() {
	meta := tree.Meta{Mode: 0o644, UID: e.root.UID, GID: e.root.GID, MtimeSec: e.root.MtimeSec, MtimeNsec: e.root.MtimeNsec}
	if label, ok := e.root.Xattr(nameSELinux); ok {
		meta.Xattrs = []tree.Xattr{{Name: nameSELinux, Value: label}}
	}
	e.stub = &tree.Node{Kind: tree.CharDevice, Meta: meta}
	e.raw = map[*tree.Node]bool{e.stub: true}
	e.rootEntries = make([]rootEntry, 0, e.root.Len()+256)
	next := 0 // the next stub name
	for name, n := range e.root.All() {
		for next < 256 && stubNames[next] < name {
			e.rootEntries = append(e.rootEntries, rootEntry{stubNames[next], e.stub})
			next++
		}
		if next < 256 && stubNames[next] == name {
			next++
		}
		if isStub(e.root, name, n) {
			e.raw[n] = true
		}
		e.rootEntries = append(e.rootEntries, rootEntry{name, n})
	}
	for ; next < 256; next++ {
		e.rootEntries = append(e.rootEntries, rootEntry{stubNames[next], e.stub})
	}
}

// stubNames are "00" to "ff".
var stubNames = func() (names [256]string) {
	const digits = "0123456789abcdef"
	for i := range names {
		names[i] = string([]byte{digits[i>>4], digits[i&15]})
	}
	return names
}()

// each calls yield for the entries of directory d in byte order, without "." and
// "..".
func (e *encoder) each(d int, yield func(name string, n *tree.Node)) {
	if d == 0 && e.stub != nil {
		for _, entry := range e.rootEntries {
			yield(entry.name, entry.node)
		}
		return
	}
	dir := e.inodes[e.dirs[d].inode].node
	for i := range dir.Len() { // At instead of All keeps yield off the heap
		yield(dir.At(i))
	}
}

// escaped reports whether the image shows n, a whiteout of the tree, as a marked
// regular file.
func (e *encoder) escaped(n *tree.Node) bool {
	return n.IsWhiteout() && e.version != V2 && !e.raw[n]
}

// number puts all inodes in order, breadth-first: the entries of one directory
// are neighbours, but a node with several names stands where its name comes first
// depth-first. It is not for format 2.
func (e *encoder) number() error {
	e.inodes = append(make([]inode, 0, e.nodes+len(stubNames)), inode{node: e.root, nlink: 2})
	e.dirs = append(make([]dirInode, 0, e.subdirs+1), dirInode{})
	for d := 0; d < len(e.dirs); d++ {
		self := e.dirs[d].inode
		dir := e.inodes[self].node
		e.dirs[d].first = uint32(len(e.inodes))
		e.each(d, func(_ string, n *tree.Node) {
			nlink := uint32(1)
			switch {
			case n.IsDir():
				nlink = 2
				e.inodes[self].nlink++
				e.dirs = append(e.dirs, dirInode{inode: uint32(len(e.inodes)), parent: uint32(d)})
			case n.MaybeLinked() && n != e.stub:
				l := e.links[n]
				if l.home != dir || l.inode != 0 {
					return
				}
				l.inode, nlink = uint32(len(e.inodes)), l.names
			}
			if e.escaped(n) {
				e.dirs[d].whiteouts = true
			}
			e.inodes = append(e.inodes, inode{node: n, nlink: nlink})
		})
		if err := e.checkCount(slotSize); err != nil {
			return err
		}
	}
	return nil
}

// checkCount refuses more inodes of at least size bytes than any image can hold.
func (e *encoder) checkCount(size int) error {
	if len(e.inodes) > maxImage/size {
		return &TreeError{Path: "/", Field: "size", Detail: fmt.Sprintf("more than %d inodes, an image of 1 GiB cannot hold them", maxImage/size)}
	}
	return nil
}
