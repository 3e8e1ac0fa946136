package erofs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs"
)

// TestRootKernelReads mounts an image of each format and compares what the kernel shows with the
// tree. It needs a kernel that mounts EROFS from a file (6.12).
func TestRootKernelReads(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root and a kernel with EROFS: set CFSBOOT_ROOT_TESTS=1, see tests/vm")
	}
	for _, v := range formats {
		t.Run(fmt.Sprint(v), func(t *testing.T) { compareKernel(t, v) })
	}
}

func compareKernel(t *testing.T, v erofs.Version) {
	root := oracleTree(v)
	image, _, _ := imageIn(t, root, v)
	file, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(file, image, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, dir, "erofs", unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	got := make(map[string]string)
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil || isStub(rel) {
			return err
		}
		got[rel], err = describeMounted(path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	describeTree(want, ".", root, linkCounts(root), v)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tree mismatch (-want +got):\n%.3000s", diff)
	}
}

func describeMounted(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return "", err
	}
	xattrs := make(map[string]string)
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, names)
	if err != nil {
		return "", err
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", err
		}
		xattrs[name] = string(value[:n])
	}
	st := info.Sys().(*syscall.Stat_t)
	size, contents := info.Size(), ""
	switch {
	case info.IsDir():
		size = 0
	case info.Mode()&fs.ModeSymlink != 0:
		contents, err = os.Readlink(path)
	case info.Mode().IsRegular() && xattrs["trusted.overlay.redirect"] == "":
		var b []byte
		b, err = os.ReadFile(path)
		contents = string(b)
	}
	return describe(info.Mode(), size, st.Uid, st.Gid, st.Mtim.Sec, uint32(st.Mtim.Nsec), int(st.Nlink), uint32(st.Rdev), contents, xattrs), err
}
