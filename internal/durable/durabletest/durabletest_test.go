package durabletest_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

func content(t *testing.T, fs *durabletest.FS, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fs.Path(), name))
	if errors.Is(err, os.ErrNotExist) {
		return "absent"
	}
	if err != nil {
		t.Fatal(err)
	}
	return "<" + string(b) + ">"
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, d *durable.Dir, name, data string) *durable.File {
	t.Helper()
	f, err := d.Create(name, 0o644)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	_, err = f.Write([]byte(data))
	must(t, err)
	return f
}

func temp(t *testing.T, d *durable.Dir, data string) *durable.Temp {
	t.Helper()
	f, err := d.CreateTemp(0o644)
	must(t, err)
	t.Cleanup(func() { _ = f.Discard() })
	_, err = f.Write([]byte(data))
	must(t, err)
	return f
}

// TestPowerLoss checks the model against the rules of its package comment.
func TestPowerLoss(t *testing.T) {
	for _, c := range []struct {
		name          string
		run           func(t *testing.T, d *durable.Dir)
		file          string
		synced, names string
	}{
		{"nothing synced", func(t *testing.T, d *durable.Dir) { create(t, d, "a", "x") }, "a", "absent", "<>"},
		{"file synced, name not", func(t *testing.T, d *durable.Dir) { must(t, create(t, d, "a", "x").Sync()) }, "a", "absent", "<x>"},
		{"name synced, file not", func(t *testing.T, d *durable.Dir) {
			create(t, d, "a", "x")
			must(t, d.Sync())
		}, "a", "<>", "<>"},
		{"both synced", func(t *testing.T, d *durable.Dir) {
			must(t, create(t, d, "a", "x").Sync())
			must(t, d.Sync())
		}, "a", "<x>", "<x>"},
		{"syncfs", func(t *testing.T, d *durable.Dir) {
			create(t, d, "a", "x")
			must(t, d.SyncFS())
		}, "a", "<x>", "<x>"},
		{"syncfs of an unnamed file", func(t *testing.T, d *durable.Dir) {
			f := temp(t, d, "x")
			must(t, d.SyncFS())
			must(t, f.Link(d, "a"))
			must(t, d.Sync())
		}, "a", "<x>", "<x>"},
		{"write after syncfs", func(t *testing.T, d *durable.Dir) {
			f := create(t, d, "a", "x")
			must(t, d.SyncFS())
			_, err := f.Write([]byte("y"))
			must(t, err)
		}, "a", "<x>", "<x>"},
		{"parent not synced", func(t *testing.T, d *durable.Dir) {
			sub, err := d.MkdirAll("s/t", 0o755)
			must(t, err)
			must(t, create(t, sub, "a", "x").Sync())
			must(t, sub.Sync())
		}, "s/t/a", "absent", "<x>"},
		{"rename is atomic", func(t *testing.T, d *durable.Dir) {
			must(t, d.WriteFile("a", []byte("old"), 0o644))
			must(t, create(t, d, "b", "new").Sync())
			must(t, d.Rename("b", d, "a"))
		}, "a", "<old>", "<new>"},
		{"replace without fsync", func(t *testing.T, d *durable.Dir) {
			must(t, d.WriteFile("a", []byte("old"), 0o644))
			must(t, temp(t, d, "new").Replace(d, "a"))
		}, "a", "<old>", "<>"},
		{"removed, not synced", func(t *testing.T, d *durable.Dir) {
			must(t, d.WriteFile("a", []byte("old"), 0o644))
			must(t, d.Remove("a"))
		}, "a", "<old>", "absent"},
		{"WriteFile", func(t *testing.T, d *durable.Dir) { must(t, d.WriteFile("a", []byte("new"), 0o644)) }, "a", "<new>", "<new>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := durabletest.New(t)
			c.run(t, fs.Dir())
			if got := content(t, fs.PowerLoss(), c.file); got != c.synced {
				t.Errorf("what was synced: got %s, want %s", got, c.synced)
			}
			if got := content(t, fs.PowerLossNames(), c.file); got != c.names {
				t.Errorf("names without data: got %s, want %s", got, c.names)
			}
		})
	}
}

// TestFATRename: the sequence that is safe on ext4 loses the file on vfat, and
// exclusive creation under the final name does not.
func TestFATRename(t *testing.T) {
	fs := durabletest.NewFAT(t)
	d := fs.Dir()
	must(t, create(t, d, "tmp", "x").Sync())
	must(t, d.Rename("tmp", d, "a"))
	must(t, d.Sync())
	if got := content(t, fs.PowerLoss(), "a"); got != "<>" {
		t.Errorf("after fsync of the directory: got %s, want an empty file", got)
	}
	must(t, d.SyncFS())
	if got := content(t, fs.PowerLoss(), "a"); got != "<x>" {
		t.Errorf("after syncfs: got %s, want the content", got)
	}
	must(t, create(t, d, "b", "y").Sync())
	if got := content(t, fs.PowerLoss(), "b"); got != "<y>" {
		t.Errorf("after fsync of a new file: got %s, want the content", got)
	}
	if err := d.Symlink("a", "l"); !errors.Is(err, unix.EPERM) {
		t.Errorf("symbolic link on vfat: got %v, want EPERM", err)
	}
}

// TestRandomViews: over many seeds an unsynced rename shows each outcome that a
// journal allows, and none that it does not.
func TestRandomViews(t *testing.T) {
	fs := durabletest.New(t)
	d := fs.Dir()
	must(t, d.WriteFile("a", []byte("old"), 0o644))
	must(t, create(t, d, "b", "new").Sync())
	must(t, d.Sync())
	must(t, d.Rename("b", d, "a"))
	seen := make(map[string]bool)
	for seed := range uint64(40) {
		after := fs.PowerLossRandom(seed)
		seen[content(t, after, "a")+content(t, after, "b")] = true
	}
	if !seen["<old><new>"] || !seen["<new>absent"] || len(seen) != 2 {
		t.Errorf("got the outcomes %v", seen)
	}
}

// TestKill: from the kill on nothing changes any more, also not by clean-up.
func TestKill(t *testing.T) {
	for when, want := range map[durabletest.When]string{durabletest.Before: "<>", durabletest.After: "<x>"} {
		fs := durabletest.New(t)
		fs.KillAt(1, when) // create, write
		_, err := fs.Dir().CreateExclusive("a", reader("x"), 0o644)
		if !errors.Is(err, durabletest.ErrKilled) || !fs.Triggered() {
			t.Fatalf("kill %v: got %v", when, err)
		}
		if got := content(t, fs, "a"); when == durabletest.After && got != want {
			t.Errorf("kill %v: got %s, want %s", when, got, want)
		}
	}
}

// TestFailAt: exactly one call fails, and clean-up works.
func TestFailAt(t *testing.T) {
	for n := 0; ; n++ {
		fs := durabletest.New(t)
		fs.FailAt(n, unix.EIO)
		_, err := fs.Dir().CreateExclusive("a", reader("x"), 0o644)
		if !fs.Triggered() {
			if n < 3 {
				t.Fatalf("only %d calls were seen", n)
			}
			must(t, err)
			return
		}
		if !errors.Is(err, unix.EIO) {
			t.Fatalf("fault %d (%s): got %v", n, fs.Op(n), err)
		}
		if got := content(t, fs, "a"); got != "absent" {
			t.Errorf("fault %d (%s): got %s, want no file", n, fs.Op(n), got)
		}
	}
}

func reader(s string) *strings.Reader { return strings.NewReader(s) }
