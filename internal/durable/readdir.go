package durable

import (
	"bytes"
	"cmp"
	"encoding/binary"
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
