package mnt

import "strconv"

// Ext4 returns a detached, writable mount of the ext4 file system on the block device, for this process alone: no
// other name leads to it, and it disappears with the last descriptor below it. The root directory is opened through
// Mount.File.
func Ext4(device string) (*Mount, error) {
	c, err := openContext("ext4", "mount root file system "+strconv.Quote(device))
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source", device); err != nil {
		return nil, err
	}
	return c.mount(NoSuid | NoDev | NoExec)
}

// Supports tells whether the kernel can mount file systems of a type, loading its module if there is one. Otherwise
// the error is a *FeatureError, or says that the process may not mount.
func Supports(fstype string) error {
	c, err := openContext(fstype, "mount "+fstype)
	if err != nil {
		return err
	}
	c.close()
	return nil
}
