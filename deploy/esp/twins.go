package esp

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// TwinError says that another disk has partitions with the same identifiers as
// the disk of the root: a copy. Firmware and initramfs choose each for itself, so
// what is written to one may not be what is booted.
type TwinError struct {
	Disk  string   // of the root: path of the device
	Twins []string // other disks, sorted
}

func (e *TwinError) Error() string {
	return fmt.Sprintf("disk %s and %s are copies of each other: a partition has the same PARTUUID on both, so it is not certain which one boots", e.Disk, strings.Join(e.Twins, ", "))
}

// CheckTwins returns a *TwinError if another disk has a partition with the PARTUUID
// of one on the disk of the root. root and rootDev are as for Find. Disks that
// cannot be read, that something else is built on, such as the halves of a mirror,
// and files that are attached to loop devices do not count.
func CheckTwins(root, rootDev string) error {
	d := finder{root}
	disk, err := d.diskOf(rootDev)
	if err != nil {
		return nil //nolint:nilerr // no disk, no copy of it
	}
	mine, err := d.partitions(disk)
	if err != nil {
		return nil //nolint:nilerr // Find tells it
	}
	list, err := os.ReadDir(d.path("sys/class/block"))
	if err != nil {
		return err
	}
	e := &TwinError{Disk: d.path("dev", disk)}
	for _, x := range list {
		name := x.Name()
		if name == disk || d.built(name) {
			continue
		}
		parts, err := d.partitions(name)
		if err != nil {
			continue // a partition, another kind of disk
		}
		if slices.ContainsFunc(parts, func(p Partition) bool {
			return slices.ContainsFunc(mine, func(q Partition) bool { return p.UUID == q.UUID })
		}) {
			e.Twins = append(e.Twins, d.path("dev", name))
		}
	}
	if len(e.Twins) == 0 {
		return nil
	}
	slices.Sort(e.Twins)
	return e
}

// built tells whether a device is a part of another one, not there at boot, or too
// small for a system. Drives whose medium takes long to be found are not opened.
func (d finder) built(name string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "sr", "fd"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	const least = 32 << 11 // units of 512 bytes: 32 MiB
	if text, err := os.ReadFile(d.path("sys/class/block", name, "size")); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && n < least {
			return true
		}
	}
	holders, err := os.ReadDir(d.path("sys/class/block", name, "holders"))
	return err == nil && len(holders) > 0
}
