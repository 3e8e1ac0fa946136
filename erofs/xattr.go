package erofs

import (
	"cmp"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// attr is one extended attribute of an inode as the image has it. The overlay
// attributes of files in objects follow from the digest; their values are only
// made when they are written.
type attr struct {
	name   string
	value  string
	digest fsverity.Digest // of the object, for metacopy and redirect made from it
	pair   *pair           // nil: no other inode has the same
}

// pair counts the inodes that have one (name, value).
type pair struct {
	count  uint32
	offset uint32 // in the shared table
}

func (p *pair) isShared() bool { return p != nil && p.count > 1 }

// dup counts the files with one digest.
type dup struct{ metacopy, redirect pair }

const dupShift = 18 // 32 KiB of bits

func (e *encoder) markDup(raw string) {
	bit := le32(raw) >> (32 - dupShift)
	e.dupBits[bit/64] |= 1 << (bit % 64)
	if e.dups[raw] == nil {
		e.dups[raw] = new(dup)
	}
}

// dup returns the counts of a digest, nil if only one file has it. The filter
// answers for most.
func (e *encoder) dup(raw string) *dup {
	bit := le32(raw) >> (32 - dupShift)
	if e.dupBits[bit/64]>>(bit%64)&1 == 0 {
		return nil
	}
	return e.dups[raw]
}

type sharedXattr struct {
	name, value string
	pair        *pair
}

// valueLen returns the length of the value in bytes.
func (a *attr) valueLen() int {
	if a.digest.IsZero() {
		return len(a.value)
	}
	size := a.digest.Algorithm().Size()
	if a.name == nameMetacopy {
		return 4 + size
	}
	return 2 + 2*size // "/ab/cdef…"
}

// appendValue appends the value to b.
func (a *attr) appendValue(b []byte) []byte {
	switch {
	case a.digest.IsZero():
		return append(b, a.value...)
	case a.name == nameMetacopy:
		// struct ovl_metacopy: version, length, flags, digest algorithm
		b = append(b, 0, byte(a.valueLen()), 0, byte(a.digest.Algorithm()))
		return append(b, a.digest.Raw()...)
	}
	return a.digest.AppendObjectPath(append(b, '/'))
}

// list returns the attributes of an inode in the order of the format. holds tells
// that it is a directory with escaped whiteouts. The result is valid until the next
// call.
func (e *encoder) list(n *tree.Node, holds bool) []attr {
	l := e.attrs[:0]
	if e.version == V2 {
		l = appendOwn(appendContents(l, n), n)
	} else {
		l = e.sorted(appendOwn(l, n), n, holds)
	}
	e.attrs = l
	for i := range l {
		l[i].pair = e.pairOf(&l[i])
	}
	return l
}

// appendOwn appends the attributes that the tree has, escaped.
func appendOwn(l []attr, n *tree.Node) []attr {
	for _, x := range n.Xattrs {
		name := x.Name
		if strings.HasPrefix(name, overlayPrefix) {
			name = escapedPrefix + name[len(overlayPrefix):]
		}
		l = append(l, attr{name: name, value: x.Value})
	}
	return l
}

// appendContents appends the attributes that tell where the contents are.
func appendContents(l []attr, n *tree.Node) []attr {
	switch {
	case n.IsExternal() && n.NoVerity:
		return append(l, attr{name: nameMetacopy}, attr{name: nameRedirect, digest: n.Digest})
	case n.IsExternal():
		return append(l, attr{name: nameMetacopy, digest: n.Digest}, attr{name: nameRedirect, digest: n.Digest})
	case isChunked(n):
		return append(l, attr{name: nameMetacopy})
	}
	return l
}

// sorted adds what formats 0 and 1 add to the attributes l that n has itself, and
// puts all in byte order of their names.
func (e *encoder) sorted(l []attr, n *tree.Node, holds bool) []attr {
	plain := len(l)
	l = appendContents(l, n)
	switch {
	case n == e.root:
		l = append(l, attr{name: nameOpaque, value: "y"})
	case e.escaped(n):
		l = replace(l, nameWhiteout, "")
		l = replace(l, nameUserWhiteout, "")
	}
	if holds {
		l = replace(l, nameWhiteouts, "")
		l = replace(l, nameUserWhiteouts, "")
		if e.version == V1 {
			l = replace(l, nameOpaqueEscaped, "x")
			l = replace(l, nameUserOpaque, "x")
		}
	}
	if len(l) > plain && plain > 0 || holds || len(l) > plain+1 {
		slices.SortFunc(l, func(a, b attr) int { return strings.Compare(a.name, b.name) })
	}
	return l
}

// replace sets an attribute, as C mkcomposefs does; composefs-rs writes the name
// a second time, which no reader understands.
func replace(l []attr, name, value string) []attr {
	for i := range l {
		if l[i].name == name {
			l[i].value = value
			return l
		}
	}
	return append(l, attr{name: name, value: value})
}

func (e *encoder) pairOf(a *attr) *pair {
	if a.digest.IsZero() {
		return e.pairs[tree.Xattr{Name: a.name, Value: a.value}]
	}
	if d := e.dup(a.digest.Raw()); d != nil {
		if a.name == nameMetacopy {
			return &d.metacopy
		}
		return &d.redirect
	}
	return nil
}

// unique reports whether the node has just the two attributes of a file in an
// object that no other file shares. Most files are like that.
func (e *encoder) unique(n *tree.Node) bool {
	return len(n.Xattrs) == 0 && n.IsExternal() && !n.NoVerity && e.dup(n.Digest.Raw()) == nil
}

// count finds which attributes are shared, the smallest time, and ACLs.
func (e *encoder) count() {
	e.pairs = make(map[tree.Xattr]*pair)
	e.minMtime = tree.Meta{MtimeSec: e.root.MtimeSec, MtimeNsec: e.root.MtimeNsec}
	dir := 0
	for i := range e.inodes {
		n := e.inodes[i].node
		if n.CompareMtime(&e.minMtime) < 0 {
			e.minMtime.MtimeSec, e.minMtime.MtimeNsec = n.MtimeSec, n.MtimeNsec
		}
		holds := false
		if n.IsDir() {
			holds = e.dirs[dir].whiteouts
			dir++
		}
		if e.unique(n) {
			continue
		}
		for _, a := range e.list(n, holds) {
			if a.pair == nil && a.digest.IsZero() {
				a.pair = new(pair)
				e.pairs[tree.Xattr{Name: a.name, Value: a.value}] = a.pair
			}
			if a.pair != nil {
				a.pair.count++
			}
			if a.name == nameACLAccess || a.name == nameACLDefault {
				e.hasACL = true
			}
		}
	}
	e.sortShared()
}

// sortShared gives the shared attributes their places.
func (e *encoder) sortShared() {
	for x, p := range e.pairs {
		if p.isShared() {
			e.shared = append(e.shared, sharedXattr{x.Name, x.Value, p})
		} else {
			delete(e.pairs, x)
		}
	}
	for raw, d := range e.dups {
		digest, _ := fsverity.DigestFromRaw(raw) // was a digest before
		if d.metacopy.isShared() {
			a := attr{name: nameMetacopy, digest: digest}
			e.shared = append(e.shared, sharedXattr{nameMetacopy, string(a.appendValue(nil)), &d.metacopy})
		}
		if d.redirect.isShared() {
			a := attr{name: nameRedirect, digest: digest}
			e.shared = append(e.shared, sharedXattr{nameRedirect, string(a.appendValue(nil)), &d.redirect})
		}
	}
	order := compareShared
	if e.version == V2 {
		order = compareSharedV2
	}
	slices.SortFunc(e.shared, order)
	offset := 0
	for _, s := range e.shared {
		s.pair.offset = uint32(offset)
		_, suffix := splitName(e.version, s.name)
		offset += entrySize(len(suffix), len(s.value))
	}
}

// compareShared is the order of formats 0 and 1: descending by name, then length of
// the value, then value.
func compareShared(a, b sharedXattr) int {
	return cmp.Or(strings.Compare(b.name, a.name), cmp.Compare(len(b.value), len(a.value)), strings.Compare(b.value, a.value))
}

// compareSharedV2 is the order of format 2: ascending by prefix, then suffix, then
// value.
func compareSharedV2(a, b sharedXattr) int {
	i, as := splitName(V2, a.name)
	j, bs := splitName(V2, b.name)
	return cmp.Or(cmp.Compare(i, j), strings.Compare(as, bs), strings.Compare(a.value, b.value))
}

// sharedSize returns the size of the shared table.
func (e *encoder) sharedSize() int64 {
	size := 0
	for _, s := range e.shared {
		_, suffix := splitName(e.version, s.name)
		size += entrySize(len(suffix), len(s.value))
	}
	return int64(size)
}

// entrySize returns the bytes of an entry: header, suffix, value, padding.
func entrySize(suffix, value int) int { return (4 + suffix + value + 3) &^ 3 }

// areaSize returns the bytes of the attributes of an inode, and how many of them
// are references.
func areaSize(v Version, l []attr) (size int64, refs int) {
	if len(l) == 0 {
		return 0, 0
	}
	size = xattrHeader
	for i := range l {
		if l[i].pair.isShared() {
			size += 4
			refs++
			continue
		}
		_, suffix := splitName(v, l[i].name)
		size += int64(entrySize(len(suffix), l[i].valueLen()))
	}
	return size, refs
}

// uniqueAreaSize is areaSize for what unique reports.
func uniqueAreaSize(d fsverity.Digest) int64 {
	size := d.Algorithm().Size()
	const suffix = len("overlay.metacopy") // and of overlay.redirect
	return xattrHeader + int64(entrySize(suffix, 4+size)+entrySize(suffix, 2+2*size))
}
