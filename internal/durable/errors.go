package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"path"

	"golang.org/x/sys/unix"
)

// SpaceError says that a file system, or a quota on it, is full or would be.
// It unwraps to ENOSPC or EDQUOT.
type SpaceError struct {
	Where string // directory or file that was to be written
	Need  int64  // bytes that were to be written, 0 if only an inode or name was
	Have  int64  // bytes available to this user
	// Inodes says that bytes are left, but no inode, or too few: no more files can
	// be made.
	Inodes    bool
	NeedFiles int64 // with Inodes: inodes that were to be made, those to be left free included
	HaveFiles int64 // with Inodes: free ones
	Err       error // ENOSPC or EDQUOT
}

func (e *SpaceError) Error() string {
	if e.Inodes {
		return fmt.Sprintf("no space at %q: need %d inodes, have %d (%d bytes are free)", e.Where, e.NeedFiles, e.HaveFiles, e.Have)
	}
	switch {
	case e.Need > e.Have:
		return fmt.Sprintf("no space at %q: need %d bytes, have %d bytes", e.Where, e.Need, e.Have)
	case e.Have > 0: // blocks for the file system's own use, a quota, the size of a directory
		return fmt.Sprintf("no space left at %q, although %d bytes look free", e.Where, e.Have)
	}
	return fmt.Sprintf("no space left at %q", e.Where)
}

func (e *SpaceError) Unwrap() error { return e.Err }

// wrap names the operation and the path in err; a full file system becomes a
// *SpaceError. nil stays nil.
func (d *Dir) wrap(op, name string, err error) error { return d.wrapSize(op, name, 0, err) }

func (d *Dir) wrapSize(op, name string, need int64, err error) error {
	if err == nil {
		return nil
	}
	return wrapAt(d.fd, op, path.Join(d.path, name), need, err)
}

func wrapAt(fd int, op, where string, need int64, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		e := &SpaceError{Where: where, Need: need, Err: err}
		var st unix.Statfs_t
		if unix.Fstatfs(fd, &st) == nil {
			e.Have = int64(st.Bavail) * st.Frsize
			if need == 0 && st.Files > 0 && st.Ffree == 0 {
				e.Inodes, e.NeedFiles = true, 1
			}
		}
		return fmt.Errorf("%s: %w", op, e)
	}
	return &fs.PathError{Op: op, Path: where, Err: err}
}
