package durable

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Chmod sets the permission bits (12 bits, not masked by the umask) of name. A
// symbolic link has none; the error is EOPNOTSUPP.
func (d *Dir) Chmod(name string, mode uint32) error {
	return d.meta("chmod", name, func(fd int, base string) error {
		// fchmodat2 is younger than the kernels we run on: go through a path
		// descriptor, so that a link put there meanwhile is not followed.
		pfd, err := unix.Openat(fd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(pfd) //nolint:errcheck // a path descriptor
		var st unix.Stat_t
		if err := unix.Fstat(pfd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		return unix.Fchmodat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", pfd), mode, 0)
	})
}

// Lchown sets owner and group of name itself; -1 keeps one. It clears the
// set-user-ID and set-group-ID bits of a file, so call Chmod after it.
func (d *Dir) Lchown(name string, uid, gid int) error {
	return d.meta("chown", name, func(fd int, base string) error {
		return unix.Fchownat(fd, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Utimes sets the access and modification time of name itself.
func (d *Dir) Utimes(name string, atime, mtime unix.Timespec) error {
	return d.meta("set times", name, func(fd int, base string) error {
		return unix.UtimesNanoAt(fd, base, []unix.Timespec{atime, mtime}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// Setxattr sets one extended attribute of name itself.
func (d *Dir) Setxattr(name, attr string, value []byte) error {
	return d.meta("set "+attr, name, func(fd int, base string) error {
		return unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base), attr, value, 0)
	})
}

// Xattrs returns all extended attributes of name itself that this process may
// read; "." is the directory; nil if the file system has none.
func (d *Dir) Xattrs(name string) (map[string]string, error) {
	if name == "." {
		m, err := xattrs(procPath(d.fd) + "/.")
		return m, d.wrap("list attributes", name, err)
	}
	fd, base, done, err := d.at(name)
	if err != nil {
		return nil, d.wrap("list attributes", name, err)
	}
	defer done()
	m, err := xattrs(fmt.Sprintf("/proc/self/fd/%d/%s", fd, base))
	return m, d.wrap("list attributes", name, err)
}

func (d *Dir) meta(what, name string, call func(fd int, base string) error) error {
	fd, base, done, err := d.at(name)
	if err != nil {
		return d.wrap(what, name, err)
	}
	defer done()
	op := Op{Kind: OpMeta, DirFD: fd, Name: base, NewDirFD: -1, FD: -1, Path: name}
	return d.wrap(what, name, do(d.hook, op, func() error { return call(fd, base) }))
}

func xattrs(path string) (map[string]string, error) {
	names, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	m := make(map[string]string)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(names, []byte{0}), []byte{0}) {
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, string(name), b) })
		switch {
		case errors.Is(err, unix.ENODATA): // removed meanwhile, or not for us
		case err != nil:
			return nil, err
		default:
			m[string(name)] = string(value)
		}
	}
	return m, nil
}

// grow calls get with larger buffers until the answer fits.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	for size := 1024; ; size *= 4 {
		b := make([]byte, size)
		n, err := get(b)
		if errors.Is(err, unix.ERANGE) && size < 1<<20 {
			continue
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}
