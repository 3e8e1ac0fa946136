package durabletest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// view says which unsynced changes have reached the medium. The zero view: none.
type view struct {
	allNames bool
	random   *rand.Rand
}

func randomView(seed uint64) view {
	return view{random: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))}
}

func (v view) change() bool { return v.allNames || v.random != nil && v.random.IntN(2) == 0 }

// data returns what is left of a regular file: the synced bytes, or at random the
// first half or all of the present ones.
func (v view) data(synced, present []byte) []byte {
	if v.random == nil {
		return synced
	}
	switch v.random.IntN(3) {
	case 0:
		return present
	case 1:
		return present[:len(present)/2]
	}
	return synced
}

// layout is a copy of the names on the medium with some pending changes applied.
type layout struct {
	m    *model
	v    view
	dirs map[*node]map[string]entry
	made map[*node]string // first path of each file, for hard links
	live map[*node]string // path of each node that a process can still reach
}

// materialise writes the view to the empty directory dst. Src is the live one.
func (m *model) materialise(dst, src string, v view) error {
	l := &layout{m: m, v: v, dirs: make(map[*node]map[string]entry), made: make(map[*node]string), live: make(map[*node]string)}
	l.reach(m.root, src)
	for _, c := range m.pending {
		if !v.change() {
			continue
		}
		for _, e := range c.effects {
			if e.to.node == nil {
				delete(l.names(e.dir), e.name)
			} else {
				l.names(e.dir)[e.name] = e.to
			}
		}
		if c.inode != nil {
			for n := range m.dirs() {
				untear(l.names(n), c.inode)
			}
		}
	}
	return l.fill(m.root, dst)
}

func (m *model) dirs() map[*node]bool {
	set := make(map[*node]bool)
	var walk func(n *node)
	walk = func(n *node) {
		if !n.isDir() || set[n] {
			return
		}
		set[n] = true
		for _, child := range n.cur {
			walk(child)
		}
		for _, e := range n.durable {
			walk(e.node)
		}
	}
	walk(m.root)
	return set
}

func (l *layout) reach(n *node, path string) {
	l.live[n] = path
	for name, child := range n.cur {
		l.reach(child, filepath.Join(path, name))
	}
}

// names returns the names of a directory in this view.
func (l *layout) names(n *node) map[string]entry {
	if l.dirs[n] == nil {
		l.dirs[n] = maps.Clone(n.durable)
	}
	return l.dirs[n]
}

func (l *layout) fill(dir *node, path string) error {
	names := l.names(dir)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := l.put(names[name], filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (l *layout) put(e entry, path string) error {
	n, c := e.node, e.node.synced
	if first := l.made[n]; first != "" && !e.torn {
		return os.Link(first, path)
	}
	switch c.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := l.fill(n, path); err != nil {
			return err
		}
	case unix.S_IFLNK:
		return os.Symlink(c.target, path)
	case unix.S_IFREG:
		data, err := l.data(e)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return err
		}
	default:
		if err := unix.Mknod(path, c.mode, int(c.rdev)); err != nil {
			return fmt.Errorf("make device %q: %w", path, err)
		}
	}
	if !n.isDir() && !e.torn {
		l.made[n] = path
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(path, int(c.uid), int(c.gid)); err != nil {
			return err
		}
	}
	return unix.Chmod(path, c.mode&0o7777)
}

func (l *layout) data(e entry) ([]byte, error) {
	if e.torn {
		return nil, nil
	}
	live, ok := l.live[e.node]
	if !e.node.dirty || !ok {
		return e.node.synced.data, nil
	}
	present, err := os.ReadFile(live)
	if err != nil {
		return nil, err
	}
	return l.v.data(e.node.synced.data, present), nil
}
