package mnt_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/testutil/roottest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var content = bytes.Repeat([]byte("content of an object\n"), 1000)

// store makes an image with one external file, and the objects directory for it.
func store(t *testing.T, dir string) (image, objects *os.File) {
	t.Helper()
	d := fsverity.Sum(fsverity.SHA512, content)
	object := filepath.Join(dir, "objects", d.ObjectPath())
	must(t, os.MkdirAll(filepath.Dir(object), 0o755))
	must(t, os.WriteFile(object, content, 0o644))
	f, err := os.Open(object)
	must(t, err)
	defer f.Close()
	must(t, fsverity.Enable(f, fsverity.SHA512))

	root := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("big", tree.NewExternal(tree.Meta{Mode: 0o755}, d, int64(len(content))))
	root.Set("small", tree.NewInline(tree.Meta{Mode: 0o644}, []byte("inline")))
	root.Set("empty", tree.NewDir(tree.Meta{Mode: 0o755}))
	var b bytes.Buffer
	must(t, erofs.Encode(&b, root, erofs.V1))
	must(t, os.WriteFile(dir+"/image", b.Bytes(), 0o644))
	image, err = os.Open(dir + "/image")
	must(t, err)
	t.Cleanup(func() { image.Close() })
	objects, err = os.Open(dir + "/objects")
	must(t, err)
	t.Cleanup(func() { objects.Close() })
	return image, objects
}

// below lists the mounts below dir.
func below(t *testing.T, dir string) []mnt.Info {
	t.Helper()
	table, err := mnt.Table()
	must(t, err)
	var out []mnt.Info
	for _, i := range table {
		if strings.HasPrefix(i.Point, dir+"/") {
			out = append(out, i)
		}
	}
	return out
}

// TestRootComposefs mounts with both spellings of the layers, and below a path that is longer than the kernel takes
// and has the characters that are syntax in it.
func TestRootComposefs(t *testing.T) {
	roottest.NeedKernel(t)
	for _, joined := range []bool{false, true} {
		for name, sub := range map[string]string{"plain path": "m", "odd path": `m:a\b,c` + strings.Repeat("x", 240) + "/" + strings.Repeat("y", 240)} {
			t.Run(fmt.Sprintf("joined=%v, %s", joined, name), func(t *testing.T) {
				dir := t.TempDir()
				image, objects := store(t, dir)
				target := filepath.Join(dir, sub)
				must(t, os.MkdirAll(target, 0o755))
				must(t, mnt.Composefs(image, objects, target, mnt.ComposefsOptions{Source: "composefs:test", Verity: true, Joined: joined}))
				defer func() { must(t, mnt.Detach(target)) }()
				got := below(t, dir)
				if len(got) != 1 || got[0].Source != "composefs:test" || got[0].Type != "overlay" || got[0].Point != target || !strings.Contains(got[0].SuperOptions, "verity=require") {
					t.Errorf("mounts %+v", got)
				}
				if b, err := os.ReadFile(target + "/big"); err != nil || !bytes.Equal(b, content) {
					t.Errorf("external file: %d bytes, %v", len(b), err)
				}
				if b, err := os.ReadFile(target + "/small"); err != nil || string(b) != "inline" {
					t.Errorf("inline file: %q, %v", b, err)
				}
				if err := os.WriteFile(target+"/small", nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Errorf("write: %v, want EROFS", err)
				}
			})
		}
	}
}

// TestRootComposefsThroughLink: a target that is a link means the directory it leads to, for every step.
func TestRootComposefsThroughLink(t *testing.T) {
	roottest.NeedKernel(t)
	dir := t.TempDir()
	image, objects := store(t, dir)
	must(t, os.Mkdir(dir+"/m", 0o755))
	must(t, os.Symlink("m", dir+"/link"))
	must(t, mnt.Composefs(image, objects, dir+"/link", mnt.ComposefsOptions{Verity: true}))
	if got := below(t, dir); len(got) != 1 || got[0].Type != "overlay" || got[0].Point != dir+"/m" {
		t.Errorf("mounts %+v", got)
	}
	must(t, mnt.Detach(dir+"/m"))
}

// TestRootVerity: what verity=require is for.
func TestRootVerity(t *testing.T) {
	roottest.NeedKernel(t)
	for _, verity := range []bool{true, false} {
		dir := t.TempDir()
		image, objects := store(t, dir)
		object := filepath.Join(dir, "objects", fsverity.Sum(fsverity.SHA512, content).ObjectPath())
		must(t, os.Remove(object))
		must(t, os.WriteFile(object, content, 0o644))
		must(t, os.Mkdir(dir+"/m", 0o755))
		must(t, mnt.Composefs(image, objects, dir+"/m", mnt.ComposefsOptions{Verity: verity}))
		_, err := os.ReadFile(dir + "/m/big")
		if verity && !errors.Is(err, unix.EIO) || !verity && err != nil {
			t.Errorf("verity %v, object without fs-verity: %v", verity, err)
		}
		must(t, mnt.Detach(dir+"/m"))
	}
}

// TestRootComposefsFails: nothing is left at the target, and the error says what is wrong.
func TestRootComposefsFails(t *testing.T) {
	roottest.NeedKernel(t)
	dir := t.TempDir()
	image, objects := store(t, dir)
	must(t, os.Mkdir(dir+"/m", 0o755))
	must(t, os.WriteFile(dir+"/zeros", make([]byte, 8192), 0o644))
	must(t, os.WriteFile(dir+"/short", make([]byte, 100), 0o644))
	half := make([]byte, 8192)
	_, err := image.ReadAt(half[:1024+4], 0)
	must(t, err)
	must(t, os.WriteFile(dir+"/half", half, 0o644))
	for name, word := range map[string]string{"zeros": "magic number", "short": "superblock", "half": "kernel: "} {
		f, err := os.Open(dir + "/" + name)
		must(t, err)
		defer f.Close()
		err = mnt.Composefs(f, objects, dir+"/m", mnt.ComposefsOptions{})
		if err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), dir+"/"+name) {
			t.Errorf("%s: got %v, want an error with %q", name, err, word)
		}
		t.Log(err)
	}
	if err := mnt.Composefs(image, image, dir+"/m", mnt.ComposefsOptions{}); err == nil {
		t.Error("a file was taken as objects directory")
	} else {
		t.Log(err)
	}
	if err := mnt.Composefs(image, objects, dir+"/none", mnt.ComposefsOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing target: %v", err)
	}
	if got := below(t, dir); len(got) != 0 {
		t.Errorf("mounts left: %+v", got)
	}
}

// TestRootKernelMessages: what the kernel says about an option is part of the error.
func TestRootKernelMessages(t *testing.T) {
	roottest.NeedKernel(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/lower", 0o755))
	must(t, os.MkdirAll(dir+"/upper/work", 0o755))
	_, err := mnt.Overlay{Source: "x", Lower: dir + "/lower", Upper: dir + "/upper", Work: dir + "/upper/work"}.Mount()
	var e *mnt.Error
	if !errors.As(err, &e) || len(e.Messages) == 0 || !strings.Contains(err.Error(), "workdir and upperdir must be separate") {
		t.Errorf("got %v", err)
	}
	_, err = mnt.Overlay{Source: "x", Lower: "/" + strings.Repeat("x", 300)}.Mount()
	if !errors.Is(err, unix.ENAMETOOLONG) || !strings.Contains(err.Error(), "255") {
		t.Errorf("got %v", err)
	}
}

// TestRootMountRoundTrip covers clone, attach, attributes, propagation, move and detach.
func TestRootMountRoundTrip(t *testing.T) {
	roottest.NeedKernel(t)
	dir := t.TempDir()
	for _, d := range []string{"private", "target", "source/sub"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, mnt.PrivateDir(dir+"/private"))
	must(t, os.Mkdir(dir+"/private/a", 0o755))
	src, err := os.Open(dir + "/source")
	must(t, err)
	defer src.Close()
	m, err := mnt.Clone(src)
	must(t, err)
	defer m.Close()
	must(t, m.SetAttr(mnt.ReadOnly|mnt.NoExec, 0))
	must(t, m.Attach(dir+"/private/a"))
	if err := os.WriteFile(dir+"/private/a/f", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only clone: %v", err)
	}
	must(t, m.SetAttr(0, mnt.ReadOnly))
	must(t, os.WriteFile(dir+"/private/a/f", nil, 0o644))
	must(t, errors.Join(m.SetPropagation(mnt.Slave), m.SetPropagation(mnt.Shared)))

	tmp, err := mnt.Tmpfs("test", 0o711)
	must(t, err)
	defer tmp.Close()
	a, err := os.Open(dir + "/private/a")
	must(t, err)
	defer a.Close()
	if err := tmp.AttachAt(a, "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("attach at a missing directory: %v", err)
	}
	must(t, os.Symlink("sub", dir+"/source/link"))
	if err := tmp.AttachAt(a, "link"); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("attach at a link: %v", err)
	}
	must(t, tmp.AttachAt(a, "sub"))
	must(t, mnt.Move(dir+"/private/a", dir+"/target"))
	got := below(t, dir)
	if len(got) != 3 || got[1].Point != dir+"/target" || got[2].Point != dir+"/target/sub" || got[2].Source != "test" {
		t.Errorf("mounts %+v", got)
	}
	st, err := os.Stat(dir + "/target/sub")
	must(t, err)
	if st.Mode().Perm() != 0o711 {
		t.Errorf("tmpfs has mode %v", st.Mode())
	}
	must(t, mnt.Detach(dir+"/target"))
	must(t, mnt.Detach(dir+"/private"))
	if got := below(t, dir); len(got) != 0 {
		t.Errorf("mounts left: %+v", got)
	}
	if err := mnt.Detach(dir + "/private"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("detach without a mount: %v", err)
	}
}

// TestRootPrivateWritable: the copy is writable, the mount that everybody sees is not, and a read-only file system
// stays one.
func TestRootPrivateWritable(t *testing.T) {
	roottest.NeedKernel(t)
	dir := t.TempDir()
	must(t, os.MkdirAll(dir+"/fs/sub", 0o755))
	must(t, mnt.PrivateDir(dir+"/fs"))
	defer func() { must(t, mnt.Detach(dir+"/fs")) }()
	must(t, unix.Mount("", dir+"/fs", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	f, err := mnt.PrivateWritable(dir + "/fs")
	must(t, err)
	defer f.Close()
	must(t, os.WriteFile(fmt.Sprintf("/proc/self/fd/%d/sub/new", f.Fd()), []byte("x"), 0o644))
	if b, err := os.ReadFile(dir + "/fs/sub/new"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(dir+"/fs/sub/other", nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("the visible mount: %v, want EROFS", err)
	}
	fd, err := unix.Openat(int(f.Fd()), "sub", unix.O_TMPFILE|unix.O_RDWR, 0o644)
	must(t, err)
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(f.Fd()), "sub/linked", unix.AT_SYMLINK_FOLLOW))
	must(t, unix.Close(fd))
	if got := len(below(t, dir)); got != 1 {
		t.Errorf("%d mounts, want 1", got)
	}

	must(t, os.Mkdir(dir+"/ro", 0o755))
	must(t, unix.Mount("ro", dir+"/ro", "tmpfs", unix.MS_RDONLY, ""))
	defer func() { must(t, mnt.Detach(dir+"/ro")) }()
	if _, err := mnt.PrivateWritable(dir + "/ro"); !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only file system: %v, want EROFS", err)
	}
}
