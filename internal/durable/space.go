package durable

import (
	"golang.org/x/sys/unix"
)

// Space is what a file system has left for this user.
type Space struct {
	Bytes     int64
	Inodes    int64 // -1 where the file system has no fixed number (vfat, btrfs)
	Size      int64 // of the file system, bytes; 0 where it tells none (ramfs), and Bytes is 0 too
	MaxInodes int64 // that it can have, or -1
	BlockSize int64 // allocation unit, bytes
	ReadOnly  bool
}

// Space asks the file system of d.
func (d *Dir) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &st); err != nil {
		return Space{}, d.wrap("statfs", "", err)
	}
	s := Space{
		Bytes:     int64(st.Bavail) * st.Frsize,
		Inodes:    int64(st.Ffree),
		Size:      int64(st.Blocks) * st.Frsize,
		MaxInodes: int64(st.Files),
		BlockSize: st.Frsize,
		ReadOnly:  st.Flags&unix.ST_RDONLY != 0,
	}
	if st.Files == 0 {
		s.Inodes, s.MaxInodes = -1, -1
	}
	return s, nil
}

// Need returns a *SpaceError if fewer than need bytes are left.
func (d *Dir) Need(need int64) error {
	s, err := d.Space()
	if err != nil {
		return err
	}
	if s.Bytes < need && s.Size > 0 {
		return &SpaceError{Where: d.path, Need: need, Have: s.Bytes, Err: unix.ENOSPC}
	}
	return nil
}

// Writable returns an error if this process cannot make entries in d: a read-only
// file system or mount (EROFS), or missing permission (EACCES).
func (d *Dir) Writable() error {
	s, err := d.Space()
	if err != nil {
		return err
	}
	if s.ReadOnly {
		return d.wrap("write below", "", unix.EROFS)
	}
	return d.wrap("write below", "", unix.Faccessat(d.fd, ".", unix.W_OK, unix.AT_EACCESS))
}

// Flock takes, converts or releases the lock on the open directory: unix.LOCK_SH,
// LOCK_EX or LOCK_UN, with LOCK_NB to fail with EWOULDBLOCK instead of waiting.
// It belongs to this open directory, not to the process.
func (d *Dir) Flock(how int) error {
	return d.wrap("lock", "", ignoreEINTR(func() error { return unix.Flock(d.fd, how) }))
}
