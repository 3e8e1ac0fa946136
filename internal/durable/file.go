package durable

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// File is a file being written. It is used by one goroutine.
type File struct {
	d    *Dir
	fd   int
	name string
	size int64
}

// Create makes the file name, which must not exist (O_EXCL), with perm less the
// umask, and opens it for writing.
func (d *Dir) Create(name string, perm uint32) (*File, error) {
	dirFD, base, done, err := d.at(name)
	if err != nil {
		return nil, d.wrap("create", name, err)
	}
	defer done()
	f := &File{d: d, fd: -1, name: name}
	if err := f.create(dirFD, base, perm); err != nil {
		return nil, d.wrap("create", name, err)
	}
	return f, nil
}

func (f *File) create(dirFD int, base string, perm uint32) error {
	op := Op{Kind: OpCreate, DirFD: dirFD, Name: base, NewDirFD: -1, FD: -1, Path: f.name}
	fd, err := doOpen(f.d.hook, op, func() (int, error) {
		return unix.Openat(dirFD, base, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
	})
	f.fd = fd
	return err
}

// Write appends p. When it fails, a part of p may have been written.
func (f *File) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		var m int
		var err error
		if f.d.hook == nil {
			m, err = unix.Write(f.fd, p[n:])
		} else {
			m, err = f.writeHooked(p[n:])
		}
		if m > 0 {
			n += m
			f.size += int64(m)
		}
		if err == unix.EINTR { //nolint:errorlint // a bare errno, on the hot path
			continue
		}
		if err != nil {
			return n, f.d.wrapSize("write", f.name, int64(len(p)-n), err)
		}
	}
	return n, nil
}

// writeHooked writes half of p before it reports a refused call, as a full disk
// does.
func (f *File) writeHooked(p []byte) (m int, err error) {
	refused := do(f.d.hook, f.op(OpWrite), func() (err error) {
		m, err = unix.Write(f.fd, p)
		return err
	})
	if _, errno := refused.(unix.Errno); errno && m == 0 { //nolint:errorlint // a bare errno, not one wrapped by a kill
		m, _ = unix.Write(f.fd, p[:len(p)/2])
	}
	return max(m, 0), refused
}

// ReadFrom appends all of r, in pieces of 256 KiB. Any error of r but io.EOF is
// returned, io.ErrUnexpectedEOF too: it means a source that was cut.
func (f *File) ReadFrom(r io.Reader) (int64, error) {
	buf := make([]byte, 256<<10)
	var total int64
	for {
		fill := 0
		var err error
		for fill < len(buf) && err == nil {
			var n int
			n, err = r.Read(buf[fill:])
			fill += n
		}
		n, werr := f.Write(buf[:fill])
		total += int64(n)
		switch {
		case werr != nil:
			return total, werr
		case err == io.EOF:
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// Size returns the number of bytes written so far.
func (f *File) Size() int64 { return f.size }

// Fd returns the descriptor, which stays owned by f.
func (f *File) Fd() int { return f.fd }

// Sync makes the content durable (fsync); on a journaled file system not the
// name, for that use Dir.Sync.
func (f *File) Sync() error {
	err := do(f.d.hook, f.op(OpFsync), func() error { return unix.Fsync(f.fd) })
	return f.d.wrap("fsync", f.name, err)
}

// Truncate sets the size to size bytes; what is new is a hole.
func (f *File) Truncate(size int64) error {
	return f.meta("truncate", func() error { return unix.Ftruncate(f.fd, size) })
}

// Chmod sets the permission bits (12 bits, not masked by the umask).
func (f *File) Chmod(mode uint32) error {
	return f.meta("chmod", func() error { return unix.Fchmod(f.fd, mode) })
}

// Chown sets owner and group; -1 keeps one. It clears the set-user-ID and
// set-group-ID bits, so call Chmod after it.
func (f *File) Chown(uid, gid int) error {
	return f.meta("chown", func() error { return unix.Fchown(f.fd, uid, gid) })
}

// Setxattr sets one extended attribute.
func (f *File) Setxattr(attr string, value []byte) error {
	return f.meta("set "+attr, func() error { return unix.Fsetxattr(f.fd, attr, value, 0) })
}

// Utimes sets the access and modification time. A later Write changes them.
func (f *File) Utimes(atime, mtime unix.Timespec) error {
	return f.meta("set times", func() error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(f.fd), []unix.Timespec{atime, mtime}, 0)
	})
}

// Close closes the file. It reports write errors of file systems that keep them
// until then; it does not sync.
func (f *File) Close() error {
	if f.fd < 0 {
		return nil
	}
	return f.d.wrap("close", f.name, f.closeWriter())
}

// closeWriter closes under the fork lock, so that fewer children hold a copy of
// a writable descriptor when fs-verity is enabled next (go-ecosystem.md 6.1).
func (f *File) closeWriter() error {
	fd := f.fd
	f.fd = -1
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return unix.Close(fd)
}

func (f *File) meta(what string, call func() error) error {
	return f.d.wrap(what, f.name, do(f.d.hook, f.op(OpMeta), call))
}

func (f *File) op(kind Kind) Op {
	return Op{Kind: kind, DirFD: -1, NewDirFD: -1, FD: f.fd, Path: f.name}
}

// Temp is a file that has no final name yet. It ends in Link, Replace or
// Discard; a crash before that leaves nothing, or on file systems without
// O_TMPFILE a file with the temporary prefix.
type Temp struct {
	File
	sealed *os.File
	named  string // temporary name below d; empty for an unnamed file
	done   bool
}

// DefaultTempPrefix starts the names of CreateTemp on file systems without
// O_TMPFILE, and of files that are about to replace another one.
const DefaultTempPrefix = ".cfsboot-tmp-"

// CreateTemp makes an unnamed file on the file system of d, with perm less the
// umask, readable and writable through Fd.
func (d *Dir) CreateTemp(perm uint32) (*Temp, error) {
	return d.CreateTempPrefix(DefaultTempPrefix, perm)
}

// CreateTempPrefix is CreateTemp with another prefix for named temporaries.
func (d *Dir) CreateTempPrefix(prefix string, perm uint32) (*Temp, error) {
	t := &Temp{File: File{d: d, fd: -1, name: prefix}}
	op := Op{Kind: OpTemp, DirFD: d.fd, NewDirFD: -1, FD: -1, Path: prefix}
	fd, err := doOpen(d.hook, op, func() (int, error) { return openTemp(d.fd, perm) })
	t.fd = fd
	if err == nil {
		return t, nil
	}
	// EISDIR: a kernel or file system that takes O_TMPFILE for O_DIRECTORY.
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EISDIR) {
		return nil, d.wrap("create temporary", "", err)
	}
	err = tryNames(prefix, func(name string) error {
		t.named, t.name = name, name
		return t.create(d.fd, name, perm)
	})
	if err != nil {
		return nil, d.wrap("create temporary", t.named, err)
	}
	return t, nil
}

func openTemp(dirFD int, perm uint32) (int, error) {
	return unix.Openat(dirFD, ".", unix.O_RDWR|unix.O_TMPFILE|unix.O_CLOEXEC, perm)
}

// tryNames calls use with random names until one does not exist yet.
func tryNames(prefix string, use func(name string) error) error {
	var err error
	for range 16 {
		if err = use(prefix + rand.Text()[:12]); !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return err
}

// Seal reopens the file for reading and closes the writer. The returned file
// stays owned by t; fs-verity can be enabled on it.
func (t *Temp) Seal() (*os.File, error) {
	if t.sealed != nil {
		return t.sealed, nil
	}
	fd, err := openEINTR(func() (int, error) {
		return unix.Open(procPath(t.fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, t.d.wrap("reopen temporary", t.named, err)
	}
	t.sealed = os.NewFile(uintptr(fd), path.Join(t.d.path, t.name))
	if err := t.closeWriter(); err != nil {
		return nil, t.d.wrap("close temporary", t.named, err)
	}
	return t.sealed, nil
}

// Sync makes the content durable, before or after Seal.
func (t *Temp) Sync() error {
	op := t.op(OpFsync)
	op.FD = t.current()
	return t.d.wrap("fsync", t.name, do(t.d.hook, op, func() error { return unix.Fsync(t.current()) }))
}

// ReadAt reads what was written.
func (t *Temp) ReadAt(p []byte, offset int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(t.current(), p[n:], offset+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return n, t.d.wrap("read", t.name, err)
		case m == 0:
			return n, io.EOF
		default:
			n += m
		}
	}
	return n, nil
}

// Link gives the file its name below dir. If the name exists the error is
// fs.ErrExist and the temporary can still be used or discarded. After success t
// is finished.
func (t *Temp) Link(dir *Dir, name string) error {
	fd, base, done, err := dir.at(name)
	if err != nil {
		return dir.wrap("link", name, err)
	}
	defer done()
	if err := t.linkAt(fd, base, name); err != nil {
		return dir.wrap("link", name, err)
	}
	return t.finish()
}

func (t *Temp) linkAt(fd int, base, name string) error {
	if t.named == "" {
		op := Op{Kind: OpLink, DirFD: -1, NewDirFD: fd, NewName: base, FD: t.current(), Path: name}
		if t.d.hook == nil {
			return linkFD(t.current(), fd, base)
		}
		return do(t.d.hook, op, func() error { return linkFD(t.current(), fd, base) })
	}
	op := Op{Kind: OpRename, DirFD: t.d.fd, Name: t.named, NewDirFD: fd, NewName: base, FD: -1, Path: name}
	err := do(t.d.hook, op, func() error {
		return unix.Renameat2(t.d.fd, t.named, fd, base, unix.RENAME_NOREPLACE)
	})
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		if err == nil {
			t.named = ""
		}
		return err
	}
	// No RENAME_NOREPLACE here: a hard link fails on an existing name as well.
	op.Kind = OpLink
	if err := do(t.d.hook, op, func() error { return unix.Linkat(t.d.fd, t.named, fd, base, 0) }); err != nil {
		return err
	}
	return t.unlinkNamed()
}

// Replace gives the file its name below dir and atomically replaces a file that
// has it already.
func (t *Temp) Replace(dir *Dir, name string) error {
	fd, base, done, err := dir.at(name)
	if err != nil {
		return dir.wrap("replace", name, err)
	}
	defer done()
	if t.named == "" {
		err := t.linkAt(fd, base, name)
		if err == nil {
			return t.finish()
		}
		if !errors.Is(err, unix.EEXIST) {
			return dir.wrap("link", name, err)
		}
		prefix := t.name
		if err := tryNames(prefix, func(temp string) error {
			if err := t.linkAt(t.d.fd, temp, temp); err != nil {
				return err
			}
			t.named = temp
			return nil
		}); err != nil {
			return t.d.wrap("link", prefix, err)
		}
	}
	op := Op{Kind: OpRename, DirFD: t.d.fd, Name: t.named, NewDirFD: fd, NewName: base, FD: -1, Path: name}
	if err := do(t.d.hook, op, func() error { return unix.Renameat(t.d.fd, t.named, fd, base) }); err != nil {
		return dir.wrap("rename temporary to", name, err)
	}
	t.named = ""
	return t.finish()
}

// Discard drops the file. After Link or Replace it does nothing, so that it can
// be deferred.
func (t *Temp) Discard() error {
	if t.done {
		return nil
	}
	var err error
	if t.named != "" {
		err = t.d.wrap("remove temporary", t.named, t.unlinkNamed())
	}
	return errors.Join(err, t.finish())
}

func (t *Temp) unlinkNamed() error {
	op := Op{Kind: OpUnlink, DirFD: t.d.fd, Name: t.named, NewDirFD: -1, FD: -1, Path: t.named}
	err := do(t.d.hook, op, func() error { return unix.Unlinkat(t.d.fd, t.named, 0) })
	if err == nil {
		t.named = ""
	}
	return err
}

func (t *Temp) finish() error {
	t.done = true
	var err error
	if t.sealed != nil {
		err = t.sealed.Close()
	}
	return errors.Join(err, t.Close())
}

func (t *Temp) current() int {
	if t.fd < 0 && t.sealed != nil {
		return int(t.sealed.Fd())
	}
	return t.fd
}

// noEmptyPath is set once the kernel has refused to link by descriptor alone,
// which before Linux 6.10 takes CAP_DAC_READ_SEARCH.
var noEmptyPath atomic.Bool

func linkFD(fd, dirFD int, name string) error {
	if !noEmptyPath.Load() {
		err := unix.Linkat(fd, "", dirFD, name, unix.AT_EMPTY_PATH)
		if err != unix.ENOENT {
			return err
		}
	}
	err := unix.Linkat(unix.AT_FDCWD, procPath(fd), dirFD, name, unix.AT_SYMLINK_FOLLOW)
	if err == nil {
		noEmptyPath.Store(true)
	}
	return err
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
