package erofs

import (
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// rawInode is an inode as the image has it.
type rawInode struct {
	offset int64
	nid    uint64
	layout uint16
	kind   tree.Kind
	meta   tree.Meta // without attributes
	size   int64
	u      uint32
	nlink  uint32
	tail   int64        // offset of what follows the attributes
	xattrs []tree.Xattr // in the order of the image, which is that of the names
}

// inode reads the inode nid with its attributes.
func (d *decoder) inode(nid uint64) (*rawInode, error) {
	offset, ok := nidOffset(nid)
	if !ok || offset < firstInode {
		return nil, errAt(offset, "nid", "%d is outside the inode area", nid)
	}
	b, err := d.slice(offset, compactSize, "inode")
	if err != nil {
		return nil, err
	}
	format := le.Uint16(b)
	r := &rawInode{offset: offset, nid: nid, layout: format >> 1}
	if r.layout != layoutPlain && r.layout != layoutInline && r.layout != layoutChunk {
		return nil, errAt(offset, "inode.format", "%#x", format)
	}
	header, reserved := int64(compactSize), uint64(0)
	mode := le.Uint16(b[4:])
	if format&1 == 0 {
		if d.format == V2 {
			return nil, errAt(offset, "inode.format", "%#x: compact, which format 2 has not", format)
		}
		r.nlink, r.size, r.u = uint32(le.Uint16(b[6:])), int64(le.Uint32(b[8:])), le.Uint32(b[16:])
		r.meta.UID, r.meta.GID = uint32(le.Uint16(b[24:])), uint32(le.Uint16(b[26:]))
		r.meta.MtimeSec, r.meta.MtimeNsec = d.time.MtimeSec, d.time.MtimeNsec
		reserved = uint64(le.Uint32(b[12:])) | uint64(le.Uint32(b[28:]))
	} else {
		header = extendedSize
		if b, err = d.slice(offset, header, "inode"); err != nil {
			return nil, err
		}
		r.size, r.u, r.nlink = int64(le.Uint64(b[8:])), le.Uint32(b[16:]), le.Uint32(b[44:])
		r.meta.UID, r.meta.GID = le.Uint32(b[24:]), le.Uint32(b[28:])
		r.meta.MtimeSec, r.meta.MtimeNsec = int64(le.Uint64(b[32:])), le.Uint32(b[40:])
		reserved = uint64(le.Uint16(b[6:])) | le.Uint64(b[48:]) | le.Uint64(b[56:])
	}
	if reserved != 0 {
		return nil, errAt(offset, "inode.reserved", "%#x, want 0", reserved)
	}
	r.meta.Mode = mode & 0o7777
	if r.kind, ok = tree.KindOfMode(uint32(mode)); !ok {
		return nil, errAt(offset+4, "inode.mode", "%#o has no known type", mode)
	}
	if r.meta.MtimeSec < 0 || r.meta.MtimeNsec > maxNsec || d.format == V2 && r.meta.MtimeNsec > 0 {
		return nil, errAt(offset, "inode.mtime", "%d s, %d ns", r.meta.MtimeSec, r.meta.MtimeNsec)
	}
	if r.size < 0 || r.size > maxExternal {
		return nil, errAt(offset+8, "inode.size", "%d", uint64(r.size))
	}
	area := int64(0)
	if icount := int64(le.Uint16(b[2:])); icount > 0 {
		area = xattrHeader + 4*(icount-1)
	}
	r.tail = offset + header + area
	if r.xattrs, err = d.xattrArea(offset+header, area); err != nil {
		return nil, err
	}
	if r.layout != layoutChunk && r.size > int64(len(d.image)) {
		return nil, errAt(offset+8, "inode.size", "%d, the image has %d bytes", r.size, len(d.image))
	}
	return r, nil
}

// xattrArea reads the attributes at offset. Names must be unique; their order, in
// which references come first, and in format 2 what tells of contents, is made that
// of the names.
func (d *decoder) xattrArea(offset, size int64) ([]tree.Xattr, error) {
	if size == 0 {
		return nil, nil
	}
	b, err := d.slice(offset, size, "xattr area")
	if err != nil {
		return nil, err
	}
	refs := int(b[4])
	if err := zero(b[5:xattrHeader], offset+5, "xattr.reserved"); err != nil {
		return nil, err
	}
	if xattrHeader+4*int64(refs) > size {
		return nil, errAt(offset+4, "xattr.shared_count", "%d in an area of %d bytes", refs, size)
	}
	var list []tree.Xattr
	filter := ^uint32(0)
	for i := range refs {
		x, err := d.sharedXattr(le.Uint32(b[xattrHeader+4*i:]))
		if err != nil {
			return nil, err
		}
		list = append(list, x)
	}
	for at := xattrHeader + 4*int64(refs); at < size; {
		x, used, err := d.xattrEntry(b[at:], offset+at)
		if err != nil {
			return nil, err
		}
		list = append(list, x)
		at += used
	}
	for _, x := range list {
		filter &^= filterBit(splitName(d.format, x.Name))
	}
	if got := le.Uint32(b); got != filter {
		return nil, errAt(offset, "xattr.name_filter", "%#x, want %#x", got, filter)
	}
	return sortXattrs(list, offset)
}

// sortXattrs merges the references and the local entries, both of which are in
// order.
func sortXattrs(list []tree.Xattr, offset int64) ([]tree.Xattr, error) {
	for i := 1; i < len(list); i++ { // insertion: short, and mostly in order
		for j := i; j > 0 && list[j].Name <= list[j-1].Name; j-- {
			if list[j].Name == list[j-1].Name {
				return nil, errAt(offset, "xattr", "%q twice", list[j].Name)
			}
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
	return list, nil
}

// sharedXattr reads an entry of the shared table, each only once: many inodes may
// refer to a large value.
func (d *decoder) sharedXattr(ref uint32) (tree.Xattr, error) {
	if x, ok := d.shared[ref]; ok {
		return x, nil
	}
	offset := d.xattrs + 4*int64(ref)
	if offset >= int64(len(d.image)) {
		return tree.Xattr{}, errAt(offset, "xattr reference", "%d is outside the image", ref)
	}
	x, _, err := d.xattrEntry(d.image[offset:], offset)
	if err == nil {
		d.shared[ref] = x
	}
	return x, err
}

// xattrEntry reads one entry at the start of b, which lies at offset, and returns
// how many bytes it takes.
func (d *decoder) xattrEntry(b []byte, offset int64) (tree.Xattr, int64, error) {
	if len(b) < 4 {
		return tree.Xattr{}, 0, errAt(offset, "xattr entry", "%d bytes left, want 4", len(b))
	}
	suffix, index, value := int(b[0]), int(b[1]), int(le.Uint16(b[2:]))
	used := entrySize(suffix, value)
	if used > len(b) {
		return tree.Xattr{}, 0, errAt(offset, "xattr entry", "%d bytes, %d are left", used, len(b))
	}
	if index >= len(xattrPrefixes) || index == prefixLustre && d.format != V2 {
		return tree.Xattr{}, 0, errAt(offset+1, "xattr.name_index", "%d", index)
	}
	name := xattrPrefixes[index] + string(b[4:4+suffix])
	if i, _ := splitName(d.format, name); int(i) != index || name == "" || strings.IndexByte(name, 0) >= 0 {
		return tree.Xattr{}, 0, errAt(offset, "xattr.name", "%q with index %d", name, index)
	}
	if err := zero(b[4+suffix+value:used], offset+int64(4+suffix+value), "xattr padding"); err != nil {
		return tree.Xattr{}, 0, err
	}
	return tree.Xattr{Name: name, Value: string(b[4+suffix : 4+suffix+value])}, int64(used), nil
}

// chunked sets the contents of a file that the image stores as holes.
func (d *decoder) chunked(raw *rawInode, n *tree.Node) error {
	if raw.size == 0 {
		return errAt(raw.offset, "inode.size", "0 in chunks")
	}
	got, want, length := raw.u&0xffff, uint32(chunkBits(raw.size)-12), 4*chunkCount(raw.size)
	moved := raw.tail%blockSize+length > blockSize // to a block
	if d.format == V2 {
		got, want, length, moved = raw.u, chunkFormatV2, 4, false
		if x := slices.IndexFunc(raw.xattrs, func(x tree.Xattr) bool { return x.Name == nameMetacopy }); x < 0 || raw.xattrs[x].Value == "" {
			length = 0
		}
	}
	if got != want {
		return errAt(raw.offset, "inode.i_u", "chunk format %#x, want %#x", got, want)
	}
	if !moved {
		if err := d.holes(raw.tail, length); err != nil {
			return err
		}
	}
	n.Size = raw.size
	var meta, redirect string
	var hasMeta, hasRedirect bool
	for _, x := range raw.xattrs {
		switch x.Name {
		case nameMetacopy:
			meta, hasMeta = x.Value, true
		case nameRedirect:
			redirect, hasRedirect = x.Value, true
		}
	}
	if !hasMeta {
		return errAt(raw.offset, "xattr", "a file in chunks lacks %s", nameMetacopy)
	}
	if !hasRedirect {
		if meta != "" {
			return errAt(raw.offset, "xattr", "%s with a digest, but no %s", nameMetacopy, nameRedirect)
		}
		n.Sparse = true
		return nil
	}
	object, ok := strings.CutPrefix(redirect, "/")
	digest, err := fsverity.ParseObjectPath(object)
	if err != nil || !ok || digest.ObjectPath() != object {
		return errAt(raw.offset, "xattr", "%s is %q, want \"/\" and the path of an object", nameRedirect, redirect)
	}
	n.Digest = digest
	if meta == "" {
		n.NoVerity = true
		return nil
	}
	a := attr{name: nameMetacopy, digest: digest}
	if want := string(a.appendValue(nil)); meta != want {
		return errAt(raw.offset, "xattr", "%s is %x, want %x as %s says", nameMetacopy, meta, want, nameRedirect)
	}
	return nil
}

// holes checks that the chunk pointers lead nowhere.
func (d *decoder) holes(offset, length int64) error {
	pointers, err := d.slice(offset, length, "chunk pointers")
	if err != nil {
		return err
	}
	for i := 0; i < len(pointers); i += 4 {
		if p := le.Uint32(pointers[i:]); p != noChunk {
			return errAt(offset+int64(i), "chunk pointer", "%#x, want a hole", p)
		}
	}
	return nil
}
