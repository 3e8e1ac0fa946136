package install_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/internal/durable"
)

func TestLoaderFiles(t *testing.T) {
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte("PE"))), nil }
	for arch, names := range map[string][2]string{
		"amd64": {"EFI/systemd/systemd-bootx64.efi", "EFI/BOOT/BOOTX64.EFI"},
		"arm64": {"EFI/systemd/systemd-bootaa64.efi", "EFI/BOOT/BOOTAA64.EFI"},
	} {
		files, err := install.LoaderFiles(arch, 4, open)
		if err != nil {
			t.Fatal(err)
		}
		p, err := esp.NewPayload(t.Context(), files)
		if err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		dir, err := durable.OpenDir(root)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		if err := esp.New(dir).Ensure(t.Context(), p.Files, false); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, f := range files {
			data, err := os.ReadFile(filepath.Join(root, f.Name))
			if err != nil {
				t.Fatal(err)
			}
			got[f.Name] = string(data)
		}
		want := map[string]string{names[0]: "PE", names[1]: "PE", "loader/loader.conf": "timeout 4\n", "loader/entries.srel": "type1\n"}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: mismatch (-want +got):\n%s", arch, d)
		}
		path, err := install.LoaderPath(arch)
		if err != nil || path != "usr/lib/systemd/boot/efi/"+filepath.Base(names[0]) {
			t.Errorf("loader of the image: %q, %v", path, err)
		}
	}
	var ae *install.ArchError
	if _, err := install.LoaderFiles("s390x", 0, open); !errors.As(err, &ae) || ae.Arch != "s390x" {
		t.Errorf("got %v, want an ArchError", err)
	}
	if _, err := install.LoaderPath("s390x"); !errors.As(err, &ae) {
		t.Errorf("got %v, want an ArchError", err)
	}
}

func TestFindESPRefuses(t *testing.T) {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "boot/efi"), 0o755); err != nil {
		t.Fatal(err)
	}
	var te *install.TargetError
	if _, err := install.FindESP(root); !errors.As(err, &te) || te.Path != root {
		t.Errorf("got %v, want a TargetError that names %s", err, root)
	}
	if err := install.CheckESP("/proc/self"); !errors.As(err, &te) {
		t.Errorf("got %v, want a TargetError", err)
	}
}

// TestRootFSUUID runs where the scratch file system is known to be ext4.
func TestRootFSUUID(t *testing.T) {
	scratch := os.Getenv("CFSBOOT_SCRATCH")
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" || scratch == "" {
		t.Skip("needs the lab's ext4 (CFSBOOT_ROOT_TESTS=1)")
	}
	dir, err := os.Open(scratch)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	got, err := install.FSUUID(int(dir.Fd()), "/nonexistent")
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(got) {
		t.Fatalf("got %q, %v", got, err)
	}
	if strings.Trim(got, "0-") == "" {
		t.Errorf("got the zero UUID %s", got)
	}
}

func TestFSUUIDFails(t *testing.T) {
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	if got, err := install.FSUUID(int(proc.Fd()), t.TempDir()); !errors.Is(err, install.ErrNoUUID) {
		t.Errorf("got %q, %v, want ErrNoUUID", got, err)
	}
}
