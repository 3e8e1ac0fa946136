package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sys/unix"
)

// WriteFile makes name hold data, atomically and durably: temporary file, fsync,
// link or rename, fsync of the directory. Perm is set exactly.
func (d *Dir) WriteFile(name string, data []byte, perm uint32) (err error) {
	parent := d
	if dir, base, err := split(name); err != nil {
		return d.wrap("write", name, err)
	} else if dir != "" {
		if parent, err = d.Sub(dir); err != nil {
			return err
		}
		defer parent.Close() //nolint:errcheck // synced below
		name = base
	}
	t, err := parent.CreateTemp(perm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Discard()) }()
	if _, err := t.Write(data); err != nil {
		return err
	}
	if err := t.Chmod(perm); err != nil {
		return err
	}
	if err := t.Sync(); err != nil {
		return err
	}
	if err := t.Replace(parent, name); err != nil {
		return err
	}
	return parent.Sync()
}

// CreateExclusive makes the file name, which must not exist, with all bytes of r,
// and fsyncs it: the way to write on vfat. It returns the number of bytes. On an
// error the file is removed again, unless the removal fails too; the name must
// count as used. Follow it by SyncFS and ReadBack.
func (d *Dir) CreateExclusive(name string, r io.Reader, perm uint32) (n int64, err error) {
	f, err := d.Create(name, perm)
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, d.Remove(name))
		}
	}()
	n, err = f.ReadFrom(r)
	if err != nil {
		return n, err
	}
	return n, f.Sync()
}

// ReplaceSymlink makes name a symbolic link to target. An existing link with that
// target is left alone, another one is replaced atomically by way of a temporary
// link in temp (on the same file system) with a random name that starts with
// prefix. Nothing is synced.
func (d *Dir) ReplaceSymlink(target, name string, temp *Dir, prefix string) error {
	err := d.Symlink(target, name)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	old, err := d.Readlink(name)
	if err == nil && old == target {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace by a symbolic link: %w", err) // not a link: leave it
	}
	var link string
	if err := tryNames(prefix, func(s string) error {
		link = s
		return temp.Symlink(target, s)
	}); err != nil {
		return err
	}
	if err := temp.Rename(link, d, name); err != nil {
		return errors.Join(err, temp.Remove(link))
	}
	return nil
}

// Sync makes the names in d durable (fsync of the directory).
func (d *Dir) Sync() error {
	op := Op{Kind: OpSyncDir, DirFD: d.fd, NewDirFD: -1, FD: -1, Path: d.path}
	return d.wrap("fsync", "", do(d.hook, op, func() error { return unix.Fsync(d.fd) }))
}

// SyncFS makes everything on the file system of d durable (syncfs). A write-back
// error since d was opened is reported once per open directory (Linux 5.8).
func (d *Dir) SyncFS() error {
	op := Op{Kind: OpSyncFS, DirFD: d.fd, NewDirFD: -1, FD: -1, Path: d.path}
	return d.wrap("syncfs", "", do(d.hook, op, func() error { return unix.Syncfs(d.fd) }))
}

// ReadBack copies what the medium holds of the file name to w: it writes the
// file back, drops its pages from the cache and reads with O_DIRECT where the
// file system can. It returns the number of bytes.
func (d *Dir) ReadBack(name string, w io.Writer) (int64, error) {
	f, err := d.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fd := int(f.Fd())
	if err := unix.Fdatasync(fd); err != nil {
		return 0, d.wrap("fdatasync", name, err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		return 0, d.wrap("drop cached pages", name, err)
	}
	buf, free, err := alignedBuffer(1 << 20)
	if err != nil {
		return 0, d.wrap("read back", name, err)
	}
	defer free()
	direct := unix.SetNonblock(fd, false) == nil && setDirect(fd, true)
	var n int64
	for {
		m, err := unix.Pread(fd, buf, n)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL) && direct: // misaligned tail, or not supported after all
			direct = false
			setDirect(fd, false)
			continue
		case err != nil:
			return n, d.wrap("read back", name, err)
		case m == 0:
			return n, nil
		}
		if _, err := w.Write(buf[:m]); err != nil {
			return n, err
		}
		n += int64(m)
	}
}

func setDirect(fd int, on bool) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return false
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags)
	return err == nil
}

// alignedBuffer returns page-aligned memory, as O_DIRECT wants it.
func alignedBuffer(size int) ([]byte, func(), error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, nil, err
	}
	return b, func() { _ = unix.Munmap(b) }, nil
}
