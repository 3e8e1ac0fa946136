package deploy

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// openESP finds the boot partition of the running system and opens it, by way of
// a private mount unless it is mounted already.
func (m *machine) openESP() error {
	if m.ESP != nil {
		return m.useESP(m.ESP)
	}
	if err := esp.CheckTwins(m.Root, m.facts.Booted.Sysroot.Dev); err != nil {
		return refuseTwins(err)
	}
	state := m.journal.State()
	list, err := m.bootPartitions(m.facts.Booted.Sysroot.Dev)
	if err != nil {
		return err
	}
	dir, dev, err := chooseBoot(list, state, func(dev esp.Device) (*durable.Dir, error) {
		if dev.Dev == "" {
			return openWritable(dev.Path)
		}
		if path, ok := mountOf(m.path("/proc/self/mountinfo"), dev.Dev); ok {
			return openWritable(m.path(path))
		}
		return mountBoot(mnt.FAT, dev)
	})
	if err != nil {
		return err
	}
	m.Logger.Debug("boot partition", "path", dev.Path, "why", dev.Why)
	m.onClose(dir.Close)
	return m.useESP(dir)
}

func (m *machine) useESP(dir *durable.Dir) error {
	m.esp = esp.New(dir)
	if _, _, err := m.esp.Names(); err != nil {
		return refuseDamaged(dir.Path(), err)
	}
	return writable(dir)
}

// bootPartitions lists what may be the boot partition. Where there is no partition
// table to look at, that is what is mounted in the usual places; these have no
// device number.
func (o Options) bootPartitions(rootDev string) ([]esp.Device, error) {
	list, err := esp.Find(o.Root, o.Vars, rootDev)
	if err == nil {
		return list, nil
	}
	for _, name := range install.ESPDirs {
		if path := o.path(name); install.IsESP(path) {
			list = append(list, esp.Device{Path: path, Why: "it is mounted; " + err.Error()})
		}
	}
	switch {
	case len(list) > 0:
		return list, nil
	case errors.Is(err, esp.ErrNoESP):
		return nil, &RefusedError{Code: CodeNoESP, Err: err}
	}
	return nil, err
}

// partition is one that may be the boot partition.
type partition struct {
	dev      esp.Device
	dir      *durable.Dir // nil: it cannot be opened
	err      error        // why
	entries  int          // boot entries of the journal
	payloads int          // of entries in the journal
	names    int          // boot entries of this installation, also those of the past
	whole    bool         // all entries of the journal are there
}

// chooseBoot opens what may be the boot partition and returns the one that holds
// this installation: most boot entries of the journal, else most of its payloads,
// else most entries of the past, which an old copy has too, else the likeliest one. A type alone decides nothing: XBOOTLDR may be the /boot of another
// system. The order of list is that of Find; behind one that holds all entries
// nothing is looked at.
//
// What is no FAT file system holds nothing. Anything else that cannot be opened may
// be the right one, so nothing is taken instead of it for want of a better one.
func chooseBoot(list []esp.Device, s record.State, open func(esp.Device) (*durable.Dir, error)) (_ *durable.Dir, _ esp.Device, err error) {
	var all []partition
	for _, dev := range list {
		p := partition{dev: dev}
		if p.dir, p.err = open(dev); p.err == nil && len(list) > 1 {
			p.count(s)
		}
		if all = append(all, p); p.whole {
			break
		}
	}
	best := bestPartition(all)
	for i, p := range all {
		if p.dir != nil && (i != best || p.err != nil) {
			err = errors.Join(err, p.dir.Close())
		}
	}
	if err := errors.Join(all[best].err, err); err != nil {
		return nil, esp.Device{}, err
	}
	return all[best].dir, all[best].dev, nil
}

// count looks what there is of the installation. Without a token, which a journal
// that cannot be read leaves, every entry that looks like one of cfsboot counts.
func (p *partition) count(s record.State) {
	names, payloads, err := esp.New(p.dir).Names()
	if err != nil {
		p.err = refuseDamaged(p.dev.Path, err)
		return
	}
	var found []uint64
	for _, name := range names {
		if n, ok := record.ParseEntryName(name); ok && (n.Token == s.Token || s.Token == "") {
			found = append(found, n.Seq)
		}
	}
	for _, digest := range payloads {
		if slices.ContainsFunc(s.Entries, func(a record.ArmedEntry) bool { return a.BootDigest == digest }) {
			p.payloads++
		}
	}
	p.names = len(found)
	for _, a := range s.Entries {
		if slices.Contains(found, a.Seq) {
			p.entries++
		}
	}
	if len(s.Entries) == 0 { // what there is, is all that can be known
		p.entries = p.names
	}
	p.whole = len(found) > 0 && !slices.ContainsFunc(s.Entries, func(a record.ArmedEntry) bool { return !slices.Contains(found, a.Seq) })
}

// bestPartition is the rule of chooseBoot.
func bestPartition(all []partition) int {
	best := 0
	for i, p := range all {
		b := all[best]
		if cmp.Or(cmp.Compare(p.entries, b.entries), cmp.Compare(p.payloads, b.payloads), cmp.Compare(p.names, b.names)) > 0 {
			best = i
		}
	}
	if all[best].entries > 0 || all[best].payloads > 0 {
		return best
	}
	for i, p := range all {
		if p.err != nil && (i == 0 || !errors.Is(p.err, errNoFAT)) && !(all[best].names > 0 && errors.Is(p.err, errNoFAT)) {
			return i
		}
	}
	return best
}

// errNoFAT says that a partition is none that loader and firmware can read.
var errNoFAT = errors.New("no FAT file system")

// mountBoot mounts a boot partition for this process alone and opens it.
func mountBoot(mount func(string) (*mnt.Mount, error), dev esp.Device) (*durable.Dir, error) {
	m, err := mount(dev.Path)
	if err != nil {
		return nil, refuseMount(dev, err)
	}
	defer m.Close() //nolint:errcheck // the directory keeps it
	return dirOf(m.File(), dev.Path)
}

// refuseMount says what is wrong with a boot partition that cannot be mounted.
func refuseMount(dev esp.Device, err error) error {
	switch {
	case errors.Is(err, errors.ErrUnsupported), os.Geteuid() != 0:
		return err
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		return &RefusedError{Code: CodeReadOnly, Detail: fmt.Sprintf("boot partition %q is read-only", dev.Path)}
	case errors.Is(err, unix.EINVAL):
		return &RefusedError{Code: CodeBadESP, Detail: fmt.Sprintf("boot partition %q (%s)", dev.Path, dev.Why), Err: errNoFAT}
	case errors.Is(err, unix.EBUSY):
		return &RefusedError{Code: CodeBadESP, Detail: fmt.Sprintf("boot partition %q is in use: it is mounted read-only elsewhere, or another program has it", dev.Path)}
	}
	return refuseDamaged(dev.Path, err)
}

// refuseDamaged makes a *RefusedError of a medium or a file system that cannot be
// read.
func refuseDamaged(path string, err error) error {
	for _, no := range []unix.Errno{unix.EIO, unix.EUCLEAN} {
		if errors.Is(err, no) {
			return &RefusedError{Code: CodeBadESP, Detail: fmt.Sprintf("boot partition %q cannot be read; fsck.fat may repair it", path), Err: no}
		}
	}
	return err
}

// mountOf returns where the whole file system of the device is mounted.
func mountOf(table, dev string) (string, bool) {
	text, err := os.ReadFile(table)
	if err != nil {
		return "", false
	}
	list, err := mnt.ParseTable(text)
	if err != nil {
		return "", false
	}
	for _, x := range list {
		if x.Root == "/" && strconv.FormatUint(uint64(x.Major), 10)+":"+strconv.FormatUint(uint64(x.Minor), 10) == dev {
			return x.Point, true
		}
	}
	return "", false
}
