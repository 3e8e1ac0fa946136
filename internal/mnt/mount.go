package mnt

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Attr is a set of per-mount attributes.
type Attr uint64

// Attributes of a mount; they restrict one mount and leave the file system itself alone.
const (
	ReadOnly Attr = unix.MOUNT_ATTR_RDONLY // MOUNT_ATTR_RDONLY
	NoSuid   Attr = unix.MOUNT_ATTR_NOSUID // MOUNT_ATTR_NOSUID
	NoDev    Attr = unix.MOUNT_ATTR_NODEV  // MOUNT_ATTR_NODEV
	NoExec   Attr = unix.MOUNT_ATTR_NOEXEC // MOUNT_ATTR_NOEXEC
)

// Propagation says how mounts below a mount spread to its peers.
type Propagation uint64

// Propagation types of mount_setattr.
const (
	Private Propagation = unix.MS_PRIVATE
	Slave   Propagation = unix.MS_SLAVE
	Shared  Propagation = unix.MS_SHARED
)

// Mount is a mount held by a descriptor. It starts detached: nobody else sees it, and it disappears with Close
// unless it was attached. Mount is not safe for concurrent use.
type Mount struct{ f *os.File }

// File is the descriptor (O_PATH) of the root of the mount; it stays owned by m.
func (m *Mount) File() *os.File { return m.f }

// Close gives up the descriptor. A mount that was attached stays.
func (m *Mount) Close() error { return m.f.Close() }

// SetAttr sets and clears attributes of this mount; an attribute in both is set.
func (m *Mount) SetAttr(set, clear Attr) error {
	return m.setattr("set mount attributes", &unix.MountAttr{Attr_set: uint64(set), Attr_clr: uint64(clear)})
}

// SetPropagation changes how mounts below m spread.
func (m *Mount) SetPropagation(p Propagation) error {
	return m.setattr("set propagation", &unix.MountAttr{Propagation: uint64(p)})
}

func (m *Mount) setattr(what string, attr *unix.MountAttr) error {
	if err := unix.MountSetattr(int(m.f.Fd()), "", unix.AT_EMPTY_PATH, attr); err != nil {
		if errors.Is(err, unix.ENOSYS) {
			return &FeatureError{Feature: "mount_setattr", Option: "Linux 5.12", Err: err}
		}
		return &Error{Op: what + " of " + m.f.Name(), Err: err}
	}
	return nil
}

// Attach puts a detached mount on the directory path. Symbolic links in path are followed: it must be a path the
// caller made or trusts.
func (m *Mount) Attach(path string) error {
	if err := unix.MoveMount(int(m.f.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS); err != nil {
		return &Error{Op: fmt.Sprintf("attach %s at %q", m.f.Name(), path), Err: err}
	}
	return nil
}

// AttachAt puts a detached mount on the directory name, one or more components below dir, without following a
// symbolic link or leaving dir. A missing directory is fs.ErrNotExist.
func (m *Mount) AttachAt(dir *os.File, name string) error {
	target, err := OpenBelow(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := unix.MoveMount(int(m.f.Fd()), "", int(target.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &Error{Op: fmt.Sprintf("attach %s at %q", m.f.Name(), target.Name()), Err: err}
	}
	return nil
}

// OpenBelow opens name below dir with openat2; resolve are RESOLVE_ flags, to which RESOLVE_NO_MAGICLINKS is
// added. The error is an *fs.PathError that names the whole path.
func OpenBelow(dir *os.File, name string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	path := dir.Name() + "/" + name
	err := error(unix.EAGAIN)
	for range 128 {
		var fd int
		fd, err = unix.Openat2(int(dir.Fd()), name, &how)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			break // EAGAIN: a rename raced with RESOLVE_BENEATH
		}
	}
	return nil, &os.PathError{Op: "open", Path: path, Err: err}
}

// Clone returns a detached copy of the mount that dir lies on, with dir as its root: a bind mount that is not
// attached yet. Mounts below dir are not copied. The copy keeps the attributes of the original.
func Clone(dir *os.File) (*Mount, error) {
	fd, err := unix.OpenTree(int(dir.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, &Error{Op: fmt.Sprintf("clone the mount of %q", dir.Name()), Err: err}
	}
	return &Mount{f: os.NewFile(uintptr(fd), dir.Name())}, nil
}

// Tmpfs returns a detached new tmpfs whose root has the given permissions.
func Tmpfs(source string, mode os.FileMode) (*Mount, error) {
	c, err := openContext("tmpfs", "mount tmpfs "+strconv.Quote(source))
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source", source); err != nil {
		return nil, err
	}
	if err := c.set("mode", strconv.FormatUint(uint64(mode.Perm()), 8)); err != nil {
		return nil, err
	}
	return c.mount(NoSuid | NoDev)
}

// Move moves the mount at from, with everything below it, to the directory to. The parent of from must not be
// shared.
func Move(from, to string) error {
	if err := unix.MoveMount(unix.AT_FDCWD, from, unix.AT_FDCWD, to, 0); err != nil {
		return &Error{Op: fmt.Sprintf("move mount %q to %q", from, to), Err: err}
	}
	return nil
}

// Detach unmounts the topmost mount at path and everything below it lazily: it is gone from the tree at once,
// open files keep working.
func Detach(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &Error{Op: fmt.Sprintf("unmount %q", path), Err: err}
	}
	return nil
}

// IsRoot reports whether dir is the root directory of a mount.
func IsRoot(dir *os.File) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(dir.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE, &st); err != nil {
		return false, &os.PathError{Op: "statx", Path: dir.Name(), Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, &FeatureError{Feature: "statx STATX_ATTR_MOUNT_ROOT", Option: "Linux 5.8"}
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// PrivateDir binds the directory path onto itself and makes that mount private, so that mounts below it spread
// nowhere and can be moved. Undo with Detach(path).
func PrivateDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := Clone(dir)
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := m.Attach(path); err != nil {
		return err
	}
	// A mount attached under a shared parent becomes shared itself, so this comes after Attach.
	if err := m.SetPropagation(Private); err != nil {
		return errors.Join(err, Detach(path))
	}
	return nil
}

// PrivateWritable returns a directory descriptor of path on a detached read-write copy of its mount: files below
// it can be changed although the mount at path is read-only, and no other process sees the copy. The copy lives as
// long as a descriptor below it is open; /proc/self/fd/N of the result is a path to it for this process. It needs
// CAP_SYS_ADMIN, and a file system that is itself writable: otherwise the error wraps EROFS.
// Layers of an overlay mount must not be named through it: kernels before 6.15 refuse layers on detached mounts.
func PrivateWritable(path string) (*os.File, error) {
	dir, err := os.OpenFile(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	m, err := Clone(dir)
	if err != nil {
		return nil, err
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := m.SetAttr(0, ReadOnly); err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(m.f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err == nil && st.Flags&unix.ST_RDONLY != 0 {
		f.Close()
		return nil, &os.PathError{Op: "make writable", Path: path, Err: unix.EROFS}
	}
	return f, nil
}
