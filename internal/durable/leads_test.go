package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

func TestLeads(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	for _, dir := range []string{"os/var", "deploy/a"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"var": "../../os/var", "gone": "../../os/none", "out": "../../../x", "absolute": "/", "loop": "loop", "file": "../../file"} {
		if err := os.Symlink(target, filepath.Join(top, "deploy/a", name)); err != nil {
			t.Fatal(err)
		}
	}
	d, err := durable.OpenDir(top)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, tc := range []struct {
		name      string
		directory bool
		want      error
	}{
		{"deploy/a/var", true, nil}, {"deploy/a/file", false, nil}, {"deploy/a/file", true, unix.ENOTDIR}, {"deploy/a/gone", false, fs.ErrNotExist},
		{"deploy/a/out", false, unix.EXDEV}, {"deploy/a/absolute", true, unix.EXDEV}, {"deploy/a/loop", false, unix.ELOOP}, {"none", false, fs.ErrNotExist},
	} {
		if err := d.Leads(tc.name, tc.directory); !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
		}
	}

	// While anything is renamed anywhere, the kernel may not be able to tell whether ".." leaves d.
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for a, b := filepath.Join(top, "os/1"), filepath.Join(top, "os/2"); ; a, b = b, a {
			select {
			case <-stop:
				return
			default:
				_ = os.Mkdir(a, 0o755) // only the first time
				_ = os.Rename(a, b)
			}
		}
	}()
	for range 20000 {
		if err := d.Leads("deploy/a/var", true); err != nil {
			t.Fatalf("beside renames: %v", err)
		}
	}
	close(stop)
	<-done
}
