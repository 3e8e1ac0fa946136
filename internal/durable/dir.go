package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// Dir is an open directory.
type Dir struct {
	file *os.File // keeps the descriptor alive and closes it
	fd   int
	path string // for messages only, never resolved again
	hook Hook
}

// OpenDir opens the directory at path, following symbolic links. It is opened
// for reading, so that it can be locked with flock.
func OpenDir(path string) (*Dir, error) {
	fd, err := openEINTR(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: path, Err: err}
	}
	return newDir(fd, path, nil), nil
}

// NewDir wraps a directory descriptor, which must be open for reading; the Dir
// owns it from now on. The path is used in messages.
func NewDir(fd int, path string) *Dir { return newDir(fd, path, nil) }

func newDir(fd int, path string, h Hook) *Dir {
	return &Dir{file: os.NewFile(uintptr(fd), path), fd: fd, path: path, hook: h}
}

// WithHook returns a second handle on the same directory whose mutating calls,
// and those of everything opened from it, pass through h.
func (d *Dir) WithHook(h Hook) (*Dir, error) {
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, d.wrap("duplicate", "", err)
	}
	return newDir(fd, d.path, h), nil
}

// Close releases the descriptor and the lock that was taken on it.
func (d *Dir) Close() error { return d.file.Close() }

// Path returns the name the directory was opened by, for messages.
func (d *Dir) Path() string { return d.path }

// Fd returns the descriptor, which stays owned by d.
func (d *Dir) Fd() int { return d.fd }

// File returns the open directory as a file, which stays owned by d: do not close
// it. A second os.File on Fd would close the descriptor when it is collected.
func (d *Dir) File() *os.File { return d.file }

// Sub opens the directory name below d.
func (d *Dir) Sub(name string) (*Dir, error) {
	fd, err := d.openat2(name, unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, d.wrap("open directory", name, err)
	}
	return newDir(fd, path.Join(d.path, name), d.hook), nil
}

// Open opens the file name for reading. A symbolic link is an error (ELOOP). It
// does not block on a FIFO and does not become a controlling terminal.
func (d *Dir) Open(name string) (*os.File, error) {
	fd, err := d.openat2(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, beneath)
	if err != nil {
		return nil, d.wrap("open", name, err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(d.wrap("open", name, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), path.Join(d.path, name)), nil
}

// ReadFile returns the content of a regular file of at most limit bytes.
func (d *Dir) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := d.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, d.wrap("read", name, fmt.Errorf("got a file of type %v, want a regular file", st.Mode().Type()))
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, d.wrap("read", name, fmt.Errorf("got more than %d bytes: %w", limit, unix.EFBIG))
	}
	return data, nil
}

// Readlink returns the target of the symbolic link name.
func (d *Dir) Readlink(name string) (string, error) {
	fd, base, done, err := d.at(name)
	if err != nil {
		return "", d.wrap("readlink", name, err)
	}
	defer done()
	buf := make([]byte, 512)
	for {
		n, err := unix.Readlinkat(fd, base, buf)
		if err != nil {
			return "", d.wrap("readlink", name, err)
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
		buf = make([]byte, 2*len(buf))
	}
}

// Lstat describes the entry name itself; "." is the directory.
func (d *Dir) Lstat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	if name == "." {
		return st, d.wrap("stat", name, unix.Fstat(d.fd, &st))
	}
	fd, base, done, err := d.at(name)
	if err != nil {
		return st, d.wrap("stat", name, err)
	}
	defer done()
	return st, d.wrap("stat", name, unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW))
}

// Exists says whether there is an entry name, of any type.
func (d *Dir) Exists(name string) (bool, error) {
	_, err := d.Lstat(name)
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	}
	return false, err
}

// at resolves all but the last component of name and returns a descriptor of
// the directory that holds it, and that component. The caller calls done.
func (d *Dir) at(name string) (fd int, base string, done func(), err error) {
	dir, base, err := split(name)
	if err != nil {
		return -1, "", nil, err
	}
	if dir == "" {
		return d.fd, base, func() {}, nil
	}
	fd, err = d.openat2Raw(dir, unix.O_PATH|unix.O_DIRECTORY, beneath)
	if err != nil {
		return -1, "", nil, err
	}
	return fd, base, func() { _ = unix.Close(fd) }, nil
}

// Leads finds out whether name, any part of which may be a symbolic link, leads to
// something below d, with directory to a directory. nil says so; fs.ErrNotExist,
// ENOTDIR and ELOOP say that it does not, EXDEV that it leads out of d.
func (d *Dir) Leads(name string, directory bool) error {
	flags := unix.O_PATH
	if directory {
		flags |= unix.O_DIRECTORY
	}
	fd, err := d.openat2(name, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return &fs.PathError{Op: "resolve", Path: d.path + "/" + name, Err: err}
	}
	return unix.Close(fd)
}

// openat2 opens name, which is "." or a checked relative path.
func (d *Dir) openat2(name string, flags int, resolve uint64) (int, error) {
	if name != "." {
		if _, _, err := split(name); err != nil {
			return -1, err
		}
	}
	return d.openat2Raw(name, flags, resolve)
}

func (d *Dir) openat2Raw(name string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	// EAGAIN: a component was renamed meanwhile, the kernel could not prove that
	// the walk stayed below d.
	for range 128 {
		fd, err := unix.Openat2(d.fd, name, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// split checks a relative path and cuts it before its last component.
func split(name string) (dir, base string, err error) {
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." || strings.IndexByte(part, 0) >= 0 {
			return "", "", fmt.Errorf("name with an empty, \".\" or \"..\" component or a NUL: %w", unix.EINVAL)
		}
	}
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:], nil
	}
	return "", name, nil
}

func openEINTR(open func() (int, error)) (int, error) {
	for {
		fd, err := open()
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}
