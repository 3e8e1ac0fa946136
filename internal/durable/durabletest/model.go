package durabletest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

type inode struct{ dev, ino uint64 }

// node is one inode. For a directory, cur is what a process sees and durable what
// the medium holds.
type node struct {
	synced  content
	dirty   bool
	open    *os.File // a file without a name yet, to read it at syncfs
	cur     map[string]*node
	durable map[string]entry
}

func (n *node) isDir() bool { return n.synced.mode&unix.S_IFMT == unix.S_IFDIR }

// entry is a name on the medium. A torn one (vfat) has no content yet.
type entry struct {
	node *node
	torn bool
}

type content struct {
	mode   uint32
	uid    uint32
	gid    uint32
	rdev   uint64
	mtime  unix.Timespec
	data   []byte
	target string
}

// effect sets or (node nil) removes one name.
type effect struct {
	dir  *node
	name string
	to   entry
}

// change is a set of effects that reach the medium together, or on vfat the
// late write of a moved inode.
type change struct {
	effects []effect
	inode   *node
}

type model struct {
	t       testing.TB
	path    string
	fat     bool
	root    *node
	nodes   map[inode]*node
	pending []change
}

func (m *model) init(t testing.TB, path string, fat bool) {
	t.Helper()
	m.t, m.path, m.fat, m.nodes = t, path, fat, make(map[inode]*node)
	var err error
	if m.root, err = m.scan(path); err != nil {
		t.Fatalf("read %q: %v", path, err)
	}
}

// scan takes what exists at path as synced.
func (m *model) scan(path string) (*node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	key := inode{st.Dev, st.Ino}
	if n := m.nodes[key]; n != nil {
		return n, nil
	}
	c, err := readContent(path, st)
	if err != nil {
		return nil, err
	}
	n := m.add(key, c)
	if !n.isDir() {
		return n, nil
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	for _, e := range list {
		child, err := m.scan(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		n.cur[e.Name()] = child
		n.durable[e.Name()] = entry{node: child}
	}
	return n, nil
}

func (m *model) add(key inode, c content) *node {
	n := &node{synced: c}
	if n.isDir() {
		n.cur, n.durable = make(map[string]*node), make(map[string]entry)
	}
	m.nodes[key] = n
	return n
}

// record follows a call that has succeeded.
func (m *model) record(op durable.Op) {
	m.t.Helper()
	if err := m.follow(op); err != nil {
		m.t.Errorf("durabletest: follow %s %s: %v", op.Kind, op.Path, err)
	}
}

func (m *model) follow(op durable.Op) error {
	switch op.Kind {
	case durable.OpTemp:
		return m.created(op)
	case durable.OpCreate, durable.OpMkdir, durable.OpSymlink, durable.OpMknod:
		return m.named(op)
	case durable.OpWrite, durable.OpMeta:
		n, err := m.find(op)
		if n != nil {
			n.dirty = true
		}
		return err
	case durable.OpLink:
		return m.linked(op)
	case durable.OpUnlink, durable.OpRmdir:
		dir, err := m.dir(op.DirFD)
		if err == nil {
			m.change(effect{dir: dir, name: op.Name})
		}
		return err
	case durable.OpRename, durable.OpExchange:
		return m.renamed(op)
	case durable.OpFsync:
		return m.fsync(op)
	case durable.OpSyncDir:
		dir, err := m.dir(op.DirFD)
		if err != nil {
			return err
		}
		m.syncDir(dir)
		return m.snapshot(dir, fdPath(op.DirFD))
	case durable.OpSyncFS:
		return m.syncFS()
	}
	return nil
}

// created notes a file without a name. It is held open, so that a syncfs can
// read it and its inode number is not used again.
func (m *model) created(op durable.Op) error {
	var st unix.Stat_t
	if err := unix.Fstat(op.FD, &st); err != nil {
		return err
	}
	f, err := os.Open(fdPath(op.FD))
	if err != nil {
		return err
	}
	m.t.Cleanup(func() { _ = f.Close() })
	n := m.add(inode{st.Dev, st.Ino}, content{mode: st.Mode, uid: st.Uid, gid: st.Gid})
	n.dirty, n.open = true, f
	return nil
}

func (m *model) named(op durable.Op) error {
	dir, err := m.dir(op.DirFD)
	if err != nil {
		return err
	}
	path := fdPath(op.DirFD) + "/" + op.Name
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	c, err := readContent(path, st)
	if err != nil {
		return err
	}
	m.change(effect{dir: dir, name: op.Name, to: entry{node: m.add(inode{st.Dev, st.Ino}, c)}})
	return nil
}

func (m *model) linked(op durable.Op) error {
	dir, err := m.dir(op.NewDirFD)
	if err != nil {
		return err
	}
	var n *node
	if op.FD >= 0 {
		n, err = m.byFD(op.FD)
	} else {
		n, err = m.byPath(fdPath(op.NewDirFD) + "/" + op.NewName)
	}
	if err != nil {
		return err
	}
	if n.open != nil {
		_ = n.open.Close()
		n.open = nil
	}
	m.change(effect{dir: dir, name: op.NewName, to: entry{node: n}})
	return nil
}

func (m *model) renamed(op durable.Op) error {
	from, err := m.dir(op.DirFD)
	if err != nil {
		return err
	}
	to, err := m.dir(op.NewDirFD)
	if err != nil {
		return err
	}
	moved, other := from.cur[op.Name], to.cur[op.NewName]
	if moved == nil {
		return fmt.Errorf("the model has no %q", op.Name)
	}
	if op.Kind == durable.OpRename {
		other = nil
		if moved == to.cur[op.NewName] { // two names of one file: rename does nothing
			return nil
		}
	}
	set := effect{dir: to, name: op.NewName, to: entry{node: moved}}
	back := effect{dir: from, name: op.Name, to: entry{node: other}}
	if !m.fat {
		m.change(set, back)
		return nil
	}
	set.to.torn = !moved.isDir()
	back.to.torn = other != nil && !other.isDir()
	m.change(set)
	m.change(back)
	for _, n := range []*node{moved, other} {
		if n != nil && !n.isDir() {
			m.pending = append(m.pending, change{inode: n})
		}
	}
	return nil
}

// change applies effects to what processes see and keeps them as unsynced.
func (m *model) change(effects ...effect) {
	for _, e := range effects {
		if e.to.node == nil {
			delete(e.dir.cur, e.name)
		} else {
			e.dir.cur[e.name] = e.to.node
		}
	}
	m.pending = append(m.pending, change{effects: effects})
}

// apply brings effects to the medium.
func apply(effects []effect) {
	for _, e := range effects {
		if e.to.node == nil {
			delete(e.dir.durable, e.name)
		} else {
			e.dir.durable[e.name] = e.to
		}
	}
}

// settle applies the pending changes that want selects. Earlier changes of the
// same names are superseded and dropped.
func (m *model) settle(want func(change) bool) {
	type key struct {
		dir  *node
		name string
	}
	done := make(map[key]bool)
	var keep []change
	for i := len(m.pending) - 1; i >= 0; i-- {
		c := m.pending[i]
		c.effects = slices.DeleteFunc(slices.Clone(c.effects), func(e effect) bool { return done[key{e.dir, e.name}] })
		switch {
		case c.inode != nil:
			keep = append(keep, c)
		case len(c.effects) == 0:
		case want(c):
			apply(c.effects)
			for _, e := range c.effects {
				done[key{e.dir, e.name}] = true
			}
		default:
			keep = append(keep, c)
		}
	}
	slices.Reverse(keep)
	m.pending = keep
}

func (m *model) syncDir(dir *node) {
	m.settle(func(c change) bool {
		return slices.ContainsFunc(c.effects, func(e effect) bool { return e.dir == dir })
	})
}

func (m *model) fsync(op durable.Op) error {
	n, err := m.find(op)
	if err != nil || n == nil {
		return err
	}
	if err := m.snapshot(n, fdPath(op.FD)); err != nil {
		return err
	}
	if m.fat {
		m.settle(func(c change) bool {
			return slices.ContainsFunc(c.effects, func(e effect) bool { return e.to.node == n })
		})
		m.writeInode(n)
	}
	return nil
}

// writeInode gives every name of n on the medium its content (vfat).
func (m *model) writeInode(n *node) {
	m.pending = slices.DeleteFunc(m.pending, func(c change) bool { return c.inode == n })
	for _, dir := range m.nodes {
		untear(dir.durable, n)
	}
}

func untear(dir map[string]entry, n *node) {
	for name, e := range dir {
		if e.node == n {
			dir[name] = entry{node: n}
		}
	}
}

func (m *model) syncFS() error {
	m.pending = nil
	if err := m.syncTree(m.root, m.path); err != nil {
		return err
	}
	for _, n := range m.nodes {
		if n.open == nil {
			continue
		}
		if err := m.snapshot(n, fdPath(int(n.open.Fd()))); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) syncTree(n *node, path string) error {
	if err := m.snapshot(n, path); err != nil || !n.isDir() {
		return err
	}
	clear(n.durable)
	for name, child := range n.cur {
		n.durable[name] = entry{node: child}
		if err := m.syncTree(child, filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// snapshot makes the content at path the synced content of n.
func (m *model) snapshot(n *node, path string) error {
	if !n.dirty {
		return nil
	}
	c, err := read(path)
	if err != nil {
		return err
	}
	n.synced, n.dirty = c, false
	return nil
}

func (m *model) find(op durable.Op) (*node, error) {
	if op.FD >= 0 {
		return m.byFD(op.FD)
	}
	return m.byPath(fdPath(op.DirFD) + "/" + op.Name)
}

func (m *model) dir(fd int) (*node, error) { return m.byFD(fd) }

func (m *model) byFD(fd int) (*node, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	return m.lookup(st)
}

func (m *model) byPath(path string) (*node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	return m.lookup(st)
}

func (m *model) lookup(st unix.Stat_t) (*node, error) {
	if n := m.nodes[inode{st.Dev, st.Ino}]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("the model has no inode %d", st.Ino)
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// read describes what is at path; a path below /proc/self/fd is the open file.
func read(path string) (content, error) {
	var st unix.Stat_t
	stat := unix.Lstat
	if strings.HasPrefix(path, "/proc/self/fd/") && strings.Count(path, "/") == 4 {
		stat = unix.Stat
	}
	if err := stat(path, &st); err != nil {
		return content{}, err
	}
	return readContent(path, st)
}

// readContent reads everything but the names of a directory.
func readContent(path string, st unix.Stat_t) (c content, err error) {
	c = content{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: st.Rdev, mtime: st.Mtim}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		c.data, err = os.ReadFile(path)
	case unix.S_IFLNK:
		c.target, err = os.Readlink(path)
	}
	return c, err
}
