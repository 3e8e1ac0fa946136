package durable_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openDir(t testing.TB, path string) *durable.Dir {
	t.Helper()
	d, err := durable.OpenDir(path)
	must(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newDir(t testing.TB) *durable.Dir { return openDir(t, t.TempDir()) }

func read(t testing.TB, d *durable.Dir, name string) string {
	t.Helper()
	b, err := d.ReadFile(name, 1<<20)
	must(t, err)
	return string(b)
}

func names(t testing.TB, d *durable.Dir) []string {
	t.Helper()
	list, err := d.ReadDir()
	must(t, err)
	var s []string
	for _, e := range list {
		s = append(s, e.Name)
	}
	return s
}

// operations calls every method that takes a name.
func operations(d *durable.Dir, name string) map[string]error {
	file := func(f *durable.File, err error) error {
		if err == nil {
			err = f.Close()
		}
		return err
	}
	handle := func(f io.Closer, err error) error {
		if err == nil {
			err = f.Close()
		}
		return err
	}
	calls := map[string]error{
		"Mkdir":          d.Mkdir(name, 0o755),
		"Create":         file(d.Create(name, 0o644)),
		"Symlink":        d.Symlink("x", name),
		"ReplaceSymlink": d.ReplaceSymlink("x", name, d, ".l-"),
		"Mknod":          d.Mknod(name, unix.S_IFIFO|0o600, 0),
		"Remove":         d.Remove(name),
		"RemoveAll":      d.RemoveAll(name),
		"Link from":      d.Link(name, d, "new"),
		"Link to":        d.Link("file", d, name),
		"Rename from":    d.Rename(name, d, "new"),
		"Rename to":      d.Rename("file", d, name),
		"Exchange":       d.Exchange(name, d, "file"),
		"Chmod":          d.Chmod(name, 0o600),
		"Lchown":         d.Lchown(name, -1, -1),
		"Utimes":         d.Utimes(name, unix.Timespec{}, unix.Timespec{}),
		"Setxattr":       d.Setxattr(name, "user.x", nil),
		"WriteFile":      d.WriteFile(name, nil, 0o644),
	}
	_, calls["CreateExclusive"] = d.CreateExclusive(name, strings.NewReader(""), 0o644)
	_, calls["Readlink"] = d.Readlink(name)
	_, calls["Lstat"] = d.Lstat(name)
	_, calls["ReadFile"] = d.ReadFile(name, 1)
	_, calls["Xattrs"] = d.Xattrs(name)
	_, calls["ReadBack"] = d.ReadBack(name, io.Discard)
	_, calls["ReadSubDir"] = d.ReadSubDir(name)
	sub, err := d.Sub(name)
	calls["Sub"] = handle(sub, err)
	made, err := d.MkdirAll(name, 0o755)
	calls["MkdirAll"] = handle(made, err)
	f, err := d.Open(name)
	calls["Open"] = handle(f, err)
	t, err := d.CreateTemp(0o644)
	if err == nil {
		calls["Temp.Link"] = t.Link(d, name)
		calls["Temp.Replace"] = t.Replace(d, name)
		err = t.Discard()
	}
	calls["CreateTemp"] = nil
	if err != nil {
		calls["CreateTemp"] = err
	}
	delete(calls, "CreateTemp")
	return calls
}

// TestStaysBelow: no method leaves its directory, by "..", by an absolute name or
// by a symbolic link in the middle.
func TestStaysBelow(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("x"), 0o600))
	d := newDir(t)
	must(t, d.WriteFile("file", []byte("f"), 0o644))
	must(t, os.Symlink(outside, filepath.Join(d.Path(), "out")))
	must(t, os.Symlink("dir", filepath.Join(d.Path(), "in")))
	must(t, d.Mkdir("dir", 0o755))
	for _, name := range []string{
		"out/secret", "out/new", "in/new", "../x", "dir/../../x", "dir/../file", outside + "/secret", "/secret",
		"", "..", "dir/", "dir//x", "./file", "file\x00x",
	} {
		for call, err := range operations(d, name) {
			if err == nil {
				t.Errorf("%s of %q succeeded", call, name)
			}
		}
	}
	list, err := os.ReadDir(outside)
	must(t, err)
	if len(list) != 1 {
		t.Errorf("outside there are %v now", list)
	}
	if got := strings.Join(names(t, d), " "); got != "dir file in out" {
		t.Errorf("got %q", got)
	}
	// The last component is a link: what it leads to is not touched or read.
	for name, err := range map[string]error{
		"Open":  second(d.Open("out")),
		"Sub":   second(d.Sub("out")),
		"Chmod": d.Chmod("out", 0o777),
	} {
		if err == nil {
			t.Errorf("%s followed a link", name)
		}
	}
	must(t, d.RemoveAll("out"))
	if _, err := os.Stat(filepath.Join(outside, "secret")); err != nil {
		t.Errorf("RemoveAll followed a link: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestFile: the file of a directory is the directory's own, so that nothing closes
// its descriptor a second time.
func TestFile(t *testing.T) {
	d := newDir(t)
	if f := d.File(); f != d.File() || int(f.Fd()) != d.Fd() {
		t.Errorf("got descriptor %d, want %d of one file", f.Fd(), d.Fd())
	}
}

func TestReadFile(t *testing.T) {
	d := newDir(t)
	must(t, d.WriteFile("file", []byte("12345"), 0o640))
	must(t, d.Mknod("fifo", unix.S_IFIFO|0o600, 0))
	must(t, d.Mkdir("dir", 0o755))
	if got := read(t, d, "file"); got != "12345" {
		t.Errorf("got %q", got)
	}
	if _, err := d.ReadFile("file", 4); !errors.Is(err, unix.EFBIG) {
		t.Errorf("limit: got %v, want EFBIG", err)
	}
	for _, name := range []string{"fifo", "dir"} {
		if _, err := d.ReadFile(name, 10); err == nil {
			t.Errorf("%s was read", name)
		}
	}
	if st, err := d.Lstat("file"); err != nil || st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("got mode %o, %v, want 0640", st.Mode, err)
	}
}

// TestMetadata sets what an /etc tree needs, on files and links, and reads it back.
func TestMetadata(t *testing.T) {
	d := newDir(t)
	when := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC).UnixNano())
	f, err := d.Create("file", 0o600)
	must(t, err)
	_, err = f.ReadFrom(iotest.OneByteReader(strings.NewReader("content")))
	must(t, errors.Join(err, f.Chown(os.Getuid(), os.Getgid()), f.Chmod(0o4755), f.Setxattr("user.note", []byte("v")), f.Utimes(when, when), f.Sync(), f.Close()))
	if f.Size() != 7 {
		t.Errorf("got size %d, want 7", f.Size())
	}
	sparse, err := d.Create("sparse", 0o600)
	must(t, err)
	must(t, errors.Join(sparse.Truncate(1<<40), sparse.Close()))
	if st, err := d.Lstat("sparse"); err != nil || st.Size != 1<<40 || st.Blocks != 0 {
		t.Errorf("got %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	must(t, d.Symlink("file", "link"))
	must(t, errors.Join(d.Utimes("link", when, when), d.Lchown("link", os.Getuid(), os.Getgid())))
	for _, name := range []string{"file", "link"} {
		st, err := d.Lstat(name)
		must(t, err)
		if st.Mtim != when {
			t.Errorf("%s: got mtime %v, want %v", name, st.Mtim, when)
		}
	}
	if st, err := d.Lstat("file"); err != nil || st.Mode != unix.S_IFREG|0o4755 {
		t.Errorf("got mode %o, %v", st.Mode, err)
	}
	if err := d.Chmod("link", 0o600); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("chmod of a link: got %v, want EOPNOTSUPP", err)
	}
	must(t, d.Setxattr("file", "user.more", bytes.Repeat([]byte("x"), 3000)))
	m, err := d.Xattrs("file")
	if err != nil || m["user.note"] != "v" || len(m["user.more"]) != 3000 {
		t.Errorf("got attributes %v, %v", m, err)
	}
	if target, err := d.Readlink("link"); err != nil || target != "file" {
		t.Errorf("got %q, %v", target, err)
	}
}

func TestReadDir(t *testing.T) {
	d := newDir(t)
	for i := range 500 {
		must(t, d.Mkdir(fmt.Sprintf("%03d-%s", i, strings.Repeat("n", i/3)), 0o755))
	}
	must(t, d.Symlink("x", "z"))
	list, err := d.ReadDir()
	must(t, err)
	if len(list) != 501 || !list[0].IsDir() || !list[500].IsSymlink() || list[0].Ino == 0 {
		t.Errorf("got %d entries, first %+v, last %+v", len(list), list[0], list[len(list)-1])
	}
	for i, e := range list[:500] {
		if want := fmt.Sprintf("%03d-%s", i, strings.Repeat("n", i/3)); e.Name != want {
			t.Fatalf("entry %d: got %q, want %q", i, e.Name, want)
		}
	}
}

func TestRemoveAll(t *testing.T) {
	d := newDir(t)
	for _, p := range []string{"a/b/c", "a/d"} {
		sub, err := d.MkdirAll(p, 0o755)
		must(t, err)
		must(t, errors.Join(sub.WriteFile("f", nil, 0o644), sub.Symlink("f", "l"), sub.Close()))
	}
	must(t, d.RemoveAll("a/b"))
	if got, err := d.ReadSubDir("a"); err != nil || len(got) != 1 {
		t.Errorf("got %v, %v, want only d", got, err)
	}
	must(t, d.RemoveAll("a"))
	must(t, d.RemoveAll("a"))
	if got := names(t, d); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// plain has no O_TMPFILE and, if renames is set, no RENAME_NOREPLACE.
type plain struct{ renames bool }

func (p plain) Before(op durable.Op) error {
	if op.Kind == durable.OpTemp {
		return unix.EOPNOTSUPP
	}
	if p.renames && op.Kind == durable.OpRename && strings.HasPrefix(op.Name, ".cfsboot-tmp-") && op.NewName == "new" {
		return unix.EINVAL
	}
	return nil
}

func (plain) After(durable.Op, error) {}

// TestTemp goes through the life of a temporary on three kinds of file system.
func TestTemp(t *testing.T) {
	for name, hook := range map[string]durable.Hook{"O_TMPFILE": nil, "named": plain{}, "named without NOREPLACE": plain{renames: true}} {
		t.Run(name, func(t *testing.T) {
			d, err := newDir(t).WithHook(hook)
			must(t, err)
			defer d.Close()
			must(t, d.Mkdir("sub", 0o755))
			sub, err := d.Sub("sub")
			must(t, err)
			defer sub.Close()
			temp := func(data string) *durable.Temp {
				f, err := d.CreateTemp(0o644)
				must(t, err)
				_, err = io.WriteString(f, data)
				must(t, err)
				return f
			}
			f := temp("one")
			r, err := f.Seal()
			must(t, err)
			if b, err := io.ReadAll(r); err != nil || string(b) != "one" {
				t.Errorf("sealed: got %q, %v", b, err)
			}
			if _, err := unix.Write(int(r.Fd()), []byte("x")); err == nil {
				t.Error("the sealed file can be written")
			}
			must(t, errors.Join(f.Sync(), f.Link(sub, "new"), f.Discard()))
			g := temp("two")
			if err := g.Link(sub, "new"); !errors.Is(err, fs.ErrExist) {
				t.Errorf("link over an existing name: got %v, want ErrExist", err)
			}
			if got := read(t, d, "sub/new"); got != "one" {
				t.Errorf("got %q, want \"one\"", got)
			}
			b := make([]byte, 5)
			if n, err := g.ReadAt(b, 1); n != 2 || !errors.Is(err, io.EOF) || string(b[:2]) != "wo" {
				t.Errorf("ReadAt: got %q, %v", b[:n], err)
			}
			must(t, g.Replace(sub, "other"))
			if got := read(t, d, "sub/other"); got != "two" {
				t.Errorf("got %q, want \"two\"", got)
			}
			must(t, temp("three").Replace(sub, "other"))
			must(t, temp("four").Discard())
			if got := read(t, d, "sub/new") + read(t, d, "sub/other"); got != "onethree" {
				t.Errorf("got %q, want \"onethree\"", got)
			}
			if got := fmt.Sprint(names(t, d), names(t, sub)); got != "[sub] [new other]" {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestReplaceSymlink(t *testing.T) {
	fsys := durabletest.New(t)
	d := fsys.Dir()
	must(t, d.Mkdir("temp", 0o755))
	temp, err := d.Sub("temp")
	must(t, err)
	defer temp.Close()
	for _, c := range []struct {
		target string
		calls  int
	}{{"a", 1}, {"a", 1}, {"b", 3}} {
		fsys.Disarm()
		must(t, d.ReplaceSymlink(c.target, "l", temp, ".symlink-"))
		if got, err := d.Readlink("l"); err != nil || got != c.target || fsys.Count() != c.calls {
			t.Errorf("got %q, %v after %d calls, want %q after %d", got, err, fsys.Count(), c.target, c.calls)
		}
	}
	must(t, d.WriteFile("file", []byte("x"), 0o644))
	if err := d.ReplaceSymlink("a", "file", temp, ".symlink-"); err == nil || read(t, d, "file") != "x" {
		t.Errorf("a file was replaced: %v", err)
	}
	if got := names(t, temp); len(got) > 0 {
		t.Errorf("left: %v", got)
	}
}

// TestWriteFileSurvivesEveryFault: the old or the new content, whole, and the new
// one after success.
func TestWriteFileSurvivesEveryFault(t *testing.T) {
	for n := 0; ; n++ {
		fsys := durabletest.New(t)
		d := fsys.Dir()
		must(t, d.WriteFile("f", []byte("old"), 0o600))
		fsys.FailAt(n, unix.EIO)
		err := d.WriteFile("f", []byte("new content"), 0o600)
		triggered := fsys.Triggered()
		if (err != nil) != triggered {
			t.Fatalf("fault %d (%s): got %v", n, fsys.Op(n), err)
		}
		views := []*durabletest.FS{fsys, fsys.PowerLoss(), fsys.PowerLossNames()}
		for seed := range uint64(4) {
			views = append(views, fsys.PowerLossRandom(seed))
		}
		for i, v := range views {
			got := read(t, v.Dir(), "f")
			if got != "new content" && (got != "old" || !triggered) {
				t.Errorf("fault %d (%s), view %d: got %q", n, fsys.Op(n), i, got)
			}
		}
		if got := names(t, d); len(got) != 1 && err == nil {
			t.Errorf("fault %d (%s): got the files %v", n, fsys.Op(n), got)
		}
		if !triggered {
			return
		}
	}
}

// TestCreateExclusiveOnFAT: after success the file survives a power cut; after a
// failure there is none, or a partial one that the caller was told about.
func TestCreateExclusiveOnFAT(t *testing.T) {
	for n := 0; ; n++ {
		fsys := durabletest.NewFAT(t)
		d := fsys.Dir()
		fsys.FailAt(n, unix.ENOSPC)
		_, err := d.CreateExclusive("f", strings.NewReader("content"), 0o600)
		if !fsys.Triggered() {
			must(t, err)
			if got := read(t, fsys.PowerLoss().Dir(), "f"); got != "content" {
				t.Errorf("after a power cut: got %q", got)
			}
			fsys.Disarm()
			if _, err := d.CreateExclusive("f", strings.NewReader("other"), 0o600); !errors.Is(err, fs.ErrExist) || read(t, d, "f") != "content" {
				t.Errorf("second time: got %v", err)
			}
			return
		}
		var space *durable.SpaceError
		if !errors.As(err, &space) || !errors.Is(err, unix.ENOSPC) || space.Where == "" || space.Have <= 0 {
			t.Fatalf("fault %d (%s): got %v, want a SpaceError", n, fsys.Op(n), err)
		}
		if got := names(t, d); len(got) > 0 {
			t.Errorf("fault %d (%s): left %v", n, fsys.Op(n), got)
		}
	}
}

func TestReadBack(t *testing.T) {
	d := newDir(t)
	for _, size := range []int{0, 1, 4096, 1<<20 + 5, 3 << 20} {
		want := bytes.Repeat([]byte("0123456"), size/7+1)[:size]
		name := fmt.Sprint(size)
		if n, err := d.CreateExclusive(name, bytes.NewReader(want), 0o600); err != nil || n != int64(size) {
			t.Fatalf("%d bytes: got %d, %v", size, n, err)
		}
		var got bytes.Buffer
		if n, err := d.ReadBack(name, &got); err != nil || n != int64(size) || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes: read %d, %v", size, n, err)
		}
	}
}

// TestReadFromReportsCut: a source that was cut is not the end of the data.
func TestReadFromReportsCut(t *testing.T) {
	d := newDir(t)
	for _, want := range []error{io.ErrUnexpectedEOF, unix.EIO} {
		_, err := d.CreateExclusive("f", io.MultiReader(strings.NewReader("x"), iotest.ErrReader(want)), 0o600)
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if got := names(t, d); len(got) > 0 {
			t.Errorf("left: %v", got)
		}
	}
}

func TestSpace(t *testing.T) {
	d := newDir(t)
	s, err := d.Space()
	if err != nil || s.Bytes <= 0 || s.Size < s.Bytes || s.MaxInodes < s.Inodes || s.BlockSize <= 0 || s.ReadOnly {
		t.Errorf("got %+v, %v", s, err)
	}
	must(t, errors.Join(d.Need(1), d.Writable()))
	var space *durable.SpaceError
	if err := d.Need(1 << 62); !errors.As(err, &space) || space.Need != 1<<62 {
		t.Errorf("got %v, want a SpaceError", err)
	}
	for e, want := range map[durable.SpaceError]string{
		{Where: "/x", Need: 5, Have: 3}:           `no space at "/x": need 5 bytes, have 3 bytes`,
		{Where: "/x", Need: 3, Have: 24221114368}: `no space left at "/x", although 24221114368 bytes look free`,
		{Where: "/x", Have: 3}:                    `no space left at "/x", although 3 bytes look free`,
		{Where: "/x"}:                             `no space left at "/x"`,
		{Where: "/x", Have: 3, Inodes: true, NeedFiles: 5, HaveFiles: 2}: `no space at "/x": need 5 inodes, have 2 (3 bytes are free)`,
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestFlock(t *testing.T) {
	d := newDir(t)
	other := openDir(t, d.Path())
	must(t, d.Flock(unix.LOCK_EX|unix.LOCK_NB))
	if err := other.Flock(unix.LOCK_SH | unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("got %v, want EWOULDBLOCK", err)
	}
	must(t, d.Flock(unix.LOCK_UN))
	must(t, other.Flock(unix.LOCK_SH|unix.LOCK_NB))
}
