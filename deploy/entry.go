package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
)

// Names of the files of a payload.
const (
	payloadKernel = "vmlinuz"
	payloadInitrd = "initrd"
)

// maxRenumber bounds how often another number is taken for an entry whose file
// name is in use.
const maxRenumber = 8

// writeEntry makes the boot entry of deployment d: the commit point. seq is the
// number that the journal reserved; if a file with it is there already, another
// number is reserved. It returns the number that was used.
func (m *machine) writeEntry(d record.Deployment, seq uint64, tries uint) (uint64, error) {
	for n := 0; ; n++ {
		name, data, err := entryFile(m.facts.State.Token, d, seq, tries)
		if err != nil {
			return 0, err
		}
		if m.facts.EntryOf(seq) != nil || len(outranking(m.facts, seq)) > 0 {
			err = fs.ErrExist // under another counter, or one above it
		} else {
			err = m.esp.WriteEntry(name, data)
		}
		if !errors.Is(err, fs.ErrExist) || n == maxRenumber {
			return seq, err
		}
		m.Logger.Warn("the file name of a boot entry is in use", slog.String("name", name))
		if err := m.add(record.Event{Kind: record.EventRenumber, Deployment: d.ID}); err != nil {
			return 0, err
		}
		if t := m.facts.State.Transaction; t != nil {
			seq = t.Entry
		} else {
			seq = m.facts.State.Staged.Entry
		}
	}
}

// outranking lists the entries of this installation that the loader would start
// before a new one with number seq: of a journal that was lost, made by hand, or
// changed in what the order goes by.
func outranking(f Facts, seq uint64) (out []*esp.Entry) {
	name := record.EntryName{Token: f.State.Token, Seq: seq}
	item, ok := bls.MenuItemOf(name.String(), bls.Entry{Fields: []bls.Field{
		{Key: "sort-key", Value: record.SortKey(name.Token)}, {Key: "version", Value: record.EntryVersion(seq, "")},
	}})
	if !ok {
		return nil
	}
	for i := range f.Entries {
		e := &f.Entries[i]
		if !f.ours(*e) || fileOfTorn(e) != "" {
			continue
		}
		if other, ok := bls.MenuItemOf(e.File, e.Entry); ok && bls.CompareMenu(other, item) <= 0 {
			out = append(out, e)
		}
	}
	return out
}

// inOrder tells whether an entry of this installation stands where its number puts
// it in the menu.
func inOrder(e *esp.Entry) bool {
	seq := record.EntryVersion(e.Name.Seq, "")
	rest, ok := strings.CutPrefix(e.Entry.Get("version"), seq)
	return ok && (rest == "" || rest[0] == '.') && e.Entry.Get("sort-key") == record.SortKey(e.Name.Token) && e.Entry.Get("machine-id") == ""
}

// checkSequence refuses, before anything is done, what could not become the
// default: sequence numbers are used up, or an entry stands so far ahead that every
// new one comes after it.
func checkSequence(f Facts) error {
	next := f.State.NextEntry
	if next+maxRenumber >= record.MaxEntrySeq {
		return refuse(CodeSequence, "sequence numbers of boot entries are used up: the next one is %d, want less than %d", next, uint64(record.MaxEntrySeq-maxRenumber))
	}
	return ahead(f, outranking(f, next+maxRenumber), fmt.Sprintf("boot entries that stand before every new one, the next of which is %d", next))
}

// checkFirst makes sure that the entry that was just made is the one of this
// installation that the loader starts.
func checkFirst(f Facts, seq uint64) error {
	for i := range f.Entries {
		e := &f.Entries[i]
		switch {
		case !f.ours(*e) || fileOfTorn(e) != "":
			continue
		case e.Name.Seq != seq:
			return ahead(f, []*esp.Entry{e}, fmt.Sprintf("boot entry that stands before the new one, %d", seq))
		}
		return nil
	}
	return fmt.Errorf("boot entry %d was made and is not on the boot partition", seq)
}

// ahead makes a *ConflictError of entries that stand before others. nil: there are
// none.
func ahead(f Facts, entries []*esp.Entry, what string) error {
	if len(entries) == 0 {
		return nil
	}
	c := &ConflictError{What: what}
	slices.SortFunc(entries, func(a, b *esp.Entry) int { return strings.Compare(a.File, b.File) })
	for _, e := range entries {
		reason := "its version or sort-key was changed"
		if f.State.Entry(e.Name.Seq) == nil {
			reason = "not in the journal"
		}
		c.Paths, c.Reasons = append(c.Paths, esp.EntryDir+"/"+e.File), append(c.Reasons, reason)
	}
	return c
}

// entryFile gives name and content of the boot entry of a deployment.
func entryFile(token string, d record.Deployment, seq uint64, tries uint) (string, []byte, error) {
	if err := checkOptions(d); err != nil {
		return "", nil, err
	}
	e, err := record.NewEntry(record.EntrySpec{
		Token:     token,
		Seq:       seq,
		Title:     d.Title,
		OSVersion: d.OSVersion,
		Linux:     "/" + esp.Path(d.BootDigest, payloadKernel),
		Initrd:    "/" + esp.Path(d.BootDigest, payloadInitrd),
		Options:   bls.ParseCmdline(d.Options),
	})
	if err != nil {
		return "", nil, err
	}
	data, err := e.Format()
	if err != nil {
		return "", nil, err
	}
	name := record.EntryName{Token: token, Seq: seq, Counter: bls.Counter{Present: tries > 0, Left: tries}}
	return name.String(), data, nil
}

// checkOptions makes sure that the kernel command line selects the deployment and
// nothing else. A quote that is not closed, for example, would hide the parameter.
func checkOptions(d record.Deployment) error {
	images, err := bls.ParseKargs(d.Options)
	if err == nil && (len(images) != 1 || images[0].Digest.Hex() != d.ID) {
		err = fmt.Errorf("it selects %d images, want only %s", len(images), short(d.ID))
	}
	if err != nil {
		return &RefusedError{Code: CodeKarg, Detail: fmt.Sprintf("kernel command line %q of deployment %s", d.Options, short(d.ID)), Err: err}
	}
	return nil
}

// karg is the composefs parameter of a boot image in this repository, whose format
// decides which form it has.
func (m *machine) karg(boot fsverity.Digest) string {
	k := bls.KargImage{Digest: boot, Insecure: !m.repo.Secure(), Version: 1}
	if m.repo.Formats()[0] == erofs.V2 {
		k.Version = 2
	}
	return k.String()
}
