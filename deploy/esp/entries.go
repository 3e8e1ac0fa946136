package esp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// Vars is what the package and its users ask the firmware: efivar.Dir satisfies
// it. A variable that is not there wraps fs.ErrNotExist.
type Vars interface {
	Loader(name string) (string, error)
}

// Entry is one Type 1 file in loader/entries.
type Entry struct {
	File  string           // file name
	Ours  bool             // the name is one of cfsboot's
	Name  record.EntryName // zero unless Ours
	Entry bls.Entry        // zero if Err is set
	Err   error            // why the content is no entry or cannot be read; the file is still there
	// Raw is the content in lower case, maxRead bytes at most. nil: it cannot be read.
	Raw []byte
}

// maxRead is how much of a file is looked at for digests: far more than makes an
// entry.
const maxRead = 4 << 20

// MayName tells whether the file may start the image, or name the payload, whose
// digest this is in hex: all that counts is whether the digits are anywhere in it,
// whoever has written it. What cannot be read may name anything.
func (e Entry) MayName(digest string) bool {
	return e.Raw == nil || bytes.Contains(e.Raw, []byte(digest))
}

// Long tells whether the file is longer than any entry.
func (e Entry) Long() bool { return len(e.Raw) > bls.MaxEntrySize }

// ImageID returns the digest in hex of the first composefs token of the entry's
// options, or "".
func (e Entry) ImageID() string {
	images, err := bls.ParseKargs(e.Entry.Options().String())
	if err != nil || len(images) == 0 {
		return ""
	}
	return images[0].Digest.Hex()
}

// Payload returns the boot digest of the payload that an entry of cfsboot's own
// form starts, or "". What others may have written has more ways to name one: see
// MayName.
func (e Entry) Payload() string {
	for _, key := range []string{"linux", "initrd", "uki", "efi"} {
		for _, value := range e.Entry.All(key) {
			// FAT does not tell cases apart, so another tool may have written the
			// path in capitals.
			p := strings.ToLower(strings.TrimLeft(value, "/"))
			if rest, ok := strings.CutPrefix(p, PayloadDir+"/"); ok {
				digest, _, _ := strings.Cut(rest, "/")
				return digest
			}
		}
	}
	return ""
}

// Entries lists loader/entries in the order in which systemd-boot shows it: the
// first one is what it starts unless told otherwise. Files that are not entries
// are left out; what the loader does not show, such as a torn file, stands last. No
// directory means no entries.
func (e *ESP) Entries() ([]Entry, error) {
	list, err := e.dir.ReadSubDir(EntryDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, e.notDirectory(EntryDir, fmt.Errorf("list boot entries: %w", err))
	}
	var out []Entry
	for _, x := range list {
		if _, _, ok := bls.SplitCounter(x.Name, ".conf"); !ok || !x.IsRegular() {
			continue
		}
		out = append(out, e.readEntry(x.Name))
	}
	slices.SortStableFunc(out, compareEntries)
	return out, nil
}

// Names lists the files in loader/entries, whatever they are, and the boot digests
// that have a payload directory. What is not there, or is of another type, has none:
// an error is one of the medium or of the file system.
func (e *ESP) Names() (entries, payloads []string, err error) {
	list, err := e.dir.ReadSubDir(EntryDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, nil, err
	}
	for _, x := range list {
		entries = append(entries, x.Name)
	}
	payloads, err = e.Payloads()
	var other *VerifyError
	if err != nil && !errors.As(err, &other) {
		return nil, nil, err
	}
	return entries, payloads, nil
}

func (e *ESP) readEntry(file string) Entry {
	x := Entry{File: file}
	x.Name, x.Ours = record.ParseEntryName(file)
	data, err := e.readStart(path.Join(EntryDir, file))
	if err != nil {
		x.Err = err
		return x
	}
	x.Raw = append([]byte{}, bytes.ToLower(data)...)
	x.Entry, x.Err = bls.ParseEntry(data)
	if x.Err == nil && len(x.Entry.Fields) == 0 {
		x.Err = &bls.EntryError{Detail: "empty file"}
	}
	return x
}

// readStart reads the first maxRead bytes of a file.
func (e *ESP) readStart(name string) ([]byte, error) {
	f, err := e.dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return io.ReadAll(io.LimitReader(f, maxRead))
}

func compareEntries(a, b Entry) int {
	ma, oka := menuItem(a)
	mb, okb := menuItem(b)
	if oka != okb {
		if oka {
			return -1
		}
		return 1
	}
	if !oka {
		return strings.Compare(a.File, b.File)
	}
	return bls.CompareMenu(ma, mb)
}

func menuItem(e Entry) (bls.MenuItem, bool) {
	if e.Err != nil {
		return bls.MenuItem{}, false
	}
	if _, _, err := e.Entry.Kind(); err != nil {
		return bls.MenuItem{}, false // the loader does not show it
	}
	return bls.MenuItemOf(e.File, e.Entry)
}
