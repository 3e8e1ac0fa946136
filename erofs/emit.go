package erofs

import (
	"encoding/binary"
	"io"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

var le = binary.LittleEndian

// emit writes the image in one pass.
func (e *encoder) emit(w io.Writer) error {
	o := &output{w: w, buf: make([]byte, 0, flushAt+blockSize)}
	e.emitSuper(o)
	block, dir := e.dataStart/blockSize, 0
	for i := range e.inodes {
		d := dir
		if e.inodes[i].node.IsDir() {
			dir++
		}
		o.zeroTo(int64(e.inodes[i].nid) * slotSize)
		blocks, err := e.emitInode(o, i, d, block)
		if err != nil {
			return err
		}
		block += blocks
		if err := o.flush(flushAt); err != nil {
			return err
		}
	}
	o.zeroTo(e.inodesEnd)
	for _, s := range e.shared {
		o.xattrEntry(e.version, &attr{name: s.name, value: s.value})
		if err := o.flush(flushAt); err != nil {
			return err
		}
	}
	o.zeroTo(e.dataStart)
	dir = 0
	for i := range e.inodes {
		d := dir
		if e.inodes[i].node.IsDir() {
			dir++
		}
		if err := e.emitBlocks(o, i, d); err != nil {
			return err
		}
	}
	return o.flush(0)
}

// output collects the bytes of the image.
type output struct {
	w       io.Writer
	buf     []byte
	flushed int64 // bytes written to w
	block   dirBlock
}

const flushAt = 128 << 10 // bytes; a multiple of the block size suits hashers

// flush writes the buffer if it has at least limit bytes.
func (o *output) flush(limit int) error {
	if len(o.buf) < limit || len(o.buf) == 0 {
		return nil
	}
	n := len(o.buf)
	if limit > 0 {
		n -= n % blockSize // the hasher behind w takes whole blocks without copying
	}
	if _, err := o.w.Write(o.buf[:n]); err != nil {
		return err
	}
	o.flushed += int64(n)
	rest := copy(o.buf, o.buf[n:])
	o.buf = o.buf[:rest]
	return nil
}

func (o *output) offset() int64 { return o.flushed + int64(len(o.buf)) }

var zeros [blockSize]byte

// zeroTo appends zeros up to offset, which is never far.
func (o *output) zeroTo(offset int64) {
	for n := offset - o.offset(); n > 0; n -= blockSize {
		o.buf = append(o.buf, zeros[:min(n, blockSize)]...)
	}
}

// emitSuper writes the composefs header and the EROFS superblock.
func (e *encoder) emitSuper(o *output) {
	b := o.buf[:firstInode]
	clear(b)
	le.PutUint32(b[0:], composefsMagic)
	le.PutUint32(b[4:], composefsVersion)
	if e.hasACL && e.version != V2 {
		le.PutUint32(b[8:], flagHasACL)
	}
	le.PutUint32(b[12:], uint32(e.version))
	s := b[superOffset:]
	le.PutUint32(s[0:], superMagic)
	le.PutUint32(s[8:], featureMtime|featureFilter)
	s[12] = 12 // blkszbits
	le.PutUint16(s[14:], uint16(e.inodes[0].nid))
	le.PutUint64(s[16:], uint64(len(e.inodes)))
	le.PutUint32(s[36:], uint32(e.blocksTotal))
	if e.version != V2 {
		le.PutUint64(s[24:], uint64(e.minMtime.MtimeSec))
		le.PutUint32(s[32:], e.minMtime.MtimeNsec)
		le.PutUint32(s[44:], uint32(e.inodesEnd/blockSize))
	}
	o.buf = b
}

// emitInode writes inode i with its attributes and tail, and returns the number
// of its data blocks, the first of which is block.
func (e *encoder) emitInode(o *output, i, dir int, block int64) (int64, error) {
	n := e.inodes[i].node
	s, nerr := e.shape(i, dir)
	if nerr != nil {
		return 0, nerr.at(e.findPath(n)) // was checked by layout
	}
	if n.Kind == tree.Symlink && e.version != V2 && s.header+s.xattrs+s.tail >= blockSize || e.moved[i] {
		s.blocks, s.tail = 1, 0
	}
	layout, kind, mode := uint16(layoutPlain), n.Kind, n.Mode&0o7777
	if s.tail > 0 {
		layout = layoutInline
	}
	var u uint32 // i_u
	if s.blocks > 0 {
		u = uint32(block)
	}
	switch {
	case e.escaped(n):
		kind = tree.Regular
	case kind == tree.CharDevice || kind == tree.BlockDevice:
		u = n.Rdev
	case isChunked(n) && e.version == V2:
		layout, u = layoutChunk, chunkFormatV2
	case isChunked(n):
		// The 16-bit format overwrites half of the block number of a moved array.
		layout, u = layoutChunk, u&0xffff0000|uint32(chunkBits(n.Size)-12)
	}
	var icount uint16
	if s.xattrs > 0 {
		icount = uint16((s.xattrs-xattrHeader)/4 + 1)
	}
	ino, nsec := uint32(i), n.MtimeNsec
	if e.version == V2 {
		ino, nsec = e.inodes[i].nid, 0
	}
	b := o.buf
	if s.header == compactSize {
		b = le.AppendUint16(b, layout<<1)
		b = le.AppendUint16(b, icount)
		b = le.AppendUint16(b, kind.ModeType()|mode)
		b = le.AppendUint16(b, uint16(e.inodes[i].nlink))
		b = le.AppendUint32(b, uint32(s.size))
		b = le.AppendUint32(b, 0)
		b = le.AppendUint32(b, u)
		b = le.AppendUint32(b, ino)
		b = le.AppendUint16(b, uint16(n.UID))
		b = le.AppendUint16(b, uint16(n.GID))
		b = le.AppendUint32(b, 0)
	} else {
		b = le.AppendUint16(b, layout<<1|1)
		b = le.AppendUint16(b, icount)
		b = le.AppendUint16(b, kind.ModeType()|mode)
		b = le.AppendUint16(b, 0)
		b = le.AppendUint64(b, uint64(s.size))
		b = le.AppendUint32(b, u)
		b = le.AppendUint32(b, ino)
		b = le.AppendUint32(b, n.UID)
		b = le.AppendUint32(b, n.GID)
		b = le.AppendUint64(b, uint64(n.MtimeSec))
		b = le.AppendUint32(b, nsec)
		b = le.AppendUint32(b, e.inodes[i].nlink)
		b = append(b, zeros[:16]...)
	}
	o.buf = b
	if s.xattrs > 0 {
		e.emitXattrs(o, n, n.IsDir() && e.dirs[dir].whiteouts)
	}
	if s.tail > 0 {
		if err := e.emitTail(o, n, dir, s.tail); err != nil {
			return 0, err
		}
	}
	return s.blocks, nil
}

// emitXattrs writes the attribute area of a node.
func (e *encoder) emitXattrs(o *output, n *tree.Node, holds bool) {
	l := e.list(n, holds)
	var filter uint32
	refs := 0
	for i := range l {
		filter |= filterBit(splitName(e.version, l[i].name))
		if l[i].pair.isShared() {
			refs++
		}
	}
	o.buf = le.AppendUint32(o.buf, ^filter)
	o.buf = append(o.buf, byte(refs), 0, 0, 0, 0, 0, 0, 0)
	if refs > 0 {
		base := uint32(e.inodesEnd) // references count from the start of the image
		if e.version != V2 {
			base %= blockSize // from block xattr_blkaddr
		}
		for i := range l {
			if l[i].pair.isShared() {
				o.buf = le.AppendUint32(o.buf, (base+l[i].pair.offset)/4)
			}
		}
	}
	for i := range l {
		if !l[i].pair.isShared() {
			o.xattrEntry(e.version, &l[i])
		}
	}
}

// xattrEntry writes one entry with its padding.
func (o *output) xattrEntry(v Version, a *attr) {
	index, suffix := splitName(v, a.name)
	length := a.valueLen()
	b := append(o.buf, byte(len(suffix)), index)
	b = le.AppendUint16(b, uint16(length))
	b = append(b, suffix...)
	b = a.appendValue(b)
	used := 4 + len(suffix) + length
	o.buf = append(b, zeros[:entrySize(len(suffix), length)-used]...)
}

func (e *encoder) emitTail(o *output, n *tree.Node, dir int, size int64) error {
	switch {
	case n.IsDir():
		return e.emitDir(o, dir, true)
	case n.Kind == tree.Symlink:
		o.buf = append(o.buf, n.Target...)
	case isChunked(n):
		for range size / 4 {
			o.buf = le.AppendUint32(o.buf, noChunk)
		}
	default:
		o.buf = append(o.buf, n.Inline[int64(len(n.Inline))-size:]...)
	}
	return nil
}

// emitBlocks writes the data blocks of inode i.
func (e *encoder) emitBlocks(o *output, i, dir int) error {
	n := e.inodes[i].node
	switch {
	case n.IsDir():
		if e.dirs[dir].blocks == 0 {
			return nil
		}
		if err := e.emitDir(o, dir, false); err != nil {
			return err
		}
	case e.version == V2: // all other contents are in tails
		return nil
	case n.Kind == tree.Symlink:
		if len(n.Xattrs) == 0 && extendedSize+len(n.Target) < blockSize {
			return nil // was not moved
		}
		s, nerr := e.shape(i, dir)
		if nerr != nil {
			return nerr.at(e.findPath(n)) // was checked by layout
		}
		if s.header+s.xattrs+s.tail < blockSize {
			return nil
		}
		o.buf = append(o.buf, n.Target...)
	case e.moved[i]:
		for range blockSize / 4 {
			o.buf = le.AppendUint32(o.buf, noChunk)
		}
	case n.Kind == tree.Regular && len(n.Inline) > maxTailOfFile:
		size := len(n.Inline)
		if tail := size % blockSize; tail <= maxTailOfFile {
			size -= tail
		}
		o.buf = append(o.buf, n.Inline[:size]...)
	default:
		return nil
	}
	o.zeroTo(roundUp(o.offset(), blockSize))
	return o.flush(flushAt)
}

// dirBlock collects the entries of one block, or of the tail.
type dirBlock struct {
	heads [blockSize / direntSize * 12]byte
	count int
	names []byte
}

func (b *dirBlock) add(nid uint32, kind tree.Kind, name string) {
	h := b.heads[b.count*direntSize:]
	le.PutUint64(h, uint64(nid))
	le.PutUint16(h[8:], uint16(len(b.names))) // from the first name; write adds the rest
	h[10], h[11] = byte(kind), 0
	b.count++
	b.names = append(b.names, name...)
}

func (b *dirBlock) size() int { return b.count*direntSize + len(b.names) }

// write appends the block to o and empties it.
func (b *dirBlock) write(o *output) {
	heads := b.heads[:b.count*direntSize]
	for h := heads; len(h) > 0; h = h[direntSize:] {
		le.PutUint16(h[8:], le.Uint16(h[8:])+uint16(len(heads)))
	}
	o.buf = append(append(o.buf, heads...), b.names...)
	b.count, b.names = 0, b.names[:0]
}

// emitDir writes the entries of directory d that are in the tail, or those that
// are in blocks.
func (e *encoder) emitDir(o *output, d int, tail bool) error {
	info := &e.dirs[d]
	block := &o.block
	next := info.first   // inode of the next child that was numbered here
	sub := uint32(d) + 1 // in format 2, where its directory is in dirs
	index := uint32(0)
	dots := 0
	self := e.inodes[info.inode].node
	var err error
	e.dirents(d, func(name string, n *tree.Node) {
		kind := n.Kind
		var ino uint32
		switch {
		case dots < 2 && (name == "." || name == ".."):
			dots++
			if ino = info.inode; name == ".." {
				ino = e.dirs[info.parent].inode
			}
		case n.MaybeLinked() && !n.IsDir() && n != e.stub:
			l := e.links[n]
			if ino = l.inode; ino == next && l.home == self {
				next++
			}
		default:
			ino = next
			next++
			if e.ends != nil && n.IsDir() {
				next, sub = e.ends[sub].inode, e.ends[sub].dir
			}
		}
		if e.escaped(n) {
			kind = tree.Regular
		}
		index++
		if (index > info.tailFrom) != tail || err != nil {
			return
		}
		if block.size()+direntSize+len(name) > blockSize {
			block.write(o)
			o.zeroTo(roundUp(o.offset(), blockSize))
			err = o.flush(flushAt)
		}
		block.add(e.inodes[ino].nid, kind, name)
	})
	if err != nil {
		return err
	}
	block.write(o)
	return nil
}
