package erofs

import "github.com/cfsboot/cfsboot/erofs/tree"

// What format 2 does in another way: inodes stand depth-first, all of them are
// extended, only directories have data blocks, and the rule of padding has an
// error of one byte that images keep for ever.

// dirEnd tells where the part of the tree below a directory ends.
type dirEnd struct {
	inode uint32 // index in inodes of what follows it
	dir   uint32 // the same in dirs
}

// numberDepthFirst puts all inodes in order, depth-first. A node with several names
// stands at the first.
func (e *encoder) numberDepthFirst() error {
	e.inodes = append(make([]inode, 0, e.nodes+1), inode{node: e.root, nlink: 2})
	e.dirs = append(make([]dirInode, 0, e.subdirs+1), dirInode{first: 1})
	e.ends = make([]dirEnd, 1, e.subdirs+1)
	walk := walker{levels: []walkLevel{{dir: e.root}}}
	open := []uint32{0} // the directories of walk.levels, by index in dirs
	for {
		name, n, ok := walk.next()
		for len(open) > len(walk.levels) { // these have no more entries
			e.ends[open[len(open)-1]] = dirEnd{inode: uint32(len(e.inodes)), dir: uint32(len(e.dirs))}
			open = open[:len(open)-1]
		}
		if !ok {
			return e.checkCount(extendedSize)
		}
		parent := open[len(open)-1]
		self, index := e.dirs[parent].inode, uint32(len(e.inodes))
		nlink := uint32(1)
		switch {
		case n.IsDir():
			nlink = 2
			e.inodes[self].nlink++
			open = append(open, uint32(len(e.dirs)))
			e.dirs = append(e.dirs, dirInode{inode: index, parent: parent, first: index + 1})
			e.ends = append(e.ends, dirEnd{})
			walk.push(name, n)
		case n.MaybeLinked():
			l := e.links[n]
			if l.inode != 0 {
				continue
			}
			l.inode, nlink = index, l.names
		}
		e.inodes = append(e.inodes, inode{node: n, nlink: nlink})
	}
}

// shapeV2 completes the shape of a node whose attributes are measured.
func (e *encoder) shapeV2(n *tree.Node, dir int, s *shape) *nodeError {
	s.header = extendedSize
	switch {
	case n.IsDir():
		d := &e.dirs[dir]
		s.blocks, s.tail = int64(d.blocks), int64(d.tail)
		s.size = s.blocks*blockSize + s.tail
	case n.Kind == tree.Symlink:
		s.size = int64(len(n.Target))
		if s.tail = s.size; s.header+s.xattrs+s.tail > blockSize {
			return nodeErrorf("target", "%d bytes, and %d of attributes: no kernel reads a symlink of format 2 that fills more than one block", s.tail, s.xattrs)
		}
	case isChunked(n):
		s.size = n.Size
		if n.IsExternal() && !n.NoVerity {
			s.tail = 4 // one pointer, whatever the size; without a digest there is none
		}
	case n.Kind == tree.Regular:
		s.size = n.Size
		if s.tail = s.size; s.tail > maxInlineV2 {
			return nodeErrorf("size", "%d bytes inside the image, limit %d in format 2", s.tail, maxInlineV2)
		}
	}
	return nil
}

// placeV2 returns where the inode of n starts, given that pos is free. A tail that
// ends or starts exactly at the border of a block is padded as if it crossed it.
func placeV2(n *tree.Node, pos int64, s *shape) int64 {
	if s.tail == 0 || isChunked(n) {
		return pos
	}
	last := pos + s.header + s.xattrs - 1 // the byte before the tail
	if last/blockSize != (last+1+s.tail)/blockSize {
		pos = roundUp(pos+blockSize-last%blockSize, slotSize)
	}
	return pos
}
