package efivar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

// LoaderEntryOneShot is the entry that the loader starts at the next boot, once:
// its file name without counter. The loader removes the variable.
const LoaderEntryOneShot = "LoaderEntryOneShot"

// writable are the variables that cfsboot writes.
var writable = []string{LoaderEntryOneShot}

// attributes of a variable that outlives a reboot: non-volatile, for boot services
// and for the running system (boot.md 4.5).
const attributes = 7

// SetLoader sets a Loader* variable, which must be one of those that cfsboot
// writes. The firmware has it when the function returns. A variable that has this
// text already is left alone: the memory behind it wears out.
//
// efivarfs keeps variables immutable; the flag is cleared for the write and set
// again. Errors of a machine without EFI wrap fs.ErrNotExist, those of one whose
// efivarfs is mounted read-only unix.EROFS.
func (d Dir) SetLoader(name, text string) (err error) {
	if !slices.Contains(writable, name) {
		return fmt.Errorf("write EFI variable %s: not one of %q", name, writable)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == '\uFFFD' }) || text == "" {
		return &FormatError{name, fmt.Sprintf("%q, want printable text", text)}
	}
	if old, err := d.Loader(name); err == nil && old == text {
		return nil
	}
	root := d.Root
	if root == "" {
		root = Path
	}
	path := filepath.Join(root, name+"-"+LoaderVendor)
	thaw, err := unfreeze(path)
	if err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, thaw()) }()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	data := encodeText(text)
	n, err := unix.Write(int(f.Fd()), data) // the kernel takes a variable in one piece
	if err == nil && n != len(data) {
		err = fmt.Errorf("%d of %d bytes were written", n, len(data))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write EFI variable %s: %w", name, err)
	}
	return nil
}

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

// encodeText makes the content of a variable file.
func encodeText(text string) []byte {
	data := binary.LittleEndian.AppendUint32(nil, attributes)
	for _, u := range utf16.Encode([]rune(text)) {
		data = binary.LittleEndian.AppendUint16(data, u)
	}
	return append(data, 0, 0)
}

// unfreeze clears the immutable flag of a file. The function that it returns sets
// it again. A file that does not exist, and a file system without flags, have none.
func unfreeze(path string) (restore func() error, err error) {
	nothing := func() error { return nil }
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nothing, nil
	}
	if err != nil {
		return nil, err
	}
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&immutable == 0 {
		return nothing, f.Close()
	}
	if err := setFlags(f, flags&^immutable); err != nil {
		return nil, errors.Join(fmt.Errorf("clear the immutable flag: %w", err), f.Close())
	}
	return func() error { return errors.Join(setFlags(f, flags), f.Close()) }, nil
}

func setFlags(f *os.File, flags uint32) error {
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags))
}
