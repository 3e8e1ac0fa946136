package durable

import (
	"errors"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// Mkdir makes the directory name with perm, less the umask.
func (d *Dir) Mkdir(name string, perm uint32) error {
	return d.entry(OpMkdir, name, func(fd int, base string) error { return unix.Mkdirat(fd, base, perm) })
}

// MkdirAll makes the directory name and its missing parents, each with perm,
// and opens it. Existing directories are left as they are.
func (d *Dir) MkdirAll(name string, perm uint32) (*Dir, error) {
	sub, err := d.Sub(name)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return sub, err
	}
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		if err := d.Mkdir(name[:i], perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return d.Sub(name)
}

// Symlink makes the symbolic link name with this target, which is not checked.
func (d *Dir) Symlink(target, name string) error {
	return d.entry(OpSymlink, name, func(fd int, base string) error { return unix.Symlinkat(target, fd, base) })
}

// Mknod makes a device, FIFO or socket. Mode holds type and permission bits and
// is subject to the umask.
func (d *Dir) Mknod(name string, mode uint32, dev uint64) error {
	return d.entry(OpMknod, name, func(fd int, base string) error {
		return unix.Mknodat(fd, base, mode, int(dev))
	})
}

// Remove removes the file, link or empty directory name.
func (d *Dir) Remove(name string) error {
	err := d.entry(OpUnlink, name, func(fd int, base string) error { return unix.Unlinkat(fd, base, 0) })
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	return d.entry(OpRmdir, name, func(fd int, base string) error { return unix.Unlinkat(fd, base, unix.AT_REMOVEDIR) })
}

// RemoveAll removes name and everything below it; a missing name is no error.
// It stays on the file system of name: a mount point below it is an error.
func (d *Dir) RemoveAll(name string) error {
	err := d.Remove(name)
	switch {
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrExist):
		return err
	}
	sub, err := d.Sub(name)
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // nothing was written through it
	list, err := sub.ReadDir()
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := sub.RemoveAll(e.Name); err != nil {
			return err
		}
	}
	return d.Remove(name)
}

// Link makes newName below newDir a hard link of name, which is not followed.
func (d *Dir) Link(name string, newDir *Dir, newName string) error {
	return d.two(OpLink, name, newDir, newName, func(fd int, base string, nfd int, nbase string) error {
		return unix.Linkat(fd, base, nfd, nbase, 0)
	})
}

// Rename moves name to newName below newDir and replaces what is there.
func (d *Dir) Rename(name string, newDir *Dir, newName string) error {
	return d.two(OpRename, name, newDir, newName, unix.Renameat)
}

// Exchange swaps two existing entries atomically.
func (d *Dir) Exchange(name string, newDir *Dir, newName string) error {
	return d.two(OpExchange, name, newDir, newName, func(fd int, base string, nfd int, nbase string) error {
		return unix.Renameat2(fd, base, nfd, nbase, unix.RENAME_EXCHANGE)
	})
}

// Mutate runs a mutating call that this package does not know, for example an
// ioctl, under the hook of d. Call must not call this package.
func (d *Dir) Mutate(what string, call func() error) error {
	return do(d.hook, Op{Kind: OpOther, DirFD: -1, NewDirFD: -1, FD: -1, Path: what}, call)
}

// entry runs one call on the entry name.
func (d *Dir) entry(kind Kind, name string, call func(fd int, base string) error) error {
	fd, base, done, err := d.at(name)
	if err != nil {
		return d.wrap(string(kind), name, err)
	}
	defer done()
	op := Op{Kind: kind, DirFD: fd, Name: base, NewDirFD: -1, FD: -1, Path: name}
	return d.wrap(string(kind), name, do(d.hook, op, func() error { return call(fd, base) }))
}

// two runs one call on a pair of entries.
func (d *Dir) two(kind Kind, name string, newDir *Dir, newName string, call func(fd int, base string, nfd int, nbase string) error) error {
	fd, base, done, err := d.at(name)
	if err != nil {
		return d.wrap(string(kind), name, err)
	}
	defer done()
	nfd, nbase, ndone, err := newDir.at(newName)
	if err != nil {
		return newDir.wrap(string(kind), newName, err)
	}
	defer ndone()
	op := Op{Kind: kind, DirFD: fd, Name: base, NewDirFD: nfd, NewName: nbase, FD: -1, Path: newName}
	err = do(d.hook, op, func() error { return call(fd, base, nfd, nbase) })
	return newDir.wrap(string(kind)+" "+strings.TrimPrefix(name, "./")+" to", newName, err)
}
