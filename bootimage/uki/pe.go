package uki

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// FormatError reports bytes that no conforming writer of such files produces.
type FormatError struct {
	Offset int64  // in the file, bytes
	Field  string // of the format, for example "SizeOfImage" or "section .linux"
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("PE image: %s at byte %d: %s", e.Field, e.Offset, e.Detail)
}

// Limits of what Parse accepts. The loader of Windows takes 96 sections; the stub of
// systemd 262 has 20 KiB of headers.
const (
	maxSections = 96
	maxHeaders  = 64 << 10
	maxImage    = 1<<30 - 1 // bytes in memory
	maxAlign    = 2 << 20
)

// Sizes and offsets of the format, in bytes.
const (
	dosHeader      = 64
	dosPEOffset    = 0x3c // e_lfanew
	coffHeader     = 24   // signature included
	optionalFixed  = 112  // of the PE32+ optional header, without data directories
	directorySize  = 8
	sectionHeader  = 40
	magicPE32Plus  = 0x20b
	certificateDir = 4 // index of the data directory of signatures

	// Fields of the optional header.
	optInitialized = 8 // SizeOfInitializedData
	optSectAlign   = 32
	optFileAlign   = 36
	optImageSize   = 56
	optHeadersSize = 60
	optChecksum    = 64
	optDLLFlags    = 70 // DllCharacteristics
	optDirectories = 108

	nxCompat = 0x100 // IMAGE_DLLCHARACTERISTICS_NX_COMPAT
)

// Machine is the architecture of a PE file, as its header has it.
type Machine uint16

// The machines whose names are known.
const (
	AMD64       Machine = 0x8664
	ARM64       Machine = 0xaa64
	RISCV64     Machine = 0x5064
	LoongArch64 Machine = 0x6264
)

// Name is the name that EFI has for it and that stands in names of files, for example
// "x64"; "" if it has none.
func (m Machine) Name() string {
	switch m {
	case AMD64:
		return "x64"
	case ARM64:
		return "aa64"
	case RISCV64:
		return "riscv64"
	case LoongArch64:
		return "loongarch64"
	}
	return ""
}

func (m Machine) String() string { return cmp.Or(m.Name(), fmt.Sprintf("%#04x", uint16(m))) }

// Section is one line of the section table.
type Section struct {
	Name            string // 1 to 8 bytes, printable ASCII; not unique
	VirtualAddress  uint32
	VirtualSize     uint32
	Offset          uint32 // of the data in the file; 0 if RawSize is
	RawSize         uint32 // bytes of data in the file
	Characteristics uint32
}

// Size is the number of bytes of the content.
func (s Section) Size() int64 { return int64(min(s.VirtualSize, s.RawSize)) }

// PE is a parsed PE32+ file.
type PE struct {
	Size               int64 // of the file
	Machine            Machine
	SectionAlignment   uint32
	FileAlignment      uint32
	SizeOfHeaders      uint32
	SizeOfImage        uint32
	DLLCharacteristics uint16
	Sections           []Section // in the order of the table
	// Certificates is the size of the table of signatures at the end of the file, 0 if
	// there is none. That it is there proves nothing.
	Certificates uint32

	r        io.ReaderAt
	optional int64 // offset of the optional header
	table    int64 // offset of the section table
	symbols  uint32
}

// Parse reads the headers of a PE32+ file of size bytes and checks that everything they
// name lies in the file, that sections overlap neither there nor in memory, and that
// nothing follows the signatures. It reads at most 70 KiB.
//
// Errors: *FormatError; else those of r.
func Parse(r io.ReaderAt, size int64) (*PE, error) {
	p := &PE{Size: size, r: r}
	sections, directories, err := p.parseHeaders()
	if err != nil {
		return nil, err
	}
	table, err := p.read(p.table, int64(sections)*sectionHeader, "section table")
	if err != nil {
		return nil, err
	}
	for i := range sections {
		if err := p.addSection(table[i*sectionHeader:], p.header(i)); err != nil {
			return nil, err
		}
	}
	if err := p.checkOverlaps(); err != nil {
		return nil, err
	}
	return p, p.parseCertificates(directories)
}

// parseHeaders reads everything before the section table. It returns the number of
// sections and the data directories.
func (p *PE) parseHeaders() (sections int, directories []byte, err error) {
	le := binary.LittleEndian
	dos, err := p.read(0, dosHeader, "MS-DOS header")
	if err != nil {
		return 0, nil, err
	}
	if string(dos[:2]) != "MZ" {
		return 0, nil, &FormatError{0, "MS-DOS header", fmt.Sprintf("begins with %q, want \"MZ\"", dos[:2])}
	}
	at := int64(le.Uint32(dos[dosPEOffset:]))
	if at < dosHeader || at > maxHeaders {
		return 0, nil, &FormatError{dosPEOffset, "e_lfanew", fmt.Sprintf("%d, want %d to %d", at, dosHeader, maxHeaders)}
	}
	coff, err := p.read(at, coffHeader, "PE header")
	if err != nil {
		return 0, nil, err
	}
	if string(coff[:4]) != "PE\x00\x00" {
		return 0, nil, &FormatError{at, "PE header", fmt.Sprintf("begins with %q, want \"PE\\x00\\x00\"", coff[:4])}
	}
	p.Machine, p.symbols = Machine(le.Uint16(coff[4:])), le.Uint32(coff[12:])
	if sections = int(le.Uint16(coff[6:])); sections < 1 || sections > maxSections {
		return 0, nil, &FormatError{at + 6, "NumberOfSections", fmt.Sprintf("%d, want 1 to %d", sections, maxSections)}
	}
	optionalSize := int64(le.Uint16(coff[20:]))
	if optionalSize < optionalFixed {
		return 0, nil, &FormatError{at + 20, "SizeOfOptionalHeader", fmt.Sprintf("%d, want at least %d (PE32+)", optionalSize, optionalFixed)}
	}
	p.optional = at + coffHeader
	p.table = p.optional + optionalSize
	opt, err := p.read(p.optional, optionalSize, "optional header")
	if err != nil {
		return 0, nil, err
	}
	if m := le.Uint16(opt); m != magicPE32Plus {
		return 0, nil, &FormatError{p.optional, "Magic", fmt.Sprintf("%#x, want %#x (PE32+)", m, magicPE32Plus)}
	}
	if n := int64(le.Uint32(opt[optDirectories:])); n > 16 || optionalSize != optionalFixed+n*directorySize {
		return 0, nil, &FormatError{p.optional + optDirectories, "NumberOfRvaAndSizes", fmt.Sprintf("%d, but the optional header has %d bytes", n, optionalSize)}
	}
	p.SectionAlignment, p.FileAlignment = le.Uint32(opt[optSectAlign:]), le.Uint32(opt[optFileAlign:])
	p.SizeOfImage, p.SizeOfHeaders = le.Uint32(opt[optImageSize:]), le.Uint32(opt[optHeadersSize:])
	p.DLLCharacteristics = le.Uint16(opt[optDLLFlags:])
	return sections, opt[optionalFixed:], p.checkSizes(sections)
}

func (p *PE) checkSizes(sections int) error {
	powerOf2 := func(n uint32) bool { return n > 0 && n&(n-1) == 0 && n <= maxAlign }
	if !powerOf2(p.FileAlignment) {
		return &FormatError{p.optional + optFileAlign, "FileAlignment", fmt.Sprintf("%d, want a power of 2 up to %d", p.FileAlignment, maxAlign)}
	}
	if !powerOf2(p.SectionAlignment) || p.SectionAlignment < p.FileAlignment {
		return &FormatError{p.optional + optSectAlign, "SectionAlignment", fmt.Sprintf("%d, want a power of 2 from %d (FileAlignment) to %d", p.SectionAlignment, p.FileAlignment, maxAlign)}
	}
	end := p.header(sections)
	if n := int64(p.SizeOfHeaders); n < end || n > maxHeaders || n > p.Size {
		return &FormatError{p.optional + optHeadersSize, "SizeOfHeaders", fmt.Sprintf("%d, want at least %d (the end of the section table), at most %d and the file's %d", n, end, maxHeaders, p.Size)}
	}
	if p.SizeOfImage < p.SizeOfHeaders || p.SizeOfImage > maxImage {
		return &FormatError{p.optional + optImageSize, "SizeOfImage", fmt.Sprintf("%d, want %d (SizeOfHeaders) to %d", p.SizeOfImage, p.SizeOfHeaders, maxImage)}
	}
	return nil
}

// header is the offset of a line of the section table.
func (p *PE) header(i int) int64 { return p.table + int64(i)*sectionHeader }

// addSection reads one line of the section table, which stands at byte at.
func (p *PE) addSection(line []byte, at int64) error {
	le := binary.LittleEndian
	name := strings.TrimRight(string(line[:8]), "\x00")
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return &FormatError{at, "section name", fmt.Sprintf("%q, want printable ASCII", line[:8])}
	}
	s := Section{
		Name: name, VirtualSize: le.Uint32(line[8:]), VirtualAddress: le.Uint32(line[12:]), RawSize: le.Uint32(line[16:]), Offset: le.Uint32(line[20:]),
		Characteristics: le.Uint32(line[36:]),
	}
	if end := int64(s.VirtualAddress) + int64(s.VirtualSize); s.VirtualAddress < p.SizeOfHeaders || end > int64(p.SizeOfImage) {
		return &FormatError{at + 8, "section " + name, fmt.Sprintf("%d bytes in memory from %#x, want them between the headers (%#x) and SizeOfImage (%#x)", s.VirtualSize, s.VirtualAddress, p.SizeOfHeaders, p.SizeOfImage)}
	}
	if s.RawSize == 0 {
		s.Offset = 0
	} else if end := int64(s.Offset) + int64(s.RawSize); s.Offset < p.SizeOfHeaders || end > p.Size {
		return &FormatError{at + 16, "section " + name, fmt.Sprintf("%d bytes in the file from %d, want them between the headers (%d) and the end of the file (%d)", s.RawSize, s.Offset, p.SizeOfHeaders, p.Size)}
	}
	p.Sections = append(p.Sections, s)
	return nil
}

// checkOverlaps refuses sections that share bytes in the file or in memory. What is
// hashed or measured once must not be used as something else.
func (p *PE) checkOverlaps() error {
	for _, space := range []struct {
		what  string
		field int64 // of the section's header
		span  func(Section) (start, size uint32)
	}{
		{"in memory", 12, func(s Section) (uint32, uint32) { return s.VirtualAddress, s.VirtualSize }},
		{"in the file", 20, func(s Section) (uint32, uint32) { return s.Offset, s.RawSize }},
	} {
		order := make([]int, 0, len(p.Sections))
		for i, s := range p.Sections {
			if _, size := space.span(s); size > 0 {
				order = append(order, i)
			}
		}
		slices.SortStableFunc(order, func(a, b int) int {
			sa, _ := space.span(p.Sections[a])
			sb, _ := space.span(p.Sections[b])
			return cmp.Compare(sa, sb)
		})
		for i := 1; i < len(order); i++ {
			before, s := p.Sections[order[i-1]], p.Sections[order[i]]
			first, size := space.span(before)
			start, _ := space.span(s)
			if start-first < size { // no overflow: sorted
				return &FormatError{p.header(order[i]) + space.field, "section " + s.Name, fmt.Sprintf("begins at %#x %s, within %s (%d bytes from %#x)", start, space.what, before.Name, size, first)}
			}
		}
	}
	return nil
}

// parseCertificates checks the place of the signatures.
func (p *PE) parseCertificates(directories []byte) error {
	if len(directories) < (certificateDir+1)*directorySize {
		return nil
	}
	d := directories[certificateDir*directorySize:]
	start, size := binary.LittleEndian.Uint32(d), binary.LittleEndian.Uint32(d[4:])
	if start == 0 && size == 0 {
		return nil
	}
	dataEnd := int64(p.SizeOfHeaders)
	for _, s := range p.Sections {
		dataEnd = max(dataEnd, int64(s.Offset)+int64(s.RawSize))
	}
	if int64(start) < dataEnd || start%8 != 0 || size == 0 || int64(start)+int64(size) != p.Size {
		return &FormatError{p.optional + optionalFixed + certificateDir*directorySize, "certificate table", fmt.Sprintf(
			"%d bytes from %d, want a multiple of 8 after the sections (%d), up to the end of the file (%d)", size, start, dataEnd, p.Size)}
	}
	p.Certificates = size
	return nil
}

// read returns n bytes at an offset, which must lie in the file. n is bounded by the
// callers.
func (p *PE) read(at, n int64, field string) ([]byte, error) {
	if at < 0 || at > p.Size || n > p.Size-at {
		return nil, &FormatError{at, field, fmt.Sprintf("%d bytes, but the file ends at %d", n, p.Size)}
	}
	b := make([]byte, n)
	if got, err := p.r.ReadAt(b, at); got < len(b) {
		return nil, fmt.Errorf("read %s at byte %d: %w", field, at, shortRead(err))
	}
	return b, nil
}

// shortRead is the error of a read that gave less than the file has.
func shortRead(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Lookup returns the index of the first section with this name, -1 if there is none.
func (p *PE) Lookup(name string) int {
	return slices.IndexFunc(p.Sections, func(s Section) bool { return s.Name == name })
}

// Content is the content of a section, given by its index.
func (p *PE) Content(i int) *io.SectionReader {
	s := p.Sections[i]
	return io.NewSectionReader(p.r, int64(s.Offset), s.Size())
}

// Digest is the SHA-256 of the content of a section, given by its index.
func (p *PE) Digest(ctx context.Context, i int) ([sha256.Size]byte, error) {
	h := sha256.New()
	if err := copyContent(ctx, h, p.Content(i)); err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("read section %s: %w", p.Sections[i].Name, err)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// copyContent copies exactly c.Size() bytes.
func copyContent(ctx context.Context, w io.Writer, c Content) error {
	size := c.Size()
	buf := make([]byte, min(size, 256<<10))
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := buf[:min(int64(len(buf)), size-at)]
		if n, err := c.ReadAt(b, at); n < len(b) {
			return shortRead(err)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

// Content is what a section is made of, or a file that is read: *bytes.Reader and
// *io.SectionReader are such contents.
type Content interface {
	io.ReaderAt
	Size() int64
}
