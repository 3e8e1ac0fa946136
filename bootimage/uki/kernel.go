package uki

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// InputError says that a UKI cannot be made of what was given.
type InputError struct {
	What   string // "stub", "kernel", "command line", …
	Detail string
	Err    error // a *FormatError, a *bls.KargError, or nil
}

func (e *InputError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", e.What, e.Err)
	}
	return e.What + ": " + e.Detail
}

func (e *InputError) Unwrap() error { return e.Err }

// Kernel is what a kernel file says about itself.
type Kernel struct {
	Machine Machine
	Uname   string // release, as `uname -r` tells it; "" if the file does not tell
	NX      bool   // it can be loaded into memory that is not executable where it is written
	SBAT    string // text of its section .sbat; "" if there is none
}

// ReadKernel reads the head of a kernel that EFI can start: a PE file. The release is
// found in kernels for x86 only.
//
// Errors: *InputError for a file that is none; else those of c.
func ReadKernel(c Content) (*Kernel, error) {
	var magic [6]byte
	if c.Size() < int64(len(magic)) {
		return nil, &InputError{What: "kernel", Detail: fmt.Sprintf("the file has %d bytes", c.Size())}
	}
	if n, err := c.ReadAt(magic[:], 0); n < len(magic) {
		return nil, fmt.Errorf("read the kernel: %w", shortRead(err))
	}
	if packed := compression(magic[:]); packed != "" {
		return nil, &InputError{What: "kernel", Detail: "compressed with " + packed + ", firmware cannot load it: decompress it first"}
	}
	pe, err := Parse(c, c.Size())
	if err != nil {
		return nil, inputError("kernel", err)
	}
	if pe.Lookup(sectionLinux) >= 0 {
		return nil, &InputError{What: "kernel", Detail: "it is a unified kernel image already"}
	}
	k := &Kernel{Machine: pe.Machine, NX: pe.DLLCharacteristics&nxCompat != 0}
	if i := pe.Lookup(sectionSBAT); i >= 0 {
		if k.SBAT, err = pe.text(i, maxText); err != nil {
			return nil, inputError("kernel", err)
		}
	}
	if pe.Machine == AMD64 {
		k.Uname, err = x86Release(pe)
	}
	return k, inputError("kernel", err)
}

// compression names the packer of a file, "" for others.
func compression(magic []byte) string {
	for prefix, name := range map[string]string{"\x1f\x8b": "gzip", "\x28\xb5\x2f\xfd": "zstd", "\xfd7zXZ\x00": "xz", "\x02\x21\x4c\x18": "lz4", "BZh": "bzip2", "\x89LZO": "lzo"} {
		if bytes.HasPrefix(magic, []byte(prefix)) {
			return name
		}
	}
	return ""
}

// The boot protocol of x86 (Documentation/arch/x86/boot.rst): a magic, and the place of
// a text that begins with the release.
const (
	x86Magic   = 0x202 // "HdrS"
	x86Version = 0x20e // u16: offset of the text, less 0x200
	x86Base    = 0x200
)

func x86Release(pe *PE) (string, error) {
	if pe.Size < x86Version+2 {
		return "", nil
	}
	head, err := pe.read(x86Magic, x86Version+2-x86Magic, "boot header")
	if err != nil {
		return "", err
	}
	if string(head[:4]) != "HdrS" {
		return "", nil
	}
	at := int64(binary.LittleEndian.Uint16(head[x86Version-x86Magic:])) + x86Base
	if at == x86Base || at >= pe.Size {
		return "", nil
	}
	text, err := pe.read(at, min(maxUname+1, pe.Size-at), "kernel version")
	if err != nil {
		return "", err
	}
	release, _, ok := strings.Cut(string(text), " ")
	if bad, _ := badText(release); !ok || bad >= 0 {
		return "", nil
	}
	return release, nil
}

// inputError gives a *FormatError the name of the input it was found in.
func inputError(what string, err error) error {
	var fe *FormatError
	if errors.As(err, &fe) {
		return &InputError{What: what, Err: fe}
	}
	return err
}
