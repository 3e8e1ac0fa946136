package install

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoUUID means that the file system of the target has no UUID that can be
// found, so that the kernel command line has to name the root otherwise.
var ErrNoUUID = errors.New("the file system has no UUID that can be read")

// FSUUID returns the UUID of the file system of the open directory fd, as it
// stands behind root=UUID=. It asks the kernel, because inside a lab or a
// container there is no udev and so no /dev/disk/by-uuid: FS_IOC_GETFSUUID
// (Linux 6.9), the older calls of ext4 (5.19) and btrfs; then it looks for the
// device in byUUID, normally /dev/disk/by-uuid. Otherwise the error is
// ErrNoUUID.
func FSUUID(fd int, byUUID string) (string, error) {
	for _, ask := range []func(int) ([16]byte, error){genericUUID, ext4UUID, btrfsUUID} {
		if id, err := ask(fd); err == nil && id != ([16]byte{}) {
			return formatUUID(id), nil
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", fmt.Errorf("stat target: %w", err)
	}
	links, err := os.ReadDir(byUUID)
	if err != nil {
		return "", ErrNoUUID
	}
	for _, link := range links {
		var dev unix.Stat_t
		if unix.Stat(filepath.Join(byUUID, link.Name()), &dev) == nil && dev.Mode&unix.S_IFMT == unix.S_IFBLK && dev.Rdev == st.Dev {
			return link.Name(), nil
		}
	}
	return "", ErrNoUUID
}

func formatUUID(id [16]byte) string {
	h := hex.EncodeToString(id[:])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

func genericUUID(fd int) ([16]byte, error) {
	const request = 0x80111500 // FS_IOC_GETFSUUID, linux/fs.h
	var arg struct {
		len  uint8
		uuid [16]byte
	}
	if err := ioctl(fd, request, unsafe.Pointer(&arg)); err != nil {
		return [16]byte{}, err
	}
	if arg.len != 16 {
		return [16]byte{}, unix.EINVAL // vfat has 4 bytes
	}
	return arg.uuid, nil
}

func ext4UUID(fd int) ([16]byte, error) {
	const request = 0x8008662c // EXT4_IOC_GETFSUUID, linux/ext4.h
	if !hasType(fd, unix.EXT4_SUPER_MAGIC) {
		return [16]byte{}, unix.ENOTTY
	}
	arg := struct {
		len, flags uint32
		uuid       [16]byte
	}{len: 16}
	if err := ioctl(fd, request, unsafe.Pointer(&arg)); err != nil {
		return [16]byte{}, err
	}
	return arg.uuid, nil
}

func btrfsUUID(fd int) ([16]byte, error) {
	const request = 0x8400941f // BTRFS_IOC_FS_INFO, linux/btrfs.h
	if !hasType(fd, unix.BTRFS_SUPER_MAGIC) {
		return [16]byte{}, unix.ENOTTY
	}
	var arg struct {
		maxID, devices uint64
		uuid           [16]byte
		rest           [1024 - 32]byte
	}
	if err := ioctl(fd, request, unsafe.Pointer(&arg)); err != nil {
		return [16]byte{}, err
	}
	return arg.uuid, nil
}

func ioctl(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func hasType(fd int, magic int64) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && int64(st.Type) == magic //nolint:unconvert // 32 bits on some architectures
}

// TargetError says why a directory cannot be installed to.
type TargetError struct {
	Path   string
	Detail string // what was found and what was expected
}

func (e *TargetError) Error() string { return fmt.Sprintf("target %q: %s", e.Path, e.Detail) }

// ESPDirs are the places below a target where an ESP may be mounted, in the
// order in which they are tried.
var ESPDirs = []string{"boot/efi", "efi", "boot"}

// FindESP returns the path of the ESP that is mounted below the target root: the
// first of ESPDirs that is a mount point of a FAT file system. Without one the
// error is a *TargetError.
func FindESP(root string) (string, error) {
	for _, name := range ESPDirs {
		if path := filepath.Join(root, name); IsESP(path) {
			return path, nil
		}
	}
	return "", &TargetError{root, fmt.Sprintf("no FAT file system is mounted at %s below it", strings.Join(ESPDirs, ", "))}
}

// IsESP tells whether path is the root of a mounted FAT file system.
func IsESP(path string) bool {
	const msdosSuperMagic = 0x4d44
	var here, above unix.Stat_t
	var fs unix.Statfs_t
	return unix.Stat(path, &here) == nil && unix.Stat(filepath.Dir(path), &above) == nil && here.Dev != above.Dev &&
		unix.Statfs(path, &fs) == nil && fs.Type == msdosSuperMagic
}

// CheckESP refuses what is given as the ESP and is none, with a *TargetError.
func CheckESP(path string) error {
	if !IsESP(path) {
		return &TargetError{path, "no FAT file system is mounted there, want the EFI system partition"}
	}
	return nil
}
