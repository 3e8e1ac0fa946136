package esp

import (
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
	Long  bool             // longer than any entry
	Named Names            // zero: nobody knows
}

// Limits of what is read in loader/entries and kept of it. A file behind one may
// name anything. Files with names of cfsboot's are read first.
const (
	MaxEntries = 1024      // files that are read
	maxRead    = 4 << 20   // bytes that are looked at of one file, far more than makes an entry
	maxReadAll = 64 << 20  // of all
	maxKept    = 256 << 10 // bytes that are kept of one file
	maxKeptAll = 4 << 20   // of all
)

// MayName tells whether the file may start the image, or name the payload, whose
// digest this is in hex: all that counts is whether the digits are anywhere in it,
// whoever has written it. What was not read may name anything.
func (e Entry) MayName(digest string) bool {
	return !e.Named.known || strings.Contains(e.Named.runs, digest)
}

// Unread tells whether nobody knows what the file names, because it cannot be read
// or is more than is read.
func (e Entry) Unread() bool { return !e.Named.known }

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
// directory means no entries. Of a file that is not read, or not whole, because there
// are too many or they are too long, there is a name and an error.
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
		entry := Entry{File: x.Name}
		entry.Name, entry.Ours = record.ParseEntryName(x.Name)
		out = append(out, entry)
	}
	slices.SortFunc(out, func(a, b Entry) int {
		if a.Ours != b.Ours {
			if a.Ours {
				return -1
			}
			return 1
		}
		return strings.Compare(a.File, b.File)
	})
	left := budget{MaxEntries, maxReadAll, maxKeptAll}
	for i := range out {
		e.readEntry(&out[i], &left)
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

// budget is what may still be read and kept of the files in loader/entries.
type budget struct{ files, read, kept int64 }

// readEntry reads one file, whose name is known.
func (e *ESP) readEntry(x *Entry, left *budget) {
	switch {
	case left.files <= 0:
		x.Err = &bls.EntryError{Detail: fmt.Sprintf("not read: there are more than %d files", MaxEntries)}
		return
	case left.read <= 0:
		x.Err = &bls.EntryError{Detail: fmt.Sprintf("not read: the files have more than %d bytes together", maxReadAll)}
		return
	}
	left.files--
	f, err := e.dir.Open(path.Join(EntryDir, x.File))
	if err != nil {
		x.Err = err
		return
	}
	defer f.Close() //nolint:errcheck // read only
	found := digitRuns{limit: min(maxKept, left.kept)}
	data, err := io.ReadAll(io.LimitReader(io.TeeReader(f, &found), bls.MaxEntrySize+1))
	size := int64(len(data))
	if x.Long = size > bls.MaxEntrySize; x.Long && err == nil {
		var n int64
		n, err = io.Copy(&found, io.LimitReader(f, maxRead-size))
		size += n
	}
	left.read -= size
	if err != nil {
		x.Err = err
		return
	}
	x.Named = found.names()
	left.kept -= int64(len(x.Named.runs))
	switch {
	case x.Unread():
		x.Err = &bls.EntryError{Detail: "too many digests"}
	case x.Long:
		x.Err = &bls.EntryError{Detail: fmt.Sprintf("more than %d bytes", bls.MaxEntrySize)}
	case size > left.kept:
		x.Err = &bls.EntryError{Detail: "not kept: the files have too much text together"}
	default:
		left.kept -= size
		x.Entry, x.Err = bls.ParseEntry(data)
		if x.Err == nil && len(x.Entry.Fields) == 0 {
			x.Err = &bls.EntryError{Detail: "empty file"}
		}
	}
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
