package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// The rules of this file are those of docs/design/oci.md, section "From tar to
// tree"; they decide image IDs. archive/tar finds the members and parses
// numbers; names, types and extended attributes are read here from the recorded
// header blocks, because archive/tar changes some of them.

const (
	blockSize      = 512
	inlineMax      = 64      // largest regular file that is kept inline
	maxExtensions  = 16      // header blocks before the one of the member
	maxExtension   = 1 << 20 // bytes of their contents
	maxTrailing    = 64 << 20
	xattrKey       = "SCHILY.xattr."
	sparseKey      = "GNU.sparse."
	typeRegularOld = 0 // "\x00": V7
)

// member is one tar member, without its body.
type member struct {
	typ  byte
	path string
	link string
	meta tree.Meta
	rdev uint32
	size int64 // of the body; 0 for types that have none
}

// regular reports whether the body is the content of a file.
func (m *member) regular() bool {
	return m.typ == tar.TypeReg || m.typ == typeRegularOld || m.typ == tar.TypeCont
}

// external reports whether the body becomes an object.
func (m *member) external() bool { return m.regular() && m.size > inlineMax }

// memory estimates what the entry of the member takes, in bytes.
func (m *member) memory() int64 {
	const node, xattr = 400, 48
	n := node + len(m.path) + len(m.link)
	for _, x := range m.meta.Xattrs {
		n += xattr + len(x.Name) + len(x.Value)
	}
	return int64(n)
}

// entry makes the tree entry of anything but a regular file.
func (m *member) entry() (tree.Entry, error) {
	e := tree.Entry{Path: m.path}
	switch m.typ {
	case tar.TypeLink:
		if m.link == "" {
			return e, errors.New("a hard link without target")
		}
		e.HardLink = m.link
	case tar.TypeSymlink:
		if m.link == "" {
			return e, errors.New("a symbolic link without target")
		}
		e.Node = tree.NewSymlink(m.meta, m.link)
	case tar.TypeDir:
		e.Node = tree.NewDir(m.meta)
	case tar.TypeChar:
		e.Node = &tree.Node{Meta: m.meta, Kind: tree.CharDevice, Rdev: m.rdev}
	case tar.TypeBlock:
		e.Node = &tree.Node{Meta: m.meta, Kind: tree.BlockDevice, Rdev: m.rdev}
	case tar.TypeFifo:
		e.Node = &tree.Node{Meta: m.meta, Kind: tree.Fifo}
	default:
		return e, fmt.Errorf("type %q is not supported", m.typ)
	}
	return e, nil
}

// archive walks the members of a layer.
type archive struct {
	tape  *tape
	tr    *tar.Reader
	where string // for errors
	pad   int    // bytes of padding behind the last body
	start int64  // offset of the member's first header block
	name  string // of the present member
	taken int64  // bytes of memory for the entries so far
	limit int64  // of taken
}

func newArchive(in *tape, where string) *archive {
	return &archive{tape: in, tr: tar.NewReader(in), where: where, limit: MaxMetadata}
}

// fail adds the place to an error.
func (a *archive) fail(err error) error {
	var f *FormatError
	if errors.As(err, &f) {
		return err
	}
	return &FormatError{Where: a.where, Entry: a.name, Offset: a.start, Err: err}
}

// next returns the next member; m is filled in and may be used again. The
// recorded bytes behind mark, the length of the record before the call, are the
// padding of the last body and the header blocks. At the end the error is
// io.EOF, and the record has the end marker.
//
// The owner must take the whole body of a regular member before the next call;
// other bodies do not exist.
func (a *archive) next(m *member) error {
	for {
		mark := len(a.tape.raw)
		a.name, a.start = "", a.tape.offset+int64(a.pad)
		h, err := a.tr.Next()
		if IsEOF(err) {
			return a.end(mark)
		}
		if err != nil {
			if a.tape.err != nil && !IsEOF(a.tape.err) {
				return a.failBody(a.tape.err) // the source failed, not the tar
			}
			return a.fail(err)
		}
		headers := a.tape.raw[mark+a.pad:]
		a.pad = 0
		if h.Typeflag == tar.TypeXGlobalHeader {
			// Its records are not applied, as composefs-rs does. archive/tar forgets
			// what was pending.
			if header(headers).typ() != tar.TypeXGlobalHeader {
				return a.fail(errors.New("an extension header before a global one"))
			}
			size, _ := extensionSize(headers[:blockSize])
			a.pad = int(-size & (blockSize - 1)) // not read yet
			continue
		}
		if err := m.parse(h, headers); err != nil {
			a.name = cmp.Or(m.path, h.Name)
			return a.fail(err)
		}
		a.name = m.path
		a.pad = int(-m.size & (blockSize - 1))
		if a.taken += m.memory(); a.taken > a.limit {
			return a.fail(fmt.Errorf("the names and attributes of the files take more than %d bytes", a.limit))
		}
		return nil
	}
}

// end checks the end marker: two zero blocks, or nothing at all.
func (a *archive) end(mark int) error {
	if len(a.tape.raw) < mark+a.pad {
		return a.fail(io.ErrUnexpectedEOF)
	}
	marker := a.tape.raw[mark+a.pad:]
	a.pad = 0
	switch {
	case len(marker) == 0:
	case len(marker) < 2*blockSize:
		return a.fail(errors.New("a lone zero block"))
	case len(bytes.TrimLeft(marker[:2*blockSize], "\x00")) > 0:
		return a.fail(errors.New("an extension header without a member"))
	}
	return io.EOF
}

// header is one header block.
type header []byte

func (h header) typ() byte { return h[156] }

func (h header) ustar() bool { return string(h[257:265]) == "ustar\x0000" }

func (h header) gnu() bool { return string(h[257:265]) == "ustar  \x00" }

func field(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// parse fills m from the header blocks. h is what archive/tar made of them.
func (m *member) parse(h *tar.Header, blocks []byte) error {
	*m = member{}
	x, last, err := parseExtensions(blocks)
	if err != nil {
		return err
	}
	m.typ = last.typ()
	m.path = field(last[:100])
	if prefix := field(last[345:500]); last.ustar() && prefix != "" {
		m.path = prefix + "/" + m.path
	}
	m.link = field(last[157:257])
	override(&m.path, x.longName)
	override(&m.link, x.longLink)
	override(&m.path, x.records["path"])
	override(&m.link, x.records["linkpath"])
	if m.path == "" {
		return errors.New("a member without name")
	}
	if strings.IndexByte(m.path, 0) >= 0 || strings.IndexByte(m.link, 0) >= 0 {
		return errors.New("a name with a NUL byte")
	}
	if m.typ == typeRegularOld && strings.HasSuffix(m.path, "/") {
		return errors.New("an old directory entry (V7), which readers understand in different ways")
	}
	if m.typ == tar.TypeGNUSparse || x.sparse {
		return errSparse
	}
	return m.parseFields(h, last, x)
}

var errSparse = errors.New("a sparse member, which is not supported")

func override(s *string, with string) {
	if with != "" {
		*s = with
	}
}

func (m *member) parseFields(h *tar.Header, last header, x extensions) error {
	m.size = h.Size
	switch {
	case m.regular():
	case m.size != 0:
		return fmt.Errorf("a body of %d bytes for type %q", m.size, m.typ)
	}
	if m.size < 0 {
		return fmt.Errorf("size %d", m.size)
	}
	for _, id := range []struct {
		name string
		v    int
		to   *uint32
	}{{"uid", h.Uid, &m.meta.UID}, {"gid", h.Gid, &m.meta.GID}} {
		if id.v < 0 || id.v > math.MaxUint32 {
			return fmt.Errorf("%s %d, want 0 to %d", id.name, id.v, uint32(math.MaxUint32))
		}
		*id.to = uint32(id.v)
	}
	m.meta.Mode = uint16(h.Mode & 0o7777) // 12 bits
	m.meta.MtimeSec = h.ModTime.Unix()
	if t, ok := x.records["mtime"]; ok {
		var err error
		if m.meta.MtimeSec, m.meta.MtimeNsec, err = parseMtime(t); err != nil {
			return err
		}
	}
	if m.typ == tar.TypeChar || m.typ == tar.TypeBlock {
		if !last.ustar() && !last.gnu() {
			return errors.New("a device without number (neither ustar nor GNU)")
		}
		if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
			return fmt.Errorf("device %d:%d, want at most 4095:1048575", h.Devmajor, h.Devminor)
		}
		major, minor := uint32(h.Devmajor), uint32(h.Devminor)
		m.rdev = minor&0xff | major<<8 | minor&^0xff<<12 // new_encode_dev
	}
	m.meta.Xattrs = x.xattrs()
	return nil
}

// parseMtime reads seconds and fraction; digits behind the ninth are cut.
func parseMtime(s string) (int64, uint32, error) {
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseUint(whole, 10, 63)
	if err != nil {
		return 0, 0, fmt.Errorf("mtime %.40q", s)
	}
	if len(fraction) > 9 {
		fraction = fraction[:9]
	}
	nsec := uint32(0)
	for i := range 9 {
		nsec *= 10
		if i >= len(fraction) {
			continue
		}
		if fraction[i] < '0' || fraction[i] > '9' {
			return 0, 0, fmt.Errorf("mtime %.40q", s)
		}
		nsec += uint32(fraction[i] - '0')
	}
	return int64(sec), nsec, nil // 63 bits
}

// extensions are the PAX and GNU headers before a member.
type extensions struct {
	longName, longLink string
	records            map[string]string
	sparse             bool
}

// parseExtensions splits header blocks into the extensions and the member's own
// block, which is the last.
func parseExtensions(blocks []byte) (extensions, header, error) {
	var x extensions
	seen, total := "", int64(0)
	for n := 0; len(blocks) > blockSize; n++ {
		h := header(blocks[:blockSize])
		if h.typ() == tar.TypeGNUSparse || x.sparse {
			return x, nil, errSparse // what follows is its map, which archive/tar has read
		}
		size, ok := extensionSize(h)
		padded := (size + blockSize - 1) &^ (blockSize - 1)
		if !ok || padded > int64(len(blocks)-2*blockSize) {
			return x, nil, fmt.Errorf("extension header of type %q with a bad size", h.typ())
		}
		if total += size; n == maxExtensions || total > maxExtension {
			return x, nil, fmt.Errorf("extension headers: %d of %d bytes, want at most %d of %d bytes", n+1, total, maxExtensions, maxExtension)
		}
		if strings.IndexByte(seen, h.typ()) >= 0 {
			return x, nil, fmt.Errorf("a second extension header of type %q", h.typ())
		}
		seen += string(rune(h.typ()))
		body := blocks[blockSize : blockSize+size]
		blocks = blocks[blockSize+padded:]
		if !h.ustar() && !h.gnu() {
			return x, nil, fmt.Errorf("extension header of type %q that is neither ustar nor GNU", h.typ())
		}
		var err error
		switch h.typ() {
		case tar.TypeGNULongName:
			x.longName = string(bytes.TrimSuffix(body, []byte{0}))
		case tar.TypeGNULongLink:
			x.longLink = string(bytes.TrimSuffix(body, []byte{0}))
		case tar.TypeXHeader:
			err = x.parseRecords(body)
		default:
			err = fmt.Errorf("extension header of type %q", h.typ())
		}
		if err != nil {
			return x, nil, err
		}
	}
	if len(blocks) != blockSize {
		return x, nil, fmt.Errorf("%d bytes of header, want %d", len(blocks), blockSize)
	}
	return x, header(blocks), nil
}

// extensionSize reads the size field as archive/tar did.
func extensionSize(h header) (int64, bool) {
	f := h[124:136]
	if f[0]&0x80 != 0 {
		n := int64(f[0] & 0x7f)
		for _, c := range f[1:] {
			if n > math.MaxInt64>>8 {
				return 0, false
			}
			n = n<<8 | int64(c)
		}
		return n, f[0]&0x40 == 0
	}
	s := strings.Trim(string(f), " \x00")
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(field([]byte(s)), 8, 62)
	return int64(n), err == nil // 62 bits
}

// parseRecords reads "<length> <key>=<value>\n" records. A key that decides
// something may come once only: readers differ in which one wins.
func (x *extensions) parseRecords(b []byte) error {
	x.records = map[string]string{}
	for len(b) > 0 {
		length, _, ok := bytes.Cut(b[:min(len(b), 20)], []byte{' '})
		n, err := strconv.ParseUint(string(length), 10, 31)
		if !ok || err != nil || n > uint64(len(b)) || n < uint64(len(length))+2 || b[n-1] != '\n' {
			return fmt.Errorf("PAX record %.40q with a bad length", b)
		}
		key, value, ok := strings.Cut(string(b[len(length)+1:n-1]), "=")
		b = b[n:]
		if !ok || key == "" || !utf8.ValidString(key) {
			return fmt.Errorf("PAX record %.40q without a UTF-8 key", key)
		}
		switch key {
		case "path", "linkpath", "size", "uid", "gid", "mtime":
			if old, twice := x.records[key]; value == "" || (twice && old != value) {
				return fmt.Errorf("PAX record %q is empty or given twice", key)
			}
		default:
			if strings.HasPrefix(key, sparseKey) {
				x.sparse = true
			}
			if !strings.HasPrefix(key, xattrKey) {
				continue
			}
			if strings.IndexByte(key, 0) >= 0 || len(key) == len(xattrKey) {
				return fmt.Errorf("PAX record %q names no extended attribute", key)
			}
		}
		x.records[key] = value
	}
	return nil
}

func (x *extensions) xattrs() []tree.Xattr {
	var list []tree.Xattr
	for key, value := range x.records {
		if name, ok := strings.CutPrefix(key, xattrKey); ok {
			list = append(list, tree.Xattr{Name: name, Value: value})
		}
	}
	slices.SortFunc(list, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list
}
