// Package efivar reads the variables with which a boot loader tells the running
// system what it did, and writes the one that tells it what to start next: the
// Loader* variables of the vendor 4a67b082-0a4c-41cf-b6c7-440b29bb8c4f, as efivarfs
// shows them.
//
// A variable file is a 32-bit little-endian attribute word and the data; text
// is UTF-16LE with a closing NUL (boot.md 4.5). Nothing in a variable is trusted:
// whoever controls the firmware's store writes them.
//
// A [Dir] may be used by several goroutines.
package efivar

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf16"
)

// Path is where efivarfs is mounted.
const Path = "/sys/firmware/efi/efivars"

// LoaderVendor is the vendor GUID of the Loader* variables.
const LoaderVendor = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// The Loader* variables that cfsboot reads.
const (
	LoaderInfo           = "LoaderInfo"           // name and version of the loader
	LoaderDevicePartUUID = "LoaderDevicePartUUID" // partition UUID of the ESP
	LoaderEntrySelected  = "LoaderEntrySelected"  // the entry that runs: its file name without counter
	LoaderBootCountPath  = "LoaderBootCountPath"  // the entry's file if the loader has counted this boot
	// Patterns for ids of entries that the loader starts instead of the first one.
	LoaderEntryDefault    = "LoaderEntryDefault"
	LoaderEntryPreferred  = "LoaderEntryPreferred"  // of systemd-boot 260 and newer
	LoaderEntryLastBooted = "LoaderEntryLastBooted" // what "@saved" stands for
)

// maxSize bounds a variable, in bytes. Loader* variables are short.
const maxSize = 64 << 10

// FormatError reports a variable that is not text as the loader writes it.
type FormatError struct {
	Name   string
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("EFI variable %s: %s", e.Name, e.Detail)
}

// Dir reads variables below a directory. The zero value reads [Path].
type Dir struct {
	Root string // "" means Path
}

// Loader returns the text of a Loader* variable without the closing NUL. A
// variable that does not exist, and a machine without EFI, wrap
// fs.ErrNotExist; data that is no text is a *FormatError.
func (d Dir) Loader(name string) (string, error) {
	root := d.Root
	if root == "" {
		root = Path
	}
	f, err := os.Open(filepath.Join(root, name+"-"+LoaderVendor))
	if err != nil {
		// efivarfs answers EIO and ENOENT both for what the firmware lost.
		return "", fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return "", fmt.Errorf("read EFI variable %s: %w", name, err)
	}
	return ParseText(name, data)
}

// ParseText decodes the content of a variable file: attributes, then UTF-16LE
// text up to the first NUL or the end. Every error is a *FormatError.
func ParseText(name string, data []byte) (string, error) {
	switch {
	case len(data) < 4:
		return "", &FormatError{name, fmt.Sprintf("%d bytes, want 4 bytes of attributes at least", len(data))}
	case len(data) > maxSize:
		return "", &FormatError{name, fmt.Sprintf("%d bytes, want at most %d", len(data), maxSize)}
	case len(data)%2 != 0:
		return "", &FormatError{name, fmt.Sprintf("%d bytes of text, want an even number", len(data)-4)}
	}
	units := make([]uint16, 0, len(data)/2)
	for b := data[4:]; len(b) > 0; b = b[2:] {
		u := binary.LittleEndian.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	text := string(utf16.Decode(units))
	if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == '\uFFFD' }); i >= 0 {
		return "", &FormatError{name, fmt.Sprintf("character %q at byte %d, want printable text", text[i:i+1], i)}
	}
	return text, nil
}
