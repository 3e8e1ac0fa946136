package mnt_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/testutil/roottest"
)

// TestRootFAT mounts a FAT file system twice, for one process each: what one
// mount wrote the other one finds.
func TestRootFAT(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("mounts (CFSBOOT_ROOT_TESTS=1)")
	}
	image := filepath.Join(t.TempDir(), "fat")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 40<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.vfat", "-F", "32", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.vfat: %v\n%s", err, out)
	}
	device := roottest.LoopDevice(t, image)
	for n := range 2 {
		m, err := mnt.FAT(device)
		if err != nil {
			t.Fatal(err)
		}
		dir := fmt.Sprintf("/proc/self/fd/%d", m.File().Fd())
		if n == 0 {
			err = os.WriteFile(dir+"/entry.conf", []byte("text"), 0o600)
		} else if got, rerr := os.ReadFile(dir + "/entry.conf"); string(got) != "text" {
			err = fmt.Errorf("got %q, %w", got, rerr)
		}
		if err != nil {
			t.Error(err)
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(m.File().Fd()), &st); err != nil || st.Flags&unix.ST_NOEXEC == 0 || st.Flags&unix.ST_RDONLY != 0 {
			t.Errorf("flags %#x, %v", st.Flags, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := mnt.FAT("/dev/null"); err == nil {
		t.Error("/dev/null is mounted")
	}
}
