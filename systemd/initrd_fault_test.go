package systemd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/systemd"
)

// TestAppendInitrdSurvivesEveryFault fails, or kills before and after, every mutating call, cuts the power, and wants
// the old initrd or the new one, whole. Then it does the same again.
func TestAppendInitrdSurvivesEveryFault(t *testing.T) {
	old := archive(append(slices.Clone(dracutInitrd), dracutModules...)...)
	o := systemd.InitrdOptions{Program: program}
	want, _, err := appendHook(t, old, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"fail", "kill before", "kill after"} {
		for n := 0; ; n++ {
			path := t.TempDir()
			if err := os.WriteFile(filepath.Join(path, "initrd"), old, 0o600); err != nil {
				t.Fatal(err)
			}
			d := durabletest.Over(t, path)
			switch mode {
			case "fail":
				d.FailAt(n, unix.EIO)
			case "kill before":
				d.KillAt(n, durabletest.Before)
			default:
				d.KillAt(n, durabletest.After)
			}
			_, err := systemd.AppendInitrdAt(t.Context(), filepath.Join(path, "initrd"), d.Dir(), "initrd", o)
			if !d.Triggered() {
				if err != nil {
					t.Fatal(err)
				}
				if n < 4 {
					t.Fatalf("only %d calls", n)
				}
				break
			}
			if err == nil && mode == "fail" {
				t.Fatalf("fault %d (%s) was swallowed", n, d.Op(n))
			}
			for _, after := range []*durabletest.FS{d.PowerLoss(), d.PowerLossNames()} {
				checkInitrd(t, fmt.Sprintf("%s %d (%s)", mode, n, d.Op(n)), after.Path(), old, want)
				if _, err := systemd.AppendInitrdFile(t.Context(), after.Path()+"/initrd", after.Path()+"/initrd", o); err != nil {
					t.Errorf("%s %d: the next run: %v", mode, n, err)
				}
				checkInitrd(t, "next run", after.Path(), want, want)
			}
		}
	}
}

func checkInitrd(t *testing.T, what, dir string, old, want []byte) {
	t.Helper()
	got, err := os.ReadFile(dir + "/initrd")
	if errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: the initrd is gone", what)
		return
	}
	if err != nil || !bytes.Equal(got, old) && !bytes.Equal(got, want) {
		t.Errorf("%s: initrd of %d bytes is neither the old nor the new one: %v", what, len(got), err)
	}
}
