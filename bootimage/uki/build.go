package uki

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// Input is what a UKI is made of. Contents are read where Build needs them and must not
// change meanwhile.
type Input struct {
	Stub   Content // systemd's linux<machine>.efi.stub, not signed; required
	Kernel Content // required
	// Initrds follow each other in memory, each at a multiple of 4 bytes if there are several.
	Initrds   []Content
	Microcode Content // uncompressed cpio archive that comes before the initrds; nil: none
	Splash    Content // BMP picture; nil: none
	// Cmdline is stored as it is. A UKI without one starts with what the firmware passes.
	Cmdline string
	// OSRelease is the text of os-release(5), required: systemd-boot shows no UKI without a
	// title.
	OSRelease string
	// Uname is the kernel's release; "": what the kernel says itself. Required if it does
	// not.
	Uname string
	// AnyKernel takes a kernel that is no PE file. No firmware starts it; it is for
	// comparisons of the format.
	AnyKernel bool
}

// Built describes a UKI that was written.
type Built struct {
	Size       int64
	Digest     [sha256.Size]byte // of the file
	StubDigest [sha256.Size]byte // of the stub's file
	Machine    Machine
	Uname      string
	Sections   []BuiltSection // in the order of the table
}

// BuiltSection is a section of a UKI that was written.
type BuiltSection struct {
	Section
	Digest [sha256.Size]byte // of the content
}

const (
	maxStub = 4 << 20 // bytes; Debian's has 92 KiB

	// Characteristics of sections.
	scnCode        = 0x00000020 // IMAGE_SCN_CNT_CODE
	scnInitialized = 0x00000040 // IMAGE_SCN_CNT_INITIALIZED_DATA
	scnRead        = 0x40000000 // IMAGE_SCN_MEM_READ
)

// Build writes a UKI: the same bytes as `ukify build` of systemd 257 for the same input
// (docs/design/uki.md). Stub and kernel have to be for the same machine. Everything is
// checked before the first byte is written. In memory are the stub and short texts
// only.
//
// Errors: *InputError; those of the contents and of w; that of ctx.
func Build(ctx context.Context, w io.Writer, in Input) (*Built, error) {
	b, err := plan(ctx, in)
	if err != nil {
		return nil, err
	}
	built := &Built{Size: b.size, StubDigest: b.stubDigest, Machine: b.pe.Machine, Uname: b.uname}
	whole := sha256.New()
	w = io.MultiWriter(w, whole)
	if _, err := w.Write(b.head); err != nil {
		return nil, err
	}
	at := int64(len(b.head))
	digests := map[int][sha256.Size]byte{}
	for _, p := range b.parts {
		s := b.sections[p.section]
		if _, err := w.Write(make([]byte, int64(s.Offset)-at)); err != nil {
			return nil, err
		}
		h := sha256.New()
		for _, c := range p.contents {
			if err := copyContent(ctx, io.MultiWriter(w, h), c); err != nil {
				return nil, fmt.Errorf("section %s: %w", s.Name, err)
			}
		}
		digests[p.section] = [sha256.Size]byte(h.Sum(nil))
		at = int64(s.Offset) + int64(s.VirtualSize)
	}
	if _, err := w.Write(make([]byte, b.size-at)); err != nil {
		return nil, err
	}
	built.Digest = [sha256.Size]byte(whole.Sum(nil))
	for i, s := range b.sections {
		d, added := digests[i]
		if !added {
			d = sha256.Sum256(b.head[s.Offset:][:s.Size()])
		}
		built.Sections = append(built.Sections, BuiltSection{s, d})
	}
	return built, nil
}

// part is a section that is added to the stub.
type part struct {
	section  int // index of the result's sections
	contents []Content
}

// blueprint is a UKI before its contents are copied.
type blueprint struct {
	pe         *PE    // of the stub
	head       []byte // the stub with its new headers
	stubDigest [sha256.Size]byte
	sections   []Section
	parts      []part // in the order of the file
	size       int64
	uname      string
}

// plan checks the input and lays the file out.
func plan(ctx context.Context, in Input) (*blueprint, error) {
	b := &blueprint{}
	if err := b.readStub(ctx, in.Stub); err != nil {
		return nil, err
	}
	kernel, err := readKernel(in, b.pe.Machine)
	if err != nil {
		return nil, err
	}
	if err := checkTexts(in); err != nil {
		return nil, err
	}
	if b.uname = in.Uname; b.uname == "" {
		b.uname = kernel.Uname
	}
	if at, detail := badText(b.uname); b.uname == "" || at >= 0 || len(b.uname) > maxUname || strings.ContainsAny(b.uname, " \t\n\r") {
		if b.uname == "" {
			detail = "the kernel does not tell it, it has to be given"
		} else if at < 0 {
			detail = fmt.Sprintf("%q, want one word of at most %d bytes", b.uname, maxUname)
		}
		return nil, &InputError{What: "kernel release", Detail: detail}
	}
	if !kernel.NX {
		b.setFlags(b.pe.DLLCharacteristics &^ nxCompat)
	}
	stubSBAT := ""
	if i := b.pe.Lookup(sectionSBAT); i >= 0 {
		if stubSBAT, err = b.pe.text(i, maxText); err != nil {
			return nil, inputError("stub", err)
		}
	}
	for _, s := range []struct {
		name     string
		contents []Content
	}{
		{sectionOSRelease, text(in.OSRelease)},
		{sectionCmdline, text(in.Cmdline)},
		{sectionUname, text(b.uname)},
		{sectionSplash, optional(in.Splash)},
		{sectionLinux, optional(in.Kernel)},
		{sectionInitrd, joined(in.Initrds)},
		{sectionMicrocode, optional(in.Microcode)},
		{sectionSBAT, text(mergeSBAT(stubSBAT, kernel.SBAT))},
	} {
		if len(s.contents) == 0 {
			continue
		}
		if err := b.add(s.name, s.contents); err != nil {
			return nil, err
		}
	}
	return b, b.finish()
}

// readStub reads the stub whole and checks that sections can be appended to it.
func (b *blueprint) readStub(ctx context.Context, c Content) error {
	if c.Size() > maxStub {
		return &InputError{What: "stub", Detail: fmt.Sprintf("%d bytes, want at most %d", c.Size(), maxStub)}
	}
	var data bytes.Buffer
	if err := copyContent(ctx, &data, c); err != nil {
		return fmt.Errorf("read the stub: %w", err)
	}
	b.head, b.stubDigest = data.Bytes(), sha256.Sum256(data.Bytes())
	pe, err := Parse(bytes.NewReader(bytes.Clone(b.head)), c.Size())
	if err != nil {
		return inputError("stub", err)
	}
	b.pe, b.sections = pe, append(b.sections, pe.Sections...)
	refuse := func(format string, args ...any) error {
		return &InputError{What: "stub", Detail: fmt.Sprintf(format, args...)}
	}
	if pe.Certificates > 0 {
		return refuse("it is signed; a UKI is signed as a whole, its stub must not be")
	}
	if pe.symbols != 0 {
		return refuse("it has a symbol table, as stubs before systemd 253 have")
	}
	for i, s := range pe.Sections {
		if _, ok := payloadKind(s.Name); ok && s.Name != sectionSBAT {
			return refuse("it has a section %s: it is a UKI already", s.Name)
		}
		if s.Name == sectionSBAT && pe.Lookup(sectionSBAT) != i {
			return refuse("it has two sections %s", s.Name)
		}
		if s.Offset%pe.FileAlignment != 0 || s.VirtualAddress%pe.SectionAlignment != 0 {
			return refuse("section %s is not aligned", s.Name)
		}
		if i > 0 && s.VirtualAddress < pe.Sections[i-1].VirtualAddress {
			return refuse("section %s lies before %s in memory", s.Name, pe.Sections[i-1].Name)
		}
	}
	return nil
}

// readKernel reads the kernel's head and checks that it is for the stub's machine.
func readKernel(in Input, machine Machine) (*Kernel, error) {
	if in.AnyKernel {
		var magic [2]byte
		if n, err := in.Kernel.ReadAt(magic[:], 0); n < len(magic) {
			return nil, fmt.Errorf("read the kernel: %w", shortRead(err))
		}
		if string(magic[:]) != "MZ" {
			return &Kernel{Machine: machine, NX: true}, nil
		}
	}
	k, err := ReadKernel(in.Kernel)
	if err == nil && k.Machine != machine {
		err = &InputError{What: "kernel", Detail: fmt.Sprintf("it is for %s, but the stub is for %s", k.Machine, machine)}
	}
	return k, err
}

// checkTexts refuses texts that Inspect would refuse, that the initramfs would not start
// with, or that systemd-boot would not show.
func checkTexts(in Input) error {
	for _, t := range []struct {
		what, text string
		limit      int
	}{{"command line", in.Cmdline, maxCmdline}, {"os-release", in.OSRelease, maxText}} {
		if at, detail := badText(t.text); at >= 0 {
			return &InputError{What: t.what, Detail: fmt.Sprintf("%s at byte %d", detail, at)}
		}
		if len(t.text) > t.limit {
			return &InputError{What: t.what, Detail: fmt.Sprintf("%d bytes, want at most %d", len(t.text), t.limit)}
		}
	}
	if _, err := bls.ParseKargs(in.Cmdline); err != nil {
		return &InputError{What: "command line", Err: err}
	}
	if bls.ParseOSRelease([]byte(in.OSRelease)).Get("PRETTY_NAME", "IMAGE_ID", "NAME", "ID") == "" {
		return &InputError{What: "os-release", Detail: "none of PRETTY_NAME, IMAGE_ID, NAME and ID: systemd-boot would not show it"}
	}
	return nil
}

// text is the content of a section with this text, none if it is empty.
func text(s string) []Content {
	if s == "" {
		return nil
	}
	return []Content{bytes.NewReader([]byte(s))}
}

func optional(c Content) []Content {
	if c == nil {
		return nil
	}
	return []Content{c}
}

// joined puts zeros after each of several initrds, up to a multiple of 4 bytes.
func joined(initrds []Content) []Content {
	if len(initrds) < 2 {
		return initrds
	}
	var out []Content
	for _, c := range initrds {
		out = append(out, c)
		if pad := -c.Size() & 3; pad > 0 {
			out = append(out, bytes.NewReader(make([]byte, pad)))
		}
	}
	return out
}

// add puts a section into the file: over the stub's own of this name, else behind all
// others.
func (b *blueprint) add(name string, contents []Content) error {
	var size int64
	for _, c := range contents {
		if c.Size() > maxImage {
			return &InputError{What: "section " + name, Detail: fmt.Sprintf("%d bytes, want at most %d in all", c.Size(), maxImage)}
		}
		size += c.Size()
	}
	if size == 0 {
		return &InputError{What: "section " + name, Detail: "no contents"}
	}
	if i := b.pe.Lookup(name); i >= 0 {
		return b.overwrite(i, size, contents)
	}
	n := len(b.sections)
	if end := b.pe.header(n + 1); end > int64(b.headersSize()) {
		return &InputError{What: "stub", Detail: fmt.Sprintf("no room for another section (%s): its headers end at byte %d", name, b.headersSize())}
	}
	last := b.sections[n-1]
	address := roundUp(int64(last.VirtualAddress)+int64(last.VirtualSize), b.pe.SectionAlignment)
	offset := roundUp(max(b.size, int64(len(b.head))), b.pe.FileAlignment)
	raw := roundUp(size, b.pe.FileAlignment)
	if address+size > maxImage || offset+raw > maxImage {
		return &InputError{What: "section " + name, Detail: fmt.Sprintf("the file would be larger than %d bytes", maxImage)}
	}
	flags := uint32(scnRead | scnInitialized)
	if name == sectionLinux {
		flags = scnRead | scnCode
	}
	b.sections = append(b.sections, Section{name, uint32(address), uint32(size), uint32(offset), uint32(raw), flags})
	b.parts = append(b.parts, part{n, contents})
	b.size = offset + raw
	at := b.pe.optional + optInitialized
	binary.LittleEndian.PutUint32(b.head[at:], binary.LittleEndian.Uint32(b.head[at:])+uint32(size))
	return nil
}

// overwrite replaces the data of a section of the stub.
func (b *blueprint) overwrite(i int, size int64, contents []Content) error {
	s := &b.sections[i]
	if size > int64(s.RawSize) {
		return &InputError{What: "stub", Detail: fmt.Sprintf("its section %s has room for %d bytes, want %d", s.Name, s.RawSize, size)}
	}
	if i+1 < len(b.sections) && int64(s.VirtualAddress)+size > int64(b.sections[i+1].VirtualAddress) {
		return &InputError{What: "stub", Detail: fmt.Sprintf("its section %s has no room for %d bytes in memory", s.Name, size)}
	}
	data := b.head[s.Offset:][:s.RawSize]
	clear(data)
	for _, c := range contents {
		if n, err := c.ReadAt(data[:c.Size()], 0); int64(n) < c.Size() {
			return shortRead(err)
		}
		data = data[c.Size():]
	}
	s.VirtualSize = uint32(size)
	return nil
}

// headersSize is the room for headers: data of sections begins at a multiple of the
// alignment.
func (b *blueprint) headersSize() uint32 {
	return uint32(roundUp(int64(b.pe.SizeOfHeaders), b.pe.FileAlignment))
}

func (b *blueprint) setFlags(flags uint16) {
	binary.LittleEndian.PutUint16(b.head[b.pe.optional+optDLLFlags:], flags)
}

// finish writes the headers.
func (b *blueprint) finish() error {
	le := binary.LittleEndian
	if first := b.headersSize(); int64(first) > int64(len(b.head)) {
		return &InputError{What: "stub", Detail: fmt.Sprintf("it ends at byte %d, within its headers", len(b.head))}
	}
	for _, s := range b.pe.Sections {
		if s.RawSize > 0 && s.Offset < b.headersSize() {
			return &InputError{What: "stub", Detail: fmt.Sprintf("section %s begins at byte %d, within the headers", s.Name, s.Offset)}
		}
	}
	for i, s := range b.sections {
		line := b.head[b.pe.header(i):][:sectionHeader]
		if i >= len(b.pe.Sections) {
			clear(line)
			copy(line, s.Name)
			le.PutUint32(line[12:], s.VirtualAddress)
			le.PutUint32(line[16:], s.RawSize)
			le.PutUint32(line[20:], s.Offset)
			le.PutUint32(line[36:], s.Characteristics)
		}
		le.PutUint32(line[8:], s.VirtualSize)
	}
	last := b.sections[len(b.sections)-1]
	image := roundUp(int64(last.VirtualAddress)+int64(last.VirtualSize), b.pe.SectionAlignment)
	if image > maxImage {
		return &InputError{What: "input", Detail: fmt.Sprintf("the UKI would be larger than %d bytes", maxImage)}
	}
	opt := b.head[b.pe.optional:]
	le.PutUint16(b.head[b.pe.optional-coffHeader+6:], uint16(len(b.sections)))
	le.PutUint32(opt[optHeadersSize:], b.headersSize())
	le.PutUint32(opt[optImageSize:], uint32(image))
	le.PutUint32(opt[optChecksum:], 0)
	return nil
}

func roundUp(n int64, to uint32) int64 { return (n + int64(to) - 1) &^ (int64(to) - 1) }
