package uml_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRootGuest checks what other packages' root tests expect of the guest.
func TestRootGuest(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs the guest: CFSBOOT_ROOT_TESTS is not 1")
	}
	if os.Getuid() != 0 {
		t.Fatalf("uid %d, want 0", os.Getuid())
	}
	scratch := os.Getenv("CFSBOOT_SCRATCH")
	for _, dir := range []string{scratch, t.TempDir()} {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Type != unix.EXT4_SUPER_MAGIC || st.Bsize != 4096 {
			t.Errorf("%s: file system %#x with blocks of %d bytes, want ext4 with 4096", dir, st.Type, st.Bsize)
		}
	}
	f, err := os.Create(filepath.Join(scratch, "flags"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	filesystems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	for _, fs := range []string{"erofs", "overlay", "vfat", "tmpfs", "btrfs"} {
		if !strings.Contains(string(filesystems), fs+"\n") {
			t.Errorf("the kernel has no %s", fs)
		}
	}
}
