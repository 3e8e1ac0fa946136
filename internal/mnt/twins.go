package mnt

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Twins returns the kernel's names of the block devices whose file systems have the UUID of the one on dev ("major:minor"), that
// one first; nil if there is no second one, or nobody knows. A copy of a disk is such a twin: which of the two a UUID stands for is
// chance. Devices that others are made of (members of an array, paths of one disk) and loop devices, which are not there at boot, are left
// out. It reads what udev wrote down
// (run/udev/data) and sysfs below root, for which no privileges are needed.
func Twins(root, dev string) []string {
	uuid := udevProperty(root, dev, "ID_FS_UUID")
	if uuid == "" {
		return nil
	}
	files, err := os.ReadDir(filepath.Join(root, "run/udev/data"))
	if err != nil {
		return nil
	}
	var names []string
	for _, x := range files {
		other, ok := strings.CutPrefix(x.Name(), "b")
		if !ok || other == dev || udevProperty(root, other, "ID_FS_UUID") != uuid || udevProperty(root, other, "ID_FS_USAGE") != "filesystem" {
			continue
		}
		if name, free := blockName(root, other); free && !strings.HasPrefix(name, "loop") {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	first, _ := blockName(root, dev)
	return append([]string{first}, names...)
}

// maxUdev bounds a file of udev's, in bytes.
const maxUdev = 64 << 10

// udevProperty reads one property of a block device, "" if it has none.
func udevProperty(root, dev, name string) string {
	path := filepath.Join(root, "run/udev/data", "b"+dev)
	if info, err := os.Stat(path); err != nil || info.Size() > maxUdev {
		return ""
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range bytes.Lines(data) {
		if value, ok := bytes.CutPrefix(line, []byte("E:"+name+"=")); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// blockName returns the kernel's name of a block device, and whether it is there and no other device is made of it.
func blockName(root, dev string) (name string, free bool) {
	path, err := filepath.EvalSymlinks(filepath.Join(root, "sys/dev/block", dev))
	if err != nil {
		return dev, false
	}
	holders, err := os.ReadDir(filepath.Join(path, "holders"))
	return filepath.Base(path), err != nil || len(holders) == 0
}
