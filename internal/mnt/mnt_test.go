package mnt_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/mnt"
)

func TestParseTable(t *testing.T) {
	text := "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" +
		"30 29 0:24 /a\\040b /mnt\\134x\\040y ro,nosuid shared:2 master:1 - overlay composefs:ab ro,lowerdir+=/x y,verity=require\n" +
		"31 29 0:25 / /q rw - tmpfs  rw\n"
	got, err := mnt.ParseTable([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []mnt.Info{
		{ID: 29, Parent: 1, Major: 8, Minor: 1, Root: "/", Point: "/", Options: "rw,relatime", Type: "ext4", Source: "/dev/sda1", SuperOptions: "rw"},
		{ID: 30, Parent: 29, Minor: 24, Root: "/a b", Point: `/mnt\x y`, Options: "ro,nosuid", Type: "overlay", Source: "composefs:ab", SuperOptions: "ro,lowerdir+=/x y,verity=require"},
		{ID: 31, Parent: 29, Minor: 25, Root: "/", Point: "/q", Options: "rw", Type: "tmpfs", Source: "", SuperOptions: "rw"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func TestParseTableRejects(t *testing.T) {
	for name, line := range map[string]string{
		"few fields":    "29 1 8:1 / /",
		"no separator":  "29 1 8:1 / / rw shared:1 ext4 /dev/sda1 rw",
		"cut":           "29 1 8:1 / / rw - ext4 /dev/sda1",
		"mount ID":      "x 1 8:1 / / rw - ext4 /dev/sda1 rw",
		"parent":        "29 y 8:1 / / rw - ext4 /dev/sda1 rw",
		"device":        "29 1 8 / / rw - ext4 /dev/sda1 rw",
		"device number": "29 1 8:-1 / / rw - ext4 /dev/sda1 rw",
	} {
		if got, err := mnt.ParseTable([]byte(line)); err == nil {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

func FuzzParseTable(f *testing.F) {
	f.Add([]byte("29 1 8:1 / /a\\040b rw,relatime shared:1 - ext4 /dev/sda1 rw\n"))
	if b, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := mnt.ParseTable(b)
		if err == nil && len(table) > len(strings.Split(string(b), "\n")) {
			t.Errorf("%d mounts of %d bytes", len(table), len(b))
		}
	})
}

// TestTable reads the real table: what is mounted at / is in it.
func TestTable(t *testing.T) {
	root, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	info, err := mnt.Of(root)
	if err != nil {
		t.Fatal(err)
	}
	if info.Point != "/" || info.Type == "" {
		t.Errorf("%+v", info)
	}
	if mounted, err := mnt.IsRoot(root); err != nil || !mounted {
		t.Errorf("IsRoot(/): %v, %v", mounted, err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if mounted, err := mnt.IsRoot(dir); err != nil || mounted {
		t.Errorf("IsRoot of a new directory: %v, %v", mounted, err)
	}
}

func TestParseRecord(t *testing.T) {
	for rec, want := range map[string]string{
		"3,100,5,-;erofs (device loop0): cannot find valid erofs superblock\n SUBSYSTEM=x\n": "erofs (device loop0): cannot find valid erofs superblock",
		"6,1,2,-;overlayfs: failed to resolve '/x': -2\n":                                    "overlayfs: failed to resolve '/x': -2",
		"6,1,2,-;usb 1-1: new device\n":                                                      "",
		"no semicolon":                                                                       "",
	} {
		got, ok := mnt.ParseRecord(rec)
		if got != want || ok != (want != "") {
			t.Errorf("%q: got %q, %v", rec, got, ok)
		}
	}
}

func TestEscape(t *testing.T) {
	for path, want := range map[string]string{"/a/b": "/a/b", "/a:b": `/a\:b`, `/a\b`: `/a\\b`, "": ""} {
		if got := mnt.Escape(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	e := &mnt.Error{Op: "mount overlay \"x\": create", Messages: []string{"overlay: one", "two"}, Err: unix.EINVAL}
	if got := e.Error(); got != `mount overlay "x": create: invalid argument (kernel: overlay: one; two)` {
		t.Errorf("got %q", got)
	}
	f := &mnt.FeatureError{Feature: "EROFS on a regular file", Option: "Linux 6.12", Err: e}
	if !errors.Is(f, errors.ErrUnsupported) || !errors.Is(f, unix.EINVAL) {
		t.Errorf("%v does not unwrap", f)
	}
	if !strings.Contains(f.Error(), "lacks EROFS on a regular file (Linux 6.12)") {
		t.Errorf("got %q", f)
	}
}

// TestExplainEROFS: a kernel before 6.12 is named as the reason, other refusals are left alone.
func TestExplainEROFS(t *testing.T) {
	old := mnt.ExplainEROFS(&mnt.Error{Op: "create", Err: unix.ENOTBLK})
	if !errors.Is(old, errors.ErrUnsupported) || !strings.Contains(old.Error(), "CONFIG_EROFS_FS_BACKED_BY_FILE") {
		t.Errorf("got %v", old)
	}
	if other := mnt.ExplainEROFS(&mnt.Error{Op: "create", Err: unix.EINVAL}); errors.Is(other, errors.ErrUnsupported) {
		t.Errorf("got %v", other)
	}
}

func TestOpenBelow(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/in", 0o755), os.WriteFile(dir+"/in/file", nil, 0o644), os.Symlink("/etc", dir+"/out"), os.Symlink("in", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, c := range []struct {
		name    string
		resolve uint64
		want    error
	}{
		{"in/file", unix.RESOLVE_BENEATH, nil},
		{"link/file", unix.RESOLVE_BENEATH, nil},
		{"link/file", unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS, unix.ELOOP},
		{"../" + filepath.Base(dir), unix.RESOLVE_BENEATH, unix.EXDEV},
		{"out/passwd", unix.RESOLVE_BENEATH, unix.EXDEV},
		{"none", unix.RESOLVE_BENEATH, unix.ENOENT},
	} {
		f, err := mnt.OpenBelow(d, c.name, unix.O_RDONLY, c.resolve)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if err == nil {
			f.Close()
		}
	}
}
