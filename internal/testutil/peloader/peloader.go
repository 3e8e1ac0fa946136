// Package peloader makes files that look like a boot loader, for tests: PE images
// with the section in which systemd-boot has its version.
package peloader

import (
	"bytes"
	"encoding/binary"
)

// Section is a section of a PE image.
type Section struct {
	Name string // up to 8 bytes
	Data []byte
}

// SystemdBoot returns an image that says it is systemd-boot of this version. It has
// no code.
func SystemdBoot(version string) []byte {
	return Image(Section{".text", []byte("no code")}, Section{".sdmagic", []byte("#### LoaderInfo: systemd-boot " + version + " ####\x00")}, Section{".reloc", make([]byte, 8)})
}

// Image returns a PE image with these sections: MS-DOS header, signature, COFF header,
// an optional header of zeros, the section table and the sections, each at a multiple
// of 512 bytes.
func Image(sections ...Section) []byte {
	const header, optional, align = 0x80, 0xf0, 512
	b := make([]byte, header)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[0x3c:], header)
	le := binary.LittleEndian
	b = append(b, "PE\x00\x00"...)
	b = le.AppendUint16(b, 0x8664) // IMAGE_FILE_MACHINE_AMD64
	b = le.AppendUint16(b, uint16(len(sections)))
	b = append(b, make([]byte, 12)...)
	b = le.AppendUint16(b, optional)
	b = le.AppendUint16(b, 0x22)
	b = append(b, make([]byte, optional)...)
	at := (len(b) + 40*len(sections) + align - 1) / align * align
	var body bytes.Buffer
	for _, s := range sections {
		raw := (len(s.Data) + align - 1) / align * align
		name := make([]byte, 8)
		copy(name, s.Name)
		b = append(b, name...)
		b = le.AppendUint32(b, uint32(len(s.Data))) // VirtualSize
		b = le.AppendUint32(b, uint32(at))          // VirtualAddress
		b = le.AppendUint32(b, uint32(raw))
		b = le.AppendUint32(b, uint32(at))
		b = append(b, make([]byte, 16)...)
		body.Write(s.Data)
		body.Write(make([]byte, raw-len(s.Data)))
		at += raw
	}
	b = append(b, make([]byte, (align-len(b)%align)%align)...)
	return append(b, body.Bytes()...)
}
