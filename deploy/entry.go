package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
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
		if m.facts.EntryOf(seq) != nil || outranking(m.facts, seq) != nil {
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

// outranking finds an entry of this installation that the journal does not know
// and that the loader would start before one with number seq: of a journal that
// was lost, or made by hand. nil: there is none.
func outranking(f Facts, seq uint64) *esp.Entry {
	var out *esp.Entry
	for i := range f.Entries {
		e := &f.Entries[i]
		if fileOfTorn(e) == "" && f.ours(*e) && !e.Name.Counter.Bad() && e.Name.Seq >= seq && f.known(*e) == nil &&
			(out == nil || e.Name.Seq > out.Name.Seq) {
			out = e
		}
	}
	return out
}

// checkSequence refuses, before anything is done, what could not become the
// default: sequence numbers are used up, or an entry that nobody knows stands so
// far ahead that every new one comes after it.
func checkSequence(f Facts) error {
	next := f.State.NextEntry
	if next+maxRenumber >= record.MaxEntrySeq {
		return refuse(CodeSequence, "sequence numbers of boot entries are used up: the next one is %d, want less than %d", next, uint64(record.MaxEntrySeq-maxRenumber))
	}
	if e := outranking(f, next+maxRenumber); e != nil {
		return &ConflictError{
			What:  fmt.Sprintf("a boot entry that is not in the journal stands before every new one, the next of which is %d", next),
			Paths: []string{esp.EntryDir + "/" + e.File},
		}
	}
	return nil
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

// karg is the composefs parameter of a boot image in this repository.
func (m *machine) karg(boot fsverity.Digest) string {
	return bls.KargImage{Digest: boot, Insecure: !m.repo.Secure(), Version: int(m.repo.Formats()[0])}.String()
}
