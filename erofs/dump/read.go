package dump

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// Read reads a dumpfile with the zero Limits. Errors are *FormatError, or those
// of r.
func Read(r io.Reader) (*tree.Node, error) { return Limits{}.Read(r) }

// Read reads a dumpfile. The memory used is that of the tree and one buffer that
// holds the longest line. Errors are *FormatError, or those of r.
func (l Limits) Read(r io.Reader) (*tree.Node, error) {
	if l.Inline == 0 {
		l.Inline = 512
	}
	if l.Target == 0 {
		l.Target = 1024
	}
	p := &parser{limits: l, xattrs: make(map[string][]tree.Xattr), names: make(map[string]string)}
	lines := lineReader{r: r, buf: make([]byte, 0, 256<<10)}
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		p.line++
		if errors.Is(err, errLongLine) {
			return nil, p.fail("line", "more than %d bytes", maxLine)
		}
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			continue
		}
		if err := p.entry(line); err != nil {
			return nil, err
		}
	}
	if p.root == nil {
		return nil, &FormatError{Line: p.line + 1, Field: "PATH", Detail: "no entry for \"/\""}
	}
	return p.root, nil
}

// lineReader cuts lines out of one buffer that grows up to maxLine.
type lineReader struct {
	r     io.Reader
	buf   []byte // what was read
	start int    // of the next line
	eof   bool
}

var errLongLine = errors.New("line too long")

// next returns the next line without its newline; it is valid until the next
// call.
func (l *lineReader) next() ([]byte, error) {
	searched := l.start
	for {
		if i := bytes.IndexByte(l.buf[searched:], '\n'); i >= 0 {
			line := l.buf[l.start : searched+i]
			l.start = searched + i + 1
			return line, nil
		}
		searched = len(l.buf)
		if l.eof {
			if l.start == len(l.buf) {
				return nil, io.EOF
			}
			line := l.buf[l.start:]
			l.start = len(l.buf)
			return line, nil
		}
		if len(l.buf) == cap(l.buf) {
			if l.start > 0 {
				n := copy(l.buf, l.buf[l.start:])
				l.buf, searched, l.start = l.buf[:n], n, 0
			} else {
				if len(l.buf) >= maxLine {
					return nil, errLongLine
				}
				l.buf = slices.Grow(l.buf, len(l.buf))
			}
		}
		n, err := l.r.Read(l.buf[len(l.buf):cap(l.buf)])
		l.buf = l.buf[:len(l.buf)+n]
		if errors.Is(err, io.EOF) {
			l.eof = true
		} else if err != nil {
			return nil, err
		}
	}
}

type parser struct {
	limits Limits
	line   int
	root   *tree.Node
	dirs   dirStack
	fields [fieldCount][]byte

	path, scratch []byte // buffers for unescaped text
	strings       strings.Builder
	nodes         []tree.Node
	xattrs        map[string][]tree.Xattr // by their text, since most files of an image have the same few
	names         map[string]string
}

func (p *parser) fail(field, format string, args ...any) error {
	return &FormatError{Line: p.line, Field: field, Detail: fmt.Sprintf(format, args...)}
}

func (p *parser) failField(i int, format string, args ...any) error {
	return p.fail(fieldNames[i], format, args...)
}

// split cuts the 11 fields off and returns the text of the extended attributes.
func (p *parser) split(line []byte) ([]byte, error) {
	if i := bytes.IndexByte(line, 0); i >= 0 {
		return nil, p.fail("line", "NUL at byte %d", i)
	}
	if i := bytes.IndexByte(line, '\r'); i >= 0 {
		return nil, p.fail("line", "carriage return at byte %d", i)
	}
	for i := range fieldCount {
		end := bytes.IndexByte(line, ' ')
		if end < 0 {
			if i < fieldCount-1 {
				return nil, p.failField(i+1, "missing, %d fields of %d found", i+1, fieldCount)
			}
			end = len(line)
		}
		if end == 0 {
			return nil, p.failField(i, "empty")
		}
		p.fields[i] = line[:end]
		if end == len(line) {
			return nil, nil
		}
		line = line[end+1:]
	}
	if len(line) == 0 {
		return nil, p.fail("line", "space at the end")
	}
	return line, nil
}

func (p *parser) entry(line []byte) error {
	xattrs, err := p.split(line)
	if err != nil {
		return err
	}
	path, buf, err := unescape(p.path, p.fields[fieldPath])
	if err != nil {
		return p.failField(fieldPath, "%v", err)
	}
	p.path = buf
	if p.root == nil {
		return p.rootEntry(path, xattrs)
	}
	parent, name, err := p.lookupParent(path, fieldPath)
	if err != nil {
		return err
	}
	if parent.Lookup(string(name)) != nil {
		return p.failField(fieldPath, "%q is there already", path)
	}
	var n *tree.Node
	if p.fields[fieldMode][0] == '@' {
		n, err = p.hardLink()
	} else {
		n, err = p.node(xattrs)
	}
	if err != nil {
		return err
	}
	parent.Set(p.string(name), n)
	return nil
}

func (p *parser) rootEntry(path, xattrs []byte) error {
	if string(path) != "/" {
		return p.failField(fieldPath, "the first entry is %q, want \"/\"", path)
	}
	if p.fields[fieldMode][0] == '@' {
		return p.failField(fieldMode, "the root is a hard link")
	}
	n, err := p.node(xattrs)
	if err != nil {
		return err
	}
	if !n.IsDir() {
		return p.failField(fieldMode, "the root is a %s, want a directory", n.Kind)
	}
	p.root = n
	p.dirs.levels = append(p.dirs.levels, dirLevel{dir: n})
	return nil
}

// lookupParent checks path and returns the directory and the last component. The
// parents need no check: they were names of entries.
func (p *parser) lookupParent(path []byte, field int) (*tree.Node, []byte, error) {
	if len(path) > maxPath {
		return nil, nil, p.failField(field, "%d bytes, limit %d", len(path), maxPath)
	}
	if path[0] != '/' {
		return nil, nil, p.failField(field, "%q is not absolute", path)
	}
	i := bytes.LastIndexByte(path, '/')
	name := path[i+1:]
	switch {
	case len(name) == 0:
		return nil, nil, p.failField(field, "%q ends in \"/\"", path)
	case len(name) > tree.MaxName:
		return nil, nil, p.failField(field, "component of %d bytes, limit %d", len(name), tree.MaxName)
	case string(name) == "." || string(name) == "..":
		return nil, nil, p.failField(field, "component %q", name)
	case bytes.IndexByte(name, 0) >= 0:
		return nil, nil, p.failField(field, "NUL in %q", path)
	}
	dir := p.dirs.find(path[:i])
	if dir == nil {
		return nil, nil, p.failField(field, "directory %q is not there", path[:i])
	}
	return dir, name, nil
}

// hardLink returns the node that the line links to.
func (p *parser) hardLink() (*tree.Node, error) {
	mode, ok := number(p.fields[fieldMode][1:], 8, 0o177777)
	if !ok {
		return nil, p.failField(fieldMode, "%q after @, want octal digits", p.fields[fieldMode][1:])
	}
	if kind, _ := tree.KindOfMode(uint32(mode)); kind == tree.Directory {
		return nil, p.failField(fieldMode, "hard link with the mode of a directory")
	}
	target, buf, err := p.optional(fieldPayload)
	p.scratch = buf
	if err != nil {
		return nil, err
	}
	if target == nil {
		return nil, p.failField(fieldPayload, "hard link without a target")
	}
	dir, name, err := p.lookupParent(target, fieldPayload)
	if err != nil {
		return nil, err
	}
	n := dir.Lookup(string(name))
	switch {
	case n == nil:
		return nil, p.failField(fieldPayload, "target %q is not there", target)
	case n.IsDir():
		return nil, p.failField(fieldPayload, "target %q is a directory", target)
	case n.IsWhiteout():
		return nil, p.failField(fieldPayload, "target %q is a whiteout", target)
	}
	return n, nil
}

// optional returns the unescaped field, nil for "-".
func (p *parser) optional(i int) (text, scratch []byte, err error) {
	f := p.fields[i]
	if len(f) == 1 && f[0] == '-' {
		return nil, p.scratch, nil
	}
	text, scratch, err = unescape(p.scratch, f)
	if err != nil {
		return nil, scratch, p.failField(i, "%v", err)
	}
	return text, scratch, nil
}

// number reads digits of the base, nothing else, up to limit.
func number(b []byte, base, limit uint64) (uint64, bool) {
	if len(b) == 0 {
		return 0, false
	}
	var v uint64
	for _, c := range b {
		d := uint64(c - '0')
		if d >= base || v > (math.MaxUint64-d)/base {
			return 0, false
		}
		v = v*base + d
	}
	return v, v <= limit
}

func (p *parser) number(i int, limit uint64) (uint64, error) {
	v, ok := number(p.fields[i], 10, limit)
	if !ok {
		return 0, p.failField(i, "%q, want decimal digits up to %d", p.fields[i], limit)
	}
	return v, nil
}

// newNode returns a zero node. They come in slabs: an image has many of them, and
// they live and die together.
func (p *parser) newNode() *tree.Node {
	if len(p.nodes) == 0 {
		p.nodes = make([]tree.Node, 128)
	}
	n := &p.nodes[0]
	p.nodes = p.nodes[1:]
	return n
}

// string returns a copy of b, many of which share one allocation.
func (p *parser) string(b []byte) string {
	const slab = 32 << 10
	if len(b) > slab/8 {
		return string(b)
	}
	if p.strings.Cap()-p.strings.Len() < len(b) {
		p.strings = strings.Builder{}
		p.strings.Grow(slab)
	}
	start := p.strings.Len()
	p.strings.Write(b)
	return p.strings.String()[start:]
}

// node makes the node of a line that is not a hard link.
func (p *parser) node(xattrs []byte) (*tree.Node, error) {
	mode, ok := number(p.fields[fieldMode], 8, 0o177777)
	if !ok {
		return nil, p.failField(fieldMode, "%q, want octal digits up to 177777", p.fields[fieldMode])
	}
	kind, ok := tree.KindOfMode(uint32(mode))
	if !ok {
		return nil, p.failField(fieldMode, "%q has no known file type", p.fields[fieldMode])
	}
	var v [fieldCount]uint64
	for i, limit := range [...]uint64{fieldSize: math.MaxInt64, fieldNlink: math.MaxUint32, fieldUID: math.MaxUint32, fieldGID: math.MaxUint32, fieldRdev: math.MaxUint32} {
		if limit == 0 {
			continue
		}
		var err error
		if v[i], err = p.number(i, limit); err != nil {
			return nil, err
		}
	}
	n := p.newNode()
	n.Kind, n.Mode = kind, uint16(mode&0o7777)
	n.UID, n.GID, n.Rdev = uint32(v[fieldUID]), uint32(v[fieldGID]), uint32(v[fieldRdev])
	if err := p.mtime(n); err != nil {
		return nil, err
	}
	if n.Rdev != 0 && kind != tree.CharDevice && kind != tree.BlockDevice {
		return nil, p.failField(fieldRdev, "%d for a %s, want 0", n.Rdev, kind)
	}
	if n.IsWhiteout() && v[fieldNlink] > 1 {
		return nil, p.failField(fieldNlink, "%d for a whiteout, want 1", v[fieldNlink])
	}
	if err := p.contents(n, v[fieldSize]); err != nil {
		return nil, err
	}
	return n, p.setXattrs(n, xattrs)
}

func (p *parser) mtime(n *tree.Node) error {
	f := p.fields[fieldMtime]
	i := bytes.IndexByte(f, '.')
	if i < 0 {
		return p.failField(fieldMtime, "%q, want seconds.nanoseconds", f)
	}
	sec, ok1 := number(f[:i], 10, math.MaxInt64)
	nsec, ok2 := number(f[i+1:], 10, maxNsec)
	if !ok1 || !ok2 {
		return p.failField(fieldMtime, "%q, want seconds.nanoseconds", f)
	}
	n.MtimeSec, n.MtimeNsec = int64(sec), uint32(nsec)
	return nil
}

func isDash(b []byte) bool { return len(b) == 1 && b[0] == '-' }

// contents sets what PAYLOAD, CONTENT and DIGEST say.
func (p *parser) contents(n *tree.Node, size uint64) error {
	payload, content, digest := p.fields[fieldPayload], p.fields[fieldContent], p.fields[fieldDigest]
	if n.Kind != tree.Regular {
		if !isDash(content) {
			return p.failField(fieldContent, "set for a %s", n.Kind)
		}
		if !isDash(digest) {
			return p.failField(fieldDigest, "set for a %s", n.Kind)
		}
		if n.Kind == tree.Symlink {
			return p.target(n)
		}
		if !isDash(payload) {
			return p.failField(fieldPayload, "set for a %s", n.Kind)
		}
		return nil
	}
	if !isDash(payload) {
		if !isDash(content) {
			return p.failField(fieldContent, "set beside PAYLOAD")
		}
		return p.external(n, size)
	}
	if !isDash(digest) {
		return p.failField(fieldDigest, "set without PAYLOAD")
	}
	if isDash(content) {
		n.Size, n.Sparse = int64(size), size > 0
		return nil
	}
	text, buf, err := p.optional(fieldContent)
	p.scratch = buf
	if err != nil {
		return err
	}
	if len(text) > p.limits.Inline {
		return p.failField(fieldContent, "%d bytes, limit %d", len(text), p.limits.Inline)
	}
	if uint64(len(text)) != size {
		return p.failField(fieldSize, "%d, but CONTENT has %d bytes", size, len(text))
	}
	n.Inline, n.Size = bytes.Clone(text), int64(len(text))
	return nil
}

func (p *parser) target(n *tree.Node) error {
	text, buf, err := p.optional(fieldPayload)
	p.scratch = buf
	if err != nil {
		return err
	}
	switch {
	case len(text) == 0:
		return p.failField(fieldPayload, "symlink without a target")
	case len(text) > p.limits.Target:
		return p.failField(fieldPayload, "target of %d bytes, limit %d", len(text), p.limits.Target)
	case bytes.IndexByte(text, 0) >= 0:
		return p.failField(fieldPayload, "NUL in the target %q", text)
	}
	n.Target = p.string(text)
	return nil
}

// external sets an object reference. The path must be that of the digest, since
// the image records both and nobody could tell which one counts.
func (p *parser) external(n *tree.Node, size uint64) error {
	const maxExternal = 1 << 53 // 1024 chunks of the largest size
	if size == 0 || size > maxExternal {
		return p.failField(fieldSize, "%d for an external file, want 1 to %d", size, uint64(maxExternal))
	}
	n.Size = int64(size)
	payload, digest := p.fields[fieldPayload], p.fields[fieldDigest]
	if isDash(digest) {
		return p.noVerity(n)
	}
	if len(digest) != 64 && len(digest) != 128 {
		return p.failField(fieldDigest, "%d characters, want 64 or 128 hexadecimal digits", len(digest))
	}
	raw, ok := p.rawDigest(digest)
	if !ok {
		return p.failField(fieldDigest, "%q is not hexadecimal", digest)
	}
	d, err := fsverity.DigestFromRaw(raw)
	if err != nil {
		return p.failField(fieldDigest, "%v", err)
	}
	n.Digest = d
	if len(payload) == len(digest)+1 && payload[2] == '/' && bytes.Equal(payload[:2], digest[:2]) && bytes.Equal(payload[3:], digest[2:]) {
		return nil
	}
	text, buf, err := p.optional(fieldPayload)
	p.scratch = buf
	if err != nil {
		return err
	}
	if other, err := fsverity.ParseObjectPath(string(text)); err != nil || other != d {
		return p.failField(fieldPayload, "%q, want %q", text, d.ObjectPath())
	}
	return nil
}

// noVerity takes the object from the end of PAYLOAD, whatever precedes it.
func (p *parser) noVerity(n *tree.Node) error {
	text, buf, err := p.optional(fieldPayload)
	p.scratch = buf
	if err != nil {
		return err
	}
	n.NoVerity = true
	for _, length := range []int{129, 65} {
		if len(text) < length {
			continue
		}
		if n.Digest, err = fsverity.ParseObjectPath(string(text[len(text)-length:])); err == nil {
			return nil
		}
	}
	return p.failField(fieldPayload, "%q does not end in the path of an object", text)
}

func (p *parser) rawDigest(hex []byte) (string, bool) {
	var raw [64]byte
	for i := range len(hex) / 2 {
		hi, lo := unhex[hex[2*i]], unhex[hex[2*i+1]]
		if hi|lo > 15 {
			return "", false
		}
		raw[i] = hi<<4 | lo
	}
	return p.string(raw[:len(hex)/2]), true
}

const internText = 512 // bytes; longer texts are hardly ever the same

func (p *parser) setXattrs(n *tree.Node, text []byte) error {
	if len(text) == 0 {
		return nil
	}
	if known, ok := p.xattrs[string(text)]; ok {
		n.Xattrs = known
		return nil
	}
	key := ""
	if len(text) <= internText {
		key = p.string(text)
	}
	xs := make([]tree.Xattr, 0, 1+bytes.Count(text, []byte{' '}))
	names := 0
	for len(text) > 0 {
		var field []byte
		if i := bytes.IndexByte(text, ' '); i < 0 {
			field, text = text, nil
		} else if field, text = text[:i], text[i+1:]; len(text) == 0 {
			return p.fail("line", "space at the end")
		}
		x, err := p.xattr(field)
		if err != nil {
			return err
		}
		names += len(x.Name)
		xs = append(xs, x)
	}
	if names > maxXattrNames {
		return p.fail("XATTR", "names of %d bytes together, limit %d", names, maxXattrNames)
	}
	slices.SortFunc(xs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(xs); i++ {
		if xs[i].Name == xs[i-1].Name {
			return p.fail("XATTR", "%q given twice", xs[i].Name)
		}
	}
	n.Xattrs = xs
	if key != "" {
		p.xattrs[key] = xs
	}
	return nil
}

func (p *parser) xattr(field []byte) (tree.Xattr, error) {
	name, value, ok := bytes.Cut(field, []byte{'='})
	if !ok {
		return tree.Xattr{}, p.fail("XATTR", "%q has no \"=\"", field)
	}
	name, buf, err := unescape(p.scratch, name)
	if err != nil {
		return tree.Xattr{}, p.fail("XATTR", "name: %v", err)
	}
	p.scratch = buf
	switch {
	case len(name) == 0 || len(name) > maxXattrName:
		return tree.Xattr{}, p.fail("XATTR", "name of %d bytes, want 1 to %d", len(name), maxXattrName)
	case bytes.IndexByte(name, 0) >= 0:
		return tree.Xattr{}, p.fail("XATTR", "NUL in the name %q", name)
	}
	x := tree.Xattr{Name: p.names[string(name)]}
	if x.Name == "" {
		x.Name = string(name)
		p.names[x.Name] = x.Name
	}
	value, buf, err = unescape(p.scratch, value)
	if err != nil {
		return tree.Xattr{}, p.fail("XATTR", "value of %q: %v", x.Name, err)
	}
	p.scratch = buf
	if len(value) > maxXattrValue {
		return tree.Xattr{}, p.fail("XATTR", "value of %q has %d bytes, limit %d", x.Name, len(value), maxXattrValue)
	}
	x.Value = p.string(value)
	return x, nil
}

// dirStack finds directories by path, fast when the paths come depth-first: it
// keeps the way to the one found last.
type dirStack struct {
	path   []byte // of the top level
	levels []dirLevel
}

type dirLevel struct {
	dir *tree.Node
	end int // of its path in dirStack.path; 0 for the root
}

// find returns the directory with the given path ("" for the root), nil if there
// is none.
func (s *dirStack) find(path []byte) *tree.Node {
	for {
		top := s.levels[len(s.levels)-1]
		if top.end <= len(path) && bytes.Equal(s.path[:top.end], path[:top.end]) && (top.end == len(path) || path[top.end] == '/') {
			break
		}
		s.levels = s.levels[:len(s.levels)-1]
	}
	for {
		top := s.levels[len(s.levels)-1]
		if top.end == len(path) {
			return top.dir
		}
		name := path[top.end+1:]
		if i := bytes.IndexByte(name, '/'); i >= 0 {
			name = name[:i]
		}
		dir := top.dir.Lookup(string(name))
		if dir == nil || !dir.IsDir() {
			return nil
		}
		end := top.end + 1 + len(name)
		s.path = append(s.path[:top.end], path[top.end:end]...)
		s.levels = append(s.levels, dirLevel{dir: dir, end: end})
	}
}
