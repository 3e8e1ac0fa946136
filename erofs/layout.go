package erofs

import (
	"fmt"
	"math"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// shape is how one inode is stored, without its place.
type shape struct {
	header int64 // 32 or 64
	xattrs int64 // bytes of the attribute area
	size   int64 // i_size
	blocks int64 // data blocks
	tail   int64 // bytes after the attributes
}

// shape computes the shape of inode i; dir is its index in dirs if it is a
// directory. The blocks and tail are those before layout moves a tail away.
func (e *encoder) shape(i, dir int) (shape, *nodeError) {
	n := e.inodes[i].node
	var s shape
	if e.unique(n) {
		s.xattrs = uniqueAreaSize(n.Digest)
	} else {
		var refs int
		s.xattrs, refs = areaSize(e.version, e.list(n, n.IsDir() && e.dirs[dir].whiteouts))
		if refs > maxSharedRefs {
			return s, nodeErrorf("xattr", "%d attributes that other files have too, limit %d", refs, maxSharedRefs)
		}
		if s.xattrs > maxXattrArea {
			return s, nodeErrorf("xattr", "%d bytes of attributes, limit %d", s.xattrs, maxXattrArea)
		}
	}
	if e.version == V2 {
		return s, e.shapeV2(n, dir, &s)
	}
	switch n.Kind {
	case tree.Directory:
		d := &e.dirs[dir]
		s.blocks, s.tail = int64(d.blocks), int64(d.tail)
		s.size = s.blocks*blockSize + s.tail
	case tree.Symlink:
		s.size = int64(len(n.Target))
		s.tail = s.size
	case tree.Regular:
		s.size = n.Size
		switch {
		case isChunked(n):
			s.tail = 4 * chunkCount(n.Size)
		default:
			s.blocks, s.tail = s.size/blockSize, s.size%blockSize
			if s.tail > maxTailOfFile {
				s.blocks, s.tail = s.blocks+1, 0
			}
		}
	}
	s.header = extendedSize
	if n.CompareMtime(&e.minMtime) == 0 && e.inodes[i].nlink <= compactLinkMax && n.UID <= math.MaxUint16 && n.GID <= math.MaxUint16 && s.size <= math.MaxUint32 {
		s.header = compactSize
	}
	return s, nil
}

// isChunked reports whether the image stores holes instead of the contents.
func isChunked(n *tree.Node) bool {
	return n.IsExternal() || n.Kind == tree.Regular && n.Sparse && n.Size > 0
}

// split distributes the entries of directory d over blocks: first fit, in order;
// the rest goes behind the inode if it takes no more than half a block.
func (e *encoder) split(d int) {
	var blocks, used, index, from uint32
	e.dirents(d, func(name string, _ *tree.Node) {
		need := uint32(direntSize + len(name))
		if used+need > blockSize {
			blocks, used, from = blocks+1, 0, index
		}
		used += need
		index++
	})
	if used > maxTailOfDir {
		blocks, used, from = blocks+1, 0, index
	}
	e.dirs[d].blocks, e.dirs[d].tail, e.dirs[d].tailFrom = blocks, used, from
}

// dirents calls yield for all entries of directory d in byte order, "." and ".."
// among them: names that start with a byte below "." come first.
func (e *encoder) dirents(d int, yield func(name string, n *tree.Node)) {
	self := e.inodes[e.dirs[d].inode].node
	parent := e.inodes[e.dirs[e.dirs[d].parent].inode].node
	dots := 0
	e.each(d, func(name string, n *tree.Node) {
		if dots == 0 && name > "." {
			yield(".", self)
			dots = 1
		}
		if dots == 1 && name > ".." {
			yield("..", parent)
			dots = 2
		}
		yield(name, n)
	})
	if dots == 0 {
		yield(".", self)
	}
	if dots < 2 {
		yield("..", parent)
	}
}

// layout gives every inode its place. Padding goes in front of an inode, so that
// its tail does not cross a block.
func (e *encoder) layout() error {
	pos, dir := int64(firstInode), 0
	for i := range e.inodes {
		n := e.inodes[i].node
		d := dir
		if n.IsDir() {
			e.split(d)
			dir++
		}
		s, nerr := e.shape(i, d)
		if nerr != nil {
			return nerr.at(e.findPath(n))
		}
		pos = roundUp(pos, slotSize)
		if e.version == V2 {
			pos = placeV2(n, pos, &s)
		} else {
			pos = e.place(i, n, pos, &s)
		}
		if pos/slotSize > math.MaxUint32 || i == 0 && pos/slotSize > math.MaxUint16 {
			return &TreeError{Path: e.findPath(n), Field: "size", Detail: fmt.Sprintf("its inode would be at byte %d of the image", pos)}
		}
		e.inodes[i].nid = uint32(pos / slotSize)
		pos += s.header + s.xattrs + s.tail
		e.blocksTotal += s.blocks
	}
	e.inodesEnd = roundUp(pos, slotSize)
	e.dataStart = roundUp(e.inodesEnd+e.sharedSize(), blockSize)
	e.blocksTotal += e.dataStart / blockSize
	if e.blocksTotal > maxImage/blockSize {
		return &TreeError{Path: "/", Field: "size", Detail: fmt.Sprintf("the image would have %d bytes, limit %d", e.blocksTotal*blockSize, maxImage)}
	}
	return nil
}

// place returns where inode i starts, given that pos is free, and moves its tail
// to a data block if it fits nowhere. A symlink's target shares a block with the
// start of its inode: kernels before 6.12 want that. It is not for format 2.
func (e *encoder) place(i int, n *tree.Node, pos int64, s *shape) int64 {
	fixed := s.header + s.xattrs
	if n.Kind == tree.Symlink {
		total := fixed + s.tail
		if total >= blockSize {
			s.blocks, s.tail = 1, 0
		}
		if pos/blockSize != (pos+total-1)/blockSize {
			pos = roundUp(pos, blockSize)
		}
		return pos
	}
	room := blockSize - (pos+fixed)%blockSize
	if room >= s.tail {
		return pos
	}
	pad := roundUp(room, slotSize)
	if s.tail <= blockSize-(pos+fixed+pad)%blockSize {
		return pos + pad
	}
	// Only the chunk pointers of a file above 8 PiB take that much.
	s.blocks, s.tail = 1, 0
	if e.moved == nil {
		e.moved = make(map[int]bool)
	}
	e.moved[i] = true
	return roundUp(pos, blockSize)
}
