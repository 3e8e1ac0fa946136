package deploy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// setFormat makes the machine's repository one of image format v, as a program that
// resets its metadata does.
func (w *world) setFormat(v int) {
	w.t.Helper()
	feature := ""
	if v == 1 {
		feature = `"v1_erofs"`
	}
	meta := fmt.Sprintf(`{"version":1,"algorithm":"fsverity-sha512-12","features":{"read-only-compatible":[%s]},"erofs_formats":{"default":%d}}`, feature, v)
	path := filepath.Join(w.root.Path(), "composefs/meta.json")
	must(w.t, os.Remove(path))
	must(w.t, os.WriteFile(path, []byte(meta), 0o644))
	w.changed()
}

// TestFormats: upgrades make images of the repository's format, whatever it was
// before, and the command line names them in its form; each release boots, and so
// does the rollback to one of another format.
func TestFormats(t *testing.T) {
	if hasVerity(t, t.TempDir()) {
		t.Skip("meta.json of a repository with fs-verity cannot be replaced: it would be insecure")
	}
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	last := w.boot()
	seen := map[string]bool{last: true}
	for i, c := range []struct {
		format int
		prefix string
	}{{2, "composefs=?"}, {0, "composefs.digest=?v1-sha512-12:"}, {1, "composefs.digest=?v1-sha512-12:"}, {2, "composefs=?"}} {
		w.setFormat(c.format)
		change, err := w.upgrade(release(t, fmt.Sprint(i+2)))
		if err != nil {
			t.Fatalf("format %d: %v", c.format, err)
		}
		if _, err := w.finalize(); err != nil {
			t.Fatalf("format %d: %v", c.format, err)
		}
		options := entriesOf(t, w)[0].Entry.Options().String()
		if want := " " + c.prefix + change.Deployment + " "; !strings.Contains(options+" ", want) || strings.Count(options, "composefs") != 1 {
			t.Errorf("format %d: options %q, want%sin it", c.format, options, want)
		}
		id := w.boot()
		if id != change.Deployment || seen[id] {
			t.Fatalf("format %d: %s runs, want %s", c.format, id, change.Deployment)
		}
		w.bless()
		seen[id] = true
		if i < 3 {
			last = id
		}
	}
	if _, err := w.rollback(""); err != nil {
		t.Fatal(err)
	}
	if id := w.boot(); id != last {
		t.Errorf("after the rollback %s runs, want %s", id, last)
	}
}
