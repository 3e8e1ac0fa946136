package setuproot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// describe makes the record of what was mounted.
func describe(o Options, img *image, sysroot *os.File, etc, variable MountMode) record.Booted {
	b := record.Booted{
		Digest:    img.id().Hex(),
		Algorithm: img.id().Algorithm().Name() + "-12",
		Karg:      img.karg.String(),
		Secure:    !img.karg.Insecure,
		Gate:      "digest",
		Etc:       string(etc),
		Var:       string(variable),
		Root:      "ro",
		Erofs:     "file",
		Tried:     img.tried,
	}
	if o.Policy.TransientRoot {
		b.Root = "transient"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		b.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var st unix.Stat_t
	if unix.Fstat(int(sysroot.Fd()), &st) == nil {
		b.Sysroot.Dev = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	}
	b.Sysroot.UUID = fsUUID(sysroot)
	return b
}

// fsUUID asks the file system for its UUID (FS_IOC_GETFSUUID, Linux 6.9); "" if it does not tell.
func fsUUID(f *os.File) string {
	const getFSUUID = 0x80111500 // _IOR(0x15, 0, struct fsuuid2)
	var arg struct {
		n    uint8
		uuid [16]byte
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), getFSUUID, uintptr(unsafe.Pointer(&arg))); errno != 0 || arg.n != 16 {
		return ""
	}
	u := arg.uuid
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// volatileRoot leaves the link that lets systemd find the disk behind an overlay root, without which it does not mount
// the ESP by itself. The text must be /dev/block/MAJ:MIN: systemd parses it. "-" as link: none. An existing link stays.
func volatileRoot(link string, sysroot *os.File) error {
	if link == "-" {
		return nil
	}
	var st unix.Stat_t
	dev := uint64(0)
	if unix.Stat("/dev/gpt-auto-root", &st) == nil {
		dev = st.Rdev
	} else if err := unix.Fstat(int(sysroot.Fd()), &st); err != nil {
		return err
	} else {
		dev = st.Dev
	}
	if unix.Major(dev) == 0 {
		return nil // no single block device, as for btrfs
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return err
	}
	err := os.Symlink(fmt.Sprintf("/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev)), link)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}
