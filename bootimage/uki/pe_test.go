package uki_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/internal/testutil/peimage"
)

func put16(b []byte, at int, v uint16) { binary.LittleEndian.PutUint16(b[at:], v) }
func put32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }

func inspect(t testing.TB, data []byte) *uki.Image {
	t.Helper()
	img, err := inspectBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func inspectBytes(data []byte) (*uki.Image, error) {
	pe, err := uki.Parse(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	return uki.Inspect(pe)
}

// sample is a UKI with the sections .text .sbat .osrel .cmdline .uname .linux .initrd.
func sample(t testing.TB) []byte {
	out, _ := build(t, uki.Input{
		Stub: bytes.NewReader(peimage.Stub()), Kernel: bytes.NewReader(peimage.Kernel("6.1", "", false)), Initrds: []uki.Content{content("initrd")},
		Cmdline: "composefs=" + hexA, OSRelease: "ID=x\n",
	})
	return out
}

// line is the place of a field in the header of a section.
func line(section, field int) int { return peimage.Table + 40*section + field }

// TestRejects has one fault in each case.
func TestRejects(t *testing.T) {
	const pe, opt = peimage.PEHeader, peimage.Optional
	good := sample(t)
	if _, err := inspectBytes(good); err != nil {
		t.Fatal(err)
	}
	set16 := func(at int, v uint16) func([]byte) []byte {
		return func(b []byte) []byte { put16(b, at, v); return b }
	}
	set32 := func(at int, v uint32) func([]byte) []byte {
		return func(b []byte) []byte { put32(b, at, v); return b }
	}
	set := func(at int, s string) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], s); return b }
	}
	cut := func(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
	const osrel, cmdline, uname = 0x800, 0xa00, 0xc00 // contents
	signed := func(start, size, add int) func([]byte) []byte {
		return func(b []byte) []byte {
			if start == 0 {
				start = len(b)
			}
			put32(b, opt+144, uint32(start))
			put32(b, opt+148, uint32(size))
			return append(b, make([]byte, add)...)
		}
	}
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		field  string
		offset int64
	}{
		{"empty", cut(0), "MS-DOS header", 0},
		{"cut in the first header", cut(63), "MS-DOS header", 0},
		{"no MZ", set(0, "ZM"), "MS-DOS header", 0},
		{"PE header in the first", set32(0x3c, 0x3f), "e_lfanew", 0x3c},
		{"PE header far away", set32(0x3c, 0xfffffff0), "e_lfanew", 0x3c},
		{"PE header behind the end", set32(0x3c, 0xf000), "PE header", 0xf000},
		{"cut in the PE header", cut(pe + 23), "PE header", pe},
		{"no PE", set(pe, "NE"), "PE header", pe},
		{"no sections", set16(pe+6, 0), "NumberOfSections", pe + 6},
		{"97 sections", set16(pe+6, 97), "NumberOfSections", pe + 6},
		{"10,000 sections", set16(pe+6, 10000), "NumberOfSections", pe + 6},
		{"short optional header", set16(pe+20, 111), "SizeOfOptionalHeader", pe + 20},
		{"cut in the optional header", cut(opt + 100), "optional header", opt},
		{"PE32", set16(opt, 0x10b), "Magic", opt},
		{"odd optional header", set16(pe+20, 0xe8), "NumberOfRvaAndSizes", opt + 108},
		{"many directories", set32(opt+108, 0x20000000), "NumberOfRvaAndSizes", opt + 108},
		{"no alignment in the file", set32(opt+36, 0), "FileAlignment", opt + 36},
		{"odd alignment in the file", set32(opt+36, 0x300), "FileAlignment", opt + 36},
		{"huge alignment", set32(opt+32, 1<<31), "SectionAlignment", opt + 32},
		{"small alignment in memory", set32(opt+32, 0x100), "SectionAlignment", opt + 32},
		{"headers end in the table", set32(opt+60, uint32(line(7, -1))), "SizeOfHeaders", opt + 60},
		{"headers end behind the file", set32(opt+60, 0xf000), "SizeOfHeaders", opt + 60},
		{"huge headers", set32(opt+60, 0xffffffff), "SizeOfHeaders", opt + 60},
		{"tiny image", set32(opt+56, 0x3ff), "SizeOfImage", opt + 56},
		{"huge image", set32(opt+56, 1<<30), "SizeOfImage", opt + 56},
		{"cut in the table", cut(line(6, 39)), "SizeOfHeaders", opt + 60},
		{"section without name", set(line(0, 0), "\x00\x00\x00\x00\x00"), "section name", int64(line(0, 0))},
		{"section name with NUL inside", set(line(0, 0), ".t\x00xt"), "section name", int64(line(0, 0))},
		{"section name with escape", set(line(0, 0), "\x1b[31m"), "section name", int64(line(0, 0))},
		{"virtual size of 1 GiB", set32(line(6, 8), 1<<30), "section .initrd", int64(line(6, 8))},
		{"virtual size of 4 GiB", set32(line(6, 8), 0xffffffff), "section .initrd", int64(line(6, 8))},
		{"address behind the image", set32(line(6, 12), 0xfffff000), "section .initrd", int64(line(6, 8))},
		{"address in the headers", set32(line(0, 12), 0), "section .text", int64(line(0, 8))},
		{"data behind the end", set32(line(6, 20), 0xfffffe00), "section .initrd", int64(line(6, 16))},
		{"huge data", set32(line(6, 16), 0xffffffff), "section .initrd", int64(line(6, 16))},
		{"data in the headers", set32(line(0, 20), 0x200), "section .text", int64(line(0, 16))},
		{"cut in the last section", cut(len(good) - 1), "section .initrd", int64(line(6, 16))},
		{"overlap in the file", set32(line(6, 20), cmdline), "section .initrd", int64(line(6, 20))},
		{"overlap in the file by one byte", set32(line(0, 16), 0x201), "section .sbat", int64(line(1, 20))},
		{"overlap in memory", set32(line(6, 12), 0x3000), "section .initrd", int64(line(6, 12))},
		{"overlap in memory by one byte", set32(line(0, 8), 0x1001), "section .sbat", int64(line(1, 12))},
		{"signature behind the end", signed(0, 16, 8), "certificate table", opt + 144},
		{"signature before the end", signed(0, 8, 16), "certificate table", opt + 144},
		{"signature not aligned", signed(4097, 8, 0), "certificate table", opt + 144},
		{"signature in a section", signed(0x800, len(good)-0x800, 0), "certificate table", opt + 144},
		{"signature of no size", signed(0, 0, 0), "certificate table", opt + 144},
		{"signature of 4 GiB", signed(0, 0xfffffff8, 8), "certificate table", opt + 144},
		{"no kernel", set(line(5, 0), ".linuy"), "section .linux", peimage.Table},
		{"two command lines", set(line(4, 0), ".cmdline"), "section .cmdline", int64(line(4, 0))},
		{"longer in memory than in the file", set32(line(3, 8), 0x201), "section .cmdline", int64(line(3, 8))},
		{"command line with NUL", set(cmdline+4, "\x00"), "section .cmdline", cmdline + 4},
		{"command line with a character that the stub turns into a blank", set(cmdline+4, "\v"), "section .cmdline", cmdline + 4},
		{"command line that is not UTF-8", set(cmdline+4, "\xc3"), "section .cmdline", cmdline + 4},
		{"os-release that is not UTF-8", set(osrel, "\xff"), "section .osrel", osrel},
		{"release with escape", set(uname, "\x1b"), "section .uname", uname},
		{"long release", func(b []byte) []byte { put32(b, line(4, 8), 65); return b }, "section .uname", int64(line(4, 8))},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := inspectBytes(c.change(bytes.Clone(good)))
			var fe *uki.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("got %T %v, want a *FormatError", err, err)
			}
			if fe.Field != c.field || fe.Offset != c.offset {
				t.Errorf("got %v, want %s at byte %d", err, c.field, c.offset)
			}
		})
	}
}

// TestLongTexts: texts are not read without a limit.
func TestLongTexts(t *testing.T) {
	for _, name := range []string{".cmdline", ".osrel", ".profile"} {
		data := peimage.Image{Sections: []peimage.Section{{Name: ".linux", Data: []byte("x")}, {Name: name, Data: make([]byte, 64<<10+1)}}}.Bytes()
		_, err := inspectBytes(data)
		var fe *uki.FormatError
		if !errors.As(err, &fe) || fe.Field != "section "+name || !strings.Contains(fe.Detail, "at most 65536") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestSigned: signatures at the end are no part of any section.
func TestSigned(t *testing.T) {
	data := sample(t)
	put32(data, peimage.Optional+144, uint32(len(data)))
	put32(data, peimage.Optional+148, 24)
	if img := inspect(t, append(data, make([]byte, 24)...)); img.Certificates != 24 {
		t.Errorf("%d bytes of signatures, want 24", img.Certificates)
	}
	if img := inspect(t, sample(t)); img.Certificates != 0 {
		t.Errorf("%d bytes of signatures, want none", img.Certificates)
	}
}

// counted counts what is read of a file that seems to be very large: zeros behind its end.
type counted struct {
	data []byte
	n    int64
}

func (c *counted) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at < int64(len(c.data)) {
		copy(p, c.data[at:])
	}
	c.n += int64(len(p))
	return len(p), nil
}

// TestReadsLittle: however large the file is or says it is, only headers and short texts are read.
func TestReadsLittle(t *testing.T) {
	good := sample(t)
	for _, change := range []func(b []byte){
		func([]byte) {},
		func(b []byte) { put16(b, peimage.PEHeader+6, 0xffff) },
		func(b []byte) { put16(b, peimage.PEHeader+20, 0xffff) },
		func(b []byte) { put32(b, line(3, 8), 1<<30-1<<20); put32(b, line(3, 16), 1<<30-1<<20) },
		func(b []byte) { put32(b, line(6, 16), 0xfffffe00) },
		func(b []byte) { put32(b, peimage.Optional+60, 0xffff) },
	} {
		data := bytes.Clone(good)
		change(data)
		c := &counted{data: data}
		if pe, err := uki.Parse(c, 1<<40); err == nil {
			_, _ = uki.Inspect(pe)
		}
		if c.n > 140<<10 {
			t.Errorf("%d bytes were read", c.n)
		}
	}
}

// TestReadErrors: a reader's own error is not called a fault of the format.
func TestReadErrors(t *testing.T) {
	good := sample(t)
	for n := 0; n < 0xc80; n += 32 {
		_, err := func() (*uki.Image, error) {
			pe, err := uki.Parse(bytes.NewReader(good[:n]), int64(len(good)))
			if err != nil {
				return nil, err
			}
			return uki.Inspect(pe)
		}()
		var fe *uki.FormatError
		if err != nil && (errors.As(err, &fe) || !errors.Is(err, io.ErrUnexpectedEOF)) || err == nil && n < 0xc03 {
			t.Errorf("%d bytes: got %v, want io.ErrUnexpectedEOF", n, err)
		}
	}
}

// TestProfiles: a profile has its own sections, and those before the first profile where it has none.
func TestProfiles(t *testing.T) {
	text := func(name, s string) peimage.Section { return peimage.Section{Name: name, Data: []byte(s)} }
	sections := []peimage.Section{
		text(".text", "code"), text(".linux", "kernel"), text(".osrel", "ID=x\nNAME=X\n"), text(".cmdline", "base \x00\x00"), text(".uname", "6.1"), text(".dtbauto", "a"), text(".dtbauto", "b"),
		text(".profile", "ID=main\nTITLE='The usual'\n"),
		text(".profile", "ID=recovery\n"), text(".cmdline", " composefs=?"+hexA+"\n"), text(".dtbauto", "c"),
	}
	img := inspect(t, peimage.Image{Sections: sections}.Bytes())
	if len(img.Profiles) != 2 {
		t.Fatalf("%d profiles, want 2", len(img.Profiles))
	}
	p := img.Profiles[0]
	if p.ID != "main" || p.Title != "The usual" || p.Cmdline != "base" || p.Uname != "6.1" || p.OSRelease.Title() != "X" {
		t.Errorf("profile 0: %+v", p)
	}
	want := [][]int{{1, 2, 3, 4, 5, 6, 7}, {1, 2, 4, 8, 9, 10}}
	for n, p := range img.Profiles {
		if !slices.Equal(p.Sections, want[n]) {
			t.Errorf("profile %d: sections %v, want %v", n, p.Sections, want[n])
		}
	}
	p = img.Profiles[1]
	images, err := p.Composefs()
	if p.ID != "recovery" || p.Title != "" || p.OSRelease.ID() != "x" || err != nil || len(images) != 1 || !images[0].Insecure {
		t.Errorf("profile 1: %+v, %+v, %v", p, images, err)
	}
	// A blank that the kernel does not know is part of the word.
	img = inspect(t, peimage.Image{Sections: []peimage.Section{sections[1], text(".cmdline", "composefs="+hexA+"\u00a0\n")}}.Bytes())
	if _, err := img.Profiles[0].Composefs(); err == nil {
		t.Errorf("%q names an image", img.Profiles[0].Cmdline)
	}
	// Without a profile there is one, of everything; and nothing is required of it but the kernel.
	img = inspect(t, peimage.Image{Sections: sections[1:2]}.Bytes())
	if p := img.Profiles[0]; len(img.Profiles) != 1 || p.Cmdline != "" || p.OSRelease != nil || p.Uname != "" || !slices.Equal(p.Sections, []int{0}) {
		t.Errorf("only a kernel: %+v", img.Profiles)
	}
	// A second one of the same name is refused in each profile for itself.
	_, err = inspectBytes(peimage.Image{Sections: append(slices.Clone(sections), text(".cmdline", "x"))}.Bytes())
	var fe *uki.FormatError
	if !errors.As(err, &fe) || fe.Field != "section .cmdline" {
		t.Errorf("two command lines in a profile: %v", err)
	}
}

func FuzzInspect(f *testing.F) {
	good := sample(f)
	f.Add(good)
	f.Add(good[:0x900])
	for _, at := range []int{peimage.PEHeader + 6, peimage.Optional + 56, peimage.Optional + 144, line(3, 8), line(3, 12), line(3, 16), line(3, 20)} {
		b := bytes.Clone(good)
		put32(b, at, binary.LittleEndian.Uint32(b[at:])+0x200)
		f.Add(b)
	}
	f.Add(peimage.Image{Sections: []peimage.Section{{Name: ".linux", Data: []byte("x")}, {Name: ".profile", Data: []byte("ID=a\n")}, {Name: ".dtbauto", Data: []byte("x")}}}.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := inspectBytes(data)
		if err != nil {
			var fe *uki.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("got %T %v", err, err)
			}
			if fe.Offset < 0 || fe.Field == "" || fe.Detail == "" {
				t.Errorf("%#v", fe)
			}
			return
		}
		var total int64
		for i, s := range img.Sections {
			total += s.Size()
			if _, err := img.Digest(t.Context(), i); err != nil {
				t.Error(err)
			}
		}
		if total > int64(len(data)) || len(img.Sections) > 96 || len(img.Profiles) == 0 {
			t.Errorf("%d bytes in sections of a file of %d; %d sections, %d profiles", total, len(data), len(img.Sections), len(img.Profiles))
		}
		for _, p := range img.Profiles {
			for _, i := range p.Sections {
				if i < 0 || i >= len(img.Sections) {
					t.Errorf("section %d of %d", i, len(img.Sections))
				}
			}
			if strings.ContainsAny(p.Cmdline, "\x00\v\f\x1b") {
				t.Errorf("%q", p.Cmdline)
			}
			_, _ = p.Composefs()
		}
	})
}
