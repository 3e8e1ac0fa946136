package mnt

import "strconv"

// FAT returns a detached, writable mount of the FAT file system on the block device, for this process alone: no
// other name leads to it, and it disappears with the last descriptor below it. Files get mode 0600, directories
// 0700. dirsync makes the kernel write directory changes at once, a belt beside the syncfs of the caller
// (lifecycle.md 6.2). The root directory is opened through Mount.File. A device that cannot be written is EACCES,
// one without a FAT file system EINVAL.
func FAT(device string) (*Mount, error) { return fat(device, "dirsync") }

// ReadOnlyFAT is FAT for looking only, also at a device that cannot be written.
func ReadOnlyFAT(device string) (*Mount, error) { return fat(device, "ro") }

func fat(device, flag string) (*Mount, error) {
	c, err := openContext("vfat", "mount boot partition "+strconv.Quote(device))
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source", device); err != nil {
		return nil, err
	}
	for _, o := range [][2]string{{"fmask", "0177"}, {"dmask", "0077"}} {
		if err := c.set(o[0], o[1]); err != nil {
			return nil, err
		}
	}
	if err := c.flag(flag); err != nil {
		return nil, err
	}
	return c.mount(NoSuid | NoDev | NoExec)
}
