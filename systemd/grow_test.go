package systemd_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGrowFiles: unit, preset, script and definition belong together.
func TestGrowFiles(t *testing.T) {
	unit := hostFile(t, "cfsboot-grow-root.service")
	for _, want := range []string{
		"\nExecStart=/usr/lib/cfsboot/grow-root\n", "\nPrivateMounts=yes\n", "\nConditionPathExists=/run/cfsboot/booted.json\n", "\nConditionFileIsExecutable=/usr/bin/systemd-repart\n",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit has no line %q", strings.TrimSpace(want))
		}
	}
	if preset := hostFile(t, "80-cfsboot.preset"); !strings.Contains(preset, "enable cfsboot-grow-root.service\n") {
		t.Errorf("preset %q", preset)
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-n", "grow/grow-root").CombinedOutput(); err != nil {
		t.Errorf("grow-root: %v\n%s", err, out)
	}
}

// TestRootGrow: a disk that became larger. The file system is mounted read-only
// and in use; a partition behind it, and a disk without room, are left alone. So is
// a root partition that systemd-repart would not take for it: it would make a new
// one, or enlarge another one.
func TestRootGrow(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs the lab's kernel (CFSBOOT_ROOT_TESTS=1)")
	}
	for _, tool := range []string{"systemd-repart", "/usr/lib/systemd/systemd-growfs", "sfdisk"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	const root = "type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root"
	for name, c := range map[string]struct {
		layout string
		size   int64 // of the disk afterwards, MiB
		want   int64 // of the root partition afterwards, MiB, at least
		most   int64 // and at most
	}{
		"larger":                       {"size=34M, type=uefi\n" + root, 400, 360, 366},
		"as it was":                    {"size=34M, type=uefi\n" + root, 200, 164, 165},
		"not last":                     {"size=34M, type=uefi\nsize=100M, " + root + "\ntype=linux", 400, 100, 100},
		"some space":                   {"size=34M, type=uefi\nsize=100M, " + root, 200, 160, 166},
		"other type":                   {"size=34M, type=uefi\nsize=100M, type=linux, name=root", 400, 100, 100},
		"other type, no space before":  {"size=34M, type=uefi\ntype=linux, name=root", 400, 164, 165},
		"another root partition first": {"size=34M, " + root + "\nstart=100M, size=90M, " + root, 400, 90, 90},
		"another root partition first, no space between": {"size=34M, " + root + "\n" + root, 400, 164, 165},
		"no GPT": {"label: dos\nsize=34M, type=ef\nsize=100M, type=83", 400, 100, 100},
	} {
		t.Run(name, func(t *testing.T) { growOnce(t, c.layout, c.size, c.want, c.most) })
	}
}

func growOnce(t *testing.T, layout string, size, want, most int64) {
	file := filepath.Join(t.TempDir(), "disk")
	run := func(stdin, name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	run("", "truncate", "-s", "200M", file)
	if !strings.HasPrefix(layout, "label: ") {
		layout = "label: gpt\n" + layout
	}
	run(layout+"\n", "sfdisk", "-q", file)
	run("", "truncate", "-s", fmt.Sprintf("%dM", size), file)
	device := run("", "losetup", "--show", "-f", "-P", file)
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "losetup", "-d", device).Run() })
	run("", "mkfs.ext4", "-q", "-b", "4096", "-O", "verity", device+"p2")
	dir := t.TempDir()
	run("", "mount", device+"p2", dir) // the superblock is writable, as in the initramfs
	t.Cleanup(func() { _ = exec.CommandContext(context.Background(), "umount", dir).Run() })
	run("", "mount", "-o", "remount,bind,ro", dir)
	others := func() string { // sizes of the other partitions
		return run("", "sh", "-c", "cd /sys/class/block && grep -H . "+filepath.Base(device)+"p*/size | grep -v p2/")
	}
	before := others()
	sys, err := filepath.Abs("grow")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time nothing is left to do
		t.Log(run("", "unshare", "-m", filepath.Join(sys, "grow-root"), dir, sys))
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if st.Flags&unix.ST_RDONLY == 0 {
			t.Error("the mount is writable now")
		}
		if got := others(); got != before {
			t.Errorf("other partitions %q, want %q", got, before)
		}
		sectors := run("", "cat", "/sys/class/block/"+filepath.Base(device)+"p2/size")
		var n int64
		if _, err := fmt.Sscan(sectors, &n); err != nil {
			t.Fatal(err)
		}
		if mib := n / 2048; mib < want || mib > most {
			t.Errorf("partition of %d MiB, want %d to %d", mib, want, most)
		}
		if got := ext4Size(t, device+"p2"); got != n*512/4096*4096 {
			t.Errorf("file system of %d bytes in a partition of %d", got, n*512)
		}
	}
}

// ext4Size reads s_blocks_count_lo of a file system with blocks of 4 KiB.
func ext4Size(t *testing.T, device string) int64 {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [4]byte
	if _, err := f.ReadAt(b[:], 1024+4); err != nil {
		t.Fatal(err)
	}
	return int64(binary.LittleEndian.Uint32(b[:])) * 4096
}
