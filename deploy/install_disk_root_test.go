package deploy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	installdisk "github.com/cfsboot/cfsboot/deploy/install/disk"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/testutil/roottest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBxS1GhIJjjQYGHQxaR6OUUFJHYVpXK7yJ8nOJq1hYkT test"

const testDiskSize = 600 << 20

// linkedHome is a release whose /root leads into /var, as image-mode systems have it.
func linkedHome(t *testing.T, name string) *ocitest.Image {
	t.Helper()
	files := osTree(name)
	delete(files, "root/")
	files["root"] = "-> var/roothome"
	return buildImage(t, files)
}

func needLab(t *testing.T) {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs the lab's kernel and file system (CFSBOOT_ROOT_TESTS=1)")
	}
}

func diskOptions(img *ocitest.Image) deploy.DiskOptions {
	w := &world{tag: img}
	return deploy.DiskOptions{InstallOptions: deploy.InstallOptions{
		PullOptions: w.pull(), Image: reference, Kargs: []string{"quiet"}, Hostname: "host-7", RootSSHKeys: []byte(testKey),
	}}
}

// blockDevice is a loop device with partitions over a sparse file.
func blockDevice(t *testing.T, size int64) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	device := roottest.LoopDevice(t, file)
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	info.Flags |= unix.LO_FLAGS_PARTSCAN
	if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
		t.Fatal(err)
	}
	return device
}

// partitionsOf reads the table of a disk.
func partitionsOf(t *testing.T, path string) []esp.Partition {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	parts, err := esp.ReadGPT(f, 512)
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// mounted mounts a part of a file and returns where.
func mounted(t *testing.T, mount func(string) (*mnt.Mount, error), file string, part esp.Partition) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "losetup", "--show", "-f", "-o", fmt.Sprint(part.Start), "--sizelimit", fmt.Sprint(part.Size), file).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	m, err := mount(device)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Close()
		if out, err := exec.CommandContext(context.Background(), "losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v\n%s", err, out)
		}
	})
	return fmt.Sprintf("/proc/self/fd/%d", m.File().Fd())
}

// TestRootInstallToFile installs to a new file and boots from what is in it.
func TestRootInstallToFile(t *testing.T) {
	needLab(t)
	img := linkedHome(t, "1")
	file := filepath.Join(t.TempDir(), "image")
	o := diskOptions(img)
	o.Size = testDiskSize
	c, err := deploy.InstallToDisk(t.Context(), file, o)
	if err != nil {
		t.Fatal(err)
	}
	parts := partitionsOf(t, file)
	if len(parts) != 2 || parts[0].Type != esp.TypeESP || parts[1].Name != installdisk.RootName {
		t.Fatalf("partitions %+v", parts)
	}
	if c.Action != deploy.ActionArmed || len(c.Disk.Destroyed) != 0 || c.Disk.Root.PartUUID != parts[1].UUID || c.Disk.ESP.SizeBytes != installdisk.DefaultESPSize(testDiskSize) {
		t.Errorf("result %+v %+v", c.Change, c.Disk)
	}
	root := mounted(t, mnt.Ext4, file, parts[1])
	w := &world{
		t: t, root: realDisk{t, root}, fat: realDisk{t, mounted(t, mnt.FAT, file, parts[0])}, running: t.TempDir(), tag: img,
		systemd: &fakeSystemd{}, clock: &clock{}, verity: true,
	}
	id := w.boot()
	if got := w.etc(id, "hostname"); id != c.Deployment || got != "host-7\n" {
		t.Errorf("booted %s with hostname %q, want %s", id, got, c.Deployment)
	}
	checkKeyFile(t, root, testKey+"\n")
	entries, err := filepath.Glob(w.fat.Path() + "/loader/entries/cfsboot_*.conf")
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries %v, %v", entries, err)
	}
	if text, err := os.ReadFile(entries[0]); err != nil || !bytes.Contains(text, []byte(" root=UUID="+c.Disk.RootUUID+" rw ")) || !bytes.Contains(text, []byte(" quiet\n")) {
		t.Errorf("entry %s, %v", text, err)
	}
	// Upgrades keep the key and the name.
	img2 := linkedHome(t, "2")
	if _, err := w.upgrade(img2); err != nil {
		t.Fatal(err)
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	if got := w.etc(w.boot(), "hostname"); got != "host-7\n" {
		t.Errorf("hostname after an upgrade: %q", got)
	}
	checkKeyFile(t, root, testKey+"\n")
}

// checkKeyFile looks at the permissions that sshd insists on.
func checkKeyFile(t *testing.T, root, want string) {
	t.Helper()
	home := filepath.Join(root, "state/os/default/var/roothome")
	for name, mode := range map[string]fs.FileMode{"": fs.ModeDir | 0o700, ".ssh": fs.ModeDir | 0o700, ".ssh/authorized_keys": 0o600} {
		st, err := os.Stat(filepath.Join(home, name))
		if err != nil {
			t.Error(err)
		} else if st.Mode() != mode {
			t.Errorf("%s/%s: mode %v, want %v", home, name, st.Mode(), mode)
		}
	}
	if got, err := os.ReadFile(filepath.Join(home, ".ssh/authorized_keys")); err != nil || string(got) != want {
		t.Errorf("keys %q, %v", got, err)
	}
}

// TestRootInstallToDevice: an empty disk, then the same one with --wipe.
func TestRootInstallToDevice(t *testing.T) {
	needLab(t)
	device := blockDevice(t, testDiskSize)
	o := diskOptions(linkedHome(t, "1"))
	o.ESPSize = 64 << 20
	first, err := deploy.InstallToDisk(t.Context(), device, o)
	if err != nil {
		t.Fatal(err)
	}
	before := head(t, device)
	_, err = deploy.InstallToDisk(t.Context(), device, o)
	wantRefusal(t, err, deploy.CodeNotEmpty, `"ESP"`, `partition 2 "root" of`, `ext4 "root"`, "--wipe destroys")
	if !bytes.Equal(before, head(t, device)) {
		t.Error("the refused installation changed the disk")
	}
	o.Wipe = true
	second, err := deploy.InstallToDisk(t.Context(), device, o)
	if err != nil {
		t.Fatal(err)
	}
	if first.Disk.RootUUID == second.Disk.RootUUID || len(second.Disk.Destroyed) != 3 {
		t.Errorf("UUIDs %s and %s, destroyed %q", first.Disk.RootUUID, second.Disk.RootUUID, second.Disk.Destroyed)
	}
	part := device + "p2"
	_, err = deploy.InstallToDisk(t.Context(), part, o)
	wantRefusal(t, err, deploy.CodeTarget, "it is a partition of")

	// Mounted, in a place that no table shows: --wipe does not help.
	m, err := mnt.Ext4(part)
	if err != nil {
		t.Fatal(err)
	}
	_, err = deploy.InstallToDisk(t.Context(), device, o)
	wantRefusal(t, err, deploy.CodeInUse, "busy")
	dir := t.TempDir()
	if err := m.Attach(dir); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = deploy.InstallToDisk(t.Context(), device, o)
	wantRefusal(t, err, deploy.CodeInUse, "is mounted at", dir)
	if err := mnt.Detach(dir); err != nil {
		t.Fatal(err)
	}
	// Somebody else writes the disk.
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var locked *repo.LockedError
	if _, err = deploy.InstallToDisk(t.Context(), device, o); !errors.As(err, &locked) {
		t.Errorf("got %v, want a LockedError", err)
	}
}

func head(t *testing.T, device string) []byte {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4<<20)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func wantRefusal(t *testing.T, err error, code string, parts ...string) {
	t.Helper()
	var refused *deploy.RefusedError
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("got %v, want a refusal %q", err, code)
		return
	}
	for _, x := range parts {
		if !strings.Contains(err.Error(), x) {
			t.Errorf("%q does not tell %q", err, x)
		}
	}
}

// stopper are tools that end an installation at its n-th program that writes.
type stopper struct {
	installdisk.Programs
	left int
	err  error
}

func (s *stopper) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	if name != "wipefs" {
		if s.left--; s.left < 0 {
			return nil, s.err
		}
	}
	return s.Programs.Run(ctx, stdin, name, args...)
}

// TestRootInstallInterrupted: wherever it ends, the disk is as it was, complete, or
// recognised as incomplete, and --wipe starts over.
func TestRootInstallInterrupted(t *testing.T) {
	needLab(t)
	img := linkedHome(t, "1")
	stop := errors.New("stopped")
	empty := func() string {
		file := filepath.Join(t.TempDir(), "image")
		must(t, os.WriteFile(file, nil, 0o600))
		must(t, os.Truncate(file, testDiskSize))
		return file
	}
	for n := range 5 { // sfdisk, mkfs.vfat, mkfs.ext4, sfdisk; then nothing stops it
		file := empty()
		o := diskOptions(img)
		o.Tools = &stopper{left: n, err: stop}
		_, err := deploy.InstallToDisk(t.Context(), file, o)
		if n == 4 {
			if err != nil {
				t.Fatal(err)
			}
			break
		}
		if !errors.Is(err, stop) {
			t.Fatalf("stopped at program %d: got %v", n+1, err)
		}
		o.Tools = nil
		_, err = deploy.InstallToDisk(t.Context(), file, o)
		if n == 0 { // nothing was written
			if err != nil {
				t.Errorf("an untouched disk: %v", err)
			}
			continue
		}
		wantRefusal(t, err, deploy.CodeIncomplete, "was interrupted and is incomplete; --wipe starts over")
		o.Wipe = true
		c, err := deploy.InstallToDisk(t.Context(), file, o)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Disk.Destroyed) == 0 || partitionsOf(t, file)[1].Name != installdisk.RootName {
			t.Errorf("after program %d: destroyed %q", n+1, c.Disk.Destroyed)
		}
	}
	// In the middle of the pull, and cancelled.
	file := empty()
	cancelled := func(size int64) error {
		o := diskOptions(img)
		o.Size = size
		ctx, cancel := context.WithCancel(t.Context())
		open, calls := o.OpenSource, 0
		o.OpenSource = func(ctx context.Context, ref string) (oci.Source, error) {
			if calls++; calls == 2 {
				cancel()
				return nil, ctx.Err()
			}
			return open(ctx, ref)
		}
		_, err := deploy.InstallToDisk(ctx, file, o)
		return err
	}
	var incomplete *deploy.IncompleteError
	if err := cancelled(0); !errors.Is(err, context.Canceled) || !errors.As(err, &incomplete) || incomplete.Removed {
		t.Fatalf("got %v", err)
	}
	_, err := deploy.InstallToDisk(t.Context(), file, diskOptions(img))
	wantRefusal(t, err, deploy.CodeIncomplete, "incomplete")
	// A file that the command has made goes again, and the same command can be repeated.
	must(t, os.Remove(file))
	for range 2 {
		if err := cancelled(testDiskSize); !errors.Is(err, context.Canceled) || !errors.As(err, &incomplete) || !incomplete.Removed {
			t.Fatalf("got %v", err)
		}
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the file is there: %v", err)
		}
	}
	o := diskOptions(img)
	o.Size = testDiskSize
	if _, err := deploy.InstallToDisk(t.Context(), file, o); err != nil {
		t.Error(err)
	}
}

// TestRootInstallWipeInVain: what can be known of an image is known before --wipe
// destroys anything, and what is destroyed all the same is said.
func TestRootInstallWipeInVain(t *testing.T) {
	needLab(t)
	without := func(name string) *ocitest.Image {
		files := osTree("1")
		delete(files, name)
		return buildImage(t, files)
	}
	file := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	must(t, os.Truncate(file, testDiskSize))
	wipe := func(img *ocitest.Image, image string) error {
		o := diskOptions(img)
		source := &ocitest.Source{Image: img}
		o.OpenSource = func(context.Context, string) (oci.Source, error) { return source, nil }
		o.Wipe, o.Image, o.TargetImage = true, image, reference
		_, err := deploy.InstallToDisk(t.Context(), file, o)
		return err
	}
	const kernel, loader = "usr/lib/modules/6.12/vmlinuz", "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	for name, img := range map[string]*ocitest.Image{
		"kernel": without(kernel), "loader": without(loader), "os-release": without("usr/lib/os-release"),
		"platform": buildImageFor(t, osTree("1"), v1.Platform{OS: "linux", Architecture: "riscv64"}),
	} {
		err := wipe(img, "oci:/images:1")
		if data := head(t, file); !refusedFor(deploy.CodeImage)(err) || !strings.HasPrefix(string(data), "precious") {
			t.Errorf("%s: got %v, and the disk begins with %.8q", name, err, data)
		}
	}
	// One in a registry is not fetched twice.
	err := wipe(without(kernel), reference)
	var incomplete *deploy.IncompleteError
	if !errors.As(err, &incomplete) || !refusedFor(deploy.CodeImage)(err) || !strings.Contains(err.Error(), "was wiped (data that is no disk image) and is incomplete: ") || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v", err)
	}
	if err := wipe(linkedHome(t, "1"), "oci:/images:1"); err != nil {
		t.Error(err)
	}
}

// TestRootInstallRefusedUntouched: what can be known before is known before.
func TestRootInstallRefusedUntouched(t *testing.T) {
	needLab(t)
	img := linkedHome(t, "1")
	for name, c := range map[string]struct {
		change func(*deploy.DiskOptions)
		size   int64
		check  func(error) bool
	}{
		"no image": {func(o *deploy.DiskOptions) { o.Image = "docker://registry.example/other:1" }, testDiskSize, func(err error) bool { return err != nil }},
		"too small": {func(*deploy.DiskOptions) {}, 300 << 20, func(err error) bool {
			var space *durable.SpaceError
			return errors.As(err, &space) && space.Have == 300<<20 && space.Need > 300<<20
		}},
		"hostname":  {func(o *deploy.DiskOptions) { o.Hostname = "a b" }, testDiskSize, refusedFor(deploy.CodeIdentity)},
		"key":       {func(o *deploy.DiskOptions) { o.RootSSHKeys = []byte("nonsense") }, testDiskSize, refusedFor(deploy.CodeIdentity)},
		"small ESP": {func(o *deploy.DiskOptions) { o.ESPSize = 8 << 20 }, testDiskSize, refusedFor(deploy.CodeTarget)},
		"s390x":     {func(o *deploy.DiskOptions) { o.Platform.Architecture = "s390x" }, testDiskSize, refusedFor(deploy.CodeImage)},
		"not whole": {func(o *deploy.DiskOptions) { o.Size = testDiskSize }, testDiskSize, func(err error) bool {
			return refusedFor(deploy.CodeTarget)(err) && strings.Contains(err.Error(), "leave --size out")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, c.size); err != nil {
				t.Fatal(err)
			}
			o := diskOptions(img)
			c.change(&o)
			if _, err := deploy.InstallToDisk(t.Context(), file, o); !c.check(err) {
				t.Errorf("got %v", err)
			}
			var st unix.Stat_t
			if err := unix.Stat(file, &st); err != nil || st.Blocks != 0 || st.Size != c.size {
				t.Errorf("the file has %d blocks and %d bytes now, %v", st.Blocks, st.Size, err)
			}
		})
	}
	t.Run("text", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "notes")
		if err := os.WriteFile(file, []byte("notes"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, testDiskSize); err != nil {
			t.Fatal(err)
		}
		_, err := deploy.InstallToDisk(t.Context(), file, diskOptions(img))
		wantRefusal(t, err, deploy.CodeNotEmpty, "data that is no disk image")
	})
}

// TestRootInstallWithoutLoop: a kernel without loop devices gets a plain answer.
func TestRootInstallWithoutLoop(t *testing.T) {
	needLab(t)
	must(t, os.Rename("/dev/loop-control", "/dev/loop-control.away"))
	t.Cleanup(func() { must(t, os.Rename("/dev/loop-control.away", "/dev/loop-control")) })
	file := filepath.Join(t.TempDir(), "image")
	o := diskOptions(linkedHome(t, "1"))
	o.Size = testDiskSize
	_, err := deploy.InstallToDisk(t.Context(), file, o)
	if !errors.Is(err, installdisk.ErrNoLoop) || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "User Mode Linux") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file was made: %v", err)
	}
}

func refusedFor(code string) func(error) bool {
	return func(err error) bool {
		var refused *deploy.RefusedError
		return errors.As(err, &refused) && refused.Code == code
	}
}
