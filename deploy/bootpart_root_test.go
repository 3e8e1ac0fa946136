package deploy_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// bootDisk is a machine whose boot partition commands have to find on a real disk:
// partition 1 is an ESP, 2 stands for the root, 3 is an XBOOTLDR.
type bootDisk struct {
	*world
	device string
	mount  *mnt.Mount     // of the partition that the test looks at
	dirs   []*durable.Dir // open there
}

// bootPart is the partition that is mounted for the test.
type bootPart struct {
	*bootDisk
	path string
}

func (p bootPart) Path() string { return p.path }

func (p bootPart) Open() *durable.Dir {
	p.t.Helper()
	dir, err := durable.OpenDir(p.path)
	must(p.t, err)
	p.dirs = append(p.dirs, dir)
	return dir
}

// newBootDisk makes the disk, and FAT32 on 1 and 3. The machine is on partition boot.
func newBootDisk(t *testing.T, boot int) *bootDisk {
	t.Helper()
	w := realWorld(t, 1<<20) // whose boot partition is not used
	b := &bootDisk{world: w, device: blockDevice(t, 160<<20)}
	cmd := exec.CommandContext(t.Context(), "sfdisk", "-q", "--wipe", "never", b.device)
	cmd.Stdin = strings.NewReader("label: gpt\nsize=64M,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\nsize=8M,type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709\nsize=64M,type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
	b.sh("mkfs.vfat", "-F", "32", "-s", "1", b.part(1))
	b.sh("mkfs.vfat", "-F", "32", "-s", "1", b.part(3))
	var st unix.Stat_t
	must(t, unix.Stat(b.part(2), &st))
	w.sysroot = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, name := range []string{"dev", "proc", "sys"} {
		must(t, os.Symlink("/"+name, filepath.Join(w.running, name)))
	}
	b.open(boot)
	t.Cleanup(b.close)
	return b
}

func (b *bootDisk) part(n int) string { return fmt.Sprintf("%sp%d", b.device, n) }

func (b *bootDisk) sh(args ...string) {
	b.t.Helper()
	if out, err := exec.CommandContext(b.t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// open mounts a partition for the test, as commands do.
func (b *bootDisk) open(n int) {
	b.t.Helper()
	b.close()
	m, err := mnt.FAT(b.part(n))
	must(b.t, err)
	b.mount, b.fat = m, bootPart{b, fmt.Sprintf("/proc/self/fd/%d", m.File().Fd())}
}

// close makes sure that the test holds nothing open there.
func (b *bootDisk) close() {
	for _, dir := range b.dirs {
		_ = dir.Close()
	}
	b.dirs = nil
	if b.mount != nil {
		_ = b.mount.Close()
		b.mount = nil
	}
}

// sum is the content of a partition.
func (b *bootDisk) sum(n int) string {
	b.t.Helper()
	unix.Sync()
	f, err := os.Open(b.part(n))
	must(b.t, err)
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	must(b.t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// opening are all commands that need the boot partition.
func opening(w *world) map[string]func() error {
	out := map[string]func() error{
		"gc": func() error { return removed(w.gc(0)) },
		"dry gc": func() error {
			return removed(deploy.GC(w.t.Context(), deploy.GCOptions{Options: w.options(), DryRun: true}))
		},
		"delete": func() error { return removed(w.delete("abcd")) },
		"resume": func() error { _, err := w.resume(); return err },
		"review": func() error { _, err := deploy.ReviewBoots(w.t.Context(), w.options()); return err },
	}
	for name, run := range verbs(w.tag, w.tag) {
		out[name] = func() error { return run(w) }
	}
	return out
}

// TestRootForeignXBOOTLDR: another system's /boot is on the disk. Nobody looks into
// it, and every command works as without it.
func TestRootForeignXBOOTLDR(t *testing.T) {
	for _, kind := range []string{"ext4", "vfat", "nothing"} {
		t.Run(kind, func(t *testing.T) {
			b := newBootDisk(t, 1)
			switch kind {
			case "ext4":
				b.sh("mkfs.ext4", "-q", "-F", b.part(3))
			case "nothing":
				b.sh("wipefs", "-q", "-a", b.part(3))
			}
			before := b.sum(3)
			w := b.world
			one := w.releases(release(t, "1"))[0]
			w.search = true
			two := w.releases(release(t, "1"), release(t, "2"))[1]
			must(t, settled(w.rollback("")))
			if got := w.boot(); got != one {
				t.Errorf("booted %s after the rollback", short(got))
			}
			must(t, settled(w.switchTo(otherReference, release(t, "3"), deploy.SwitchOptions{})))
			must(t, settled(w.finalize()))
			w.boot()
			w.bless()
			must(t, removed(w.gc(9)))
			must(t, removed(w.delete(two)))
			must(t, removed(w.gc(0)))
			if got := w.told(deploy.ProblemESP); got != nil {
				t.Errorf("status: %q", got)
			}
			if b.sum(3) != before {
				t.Error("the other system's partition has changed")
			}
		})
	}
}

// TestRootXBOOTLDR: the machine was installed to an XBOOTLDR partition, and the
// loader to an ESP that somebody else uses too.
func TestRootXBOOTLDR(t *testing.T) {
	b := newBootDisk(t, 1)
	onESP := neighbours{
		"EFI/debian/grub.cfg":                             "search.fs_uuid",
		"loader/entries/zz.conf":                          "title Debian\nlinux /debian/vmlinuz\n",
		"cfsboot/notes/todo":                              "a folder",
		"loader/entries.srel":                             "type1\n",
		"loader/entries/cfsboot_ffffffff-0000000009.conf": "title another cfsboot\nlinux /x\n",
	}
	onESP.put(t, b.fat.Path())
	b.open(3)
	w := b.world
	one := w.releases(release(t, "1"))[0]
	w.search = true
	w.releases(release(t, "1"), release(t, "2"))
	must(t, settled(w.rollback("")))
	if got := w.boot(); got != one {
		t.Errorf("booted %s", short(got))
	}
	if got := w.told(deploy.ProblemESP); got != nil {
		t.Errorf("status: %q", got)
	}
	b.open(1)
	onESP.check(t, "in the end", b.fat.Path())
	if list, err := os.ReadDir(filepath.Join(b.fat.Path(), "cfsboot")); err != nil || len(list) != 1 {
		t.Errorf("payloads on the ESP: %v, %v", list, err)
	}
	// With the entries gone, the payloads tell.
	b.open(3)
	must(t, os.RemoveAll(filepath.Join(b.fat.Path(), "loader/entries")))
	must(t, settled(w.upgrade(release(t, "3"))))
	must(t, settled(w.finalize()))
	w.boot()
}

// TestRootReadOnlyPartition: the device of the boot partition cannot be written.
// That is one clear refusal, status can look at it, and finalize leaves the reason.
func TestRootReadOnlyPartition(t *testing.T) {
	b := newBootDisk(t, 1)
	w := b.world
	w.releases(release(t, "1"))
	w.search = true
	must(t, settled(w.upgrade(release(t, "2"))))
	must(t, settled(w.finalize()))
	two := w.boot()
	w.bless()
	w.tag = release(t, "3")
	b.close()
	b.sh("blockdev", "--setro", b.part(1))
	want := fmt.Sprintf("boot partition %q is read-only", filepath.Join(w.running, b.part(1)))
	for name, run := range opening(w) {
		err := run()
		var refused *deploy.RefusedError
		if !errors.As(err, &refused) || refused.Code != deploy.CodeReadOnly || err.Error() != want {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	if got := w.told(deploy.ProblemESP); !slices.Equal(got, []string{want}) {
		t.Errorf("status: %q", got)
	}
	for _, d := range w.status().Cfsboot.Deployments {
		if d.ID == two && d.State != deploy.StateGood {
			t.Errorf("status: the blessed release is %q", d.State)
		}
	}
}

// TestRootUnusablePartition: what is no FAT file system, or a damaged one, is one
// clear refusal that names the partition, and finalize leaves it in the journal.
func TestRootUnusablePartition(t *testing.T) {
	for name, x := range map[string]struct {
		damage func(b *bootDisk)
		want   string
	}{
		"zeroed": {func(b *bootDisk) { b.sh("dd", "if=/dev/zero", "of="+b.part(1), "bs=1M", "count=8", "conv=fsync") }, "no FAT file system"},
		"ext4":   {func(b *bootDisk) { b.sh("mkfs.ext4", "-q", "-F", b.part(1)) }, "no FAT file system"},
		"damaged": {func(b *bootDisk) {
			f, err := os.OpenFile(b.part(1), os.O_WRONLY, 0)
			must(t, err)
			defer f.Close()
			_, err = f.WriteAt(bytes.Repeat([]byte{0x5a}, 32<<10), 32*512) // the first FAT
			must(t, errors.Join(err, f.Sync()))
		}, "fsck.fat"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBootDisk(t, 1)
			w := b.world
			w.releases(release(t, "1"), release(t, "2"))
			w.search = true
			must(t, settled(w.upgrade(release(t, "3"))))
			b.close()
			x.damage(b)
			for name, run := range opening(w) {
				err := run()
				var refused *deploy.RefusedError
				if !errors.As(err, &refused) || refused.Code != deploy.CodeBadESP || !strings.Contains(err.Error(), b.part(1)) || !strings.Contains(err.Error(), x.want) {
					t.Errorf("%s: got %v", name, err)
				}
				oneLine(t, err)
			}
			if got := w.told(deploy.ProblemESP); len(got) != 1 || !strings.Contains(got[0], x.want) {
				t.Errorf("status: %q", got)
			}
			if got := w.told(deploy.ProblemFinalize); len(got) != 1 || !strings.Contains(got[0], x.want) {
				t.Errorf("status says of finalize: %q", got)
			}
		})
	}
}
