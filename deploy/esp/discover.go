package esp

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cfsboot/cfsboot/internal/efivar"
)

// Device is the block device of a boot partition.
type Device struct {
	Path string // of the device node
	Dev  string // "major:minor"
	Why  string // how it was found, for messages
}

// ErrNoESP says that no boot partition was found; the error that wraps it tells
// where it was looked for.
var ErrNoESP error = noESP{}

type noESP struct{}

func (noESP) Error() string { return "no EFI system partition" }

// Unwrap says that something is missing, but not in the text.
func (noESP) Unwrap() error { return fs.ErrNotExist }

// Find returns the partitions that may be the boot partition of the running system,
// each once and at least one, the likeliest first: the one that the boot loader
// came from, the ESPs on the root's disk, then the XBOOTLDR partitions there, which
// may as well be another system's /boot. What they hold decides, and is for the
// caller to look at. root is where /dev and /sys are looked up, rootDev the
// "major:minor" of the physical root. Only sysfs, partition tables and
// LoaderDevicePartUUID are read; udev's links are not needed.
func Find(root string, vars Vars, rootDev string) ([]Device, error) {
	d := finder{root}
	disk, err := d.diskOf(rootDev)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoESP, err)
	}
	parts, err := d.partitions(disk)
	if err != nil {
		return nil, fmt.Errorf("%w: disk %s: %w", ErrNoESP, disk, err)
	}
	var found []Device
	add := func(dev Device) {
		if !slices.ContainsFunc(found, func(x Device) bool { return x.Dev == dev.Dev }) {
			found = append(found, dev)
		}
	}
	wanted, err := vars.Loader(efivar.LoaderDevicePartUUID)
	loader := err == nil
	for _, x := range []struct {
		match func(Partition) bool
		why   string
	}{
		{func(p Partition) bool { return loader && strings.EqualFold(p.UUID, wanted) }, "the boot loader came from it"},
		{func(p Partition) bool { return p.Type == TypeESP }, "ESP on the disk of the root file system"},
		{func(p Partition) bool { return p.Type == TypeXBOOTLDR }, "XBOOTLDR on the disk of the root file system"},
	} {
		for _, p := range parts {
			if !x.match(p) {
				continue
			}
			dev, err := d.device(disk, p, x.why)
			if err != nil {
				return nil, err
			}
			add(dev)
			loader = loader && !strings.EqualFold(p.UUID, wanted)
		}
	}
	if loader { // it is not on this disk
		if dev, err := d.byPartUUID(wanted); err == nil {
			found = slices.Insert(found, 0, dev)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: disk %s has %d partitions, none of the type ESP or XBOOTLDR", ErrNoESP, disk, len(parts))
	}
	return found, nil
}

type finder struct{ root string }

func (d finder) path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// diskOf returns the kernel's name of the disk that has the partition dev.
func (d finder) diskOf(dev string) (string, error) {
	link, err := filepath.EvalSymlinks(d.path("sys/dev/block", dev))
	if err != nil {
		return "", fmt.Errorf("device %s: %w", dev, err)
	}
	if _, err := os.Stat(filepath.Join(link, "partition")); err != nil {
		return "", fmt.Errorf("device %s (%s) is no partition", dev, filepath.Base(link))
	}
	return filepath.Base(filepath.Dir(link)), nil
}

// partitions reads the partition table of a disk.
func (d finder) partitions(disk string) ([]Partition, error) {
	sector := int64(512)
	if text, err := os.ReadFile(d.path("sys/class/block", disk, "queue/logical_block_size")); err == nil {
		n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("sector size of %s: %w", disk, err)
		}
		sector = n
	}
	f, err := os.Open(d.path("dev", disk))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadGPT(f, sector)
}

// device finds the kernel's device of partition p.
func (d finder) device(disk string, p Partition, why string) (Device, error) {
	entries, err := os.ReadDir(d.path("sys/class/block", disk))
	if err != nil {
		return Device{}, err
	}
	for _, e := range entries {
		dir := d.path("sys/class/block", disk, e.Name())
		number, err := os.ReadFile(filepath.Join(dir, "partition"))
		if err != nil || string(bytes.TrimSpace(number)) != strconv.Itoa(p.Number) {
			continue
		}
		dev, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			return Device{}, err
		}
		return Device{Path: d.path("dev", e.Name()), Dev: string(bytes.TrimSpace(dev)), Why: why}, nil
	}
	return Device{}, fmt.Errorf("%w: the kernel shows no partition %d of disk %s", ErrNoESP, p.Number, disk)
}

// byPartUUID looks on the other disks, for a loader that is not on the root's.
func (d finder) byPartUUID(uuid string) (Device, error) {
	disks, err := os.ReadDir(d.path("sys/class/block"))
	if err != nil {
		return Device{}, err
	}
	for _, x := range disks {
		if _, err := os.Stat(d.path("sys/class/block", x.Name(), "partition")); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		parts, err := d.partitions(x.Name())
		if err != nil {
			continue // another kind of disk
		}
		for _, p := range parts {
			if strings.EqualFold(p.UUID, uuid) {
				return d.device(x.Name(), p, "the boot loader came from it")
			}
		}
	}
	return Device{}, ErrNoESP
}
