package erofs

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Decode reads an image of size bytes, in any of the three formats, back into the
// tree that it was made of: Encode of the result in the same format gives the same
// bytes for every image that Encode wrote. Whiteouts that only the format needs are
// gone, escaped names are plain again.
//
// The structure is checked strictly and nothing outside the image is touched, but
// that the bytes are the canonical ones of the tree is not: an image whose digest
// is not known yet is compared with Encode of the result.
//
// Errors: ErrVersion for a composefs format that is none of them; *FormatError; else those of r.
func Decode(r io.ReaderAt, size int64) (*tree.Node, error) {
	if size < blockSize || size > maxImage || size%blockSize != 0 {
		return nil, &FormatError{0, "image", fmt.Sprintf("%d bytes, want a multiple of %d up to %d", size, blockSize, maxImage)}
	}
	d := &decoder{
		seen:   make([]uint64, size/slotSize/64+1),
		linked: make(map[uint64]*leaf),
		shared: make(map[uint32]tree.Xattr),
	}
	head := make([]byte, firstInode)
	if err := readAt(r, head, 0); err != nil {
		return nil, err
	}
	d.image = head
	if err := d.super(size); err != nil {
		return nil, err
	}
	d.image = make([]byte, size)
	if err := readAt(r, d.image, 0); err != nil {
		return nil, err
	}
	return d.tree()
}

func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return &FormatError{off + int64(n), "image", "ends early"}
	}
	return err
}

type decoder struct {
	image  []byte
	format Version
	acl    bool // as the header says
	hasACL bool // as the inodes say
	time   tree.Meta
	xattrs int64 // offset to which shared references count
	root   uint64
	inos   uint64
	seen   []uint64         // bits: inodes that were read, by nid
	linked map[uint64]*leaf // those that say to have several names, by nid
	shared map[uint32]tree.Xattr
}

// leaf is an inode that is not a directory.
type leaf struct {
	raw   *rawInode
	node  *tree.Node
	names uint32
}

// visit marks an inode as read and reports whether that is the first time.
func (d *decoder) visit(nid uint64) bool {
	old := d.seen[nid/64]
	d.seen[nid/64] = old | 1<<(nid%64)
	return old>>(nid%64)&1 == 0
}

// errAt makes a FormatError.
func errAt(offset int64, field, format string, args ...any) error {
	return &FormatError{Offset: offset, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// super checks the composefs header and the superblock.
func (d *decoder) super(size int64) error {
	h, s := d.image[:superOffset], d.image[superOffset:firstInode]
	if m := le.Uint32(h[0:]); m != composefsMagic {
		return errAt(0, "header.magic", "%#x, want %#x", m, uint32(composefsMagic))
	}
	v := le.Uint32(h[12:])
	if v > uint32(V2) {
		return fmt.Errorf("decode format %d: %w", v, ErrVersion)
	}
	d.format = Version(v)
	flags := le.Uint32(h[8:])
	d.acl = flags&flagHasACL != 0
	want := func(offset int64, field string, got, want uint64) error {
		if got != want {
			return errAt(offset, field, "%#x, want %#x", got, want)
		}
		return nil
	}
	d.root, d.inos = uint64(le.Uint16(s[14:])), le.Uint64(s[16:])
	d.time.MtimeSec, d.time.MtimeNsec = int64(le.Uint64(s[24:])), le.Uint32(s[32:])
	d.xattrs = int64(le.Uint32(s[44:])) * blockSize
	if err := errors.Join(
		want(4, "header.version", uint64(le.Uint32(h[4:])), composefsVersion),
		want(8, "header.flags", uint64(flags&^flagHasACL), 0),
		zero(h[16:], 16, "header.reserved"),
		want(superOffset, "super.magic", uint64(le.Uint32(s)), superMagic),
		want(superOffset+4, "super.checksum", uint64(le.Uint32(s[4:])), 0),
		want(superOffset+8, "super.feature_compat", uint64(le.Uint32(s[8:])), featureMtime|featureFilter),
		want(superOffset+12, "super.blkszbits", uint64(s[12]), 12),
		want(superOffset+13, "super.extslots", uint64(s[13]), 0),
		want(superOffset+36, "super.blocks", uint64(le.Uint32(s[36:])), uint64(size/blockSize)),
		want(superOffset+40, "super.meta_blkaddr", uint64(le.Uint32(s[40:])), 0),
		zero(s[48:], superOffset+48, "super.reserved"),
	); err != nil {
		return first(err)
	}
	if d.format == V2 {
		if err := errors.Join(
			want(8, "header.flags", uint64(flags), 0),
			want(superOffset+24, "super.build_time", uint64(d.time.MtimeSec), 0),
			want(superOffset+32, "super.build_time", uint64(d.time.MtimeNsec), 0),
			want(superOffset+44, "super.xattr_blkaddr", uint64(d.xattrs), 0),
		); err != nil {
			return first(err)
		}
	}
	if d.time.MtimeSec < 0 || d.time.MtimeNsec > maxNsec {
		return errAt(superOffset+24, "super.build_time", "%d s, %d ns", d.time.MtimeSec, d.time.MtimeNsec)
	}
	if d.xattrs > size {
		return errAt(superOffset+44, "super.xattr_blkaddr", "%d is outside the image", d.xattrs)
	}
	if d.inos > uint64(size)/slotSize {
		return errAt(superOffset+16, "super.inos", "%d, there is room for %d", d.inos, size/slotSize)
	}
	return nil
}

// first returns the first of several joined errors: one message is enough.
func first(err error) error {
	var fe *FormatError
	if errors.As(err, &fe) {
		return fe
	}
	return err
}

func zero(b []byte, offset int64, field string) error {
	for i, c := range b {
		if c != 0 {
			return errAt(offset+int64(i), field, "%#x, want 0", c)
		}
	}
	return nil
}

// slice returns n bytes of the image.
func (d *decoder) slice(offset, n int64, field string) ([]byte, error) {
	if offset < 0 || n < 0 || offset > int64(len(d.image)) || n > int64(len(d.image))-offset {
		return nil, errAt(offset, field, "%d bytes reach outside the image of %d", n, len(d.image))
	}
	return d.image[offset : offset+n], nil
}

// pendingDir is a directory whose entries were not read yet.
type pendingDir struct {
	raw    *rawInode
	node   *tree.Node
	parent uint64 // nid
	depth  int
}

// tree walks the image breadth-first from the root. Every directory is visited
// once, so the work is bounded by the size of the image.
func (d *decoder) tree() (*tree.Node, error) {
	raw, err := d.inode(d.root)
	if err != nil {
		return nil, err
	}
	if raw.kind != tree.Directory {
		return nil, errAt(raw.offset, "inode.mode", "the root is a %s, want a directory", raw.kind)
	}
	root := tree.NewDir(raw.meta)
	d.visit(d.root)
	queue := []pendingDir{{raw: raw, node: root, parent: d.root, depth: 1}}
	seen := uint64(1) // inodes
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		sub, fresh, err := d.directory(dir, dir.node == root)
		if err != nil {
			return nil, err
		}
		seen += fresh
		if dir.depth >= maxDepth && len(sub) > 0 {
			return nil, errAt(dir.raw.offset, "directory", "more than %d levels", maxDepth)
		}
		queue = append(queue, sub...)
	}
	for _, l := range d.linked {
		if l.names != l.raw.nlink {
			return nil, errAt(l.raw.offset, "inode.nlink", "%d, but it has %d names", l.raw.nlink, l.names)
		}
		if l.names > 1 && l.node.IsWhiteout() {
			return nil, errAt(l.raw.offset, "inode.nlink", "whiteout with %d names", l.names)
		}
	}
	if seen != d.inos {
		return nil, errAt(superOffset+16, "super.inos", "%d, but %d inodes were found", d.inos, seen)
	}
	if d.acl != d.hasACL && d.format != V2 {
		return nil, errAt(8, "header.flags", "HAS_ACL is %v, but the inodes say %v", d.acl, d.hasACL)
	}
	return root, nil
}

// directory reads the entries of dir. It returns its subdirectories and the number
// of inodes not seen before.
func (d *decoder) directory(dir pendingDir, isRoot bool) (sub []pendingDir, fresh uint64, err error) {
	entries, err := d.entries(dir.raw)
	if err != nil {
		return nil, 0, err
	}
	marks := d.whiteoutMarks(dir.raw.xattrs)
	whiteouts, stubs, dots := false, 0, 0
	for _, ent := range entries {
		if ent.name == "." || ent.name == ".." {
			dots++
			if want := map[string]uint64{".": dir.raw.nid, "..": dir.parent}[ent.name]; ent.nid != want || ent.kind != tree.Directory {
				return nil, 0, errAt(ent.offset, "dirent.nid", "%q leads to %d (%s), want %d", ent.name, ent.nid, ent.kind, want)
			}
			continue
		}
		if nerr := checkName(ent.name); nerr != nil {
			return nil, 0, errAt(ent.offset, "dirent.name", "%s", nerr.detail)
		}
		if isRoot && stubName(ent.name) {
			stubs++
		}
		l := d.linked[ent.nid]
		if l == nil {
			raw, err := d.inode(ent.nid)
			if err != nil {
				return nil, 0, err
			}
			if !d.visit(ent.nid) {
				return nil, 0, errAt(ent.offset, "dirent.nid", "%d is entered twice, but has one link", ent.nid)
			}
			fresh++
			if ent.kind != raw.kind {
				return nil, 0, errAt(ent.offset, "dirent.file_type", "%s, but the inode is a %s", ent.kind, raw.kind)
			}
			if raw.kind == tree.Directory {
				n := tree.NewDir(raw.meta)
				dir.node.Set(ent.name, n)
				sub = append(sub, pendingDir{raw, n, dir.raw.nid, dir.depth + 1})
				continue
			}
			n, err := d.leaf(raw, marks)
			if err != nil {
				return nil, 0, err
			}
			l = &leaf{raw: raw, node: n}
			if raw.nlink != 1 {
				d.linked[ent.nid] = l
			}
		}
		l.names++
		if ent.kind != l.raw.kind {
			return nil, 0, errAt(ent.offset, "dirent.file_type", "%s, but the inode is a %s", ent.kind, l.raw.kind)
		}
		if l.node.IsWhiteout() && d.format != V2 {
			if l.raw.kind == tree.CharDevice {
				if !isRoot || !stubName(ent.name) {
					return nil, 0, errAt(l.raw.offset, "inode", "unescaped whiteout %q", ent.name)
				}
				if !sameStub(dir.raw, l.raw) {
					return nil, 0, errAt(l.raw.offset, "inode", "whiteout %q with metadata of its own", ent.name)
				}
				continue
			}
			whiteouts = true
		}
		dir.node.Set(ent.name, l.node)
	}
	switch {
	case dots != 2:
		return nil, 0, errAt(dir.raw.offset, "directory", "%d of the entries \".\" and \"..\", want 2", dots)
	case isRoot && stubs != 256 && d.format != V2:
		return nil, 0, errAt(dir.raw.offset, "directory", "the root has %d of the names 00 to ff, want 256", stubs)
	case uint64(dir.raw.nlink) != 2+uint64(len(sub)):
		return nil, 0, errAt(dir.raw.offset, "inode.nlink", "%d for %d subdirectories", dir.raw.nlink, len(sub))
	}
	dir.node.Xattrs, err = d.dirXattrs(dir.raw, isRoot, whiteouts)
	return sub, fresh, err
}

// sameStub reports whether the whiteout has nothing but what it gets from the
// root.
func sameStub(root, stub *rawInode) bool {
	if stub.meta.Mode != 0o644 || !stub.sameOwner(root) {
		return false
	}
	for _, x := range root.xattrs {
		if x.Name == nameSELinux {
			return len(stub.xattrs) == 1 && stub.xattrs[0] == x
		}
	}
	return len(stub.xattrs) == 0
}

func (r *rawInode) sameOwner(o *rawInode) bool {
	return r.meta.UID == o.meta.UID && r.meta.GID == o.meta.GID && r.meta.CompareMtime(&o.meta) == 0
}

// whiteoutMarks reports whether the attributes are those of a directory with
// escaped whiteouts, which format 2 does not have.
func (d *decoder) whiteoutMarks(xattrs []tree.Xattr) bool {
	if d.format == V2 || !has(xattrs, nameWhiteouts, "") || !has(xattrs, nameUserWhiteouts, "") {
		return false
	}
	return d.format == V0 || has(xattrs, nameOpaqueEscaped, "x") && has(xattrs, nameUserOpaque, "x")
}

func has(xattrs []tree.Xattr, name, value string) bool {
	return slices.Contains(xattrs, tree.Xattr{Name: name, Value: value})
}

// dirXattrs turns the attributes of a directory into those of the tree.
func (d *decoder) dirXattrs(raw *rawInode, isRoot, whiteouts bool) ([]tree.Xattr, error) {
	if isRoot && d.format != V2 && !has(raw.xattrs, nameOpaque, "y") {
		return nil, errAt(raw.offset, "xattr", "the root lacks %s=y", nameOpaque)
	}
	return d.unescape(raw, func(name string) bool {
		switch name {
		case nameOpaque:
			return isRoot && d.format != V2
		case nameWhiteouts, nameUserWhiteouts:
			return whiteouts
		case nameOpaqueEscaped, nameUserOpaque:
			return whiteouts && d.format == V1
		}
		return false
	})
}

// unescape drops the attributes that the format added, of which drop tells, and
// takes the escape off the others.
func (d *decoder) unescape(raw *rawInode, drop func(name string) bool) ([]tree.Xattr, error) {
	var out []tree.Xattr
	for _, x := range raw.xattrs {
		if drop(x.Name) {
			continue
		}
		if rest, ok := strings.CutPrefix(x.Name, escapedPrefix); ok {
			x.Name = overlayPrefix + rest
		} else if strings.HasPrefix(x.Name, overlayPrefix) {
			return nil, errAt(raw.offset, "xattr", "%q on a %s", x.Name, raw.kind)
		}
		if x.Name == nameACLAccess || x.Name == nameACLDefault {
			d.hasACL = true
		}
		out = append(out, x)
	}
	if nerr := checkXattrs(out); nerr != nil {
		return nil, errAt(raw.offset, "xattr", "%s", nerr.detail)
	}
	return out, nil
}

// leaf makes the node of an inode that is not a directory. marks tells that the
// directory says it has whiteouts.
func (d *decoder) leaf(raw *rawInode, marks bool) (*tree.Node, error) {
	n := &tree.Node{Meta: raw.meta, Kind: raw.kind}
	dropped := func(string) bool { return false }
	switch raw.kind {
	case tree.Regular:
		switch {
		case raw.layout == layoutChunk:
			if err := d.chunked(raw, n); err != nil {
				return nil, err
			}
			dropped = func(name string) bool { return name == nameMetacopy || name == nameRedirect }
		case marks && raw.size == 0 && raw.layout == layoutPlain && has(raw.xattrs, nameWhiteout, "") && has(raw.xattrs, nameUserWhiteout, ""):
			n.Kind = tree.CharDevice
			dropped = func(name string) bool { return name == nameWhiteout || name == nameUserWhiteout }
		default:
			contents, err := d.contents(raw, d.maxInline())
			if err != nil {
				return nil, err
			}
			n.Inline, n.Size = contents, raw.size
		}
	case tree.Symlink:
		target, err := d.contents(raw, maxTarget)
		if err != nil {
			return nil, err
		}
		if len(target) == 0 || strings.IndexByte(string(target), 0) >= 0 {
			return nil, errAt(raw.offset, "symlink", "target %q", target)
		}
		n.Target = string(target)
	case tree.CharDevice, tree.BlockDevice:
		n.Rdev = raw.u
		if raw.size != 0 || raw.layout != layoutPlain {
			return nil, errAt(raw.offset, "inode", "%s of %d bytes in layout %d", raw.kind, raw.size, raw.layout)
		}
	default:
		if raw.size != 0 || raw.layout != layoutPlain || raw.u != 0 {
			return nil, errAt(raw.offset, "inode", "%s of %d bytes in layout %d", raw.kind, raw.size, raw.layout)
		}
	}
	var err error
	n.Xattrs, err = d.unescape(raw, dropped)
	return n, err
}

func (d *decoder) maxInline() int64 {
	if d.format == V2 {
		return maxInlineV2
	}
	return maxInline
}

// contents returns the bytes of a file or symlink: whole blocks, then the tail.
func (d *decoder) contents(raw *rawInode, limit int64) ([]byte, error) {
	if raw.size > limit {
		return nil, errAt(raw.offset, "inode.size", "%d bytes inside the image, limit %d", raw.size, limit)
	}
	if d.format == V2 && raw.size > 0 && raw.layout != layoutInline {
		return nil, errAt(raw.offset, "inode.format", "layout %d of a %s, which format 2 has inline", raw.layout, raw.kind)
	}
	tail, err := d.blocksOf(raw)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, raw.size)
	if rest := raw.size - int64(len(tail)); rest > 0 {
		b, err := d.slice(int64(raw.u)*blockSize, rest, "inode.i_u")
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return append(out, tail...), nil
}

// blocksOf returns the tail of an inode whose data is not in chunks.
func (d *decoder) blocksOf(raw *rawInode) ([]byte, error) {
	switch raw.layout {
	case layoutPlain:
		return nil, nil
	case layoutInline:
		if raw.size%blockSize == 0 {
			return nil, errAt(raw.offset, "inode.format", "inline layout of %d bytes, which has no tail", raw.size)
		}
		return d.slice(raw.tail, raw.size%blockSize, "inode tail")
	}
	return nil, errAt(raw.offset, "inode.format", "layout %d of a %s", raw.layout, raw.kind)
}

// dirent is an entry of a directory.
type dirent struct {
	offset int64
	nid    uint64
	kind   tree.Kind
	name   string
}

// entries returns the entries of a directory, which must be in order.
func (d *decoder) entries(raw *rawInode) ([]dirent, error) {
	tail, err := d.blocksOf(raw)
	if err != nil {
		return nil, err
	}
	blocks := (raw.size - int64(len(tail))) / blockSize
	if (raw.size-int64(len(tail)))%blockSize != 0 {
		return nil, errAt(raw.offset, "inode.size", "directory of %d bytes in whole blocks", raw.size)
	}
	data, err := d.slice(int64(raw.u)*blockSize, blocks*blockSize, "directory block")
	if err != nil {
		return nil, err
	}
	var list []dirent
	for b := range blocks {
		if list, err = direntBlock(list, data[b*blockSize:(b+1)*blockSize], (int64(raw.u)+b)*blockSize); err != nil {
			return nil, err
		}
	}
	if len(tail) > 0 {
		if list, err = direntBlock(list, tail, raw.tail); err != nil {
			return nil, err
		}
	}
	for i := 1; i < len(list); i++ {
		if list[i-1].name >= list[i].name {
			return nil, errAt(list[i].offset, "dirent.name", "%q after %q", list[i].name, list[i-1].name)
		}
	}
	return list, nil
}

// direntBlock appends the entries of one block, which lies at offset.
func direntBlock(list []dirent, b []byte, offset int64) ([]dirent, error) {
	if len(b) < direntSize {
		return nil, errAt(offset, "dirent", "%d bytes, want at least %d", len(b), direntSize)
	}
	start := int(le.Uint16(b[8:]))
	if start == 0 || start%direntSize != 0 || start > len(b) {
		return nil, errAt(offset+8, "dirent.nameoff", "%d, want a multiple of %d up to %d", start, direntSize, len(b))
	}
	for at := 0; at < start; at += direntSize {
		h := b[at : at+direntSize]
		from, to := int(le.Uint16(h[8:])), len(b)
		if at+direntSize < start {
			to = int(le.Uint16(b[at+direntSize+8:]))
		} else if i := slices.Index(b[min(from, to):], 0); i >= 0 {
			to = from + i // the rest of the block is zero
		}
		kind := tree.Kind(h[10])
		if from < start || from >= to || to > len(b) || h[11] != 0 || !kind.Valid() {
			return nil, errAt(offset+int64(at), "dirent", "name from %d to %d of %d, type %d, reserved %#x", from, to, len(b), h[10], h[11])
		}
		list = append(list, dirent{offset + int64(at), le.Uint64(h), kind, string(b[from:to])})
	}
	return list, nil
}

// nidOffset returns where an inode starts.
func nidOffset(nid uint64) (int64, bool) {
	if nid > math.MaxUint32 {
		return 0, false
	}
	return int64(nid) * slotSize, true
}
