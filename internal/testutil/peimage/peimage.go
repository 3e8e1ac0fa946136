// Package peimage makes small PE32+ files for tests: the stub of a unified kernel image,
// and kernels as far as builders and loaders of such images look at them. Nothing in
// them can run.
package peimage

import "encoding/binary"

// Section is a section of a file.
type Section struct {
	Name        string // up to 8 bytes
	Data        []byte
	VirtualSize uint32 // 0: that of the data
	Flags       uint32 // 0: initialised data, readable
}

// Image is a file. Zero values are those of an x86-64 EFI program.
type Image struct {
	Machine  uint16
	NoNX     bool // without IMAGE_DLLCHARACTERISTICS_NX_COMPAT
	Sections []Section
	Headers  func(head []byte) // changes bytes of the headers at last
}

// Places in the files, in bytes.
const (
	PEHeader   = 0x40
	Optional   = PEHeader + 24
	Table      = Optional + 240
	HeaderSize = 0x400 // room for 17 sections
	align      = 0x200
	page       = 0x1000
)

// Bytes returns the file.
func (i Image) Bytes() []byte {
	le := binary.LittleEndian
	head := make([]byte, HeaderSize)
	var body []byte
	address := uint32(page)
	var code, data uint32
	for n, s := range i.Sections {
		size, flags := s.VirtualSize, s.Flags
		if size == 0 {
			size = uint32(len(s.Data))
		}
		if flags == 0 {
			flags = 0x40000040
		}
		raw := (len(s.Data) + align - 1) / align * align
		line := head[Table+40*n:]
		copy(line[:8], s.Name)
		le.PutUint32(line[8:], size)
		le.PutUint32(line[12:], address)
		le.PutUint32(line[16:], uint32(raw))
		le.PutUint32(line[20:], uint32(HeaderSize+len(body)))
		le.PutUint32(line[36:], flags)
		body = append(append(body, s.Data...), make([]byte, raw-len(s.Data))...)
		address += (size + page - 1) / page * page
		if flags&0x20 != 0 {
			code += size
		} else {
			data += (size + 0xff) / 0x100 * 0x100
		}
	}
	copy(head, "MZ")
	le.PutUint32(head[0x3c:], PEHeader)
	coff := head[PEHeader:]
	copy(coff, "PE\x00\x00")
	if i.Machine == 0 {
		i.Machine = 0x8664
	}
	le.PutUint16(coff[4:], i.Machine)
	le.PutUint16(coff[6:], uint16(len(i.Sections)))
	le.PutUint16(coff[20:], Table-Optional)
	le.PutUint16(coff[22:], 0x22e)
	opt := head[Optional:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[4:], code)
	le.PutUint32(opt[8:], data)
	le.PutUint32(opt[16:], page)
	le.PutUint32(opt[20:], page)
	le.PutUint64(opt[24:], 0x140000000)
	le.PutUint32(opt[32:], page)
	le.PutUint32(opt[36:], align)
	le.PutUint16(opt[44:], 1) // image version 1.0
	le.PutUint16(opt[48:], 1) // subsystem version 1.1
	le.PutUint16(opt[50:], 1)
	le.PutUint32(opt[56:], address)
	le.PutUint32(opt[60:], HeaderSize)
	le.PutUint16(opt[68:], 10) // EFI application
	flags := uint16(0x160)
	if i.NoNX {
		flags &^= 0x100
	}
	le.PutUint16(opt[70:], flags)
	for at := 72; at < 104; at += 16 {
		le.PutUint64(opt[at:], 0x100000)
		le.PutUint64(opt[at+8:], 0x1000)
	}
	le.PutUint32(opt[108:], 16)
	if i.Headers != nil {
		i.Headers(head)
	}
	return append(head, body...)
}

// SBATHead is the first line of a section .sbat.
const SBATHead = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n"

// Stub is a stub of a unified kernel image.
func Stub() []byte {
	code := make([]byte, 16)
	for i := range code {
		code[i] = 0x90
	}
	return Image{Sections: []Section{
		{Name: ".text", Data: code, Flags: 0x60000020},
		{Name: ".sbat", Data: []byte(SBATHead + "example-stub,1,Example,example-stub,1,https://example.com/\n")},
	}}.Bytes()
}

// Kernel is a kernel for x86-64 that tells its release. With sbat it has a section .sbat.
func Kernel(release, sbat string, noNX bool) []byte {
	i := Image{NoNX: noNX, Sections: []Section{{Name: ".text", Data: []byte("no code"), Flags: 0x60000020}, {Name: ".data", Data: []byte("data"), VirtualSize: 0x3000}}}
	if sbat != "" {
		i.Sections = append(i.Sections, Section{Name: ".sbat", Data: []byte(sbat)})
	}
	i.Headers = func(head []byte) {
		const text = 0x300
		copy(head[0x202:], "HdrS")
		binary.LittleEndian.PutUint16(head[0x20e:], text-0x200)
		copy(head[text:], release+" (builder@host) #1 SMP\x00")
	}
	return i.Bytes()
}
