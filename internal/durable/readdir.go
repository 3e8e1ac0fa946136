package durable

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// Entry is one name of a directory.
type Entry struct {
	Name string
	// Type holds the type bits of the mode (unix.S_IFMT), for example unix.S_IFREG.
	Type uint32
	Ino  uint64
}

// IsDir says whether the entry is a directory.
func (e Entry) IsDir() bool { return e.Type == unix.S_IFDIR }

// IsRegular says whether the entry is a regular file.
func (e Entry) IsRegular() bool { return e.Type == unix.S_IFREG }

// IsSymlink says whether the entry is a symbolic link.
func (e Entry) IsSymlink() bool { return e.Type == unix.S_IFLNK }

// ReadDir lists the directory itself, sorted by name, without "." and "..". On
// file systems that do not report types it asks for each.
func (d *Dir) ReadDir() ([]Entry, error) {
	fd, err := d.openat2Raw(".", unix.O_RDONLY|unix.O_DIRECTORY, beneath)
	if err != nil {
		return nil, d.wrap("list", "", err)
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var list []Entry
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, d.wrap("list", "", err)
		}
		if n <= 0 {
			break
		}
		list = appendEntries(list, buf[:n])
	}
	for i := range list {
		if list[i].Type != 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(d.fd, list[i].Name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				list[i].Name = ""
				continue
			}
			return nil, d.wrap("stat", list[i].Name, err)
		}
		list[i].Type = st.Mode & unix.S_IFMT
	}
	list = slices.DeleteFunc(list, func(e Entry) bool { return e.Name == "" })
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// ReadSubDir lists the directory name as ReadDir does.
func (d *Dir) ReadSubDir(name string) ([]Entry, error) {
	sub, err := d.Sub(name)
	if err != nil {
		return nil, err
	}
	defer sub.Close() //nolint:errcheck // read only
	return sub.ReadDir()
}

// appendEntries decodes struct linux_dirent64 records.
func appendEntries(list []Entry, buf []byte) []Entry {
	const header = 19 // u64 ino, s64 offset, u16 record length, u8 type
	for len(buf) > header {
		size := int(binary.NativeEndian.Uint16(buf[16:]))
		if size < header || size > len(buf) {
			return list
		}
		name, _, _ := bytes.Cut(buf[header:size], []byte{0})
		if s := string(name); s != "." && s != ".." {
			list = append(list, Entry{
				Name: s,
				Type: uint32(buf[18]) << 12, // DT_* are the type bits of the mode
				Ino:  binary.NativeEndian.Uint64(buf),
			})
		}
		buf = buf[size:]
	}
	return list
}

// FileMode converts the type and permission bits of a system mode.
func FileMode(mode uint32) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	for _, b := range []struct {
		bit uint32
		m   fs.FileMode
	}{{unix.S_ISUID, fs.ModeSetuid}, {unix.S_ISGID, fs.ModeSetgid}, {unix.S_ISVTX, fs.ModeSticky}} {
		if mode&b.bit != 0 {
			m |= b.m
		}
	}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		m |= fs.ModeDir
	case unix.S_IFLNK:
		m |= fs.ModeSymlink
	case unix.S_IFCHR:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case unix.S_IFBLK:
		m |= fs.ModeDevice
	case unix.S_IFIFO:
		m |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		m |= fs.ModeSocket
	}
	return m
}
