package esp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// LoaderPaths are where the copies of a boot loader lie: under the loader's own name,
// and under the name that firmware looks for by itself. Both are given for each
// architecture whose names are known.
var LoaderPaths = []string{
	"EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI",
	"EFI/systemd/systemd-bootaa64.efi", "EFI/BOOT/BOOTAA64.EFI",
}

// Loader is one copy of a boot loader.
type Loader struct {
	Path    string
	Product string // "systemd-boot"; "" if Err is set
	Version string // "257.13-1~deb13u1"
	Err     error  // why the file does not tell, or is not there (fs.ErrNotExist)
}

// SystemdBoot is the product that this package knows.
const SystemdBoot = "systemd-boot"

// Major is the first number of the version, 0 if there is none.
func (l Loader) Major() int {
	end := strings.IndexFunc(l.Version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(l.Version)
	}
	n, err := strconv.Atoi(l.Version[:min(end, 9)])
	if err != nil {
		return 0
	}
	return n
}

const (
	firstCounting = 240 // that knows boot counters
	firstUKI      = 258 // that knows the key uki, and counts no entries with efi any more
)

// Starts tells whether the loader starts Type 1 entries with this key: "linux",
// "efi" or "uki". Measured: 257.13 drops an entry with uki (vm.md 4.4).
func (l Loader) Starts(key string) bool {
	return l.Product == SystemdBoot && (key != "uki" && key != "uki-url" || l.Major() >= firstUKI)
}

// Counts tells whether the loader counts the tries of entries with this key.
// Measured: 257.13 counts efi, 262 does not (vm.md 4.4); between them the key uki
// decides.
func (l Loader) Counts(key string) bool {
	return l.Starts(key) && l.Major() >= firstCounting && (key != "efi" || l.Major() < firstUKI)
}

// UKIKey is the key with which every copy starts and counts an entry for a UKI. If
// there is none, because the copies differ or are none of systemd-boot, the error
// says so.
func UKIKey(copies []Loader) (string, error) {
	for _, key := range []string{"uki", "efi"} {
		n := 0
		for _, l := range copies {
			if l.Counts(key) {
				n++
			}
		}
		if n > 0 && n == len(copies) {
			return key, nil
		}
	}
	var have []string
	for _, l := range copies {
		have = append(have, l.String())
	}
	if have == nil {
		have = []string{"none"}
	}
	return "", fmt.Errorf("no key of a boot entry makes every boot loader start and count a UKI: %s", strings.Join(have, ", "))
}

// String names the copy and what it is.
func (l Loader) String() string {
	if l.Err != nil {
		return fmt.Sprintf("%s: %v", l.Path, l.Err)
	}
	return fmt.Sprintf("%s %s (%s)", l.Product, l.Version, l.Path)
}

// Loaders reads the copies of the boot loader. Of an architecture both are listed as
// soon as one is there: a missing one has fs.ErrNotExist. No copy at all is an empty
// list: the partition may be XBOOTLDR.
func (e *ESP) Loaders() []Loader {
	var out []Loader
	for i := 0; i < len(LoaderPaths); i += 2 {
		own, fallback := e.loader(LoaderPaths[i]), e.loader(LoaderPaths[i+1])
		if !errors.Is(own.Err, fs.ErrNotExist) || !errors.Is(fallback.Err, fs.ErrNotExist) {
			out = append(out, own, fallback)
		}
	}
	return out
}

func (e *ESP) loader(path string) Loader {
	l := Loader{Path: path}
	f, err := e.dir.Open(path)
	if err != nil {
		l.Err = err
		if errors.Is(err, fs.ErrNotExist) {
			l.Err = fs.ErrNotExist
		}
		return l
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		l.Err = err
	case !st.Mode().IsRegular():
		l.Err = &LoaderError{"file", "not a regular file"}
	default:
		l.Product, l.Version, l.Err = ParseLoader(f, st.Size())
	}
	return l
}

// LoaderError reports a file that is not a boot loader as systemd builds it.
type LoaderError struct {
	Field  string // part of the PE format, "section .sdmagic", or "file"
	Detail string // what was found and what was expected
}

func (e *LoaderError) Error() string { return "boot loader: " + e.Field + ": " + e.Detail }

const (
	dosHeader   = 64  // bytes
	coffHeader  = 24  // signature included
	sectionSize = 40  // of one line of the section table
	maxSections = 96  // as the loader of Windows
	maxMagic    = 256 // bytes of .sdmagic
)

// ParseLoader finds out which loader a PE image of size bytes is, by its section
// .sdmagic: "#### LoaderInfo: systemd-boot 257.13-1 ####" (boot.md 4.5). Only headers
// and that section are read, whatever the file says about its sizes. What is not
// such a file is a *LoaderError; errors of r are returned as they are.
func ParseLoader(r io.ReaderAt, size int64) (product, version string, err error) {
	var dos [dosHeader]byte
	if err := readAt(r, size, 0, dos[:], "MS-DOS header"); err != nil {
		return "", "", err
	}
	if string(dos[:2]) != "MZ" {
		return "", "", &LoaderError{"MS-DOS header", fmt.Sprintf("begins with %q, want \"MZ\"", dos[:2])}
	}
	at := int64(binary.LittleEndian.Uint32(dos[0x3c:]))
	var coff [coffHeader]byte
	if err := readAt(r, size, at, coff[:], "PE header"); err != nil {
		return "", "", err
	}
	if string(coff[:4]) != "PE\x00\x00" {
		return "", "", &LoaderError{"PE header", fmt.Sprintf("begins with %q, want \"PE\\x00\\x00\"", coff[:4])}
	}
	n := int(binary.LittleEndian.Uint16(coff[6:]))
	if n > maxSections {
		return "", "", &LoaderError{"PE header", fmt.Sprintf("%d sections, want at most %d", n, maxSections)}
	}
	table := make([]byte, n*sectionSize)
	at += coffHeader + int64(binary.LittleEndian.Uint16(coff[20:]))
	if err := readAt(r, size, at, table, "section table"); err != nil {
		return "", "", err
	}
	for ; len(table) > 0; table = table[sectionSize:] {
		if name := strings.TrimRight(string(table[:8]), "\x00"); name != ".sdmagic" {
			continue
		}
		virtual, raw := binary.LittleEndian.Uint32(table[8:]), binary.LittleEndian.Uint32(table[16:])
		length := raw
		if virtual > 0 {
			length = min(virtual, raw)
		}
		if length > maxMagic {
			return "", "", &LoaderError{"section .sdmagic", fmt.Sprintf("%d bytes, want at most %d", length, maxMagic)}
		}
		text := make([]byte, length)
		if err := readAt(r, size, int64(binary.LittleEndian.Uint32(table[20:])), text, "section .sdmagic"); err != nil {
			return "", "", err
		}
		return parseMagic(strings.TrimRight(string(text), "\x00"))
	}
	return "", "", &LoaderError{"section .sdmagic", "missing: this is not systemd-boot"}
}

// readAt fills b from offset at, which must lie in the file.
func readAt(r io.ReaderAt, size, at int64, b []byte, field string) error {
	if at < 0 || at > size || int64(len(b)) > size-at {
		return &LoaderError{field, fmt.Sprintf("%d bytes at byte %d, but the file has %d", len(b), at, size)}
	}
	if n, err := r.ReadAt(b, at); n < len(b) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("boot loader: read %s: %w", field, err)
	}
	return nil
}

// parseMagic reads "#### LoaderInfo: PRODUCT VERSION ####".
func parseMagic(text string) (product, version string, err error) {
	rest, ok := strings.CutPrefix(text, "#### LoaderInfo: ")
	if ok {
		rest, ok = strings.CutSuffix(rest, " ####")
	}
	if ok {
		product, version, ok = strings.Cut(rest, " ")
	}
	if !ok || product == "" || version == "" || strings.ContainsFunc(rest, func(r rune) bool { return r < ' ' || r > '~' }) || strings.Contains(version, " ") {
		return "", "", &LoaderError{"section .sdmagic", fmt.Sprintf("%q, want \"#### LoaderInfo: PRODUCT VERSION ####\"", text)}
	}
	return product, version, nil
}

// ParseLoaderInfo reads what a loader says about itself in the variable LoaderInfo:
// "systemd-boot 257.13-1". ok is false for other texts.
func ParseLoaderInfo(info string) (l Loader, ok bool) {
	product, version, ok := strings.Cut(info, " ")
	return Loader{Path: "LoaderInfo", Product: product, Version: version}, ok && product != "" && version != ""
}
