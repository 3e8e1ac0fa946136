package mnt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	erofsSuperOffset = 1024       // byte offset of the superblock
	erofsMagic       = 0xE0F5E1E2 // EROFS_SUPER_MAGIC_V1, first 4 bytes of the superblock, little-endian
)

// EROFS returns a detached read-only mount of the image that is open in image (for reading, not O_PATH), with
// nodev, nosuid and noexec. The kernel is given the descriptor, not a name: what the caller measured on it is what
// is mounted. A kernel that cannot mount a regular file is a *FeatureError.
func EROFS(image *os.File) (*Mount, error) {
	if err := checkMagic(image); err != nil {
		return nil, err
	}
	c, err := openContext("erofs", fmt.Sprintf("mount erofs image %q", image.Name()))
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.flag("ro"); err != nil {
		return nil, err
	}
	if err := c.set("source", fmt.Sprintf("/proc/self/fd/%d", image.Fd())); err != nil {
		return nil, err
	}
	m, err := c.mount(ReadOnly | NoSuid | NoDev | NoExec)
	if err != nil {
		return nil, explainEROFS(err)
	}
	return m, nil
}

// explainEROFS recognises a kernel that looks for a block device where it was given a file.
func explainEROFS(err error) error {
	if errors.Is(err, unix.ENOTBLK) {
		return &FeatureError{Feature: "EROFS on a regular file", Option: "CONFIG_EROFS_FS_BACKED_BY_FILE, Linux 6.12", Err: err}
	}
	return err
}

// checkMagic separates "not an image" from the many other reasons of an EINVAL of the kernel.
func checkMagic(image *os.File) error {
	var b [4]byte
	if _, err := image.ReadAt(b[:], erofsSuperOffset); err != nil {
		return fmt.Errorf("read superblock of erofs image %q: %w", image.Name(), err)
	}
	if got := binary.LittleEndian.Uint32(b[:]); got != erofsMagic {
		return &Error{Op: fmt.Sprintf("mount erofs image %q: magic number %#x at byte %d, want %#x", image.Name(), got, erofsSuperOffset, uint32(erofsMagic)), Err: unix.EINVAL}
	}
	return nil
}
