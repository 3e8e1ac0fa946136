package deploy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/testutil/roottest"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// realWorld is a machine on a real ext4 with fs-verity and a real vfat of size
// bytes, mounted as cfsboot mounts it.
func realWorld(t *testing.T, size int64) *world {
	t.Helper()
	scratch := os.Getenv("CFSBOOT_SCRATCH")
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" || scratch == "" {
		t.Skip("needs the lab's kernel and file system (CFSBOOT_ROOT_TESTS=1)")
	}
	image := filepath.Join(t.TempDir(), "fat")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.vfat", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.vfat: %v\n%s", err, out)
	}
	m, err := mnt.FAT(roottest.LoopDevice(t, image))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	root := t.TempDir() // the lab puts it there too
	if !strings.HasPrefix(root, scratch) {
		t.Fatalf("temporary files are in %q, want them below %q", root, scratch)
	}
	return &world{
		t: t, root: realDisk{t, root}, fat: realDisk{t, fmt.Sprintf("/proc/self/fd/%d", m.File().Fd())}, running: t.TempDir(),
		systemd: &fakeSystemd{}, clock: &clock{time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)}, verity: true,
	}
}

func TestRootLifecycle(t *testing.T) { lifecycle(t, realWorld(t, 64<<20)) }

// bigRelease has a kernel of mib MiB that does not compress.
func bigRelease(t *testing.T, name string, mib int) *ocitest.Image {
	t.Helper()
	files := osTree(name)
	kernel := make([]byte, mib<<20)
	for i, r := 0, rand.NewChaCha8([32]byte([]byte(name + "                                ")[:32])); i < len(kernel); i += 1 << 16 {
		_, _ = r.Read(kernel[i : i+1<<16])
	}
	files["usr/lib/modules/6.12/vmlinuz"] = string(kernel)
	return buildImage(t, files)
}

// TestRootSmallESP: three kernels fit. The fourth makes the oldest deployment
// go, never the rollback; one that cannot fit is refused and changes nothing.
func TestRootSmallESP(t *testing.T) {
	w := realWorld(t, 24<<20)
	var ids []string
	for n := 1; n <= 4; n++ {
		img := bigRelease(t, fmt.Sprint(n), 6)
		var c *deploy.Change
		var err error
		if n == 1 {
			c, err = w.install(img)
		} else if c, err = w.upgrade(img); err == nil {
			c, err = w.finalize()
		}
		if err != nil {
			t.Fatalf("release %d: %v", n, err)
		}
		if got := w.boot(); got != c.Deployment {
			t.Fatalf("release %d: booted %s, want %s", n, got, c.Deployment)
		}
		w.bless()
		ids = append(ids, c.Deployment)
	}
	checkQuiet(t, w)
	if got := w.state().Deployments(); !slices.Equal(got, []string{ids[3], ids[2], ids[1]}) {
		t.Errorf("deployments %v, want the last three of %v", got, ids)
	}
	before := append(entriesBelow(t, w.fat.Path()+"/."), w.state().Deployments()...)
	var space *durable.SpaceError
	if _, err := w.upgrade(bigRelease(t, "5", 20)); !errors.As(err, &space) {
		t.Fatalf("got %v, want a SpaceError", err)
	}
	if space.Need < 20<<20 || space.Have <= 0 {
		t.Errorf("need %d bytes, have %d bytes", space.Need, space.Have)
	}
	checkQuiet(t, w)
	if after := append(entriesBelow(t, w.fat.Path()+"/."), w.state().Deployments()...); !slices.Equal(before, after) {
		t.Errorf("the refused upgrade changed\n%v\nto\n%v", before, after)
	}
	if c, err := w.rollback(""); err != nil || c.Deployment != ids[2] {
		t.Fatalf("rollback: %+v, %v", c, err)
	}
	if got := w.boot(); got != ids[2] {
		t.Errorf("booted %s, want %s", got, ids[2])
	}
}

// TestRootFiveUpgrades: a boot partition for two kernels, and a disk from which
// everything goes that nothing needs, with real clusters and real fs-verity.
func TestRootFiveUpgrades(t *testing.T) {
	w := realWorld(t, 18<<20)
	ids := w.releases(bigRelease(t, "1", 6))
	for n := 2; n <= 6; n++ {
		must(t, settled(w.upgrade(bigRelease(t, fmt.Sprint(n), 6))))
		must(t, settled(w.finalize()))
		ids = append(ids, w.boot())
		w.bless()
		checkQuiet(t, w)
	}
	if got := w.state().Deployments(); !slices.Equal(got, []string{ids[5], ids[4]}) {
		t.Errorf("deployments %v, want the last two of %v", got, ids)
	}
	size := used(filepath.Join(w.root.Path(), "composefs"))
	if size > 2*8<<20 {
		t.Errorf("the repository holds %d bytes after six releases of 6 MiB", size)
	}
	free := freeBytes(t, w.fat.Path())
	dry, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), DryRun: true})
	if err != nil || len(dry.Removed) != 0 || dry.Repository.Objects != 0 {
		t.Errorf("got %+v, %v", dry, err)
	}
	got, err := w.delete(ids[4])
	must(t, err)
	if gained := freeBytes(t, w.fat.Path()) - free; gained < 6<<20 || got.BootFreedBytes != gained {
		t.Errorf("the boot partition gained %d bytes, delete says %d", gained, got.BootFreedBytes)
	}
	if got.Repository.Bytes < 6<<20 {
		t.Errorf("got %+v", got.Repository)
	}
	checkRepository(t, w)
	if got := w.boot(); got != ids[5] {
		t.Errorf("booted %s", short(got))
	}
}

func freeBytes(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	return int64(st.Bavail) * st.Bsize
}

// TestRootReadOnlyESP: a read-only boot partition is one clear refusal.
func TestRootReadOnlyESP(t *testing.T) {
	w := realWorld(t, 24<<20)
	w.releases(release(t, "1"), release(t, "2"))
	dir, err := os.Open(w.fat.Path())
	must(t, err)
	defer dir.Close()
	must(t, unix.MountSetattr(int(dir.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
	for name, err := range map[string]error{"gc": removed(w.gc(0)), "delete": removed(w.delete("abcd")), "upgrade": settled(w.upgrade(release(t, "3")))} {
		var refused *deploy.RefusedError
		if !errors.As(err, &refused) || refused.Code != deploy.CodeReadOnly || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestRootFullESP: somebody filled the boot partition. The upgrade is refused,
// what is staged can still be dropped.
func TestRootFullESP(t *testing.T) {
	w := realWorld(t, 24<<20)
	if _, err := w.install(bigRelease(t, "1", 4)); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	fill, err := os.Create(filepath.Join(w.fat.Path(), "somebody.img"))
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<16)
	for err == nil {
		_, err = fill.Write(block)
	}
	if err := fill.Close(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	var space *durable.SpaceError
	if _, err := w.upgrade(bigRelease(t, "2", 4)); !errors.As(err, &space) {
		t.Fatalf("got %v, want a SpaceError", err)
	}
	checkQuiet(t, w)
	if got := w.boot(); got != one {
		t.Errorf("booted %s, want %s", got, one)
	}
	if err := os.Remove(filepath.Join(w.fat.Path(), "somebody.img")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.upgrade(bigRelease(t, "2", 4)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestRootSmallBlocks: a file system whose blocks are smaller than the Merkle
// blocks is refused with what it has and what it needs; the kernel only says EINVAL.
func TestRootSmallBlocks(t *testing.T) {
	w := realWorld(t, 24<<20)
	image, point := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, 32<<20))
	if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-b", "1024", "-O", "verity", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	must(t, unix.Mount(roottest.LoopDevice(t, image), point, "ext4", 0, ""))
	defer func() { must(t, unix.Unmount(point, unix.MNT_DETACH)) }()
	w.root = realDisk{t, point}
	var refused *deploy.RefusedError
	_, err := w.install(release(t, "1"))
	if !errors.As(err, &refused) || refused.Code != deploy.CodeNoVerity || !strings.Contains(err.Error(), "1024-byte blocks, want 4096") {
		t.Errorf("got %v, want refusal %s", err, deploy.CodeNoVerity)
	}
}

// TestRootTarget: on a file system without fs-verity an installation
// is refused before anything is made, and FSUUID finds the UUID where there is
// no udev.
func TestRootTarget(t *testing.T) {
	w := realWorld(t, 24<<20)
	w.root = realDisk{t, t.TempDir()}
	tmpfs, err := mnt.Tmpfs("test", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	defer tmpfs.Close()
	w.root = realDisk{t, fmt.Sprintf("/proc/self/fd/%d", tmpfs.File().Fd())}
	var refused *deploy.RefusedError
	if _, err := w.install(release(t, "1")); !errors.As(err, &refused) || refused.Code != deploy.CodeNoVerity || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want refusal %s", err, deploy.CodeNoVerity)
	}
	if list := entriesBelow(t, w.fat.Path()+"/."); len(list) != 1 {
		t.Errorf("the boot partition holds %v", list)
	}
	dir, err := os.Open(os.Getenv("CFSBOOT_SCRATCH"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if uuid, err := install.FSUUID(int(dir.Fd()), "/nonexistent"); err != nil || len(uuid) != 36 {
		t.Errorf("UUID %q, %v", uuid, err)
	}
}

// TestRootReadOnly: a read-only disk is one clear refusal.
func TestRootReadOnly(t *testing.T) {
	w := realWorld(t, 24<<20)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	dir, err := os.Open(w.root.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ro, err := mnt.Clone(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := ro.SetAttr(mnt.ReadOnly, 0); err != nil {
		t.Fatal(err)
	}
	rw := w.root
	w.root = realDisk{t, fmt.Sprintf("/proc/self/fd/%d", ro.File().Fd())}
	var refused *deploy.RefusedError
	for name, run := range map[string]func() (*deploy.Change, error){
		"upgrade": func() (*deploy.Change, error) { return w.upgrade(release(t, "2")) }, "finalize": w.finalize,
		"rollback": func() (*deploy.Change, error) { return w.rollback("") },
		"gc":       func() (*deploy.Change, error) { _, err := w.gc(0); return nil, err },
		"delete":   func() (*deploy.Change, error) { _, err := w.delete("abcd"); return nil, err },
	} {
		if _, err := run(); !errors.As(err, &refused) || refused.Code != deploy.CodeReadOnly || !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: got %v, want refusal %s", name, err, deploy.CodeReadOnly)
		}
	}
	w.root = rw
	if _, err := w.upgrade(release(t, "2")); err != nil {
		t.Error(err)
	}
}

// TestRootFullDisk: on a real ext4 without one free block, and with the blessing of
// the running release still to be recorded, what frees space works.
func TestRootFullDisk(t *testing.T) {
	for name, run := range map[string]func(w *world, id string) error{
		"gc":     func(w *world, _ string) error { return removed(w.gc(0)) },
		"delete": func(w *world, id string) error { return removed(w.delete(id)) },
		"resume": func(w *world, _ string) error { _, err := w.resume(); return settled(nil, err) },
	} {
		t.Run(name, func(t *testing.T) {
			w := realWorld(t, 24<<20)
			image, point := filepath.Join(t.TempDir(), "ext4"), t.TempDir()
			must(t, os.WriteFile(image, nil, 0o600))
			must(t, os.Truncate(image, 48<<20))
			if out, err := exec.CommandContext(t.Context(), "mkfs.ext4", "-q", "-b", "4096", "-O", "verity", image).CombinedOutput(); err != nil {
				t.Fatalf("mkfs.ext4: %v\n%s", err, out)
			}
			must(t, unix.Mount(roottest.LoopDevice(t, image), point, "ext4", 0, ""))
			t.Cleanup(func() { _ = unix.Unmount(point, unix.MNT_DETACH) })
			w.root = realDisk{t, point}
			w.configure("keep = 9\n")
			ids := w.releases(releasesOf(t, 3)...)
			fill(t, filepath.Join(point, "somebody.img"))
			must(t, run(w, ids[0]))
			if name != "resume" {
				if got := w.state().Deployments(); slices.Contains(got, ids[0]) {
					t.Errorf("%s is still there", short(ids[0]))
				}
				checkRepository(t, w)
			}
			if !w.state().LatestOf(ids[2]).Blessed {
				t.Error("the blessing is not recorded")
			}
			if got := w.boot(); got != ids[2] {
				t.Errorf("booted %s", short(got))
			}
		})
	}
}

// fill makes a file that takes all blocks that are left.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	for size := 1 << 16; size >= 512; size /= 2 {
		block := make([]byte, size)
		for err = nil; err == nil; {
			if _, err = f.Write(block); err == nil {
				err = f.Sync()
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	_ = f.Close()
}
