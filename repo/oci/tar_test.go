package oci_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// raw is a header block written by hand.
type raw struct {
	name, link, prefix string
	typ                byte
	size, mtime        string // field contents; default octal 0
	mode, uid, gid     string
	magic              string // default ustar
	body               string
	dev                [2]string
	bare               bool // no device fields, checksum of 7 digits
}

func (r raw) bytes() []byte {
	b := make([]byte, 512)
	set := func(at, n int, s, def string) {
		if s == "" {
			s = def
		}
		copy(b[at:at+n], s)
	}
	set(0, 100, r.name, "")
	set(100, 8, r.mode, "0000644\x00")
	set(108, 8, r.uid, "0000000\x00")
	set(116, 8, r.gid, "0000000\x00")
	set(124, 12, r.size, fmt.Sprintf("%011o\x00", len(r.body)))
	set(136, 12, r.mtime, "00000000000\x00")
	copy(b[148:156], "        ")
	b[156] = r.typ
	set(157, 100, r.link, "")
	set(257, 8, r.magic, "ustar\x0000")
	if r.magic != v7 && !r.bare {
		set(329, 8, r.dev[0], "0000000\x00")
		set(337, 8, r.dev[1], "0000000\x00")
		set(345, 155, r.prefix, "")
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	if r.bare {
		copy(b[148:156], fmt.Sprintf("%07o\x00", sum))
	}
	return append(append(b, r.body...), make([]byte, -len(r.body)&511)...)
}

const (
	v7  = "\x00\x00\x00\x00\x00\x00\x00\x00"
	gnu = "ustar  \x00"
)

func archive(members ...raw) []byte {
	var b []byte
	for _, m := range members {
		b = append(b, m.bytes()...)
	}
	return append(b, make([]byte, 1024)...)
}

func pax(records ...string) string {
	var b strings.Builder
	for _, r := range records {
		n := len(r) + 3
		for len(fmt.Sprint(n))+len(r)+2 != n {
			n = len(fmt.Sprint(n)) + len(r) + 2
		}
		fmt.Fprintf(&b, "%d %s\n", n, r)
	}
	return b.String()
}

// notSparse ends the error about each form of sparse members.
const notSparse = `entry "f": a sparse member, which is not supported`

// oldSparse is a sparse member of GNU tar's own form, with this many blocks of the
// map behind the header.
func oldSparse(extended int) raw {
	m := raw{name: "f", typ: 'S', magic: gnu, size: "00000000001\x00", body: "x"}
	entry := func(offset int) string { return fmt.Sprintf("%011o\x00%011o\x00", offset, 1-extended) }
	fields := make([]byte, 155) // of the header from byte 345
	copy(fields[386-345:], entry(0))
	copy(fields[483-345:], fmt.Sprintf("%011o\x00", 1000))
	if extended > 0 {
		for i := range 4 {
			copy(fields[386-345+24*i:], entry(i))
		}
		fields[482-345] = 1
		block := make([]byte, 512)
		copy(block, fmt.Sprintf("%011o\x00%011o\x00", 900, 1))
		m.body = string(block) + m.body
	}
	m.prefix = string(fields)
	return m
}

// TestTarRoundTrip: every byte of a layer is kept, whatever the pieces.
func TestTarRoundTrip(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("d/", 60) + "f"
	file := raw{name: "a", typ: '0', body: strings.Repeat("x", 100)}
	for name, b := range map[string][]byte{
		"empty":                  make([]byte, 1024),
		"nothing":                {},
		"no end marker":          file.bytes(),
		"record padding":         append(archive(file), make([]byte, 10240)...),
		"garbage at the end":     append(archive(file), "garbage"...),
		"block sizes":            archive(raw{name: "0", typ: '0'}, raw{name: "511", typ: '0', body: strings.Repeat("x", 511)}, raw{name: "512", typ: '0', body: strings.Repeat("x", 512)}, raw{name: "513", typ: '7', body: strings.Repeat("x", 513)}),
		"gnu long name and link": archive(raw{name: "././@LongLink", typ: 'L', magic: gnu, body: long + "\x00"}, raw{name: "././@LongLink", typ: 'K', magic: gnu, body: long + "\x00"}, raw{name: "short", link: "short", typ: '2', magic: gnu}),
		"pax":                    archive(raw{name: "PaxHeaders/x", typ: 'x', body: pax("path="+long, "mtime=1.5", "SCHILY.xattr.user.a=\x00\xff")}, file),
		"global pax":             archive(raw{name: "g", typ: 'g', body: pax("path=evil", "uid=77")}, file),
		"old file":               archive(raw{name: "a", typ: 0, magic: v7, body: "hi"}),
		"padding is not zero":    append(append(file.bytes()[:612], bytes.Repeat([]byte{'p'}, 412)...), make([]byte, 1024)...),
	} {
		for _, size := range []int{1, 7, 512, 1000, 1 << 20} {
			_, recorded, err := oci.ReadTar(b, size)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(recorded, b) {
				t.Errorf("%s in pieces of %d: %d bytes recorded, want %d", name, size, len(recorded), len(b))
			}
		}
	}
}

func TestTarEntries(t *testing.T) {
	t.Parallel()
	x := func(records ...string) raw { return raw{name: "PaxHeaders/x", typ: 'x', body: pax(records...)} }
	long := strings.Repeat("n", 90) + "/" + strings.Repeat("m", 90)
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"ustar prefix", archive(raw{prefix: strings.Repeat("p", 154), name: strings.Repeat("n", 99), typ: '5'}), strings.Repeat("p", 154) + "/" + strings.Repeat("n", 99) + " directory 644 0:0 0.000000000"},
		{"no prefix in GNU headers", archive(raw{prefix: "junk", name: "n", typ: '5', magic: gnu}), "n directory 644 0:0 0.000000000"},
		{"no prefix in V7 headers", archive(raw{name: "n", typ: '5', magic: v7}), "n directory 644 0:0 0.000000000"},
		{"GNU long name", archive(raw{name: "L", typ: 'L', magic: gnu, body: long + "\x00"}, raw{name: "s", typ: '5', magic: gnu}), long + " directory 644 0:0 0.000000000"},
		{"PAX beats GNU", archive(x("path=pax"), raw{name: "L", typ: 'L', magic: gnu, body: "gnu\x00"}, raw{name: "s", typ: '5'}), "pax directory 644 0:0 0.000000000"},
		{"link", archive(raw{name: "l", typ: '2', link: "t/../u"}), "l symlink 644 0:0 0.000000000 -> t/../u"},
		{"PAX link", archive(x("linkpath="+long), raw{name: "l", typ: '2', link: "t"}), "l symlink 644 0:0 0.000000000 -> " + long},
		{"hard link", archive(raw{name: "l", typ: '1', link: "t"}), "l => t"},
		{"device", archive(raw{name: "d", typ: '4', dev: [2]string{"0000403\x00", "0210560\x00"}}), "d block device 644 0:0 0.000000000 rdev 0x11110370"},
		{"fifo", archive(raw{name: "p", typ: '6', mode: "0000600\x00"}), "p fifo 600 0:0 0.000000000"},
		{"mode is masked", archive(raw{name: "p", typ: '6', mode: "0104755\x00"}), "p fifo 4755 0:0 0.000000000"},
		{"numbers with blanks", archive(raw{name: "p", typ: '6', mode: "   644 \x00", uid: "  17 \x00\x00\x00"}), "p fifo 644 15:0 0.000000000"},
		{"large numbers", archive(raw{name: "p", typ: '6', uid: "\x80\x00\x00\x00\xff\xff\xff\xfe", mtime: "\x80\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00"}), "p fifo 644 4294967294:0 8589934592.000000000"},
		{"negative time", archive(raw{name: "p", typ: '6', mtime: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"}), "p fifo 644 0:0 -2.000000000"},
		{"PAX numbers", archive(x("uid=5", "gid=4294967295", "mtime=1234567890.1234567899"), raw{name: "p", typ: '6'}), "p fifo 644 5:4294967295 1234567890.123456789"},
		{"half a second", archive(x("mtime=3.5"), raw{name: "p", typ: '6'}), "p fifo 644 0:0 3.500000000"},
		{"global records are ignored", archive(raw{name: "g", typ: 'g', body: pax("uid=77", "path=x")}, raw{name: "p", typ: '6'}), "p fifo 644 0:0 0.000000000"},
		{"xattrs", archive(x("SCHILY.xattr.user.b=2", "SCHILY.xattr.user.a=", "LIBARCHIVE.xattr.user.c=Mw", "SCHILY.xattr.user.b=3"), raw{name: "p", typ: '6'}), `p fifo 644 0:0 0.000000000 user.a="" user.b="3"`},
		{"a file whose name ends in a slash", archive(raw{name: "f/", typ: '0', body: "hi"}), `f/ regular file 644 0:0 0.000000000 "hi"`},
		{"V7 file", archive(raw{name: "f", typ: 0, magic: v7, body: "hi"}), `f regular file 644 0:0 0.000000000 "hi"`},
		{"contiguous file", archive(raw{name: "f", typ: '7', body: "hi"}), `f regular file 644 0:0 0.000000000 "hi"`},
		{"PAX size", archive(x("size=2"), raw{name: "f", typ: '0', size: "00000000000\x00", body: "hi"}), `f regular file 644 0:0 0.000000000 "hi"`},
		{"64 bytes", archive(raw{name: "f", typ: '0', body: strings.Repeat("y", 64)}), `f regular file 644 0:0 0.000000000 "` + strings.Repeat("y", 64) + `"`},
		{"65 bytes", archive(raw{name: "f", typ: '0', body: strings.Repeat("y", 65)}), `f regular file 644 0:0 0.000000000 object of 65 bytes`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			entries, _, err := oci.ReadTar(tc.in, 512)
			if err != nil {
				t.Fatal(err)
			}
			if len(entries) != 1 || describeEntry(entries[0]) != tc.want {
				t.Errorf("got %d entries, %s\nwant %s", len(entries), describeEntry(entries[0]), tc.want)
			}
		})
	}
}

// nameOf returns a path of n bytes.
func nameOf(n int) string {
	const part = "file-with_special.chars@123/"
	return strings.Repeat(part, n/len(part)+1)[:n-1] + "x"
}

// TestNames: names of all lengths, in each way to write them, are read as they
// were written, and so is every byte of the tar.
func TestNames(t *testing.T) {
	t.Parallel()
	gnuLong := func(typ byte, s string) raw {
		return raw{name: "././@LongLink", typ: typ, magic: gnu, body: s + "\x00"}
	}
	x := func(record string) raw { return raw{name: "PaxHeaders/x", typ: 'x', body: pax(record)} }
	check := func(style, path, link string, members ...raw) {
		t.Helper()
		in := archive(members...)
		entries, recorded, err := oci.ReadTar(in, 1000)
		if err != nil || len(entries) != 1 || !bytes.Equal(recorded, in) {
			t.Errorf("%s, name of %d bytes, link of %d: %d entries, %d of %d bytes, %v", style, len(path), len(link), len(entries), len(recorded), len(in), err)
			return
		}
		e := entries[0]
		got := e.HardLink
		if e.Node != nil {
			got = e.Node.Target
		}
		if e.Path != path || got != link {
			t.Errorf("%s: got %q and link %q, want %q and %q", style, e.Path, got, path, link)
		}
	}
	for n := 1; n <= 500; n++ {
		path := nameOf(n)
		if n <= 100 {
			check("name field", path, "", raw{name: path, typ: '6'})
		}
		if i := strings.LastIndexByte(path[:min(n, 156)], '/'); i > 0 && n-i-1 <= 100 {
			check("prefix", path, "", raw{prefix: path[:i], name: path[i+1:], typ: '6'})
		}
		check("GNU", path, "", gnuLong('L', path), raw{name: path[:min(n, 100)], typ: '6', magic: gnu})
		check("PAX", path, "", x("path="+path), raw{name: path[:min(n, 100)], typ: '6'})
		if n > 400 {
			continue
		}
		for _, typ := range []byte{'1', '2'} {
			if n <= 100 {
				check("link field", "l", path, raw{name: "l", link: path, typ: typ})
			}
			check("GNU link", "l", path, gnuLong('K', path), raw{name: "l", link: path[:min(n, 100)], typ: typ, magic: gnu})
			check("PAX link", "l", path, x("linkpath="+path), raw{name: "l", link: path[:min(n, 100)], typ: typ})
		}
	}
	long := nameOf(154) + "/" + nameOf(99) // as long as a prefix and a name can be
	check("prefix", long, "", raw{prefix: long[:154], name: long[155:], typ: '6'})
}

// TestMetadataLimit: a small blob with many members, or with much in each, does
// not take all memory.
func TestMetadataLimit(t *testing.T) {
	t.Parallel()
	many := archive(slices.Repeat([]raw{{name: "p", typ: '6'}}, 1000)...)
	much := archive(raw{name: "PaxHeaders/x", typ: 'x', body: pax("SCHILY.xattr.user.a=" + strings.Repeat("v", 500_000))}, raw{name: "p", typ: '6'})
	for name, in := range map[string][]byte{"many": many, "much": much} {
		if _, _, err := oci.ReadTarLimit(in, 4096, 600_000); err != nil {
			t.Errorf("%s within the limit: %v", name, err)
		}
		_, _, err := oci.ReadTarLimit(in, 4096, 400_000)
		var f *oci.FormatError
		if !errors.As(err, &f) || !strings.Contains(err.Error(), `entry "p"`) || !strings.Contains(err.Error(), "more than 400000 bytes") {
			t.Errorf("%s: got %v, want a *FormatError", name, err)
		}
	}
}

func describeEntry(e tree.Entry) string {
	if e.HardLink != "" {
		return e.Path + " => " + e.HardLink
	}
	n := e.Node
	s := fmt.Sprintf("%s %s %o %d:%d %d.%09d", e.Path, n.Kind, n.Mode, n.UID, n.GID, n.MtimeSec, n.MtimeNsec)
	switch n.Kind {
	case tree.Symlink:
		s += " -> " + n.Target
	case tree.CharDevice, tree.BlockDevice:
		s += fmt.Sprintf(" rdev %#x", n.Rdev)
	case tree.Regular:
		if n.Size > 64 {
			s += fmt.Sprintf(" object of %d bytes", n.Size)
		} else {
			s += fmt.Sprintf(" %q", n.Inline)
		}
	}
	for _, x := range n.Xattrs {
		s += fmt.Sprintf(" %s=%q", x.Name, x.Value)
	}
	return s
}

func TestTarRejected(t *testing.T) {
	t.Parallel()
	x := func(records ...string) raw { return raw{name: "PaxHeaders/x", typ: 'x', body: pax(records...)} }
	file := raw{name: "f", typ: '0', body: strings.Repeat("x", 1000)}
	fifo := raw{name: "p", typ: '6'}
	many := func(n int) []raw {
		ms := make([]raw, 0, n+1)
		for range n {
			ms = append(ms, raw{name: "g", typ: 'x', body: pax("comment=x")})
		}
		return append(ms, fifo)
	}
	sparse := file
	sparse.typ, sparse.magic = 'S', gnu
	badSum := fifo.bytes()
	badSum[0]++
	for _, tc := range []struct {
		name string
		in   []byte
		want string
	}{
		{"lone zero block, then a member", append(make([]byte, 512), fifo.bytes()...), "invalid tar header"},
		{"lone zero block at the end", append(fifo.bytes(), make([]byte, 512)...), "lone zero block"},
		{"cut in a header", fifo.bytes()[:100], "unexpected EOF"},
		{"cut in a body", file.bytes()[:1000], "unexpected EOF"},
		{"cut in the padding", file.bytes()[:1520], "unexpected EOF"},
		{"cut in the end marker", append(fifo.bytes(), make([]byte, 700)...), "unexpected EOF"},
		{"checksum", badSum, "invalid tar header"},
		{"size of a symlink", archive(raw{name: "l", link: "t", typ: '2', body: "hidden"}), "a body of 6 bytes for type '2'"},
		{"size of a directory", archive(raw{name: "l", typ: '5', body: "hidden"}), "a body of 6 bytes"},
		{"size of a hard link", archive(raw{name: "l", link: "t", typ: '1', body: "hidden"}), "a body of 6 bytes"},
		{"size of a device", archive(raw{name: "l", typ: '3', body: "hidden"}), "a body of 6 bytes"},
		{"size of a fifo", archive(x("size=6"), raw{name: "l", typ: '6'}), "a body of 6 bytes"},
		{"negative size", archive(raw{name: "f", typ: '0', size: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe"}), "invalid tar header"},
		{"negative owner", archive(raw{name: "f", typ: '6', uid: "\xff\xff\xff\xff\xff\xff\xff\xfe"}), "uid -2"},
		{"owner of 33 bits", archive(x("gid=4294967296"), fifo), "gid 4294967296"},
		{"number that is none", archive(raw{name: "f", typ: '6', uid: "12x4567\x00"}), "invalid tar header"},
		{"GNU sparse without a map", archive(sparse), ""},
		{"GNU sparse", archive(oldSparse(0)), notSparse},
		{"GNU sparse, extended", archive(oldSparse(1)), notSparse},
		{"PAX sparse 0.0", archive(x("GNU.sparse.size=1000", "GNU.sparse.numblocks=1", "GNU.sparse.offset=0", "GNU.sparse.numbytes=1"), raw{name: "f", typ: '0', body: "x"}), notSparse},
		{"PAX sparse 0.1", archive(x("GNU.sparse.name=f", "GNU.sparse.map=0,1", "GNU.sparse.numblocks=1", "GNU.sparse.size=1000"), raw{name: "f", typ: '0', body: "x"}), notSparse},
		{"PAX sparse 1.0", archive(x("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=f", "GNU.sparse.realsize=1000"),
			raw{name: "GNUSparseFile.0/f", typ: '0', body: "1\n0\n1\n" + strings.Repeat("\x00", 506) + "x"}), notSparse},
		{"PAX sparse of an unknown version", archive(x("GNU.sparse.major=7", "GNU.sparse.minor=0"), raw{name: "f", typ: '0', body: "x"}), "sparse"},
		{"PAX sparse name", archive(x("GNU.sparse.name=other"), raw{name: "f", typ: '0', body: "x"}), "sparse"},
		{"second long name", archive(raw{name: "L", typ: 'L', magic: gnu, body: "a\x00"}, raw{name: "L", typ: 'L', magic: gnu, body: "b\x00"}, fifo), "a second extension header of type 'L'"},
		{"second PAX header", archive(many(2)...), "a second extension header of type 'x'"},
		{"17 extension headers", archive(many(17)...), "extension header"},
		{"PAX header before a global one", archive(x("path=a"), raw{name: "g", typ: 'g', body: pax("a=b")}, fifo), "before a global one"},
		{"extension before the end", archive(x("path=a")), ""},
		{"PAX length too long", archive(raw{name: "x", typ: 'x', body: "99 path=a\n"}, fifo), "invalid tar header"},
		{"PAX length too short", archive(raw{name: "x", typ: 'x', body: "5 path=a\n"}, fifo), "invalid tar header"},
		{"PAX time that is none", archive(x("mtime=1x"), fifo), "invalid tar header"},
		{"PAX time before 1970", archive(x("mtime=-1.5"), fifo), "mtime \"-1.5\""},
		{"two PAX times", archive(x("mtime=1.5", "mtime=2.25"), fifo), "given twice"},
		{"empty PAX path", archive(x("path="), fifo), "is empty"},
		{"no name", archive(raw{typ: '6'}), "without name"},
		{"NUL in a long name", archive(raw{name: "L", typ: 'L', magic: gnu, body: "a\x00b\x00"}, raw{name: "s", typ: '6', magic: gnu}), "NUL"},
		{"symlink without target", archive(raw{name: "l", typ: '2'}), "without target"},
		{"hard link without target", archive(raw{name: "l", typ: '1'}), "without target"},
		{"unknown type", archive(raw{name: "f", typ: 'Z'}), "type 'Z' is not supported"},
		{"V7 device", archive(raw{name: "f", typ: '3', magic: v7}), "device without number"},
		{"device number too large", archive(raw{name: "f", typ: '3', dev: [2]string{"0010000\x00", ""}}), "device 4096:0"},
		{"V7 directory", archive(raw{name: "d/", typ: 0, magic: v7}), "V7"},
		{"V7 extension", archive(raw{name: "L", typ: 'L', magic: v7, body: "a\x00"}, fifo), "neither ustar nor GNU"},
		{"xattr without a name", archive(x("SCHILY.xattr.=v"), fifo), "names no extended attribute"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			for _, size := range []int{1, 512, 1 << 20} {
				_, _, err := oci.ReadTar(tc.in, size)
				var f *oci.FormatError
				if !errors.As(err, &f) || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("pieces of %d: got %v, want a *FormatError with %q", size, err, tc.want)
				}
			}
		})
	}
}

func TestTarErrorNamesEntryAndOffset(t *testing.T) {
	t.Parallel()
	b := archive(raw{name: "first", typ: '0', body: strings.Repeat("x", 600)}, raw{name: "bad", typ: '2'})
	_, _, err := oci.ReadTar(b, 100)
	want := `layer, entry "bad" at byte 1536: a symbolic link without target`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestParseMtime(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]uint32{
		"1234567890.123456789": 123456789, "1.5": 500000000, "1.000000001": 1, "1.1234567899": 123456789, "1": 0, "1.": 0,
	} {
		if _, nsec, err := oci.ParseMtime(in); err != nil || nsec != want {
			t.Errorf("%s: %d, %v, want %d", in, nsec, err, want)
		}
	}
	for _, in := range []string{"", ".5", "-1", "1.-5", "1e3", "1.5x", "99999999999999999999"} {
		if sec, nsec, err := oci.ParseMtime(in); err == nil {
			t.Errorf("%q is %d.%09d, want an error", in, sec, nsec)
		}
	}
}

// FuzzTar: what is accepted is kept bit for bit, and read the same in any pieces.
func FuzzTar(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: "usr/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "usr/" + strings.Repeat("l", 120), Typeflag: tar.TypeReg, Size: 70},
		{Name: "usr/l", Linkname: "x", Typeflag: tar.TypeSymlink, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1"}, ModTime: time.Unix(1, 500)},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(archive(raw{name: "a", typ: '1', link: "b"}, raw{name: "L", typ: 'L', magic: gnu, body: "n\x00"}, raw{name: "c", typ: '0', body: "x", magic: gnu}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, recorded, err := oci.ReadTar(b, 1<<20)
		again, _, err2 := oci.ReadTar(b, 3)
		if (err == nil) != (err2 == nil) || len(entries) != len(again) {
			t.Fatalf("in one piece %d entries, %v; in many %d entries, %v", len(entries), err, len(again), err2)
		}
		if err != nil {
			var f *oci.FormatError
			if !errors.As(err, &f) {
				t.Fatalf("error %v is no *FormatError", err)
			}
			return
		}
		if !bytes.Equal(recorded, b) {
			t.Fatalf("recorded %d bytes, want %d", len(recorded), len(b))
		}
		for i := range entries {
			if x, y := describeEntry(entries[i]), describeEntry(again[i]); x != y {
				t.Fatalf("entry %d: %s, then %s", i, x, y)
			}
		}
	})
}
