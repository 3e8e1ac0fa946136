package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// count returns the entries of a tree, the root included.
func count(root *tree.Node) int {
	n := 1
	for _, c := range root.All() {
		if c.IsDir() {
			n += count(c)
		} else {
			n++
		}
	}
	return n
}

// scan reads the tree of a directory, on its file system only, with the digests of
// its files.
func scan(path string) (*tree.Node, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	s := scanner{device: info.Sys().(*syscall.Stat_t).Dev, links: map[uint64]*tree.Node{}}
	return s.dir(path, info)
}

type scanner struct {
	device uint64
	links  map[uint64]*tree.Node // by inode number
}

func (s *scanner) dir(path string, info fs.FileInfo) (*tree.Node, error) {
	meta, err := metaOf(path, info)
	if err != nil {
		return nil, err
	}
	dir := tree.NewDir(meta)
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, entry := range list {
		n, err := s.node(filepath.Join(path, entry.Name()))
		if err != nil {
			return nil, err
		}
		if n != nil {
			dir.Set(entry.Name(), n)
		}
	}
	return dir, nil
}

func (s *scanner) node(path string) (*tree.Node, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // the machine is alive
	}
	if err != nil {
		return nil, err
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Dev != s.device {
		return nil, nil
	}
	if info.IsDir() {
		return s.dir(path, info)
	}
	if n := s.links[st.Ino]; n != nil {
		return n, nil
	}
	n, err := s.leaf(path, info, st)
	if err == nil && st.Nlink > 1 {
		s.links[st.Ino] = n
	}
	return n, err
}

func (s *scanner) leaf(path string, info fs.FileInfo, st *syscall.Stat_t) (*tree.Node, error) {
	meta, err := metaOf(path, info)
	if err != nil {
		return nil, err
	}
	n := &tree.Node{Meta: meta}
	var ok bool
	if n.Kind, ok = tree.KindOfMode(st.Mode); !ok {
		return nil, fmt.Errorf("%s: unknown type %o", path, st.Mode)
	}
	switch n.Kind {
	case tree.Symlink:
		n.Target, err = os.Readlink(path)
	case tree.CharDevice, tree.BlockDevice:
		n.Rdev = uint32(st.Rdev)
	case tree.Regular:
		const inline = 64
		if st.Size <= inline {
			n.Inline, err = os.ReadFile(path)
			n.Size = int64(len(n.Inline))
			break
		}
		var f *os.File
		if f, err = os.Open(path); err == nil {
			n.Digest, n.Size, err = fsverity.SumReader(fsverity.SHA256, f)
			f.Close()
		}
	}
	return n, err
}

func metaOf(path string, info fs.FileInfo) (tree.Meta, error) {
	st := info.Sys().(*syscall.Stat_t)
	m := tree.Meta{Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, MtimeSec: max(st.Mtim.Sec, 0), MtimeNsec: uint32(st.Mtim.Nsec)}
	size, err := unix.Llistxattr(path, nil)
	if err != nil || size == 0 {
		return m, ignoreUnsupported(err)
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(path, names); err != nil {
		return m, err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return m, err
		}
		m.Xattrs = append(m.Xattrs, tree.Xattr{Name: name, Value: string(value[:n])})
	}
	slices.SortFunc(m.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return m, nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}
