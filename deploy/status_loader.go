package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Codes of problems with the boot loader.
const (
	ProblemLoader       = "boot-loader"        // it is not whole, or does not go with the entries
	ProblemLoaderUpdate = "boot-loader-update" // a unit replaces it in place
	// ProblemLoaderDefault: its configuration names another entry than the first one.
	ProblemLoaderDefault = "loader-default"
)

// LoaderStatus is the boot loader: the copies on the boot partition, and the one that
// started this boot.
type LoaderStatus struct {
	Running string       `json:"running"` // LoaderInfo, "" if unknown
	Copies  []LoaderCopy `json:"copies"`  // none where the boot partition is XBOOTLDR or cannot be read
	Counts  *bool        `json:"counts"`  // every copy counts the tries of entries with kernel and initrd; null: no copy is known
	UKIKey  *string      `json:"ukiKey"`  // key of an entry for a UKI that every copy starts and counts, null: there is none
}

// LoaderCopy is one file.
type LoaderCopy struct {
	Path    string `json:"path"`
	Product string `json:"product"` // "systemd-boot", "" with an error
	Version string `json:"version"`
	Error   string `json:"error"` // why it is not known, or ""
}

// loaderUpdateUnit replaces the boot loader in place, without the care of cfsboot,
// and perhaps only one copy of it.
const loaderUpdateUnit = "systemd-boot-update.service"

// readLoaders reads the copies of the boot loader, and looks whether anything
// replaces them.
func (r *statusReader) readLoaders(e *esp.ESP) {
	r.in.Loaders = e.Loaders()
	choices, err := e.Choices(r.Vars, r.in.Loaders)
	if err != nil {
		r.problem(ProblemLoaderDefault, hintRoot(err), err)
	}
	r.in.Choices = choices
	for _, dir := range []string{"/usr/lib/systemd/system/", "/lib/systemd/system/"} {
		if _, err := os.Lstat(r.path(dir + loaderUpdateUnit)); err == nil && !r.isMasked(loaderUpdateUnit) {
			r.in.LoaderUpdate = true
		}
	}
}

// isMasked tells whether a unit is masked: a link to /dev/null, or an empty file.
func (r *statusReader) isMasked(unit string) bool {
	for _, dir := range []string{"/etc/systemd/system/", "/run/systemd/system/"} {
		path := r.path(dir + unit)
		if target, err := os.Readlink(path); err == nil && target == "/dev/null" {
			return true
		}
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() == 0 {
			return true
		}
	}
	return false
}

func (b *statusBuilder) loader() LoaderStatus {
	s := LoaderStatus{Running: b.in.Loader, Copies: []LoaderCopy{}}
	for _, l := range b.in.Loaders {
		c := LoaderCopy{Path: l.Path, Product: l.Product, Version: l.Version}
		if l.Err != nil {
			c.Error = firstLine(l.Err)
		}
		s.Copies = append(s.Copies, c)
	}
	if len(b.in.Loaders) > 0 {
		counts := uncountedBy(b.in.Loaders, "linux") == ""
		s.Counts = &counts
	}
	if key, err := esp.UKIKey(b.in.Loaders); err == nil {
		s.UKIKey = &key
	}
	return s
}

// uncountedBy names the first copy that does not count entries with this key, "" if
// there is none.
func uncountedBy(copies []esp.Loader, key string) string {
	for _, l := range copies {
		if !l.Counts(key) {
			return l.String()
		}
	}
	return ""
}

// loaderProblems compares the copies of the boot loader with each other, with the one
// that runs, and with what the entries need.
func (b *statusBuilder) loaderProblems() {
	if b.in.LoaderUpdate {
		b.problem(ProblemLoaderUpdate, "mask it in the image", "%s is not masked: it replaces the boot loader in place, which a power cut does not forgive, and perhaps one copy only", loaderUpdateUnit)
	}
	copies := b.in.Loaders
	same, known := true, 0
	for _, l := range copies {
		switch {
		case errors.Is(l.Err, fs.ErrNotExist):
			b.problem(ProblemLoader, "", "the copy %q of the boot loader is missing", l.Path)
		case l.Err != nil:
			b.problem(ProblemLoader, "", "the copy %q of the boot loader cannot be used: %v", l.Path, l.Err)
		default:
			known++
			same = same && l.Product == copies[0].Product && l.Version == copies[0].Version
		}
	}
	if known == len(copies) && !same {
		var all []string
		for _, l := range copies {
			all = append(all, l.String())
		}
		b.problem(ProblemLoader, "", "the copies of the boot loader differ, and the firmware may start either: %s", strings.Join(all, ", "))
	}
	if l, ok := esp.ParseLoaderInfo(b.in.Loader); ok && known > 0 && !b.isCopy(l) {
		b.problem(ProblemLoader, "", "this boot was started by %s, which is none of the copies on the boot partition", b.in.Loader)
	}
	for _, e := range b.in.Entries {
		if b.in.ours(e) && e.Err == nil {
			b.loaderOfEntry(e)
		}
	}
}

func (b *statusBuilder) isCopy(l esp.Loader) bool {
	for _, c := range b.in.Loaders {
		if c.Err == nil && c.Product == l.Product && c.Version == l.Version {
			return true
		}
	}
	return false
}

// loaderOfEntry tells where a copy of the loader does not do with an entry what it is
// for.
func (b *statusBuilder) loaderOfEntry(e esp.Entry) {
	key, _, err := e.Entry.Kind()
	if err != nil {
		return
	}
	for _, l := range b.in.Loaders {
		switch {
		case l.Err != nil:
		case !l.Starts(key):
			b.problem(ProblemLoader, "", "boot entry %q has the key %q, which %s does not start", e.File, key, l)
			return
		case e.Name.Counter.Present && !l.Counts(key):
			b.problem(ProblemLoader, "", "boot entry %q has the key %q, whose tries %s does not count: if it fails, the machine does not fall back by itself", e.File, key, l)
			return
		}
	}
}

// loaderWarnings are for a command that makes a counted entry for a kernel and an
// initrd.
func (m *machine) loaderWarnings() []string {
	if by := uncountedBy(m.esp.Loaders(), "linux"); by != "" {
		return []string{fmt.Sprintf("if the new release fails, the machine may not fall back by itself, because of its boot loader: %s", by)}
	}
	return nil
}

// imageLoaderWarnings are about an image that will replace the boot loader behind
// the back of cfsboot.
func imageLoaderWarnings(root *tree.Node) []string {
	if _, err := root.Find("usr/lib/systemd/system/" + loaderUpdateUnit); err != nil {
		return nil
	}
	if x, err := root.Find("etc/systemd/system/" + loaderUpdateUnit); err == nil &&
		(x.Kind == tree.Symlink && x.Target == "/dev/null" || x.Kind == tree.Regular && x.Size == 0) {
		return nil
	}
	return []string{fmt.Sprintf("the image does not mask %s, which replaces the boot loader in place", loaderUpdateUnit)}
}
