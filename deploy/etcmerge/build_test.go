package etcmerge_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

func openDir(t testing.TB, at string) *durable.Dir {
	t.Helper()
	dir, err := durable.OpenDir(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return dir
}

func scan(t testing.TB, dir *durable.Dir) *etcmerge.Live {
	t.Helper()
	live, err := etcmerge.Scan(t.Context(), dir, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	return live
}

// onDisk reads a directory back as a tree with its contents in memory, so that
// show prints them.
func onDisk(t testing.TB, at string) *node {
	t.Helper()
	root := scan(t, openDir(t, at)).Root
	var fill func(at string, n *node)
	fill = func(at string, n *node) {
		if n.Kind == tree.Regular {
			data, err := os.ReadFile(at)
			if err != nil {
				t.Fatal(err)
			}
			n.Inline, n.Digest = data, fsverity.Digest{}
		}
		if n.IsDir() {
			for name, child := range n.All() {
				fill(filepath.Join(at, name), child)
			}
		}
	}
	fill(at, root)
	return root
}

// xattrDir is a directory on a file system with user attributes.
func xattrDir(t testing.TB) string {
	t.Helper()
	at := t.TempDir()
	if err := unix.Setxattr(at, "user.probe", []byte("1"), 0); err != nil {
		t.Skipf("no user attributes on the file system of %s: %v", at, err)
	}
	if err := unix.Removexattr(at, "user.probe"); err != nil {
		t.Fatal(err)
	}
	return at
}

// TestBuild takes three trees through the disk and back.
func TestBuild(t *testing.T) {
	at, o := xattrDir(t), newObjects(t)
	big := strings.Repeat("0123456789", 100_000)
	p := d(0o755, map[string]*node{"same": o.put(big), "edited": o.put(big + "p"), "inline": f("small"), "dir": d(0o755, map[string]*node{"a": f("a")})})
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc", p, o); err != nil {
		t.Fatal(err)
	}
	equal(t, "copied", inMemory(t, o, p), onDisk(t, filepath.Join(at, "etc")))

	// The administrator at work.
	etc := filepath.Join(at, "etc")
	for _, err := range []error{
		os.WriteFile(filepath.Join(etc, "edited"), []byte(big+"c"), 0o600),
		unix.Chmod(filepath.Join(etc, "edited"), 0o4750),
		os.Remove(filepath.Join(etc, "dir/a")),
		os.Mkdir(filepath.Join(etc, "mine"), 0o700),
		os.Symlink("../x", filepath.Join(etc, "mine/link")),
		os.WriteFile(filepath.Join(etc, "mine/f"), nil, 0o640),
		os.Link(filepath.Join(etc, "mine/f"), filepath.Join(etc, "mine/g")),
		unix.Mkfifo(filepath.Join(etc, "fifo"), 0o600),
		unix.Setxattr(filepath.Join(etc, "same"), "user.long", []byte(strings.Repeat("v", 2000)), 0),
		os.Chtimes(filepath.Join(etc, "mine"), time.Unix(5, 0), time.Unix(6, 7)),
		os.WriteFile(filepath.Join(etc, ".updated"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	n := d(0o755, map[string]*node{
		"same": o.put(big + "n"), "edited": o.put(big + "p"), "inline": fm("new", 0o600), "zeros": {Meta: meta(0o600), Kind: tree.Regular, Size: 9000, Sparse: true},
		"dir": d(0o755, map[string]*node{"a": f("a"), "b": f("b")}),
	})
	n.MtimeSec = 1_800_000_000
	live := scan(t, openDir(t, etc))
	r, err := etcmerge.Merge(p, live, n)
	if err != nil {
		t.Fatal(err)
	}
	build(t.Context(), t, r, o, at)
	before := full(onDisk(t, etc))
	got := onDisk(t, filepath.Join(at, "etc.tx"))
	cut := func(lines []string) []string {
		for i, line := range lines {
			if len(line) > 100 {
				lines[i] = line[:20] + "…" + line[len(line)-30:]
			}
		}
		return lines
	}
	want := d(0o755, map[string]*node{
		"same": with(f(big+"n"), "user.long="+strings.Repeat("v", 2000)), "edited": fm(big+"c", 0o4750), "inline": fm("new", 0o600), "zeros": fm(strings.Repeat("\x00", 9000), 0o600),
		"dir":  d(0o755, map[string]*node{"b": f("b")}),
		"mine": d(0o700, map[string]*node{"link": l("../x"), "f": fm("", 0o640), "g": fm("", 0o640)}),
	})
	if diff := cmp.Diff(cut(show(want)), cut(show(got))); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	if m := got.Lookup("mine"); m.MtimeSec != 6 || m.MtimeNsec != 7 {
		t.Errorf("time of a local directory: %d.%09d", m.MtimeSec, m.MtimeNsec)
	}
	if m := got.Lookup("same"); m.MtimeSec != n.Lookup("same").MtimeSec {
		t.Errorf("time of an updated file: %d", m.MtimeSec)
	}
	if got.Lookup("mine").Lookup("f") == got.Lookup("mine").Lookup("g") {
		t.Error("the hard link is still one file")
	}
	if diff := cmp.Diff(before, full(onDisk(t, etc))); diff != "" {
		t.Errorf("the live directory changed (-before +after):\n%s", diff)
	}
	// Merging what is on the disk now with the same images changes nothing.
	again, err := etcmerge.Merge(n, scan(t, openDir(t, filepath.Join(at, "etc.tx"))), n)
	if err != nil {
		t.Fatal(err)
	}
	if again.Report.Counts.NewChanged+again.Report.Counts.NewAdded+again.Report.Counts.NewRemoved > 0 {
		t.Errorf("a second merge changes something: %+v", again.Report.Counts)
	}
}

// inMemory replaces objects by their contents.
func inMemory(t testing.TB, o objects, n *node) *node {
	t.Helper()
	c := *n
	if n.IsDir() {
		dir := tree.NewDir(n.Meta)
		for name, child := range n.All() {
			dir.Set(name, inMemory(t, o, child))
		}
		return dir
	}
	if n.IsExternal() {
		data, err := os.ReadFile(filepath.Join(o.dir, n.Digest.Hex()))
		if err != nil {
			t.Fatal(err)
		}
		c.Inline, c.Digest = data, fsverity.Digest{}
	}
	return &c
}

// TestBuildRandom checks that what is on the disk is what was decided.
func TestBuildRandom(t *testing.T) {
	for seed := range uint64(40) {
		at, o := xattrDir(t), newObjects(t)
		g := newGenerator(seed)
		p := g.tree(3)
		c, n := g.editDir(p), g.editDir(p)
		if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc", c, o); err != nil {
			t.Fatal(err)
		}
		equal(t, "copied", c, onDisk(t, filepath.Join(at, "etc")))
		pure, err := etcmerge.Merge(p, liveOf(c), n)
		if err != nil {
			t.Fatal(err)
		}
		r, err := etcmerge.Merge(p, scan(t, openDir(t, filepath.Join(at, "etc"))), n)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(showItems(pure.Report.Items), showItems(r.Report.Items)); diff != "" {
			t.Errorf("report (-in memory +from disk):\n%s", diff)
		}
		if len(r.Conflicts) == 0 {
			build(t.Context(), t, r, o, at)
			equal(t, "built", pure.Root, onDisk(t, filepath.Join(at, "etc.tx")))
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestCopyEtc(t *testing.T) {
	at, o := t.TempDir(), newObjects(t)
	image := d(0o755, map[string]*node{".updated": f("1"), "x": linked("a", "b"), "fifo": special(tree.Fifo, 0)})
	if err := etcmerge.CopyEtc(t.Context(), openDir(t, at), "etc", image, o); err != nil {
		t.Fatal(err)
	}
	got := onDisk(t, filepath.Join(at, "etc"))
	if diff := cmp.Diff([]string{"fifo 0600 fifo", "x 0755 dir", `x/a 0644 "h"`, `x/b 0644 "h"`}, show(got)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	if got.Lookup("x").Lookup("a") != got.Lookup("x").Lookup("b") {
		t.Error("the hard link is lost")
	}
	if err := etcmerge.CopyEtc(t.Context(), openDir(t, at), "etc", image, o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing directory: %v", err)
	}
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "file", f("x"), o); err == nil {
		t.Error("a file was copied as a root")
	}
}

// TestNoRoom: what does not fit is refused before anything is made.
func TestNoRoom(t *testing.T) {
	huge := func(size int64) *tree.Node {
		return &tree.Node{Meta: tree.Meta{Mode: 0o600}, Kind: tree.Regular, Size: size, Sparse: true}
	}
	for name, sizes := range map[string][]int64{"one": {1 << 50}, "overflow": {math.MaxInt64, math.MaxInt64}, "sum": {1 << 62, 1 << 62, 1 << 62}} {
		root, sub := tree.NewDir(tree.Meta{Mode: 0o755}), tree.NewDir(tree.Meta{Mode: 0o755})
		root.Set("sub", sub)
		for i, size := range sizes {
			sub.Set(strconv.Itoa(i), huge(size))
		}
		at := t.TempDir()
		var space *durable.SpaceError
		if err := etcmerge.Copy(t.Context(), openDir(t, at), "var", root, nil); !errors.As(err, &space) || space.Need < 1<<50 || space.Where != filepath.Join(at, "var") {
			t.Errorf("%s: got %v, want a SpaceError", name, err)
		}
		if list, err := os.ReadDir(at); err != nil || len(list) > 0 {
			t.Errorf("%s: it was begun: %v, %v", name, list, err)
		}
	}
}

// TestNoInodes: so is what has too many files.
func TestNoInodes(t *testing.T) {
	have := durable.Space{Bytes: 1 << 30, Inodes: 5}
	var space *durable.SpaceError
	if err := etcmerge.Fits("var", 1<<20, 6, have); !errors.As(err, &space) || !space.Inodes || space.NeedFiles != 6 || space.HaveFiles != 5 {
		t.Errorf("6 files: got %v, want a SpaceError", err)
	}
	if err := etcmerge.Fits("var", 1<<20, 5, have); err != nil {
		t.Errorf("5 files: %v", err)
	}
	have.Inodes = -1
	if err := etcmerge.Fits("var", 1<<20, 6, have); err != nil {
		t.Errorf("no limit: %v", err)
	}
}

func TestFootprint(t *testing.T) {
	root := d(0o755, map[string]*node{"empty": f(""), "one": f("1"), "big": f(strings.Repeat("x", 4097)), "dir": d(0o755, map[string]*node{"l": l("t")})})
	if size, inodes := etcmerge.Footprint(root, 4096); size != 2*4096+4096+8192 || inodes != 6 {
		t.Errorf("got %d bytes, %d inodes, want 20480 and 6", size, inodes)
	}
}

// TestBuildNoticesChanges: what was decided on is not there any more.
func TestBuildNoticesChanges(t *testing.T) {
	for name, change := range map[string]func(file string) error{
		"other contents": func(file string) error { return os.WriteFile(file, []byte("other"), 0o600) },
		"removed":        os.Remove,
		"link": func(file string) error {
			return errors.Join(os.Remove(file), os.Symlink("/etc/passwd", file))
		},
		"directory became a link": func(file string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(file)), os.Symlink("/etc", filepath.Dir(file)))
		},
		"directory became a file": func(file string) error {
			return errors.Join(os.RemoveAll(filepath.Dir(file)), os.WriteFile(filepath.Dir(file), nil, 0o600))
		},
		"fifo": func(file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
	} {
		t.Run(name, func(t *testing.T) {
			at := t.TempDir()
			etc := filepath.Join(at, "etc")
			if err := errors.Join(os.MkdirAll(filepath.Join(etc, "dir"), 0o755), os.WriteFile(filepath.Join(etc, "dir/mine"), []byte("first"), 0o600)); err != nil {
				t.Fatal(err)
			}
			r, err := etcmerge.Merge(d(0o755, nil), scan(t, openDir(t, etc)), d(0o755, nil))
			if err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(etc, "dir/mine")); err != nil {
				t.Fatal(err)
			}
			err = r.Build(t.Context(), openDir(t, at), "etc.tx", newObjects(t))
			var ce *etcmerge.ChangedError
			if !errors.As(err, &ce) || ce.Path != "dir/mine" {
				t.Errorf("got %v, want a *ChangedError of dir/mine", err)
			}
		})
	}
}

func TestBuildNoticesDamagedObject(t *testing.T) {
	at, o := t.TempDir(), newObjects(t)
	n := d(0o755, map[string]*node{"x": o.put("right")})
	file := filepath.Join(o.dir, n.Lookup("x").Digest.Hex())
	if err := os.WriteFile(file, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	var me *fsverity.MismatchError
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc", n, o); !errors.As(err, &me) {
		t.Errorf("got %v, want a *MismatchError", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc2", n, o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that the object is missing", err)
	}
}

// TestFingerprint: each kind of change is seen, and none is made up.
func TestFingerprint(t *testing.T) {
	for name, change := range map[string]func(etc string) error{
		"content":   func(etc string) error { return os.WriteFile(filepath.Join(etc, "f"), []byte("2"), 0o600) },
		"mode":      func(etc string) error { return os.Chmod(filepath.Join(etc, "d/g"), 0o640) },
		"attribute": func(etc string) error { return unix.Setxattr(filepath.Join(etc, "f"), "user.x", []byte("1"), 0) },
		"added":     func(etc string) error { return os.WriteFile(filepath.Join(etc, "d/new"), nil, 0o600) },
		"removed":   func(etc string) error { return os.Remove(filepath.Join(etc, "d/g")) },
		"replaced by an equal file": func(etc string) error {
			st, err := os.Stat(filepath.Join(etc, "f"))
			return errors.Join(err, os.WriteFile(filepath.Join(etc, "t"), []byte("1"), 0o600),
				os.Chtimes(filepath.Join(etc, "t"), st.ModTime(), st.ModTime()), os.Rename(filepath.Join(etc, "t"), filepath.Join(etc, "f")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			etc := filepath.Join(xattrDir(t), "etc")
			if err := errors.Join(os.MkdirAll(filepath.Join(etc, "d"), 0o755), os.WriteFile(filepath.Join(etc, "f"), []byte("1"), 0o600),
				os.WriteFile(filepath.Join(etc, "d/g"), []byte("1"), 0o600)); err != nil {
				t.Fatal(err)
			}
			dir := openDir(t, etc)
			if got := scan(t, dir).Fingerprint; got != "" {
				t.Errorf("fingerprint %q of a directory that changed this very moment, want none", got)
			}
			first := etcmerge.FingerprintAt(t, dir, time.Now().Add(time.Hour))
			if again := etcmerge.FingerprintAt(t, dir, time.Now().Add(time.Hour)); first == "" || again != first {
				t.Fatalf("not stable: %q, then %q", first, again)
			}
			if scanned := etcmerge.ScanAt(t, dir, algorithm, time.Now().Add(time.Hour)).Fingerprint; scanned != first {
				t.Errorf("a scan has the fingerprint %q, a walk %q", scanned, first)
			}
			time.Sleep(20 * time.Millisecond) // a clock tick of the file system
			if err := change(etc); err != nil {
				t.Fatal(err)
			}
			if after := etcmerge.FingerprintAt(t, dir, time.Now().Add(time.Hour)); after == first {
				t.Error("the change was not seen")
			}
		})
	}
}

// TestScanRefuses does not read through links.
func TestScanStaysInside(t *testing.T) {
	at := t.TempDir()
	etc := filepath.Join(at, "etc")
	if err := errors.Join(os.Mkdir(etc, 0o755), os.WriteFile(filepath.Join(at, "secret"), []byte("s"), 0o600),
		os.Symlink("../secret", filepath.Join(etc, "file")), os.Symlink("..", filepath.Join(etc, "dir"))); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"dir 0777 -> ..", "file 0777 -> ../secret"}, show(onDisk(t, etc))); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	deep := etc
	for range 140 {
		deep = filepath.Join(deep, "d")
	}
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := etcmerge.Scan(t.Context(), openDir(t, etc), algorithm); err == nil {
		t.Error("140 levels were read")
	}
	if _, err := etcmerge.Fingerprint(t.Context(), openDir(t, etc)); err == nil {
		t.Error("140 levels were walked")
	}
}

// TestBuildSurvivesEveryFault fails each mutating call in turn, and cuts the
// power after each: under the final name there is nothing or all of it, and
// doing it again works.
func TestBuildSurvivesEveryFault(t *testing.T) {
	o := newObjects(t)
	p := d(0o755, map[string]*node{"a": o.put("old"), "b": f("b"), "sub": d(0o755, map[string]*node{"l": l("t")})})
	n := d(0o755, map[string]*node{"a": o.put(strings.Repeat("new", 500)), "b": f("b"), "sub": d(0o700, map[string]*node{"l": l("t"), "x": f("x")})})
	live := filepath.Join(t.TempDir(), "etc")
	if err := etcmerge.Copy(t.Context(), openDir(t, filepath.Dir(live)), "etc", p, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(live, "b"), []byte("mine"), 0o644); err != nil { //nolint:gosec // the mode of the case
		t.Fatal(err)
	}
	want := []string{`a 0644 "` + strings.Repeat("new", 500) + `"`, `b 0644 "mine"`, "sub 0700 dir", "sub/l 0777 -> t", `sub/x 0644 "x"`}

	run := func(dir *durable.Dir) error {
		if err := dir.RemoveAll("etc.tx"); err != nil {
			return err
		}
		r, err := etcmerge.Merge(p, scan(t, openDir(t, live)), n)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Build(t.Context(), dir, "etc.tx", o); err != nil {
			return err
		}
		if err := dir.SyncFS(); err != nil {
			return err
		}
		if err := dir.Rename("etc.tx", dir, "etc"); err != nil {
			return err
		}
		return dir.Sync()
	}
	check := func(t *testing.T, what, at string, mustExist bool) {
		t.Helper()
		_, err := os.Lstat(filepath.Join(at, "etc"))
		if errors.Is(err, fs.ErrNotExist) && !mustExist {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(want, show(onDisk(t, filepath.Join(at, "etc")))); diff != "" {
			t.Fatalf("%s: partial result under the final name (-want +got):\n%s", what, diff)
		}
	}
	for at := 0; ; at++ {
		world := durabletest.New(t)
		world.FailAt(at, unix.ENOSPC)
		err := run(world.Dir())
		if !world.Triggered() {
			if err != nil {
				t.Fatal(err)
			}
			check(t, "no fault", world.PowerLoss().Path(), true)
			if at < 20 {
				t.Fatalf("only %d calls were seen", at)
			}
			return
		}
		op := world.Op(at)
		var se *durable.SpaceError
		if !errors.As(err, &se) {
			t.Fatalf("call %d (%s): got %v, want a *SpaceError", at, op, err)
		}
		check(t, op, world.Path(), false)
		lost := world.PowerLoss()
		check(t, op+", power lost", lost.Path(), false)
		check(t, op+", some of it written", world.PowerLossRandom(uint64(at)).Path(), false)
		if err := run(lost.Dir()); err != nil {
			t.Fatalf("again after call %d (%s): %v", at, op, err)
		}
		check(t, "again after "+op, lost.PowerLoss().Path(), true)
	}
}

// TestRootBuildOwners keeps owners and trusted attributes, which takes root.
func TestRootBuildOwners(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root: set CFSBOOT_ROOT_TESTS=1")
	}
	at, o := t.TempDir(), newObjects(t)
	own := func(n *node, uid, gid uint32) *node {
		n.UID, n.GID = uid, gid
		return n
	}
	n := d(0o755, map[string]*node{
		"f": own(with(fm("x", 0o6711), "security.capability=\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "trusted.t=1"), 1000, 1001),
		"l": own(l("t"), 1002, 1003), "d": own(d(0o2770, map[string]*node{"g": own(f("g"), 7, 8)}), 1004, 1005),
		"null": special(tree.CharDevice, 0x103),
	})
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc", n, o); err != nil {
		t.Fatal(err)
	}
	got := onDisk(t, filepath.Join(at, "etc"))
	equal(t, "copied", n, got)
	var owners func(at string, a, b *node)
	owners = func(at string, a, b *node) {
		if a.UID != b.UID || a.GID != b.GID || a.Rdev != b.Rdev {
			t.Errorf("%s: owner %d:%d device %#x, want %d:%d %#x", at, b.UID, b.GID, b.Rdev, a.UID, a.GID, a.Rdev)
		}
		if a.IsDir() {
			for name, child := range a.All() {
				owners(at+"/"+name, child, b.Lookup(name))
			}
		}
	}
	owners("", n, got)
}

// TestObjects: the contents of every file of a result can be read before it is built.
func TestObjects(t *testing.T) {
	at, o := t.TempDir(), newObjects(t)
	p := d(0o755, map[string]*node{"image": o.put("old"), "edited": o.put("old")})
	if err := etcmerge.Copy(t.Context(), openDir(t, at), "etc", p, o); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"edited": "by hand", "mine": "local"} {
		if err := os.WriteFile(filepath.Join(at, "etc", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := etcmerge.Merge(p, scan(t, openDir(t, filepath.Join(at, "etc"))), d(0o755, map[string]*node{"image": o.put("new"), "edited": o.put("new")}))
	if err != nil {
		t.Fatal(err)
	}
	objects := r.Objects(o)
	for name, want := range map[string]string{"image": "new", "edited": "by hand", "mine": "local"} {
		file, err := objects.OpenObject(r.Root.Lookup(name).Digest)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
		if file.Close(); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if err := os.Remove(filepath.Join(at, "etc/mine")); err != nil {
		t.Fatal(err)
	}
	var changed *etcmerge.ChangedError
	if _, err := objects.OpenObject(r.Root.Lookup("mine").Digest); !errors.As(err, &changed) || changed.Path != "mine" {
		t.Errorf("a file that is gone: %v", err)
	}
}
