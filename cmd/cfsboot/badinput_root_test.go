package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/testutil/peloader"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// chrootMachine is an installed disk on a loop device, and a directory in which the program finds it as on the machine.
type chrootMachine struct {
	t            *testing.T
	dir          string // with the program, /sysroot and /run
	file, device string // the disk
	images       string // OCI layout with the releases 1 to 3
	booted       string // deployment that runs
}

// sh runs a shell command; $D is the device, $S where the root file system is mounted.
func (m *chrootMachine) sh(script string) {
	m.t.Helper()
	cmd := exec.CommandContext(m.t.Context(), "/bin/sh", "-ec", script)
	cmd.Env = append(os.Environ(), "D="+m.device, "S="+filepath.Join(m.dir, "sysroot"))
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// run is the program on the machine. It returns the exit status, and both outputs.
func (m *chrootMachine) run(args ...string) (status int, text string) {
	m.t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(m.t.Context(), "/cfsboot", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: m.dir}
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.Env = "/", &out, &out, []string{"PATH=/usr/bin"}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		m.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String()
}

// must is run for what succeeds.
func (m *chrootMachine) must(args ...string) string {
	m.t.Helper()
	status, text := m.run(args...)
	if status != 0 {
		m.t.Fatalf("cfsboot %v: status %d\n%s", args, status, text)
	}
	return text
}

// attach makes the disk file a device, and mounts the root file system.
func (m *chrootMachine) attach() {
	m.t.Helper()
	out, err := exec.CommandContext(m.t.Context(), "losetup", "-P", "--show", "-f", m.file).Output()
	if err != nil {
		m.t.Fatal(err)
	}
	m.device = strings.TrimSpace(string(out))
	m.sh("mount -t ext4 ${D}p2 $S")
}

func (m *chrootMachine) detach() {
	_ = unix.Unmount(filepath.Join(m.dir, "sysroot"), unix.MNT_DETACH)
	_ = exec.Command("losetup", "-d", m.device).Run() //nolint:noctx // at the end of the test
}

// boots writes what the initramfs writes.
func (m *chrootMachine) boots(id string) {
	m.t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(m.device+"p2", &st); err != nil {
		m.t.Fatal(err)
	}
	data, err := record.Booted{
		Digest: id, Algorithm: "sha512-12", Karg: "composefs.digest=v1-sha512-12:" + id, Gate: "digest", Secure: true,
		Sysroot: record.BootedSysroot{Dev: fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))}, Etc: "bind", Var: "bind", Root: "ro", Erofs: "file", Kernel: "6.12",
	}.Encode()
	if err == nil {
		err = os.WriteFile(filepath.Join(m.dir, record.BootedPath), data, 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.booted = id
}

// newChrootMachine is a machine that was installed with release 1 and runs release 2, which was found to be good.
func newChrootMachine(t *testing.T) *chrootMachine {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs the lab's kernel and file system (CFSBOOT_ROOT_TESTS=1)")
	}
	m := &chrootMachine{t: t, dir: t.TempDir(), images: filepath.Join(t.TempDir(), "oci")}
	m.file = filepath.Join(t.TempDir(), "disk")
	for _, n := range []string{"1", "2", "3"} {
		img, err := ocitest.Build(ocitest.Spec{Layers: []ocitest.Layer{{Tar: systemTar(t, n)}}})
		if err == nil {
			err = img.WriteLayout(m.images, n)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"proc", "sys", "dev", "run/cfsboot", "sysroot", "img"} {
		if err := os.MkdirAll(filepath.Join(m.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	m.sh(fmt.Sprintf("mount --bind %[1]s %[2]s/img; cp %[3]s %[2]s/cfsboot; for d in proc sys dev; do mount --rbind /$d %[2]s/$d; done", m.images, m.dir, self))
	t.Cleanup(func() {
		_ = exec.Command("umount", "-R", "-l", m.dir+"/img", m.dir+"/proc", m.dir+"/sys", m.dir+"/dev").Run() //nolint:noctx // at the end of the test
	})
	status, stdout, stderr := capture(t, "install", "to-disk", m.file, "--size=400M", "--esp-size=128M", "--image=oci:"+m.images+":1", "--json")
	var change struct{ Deployment string }
	if status != 0 || json.Unmarshal(stdout, &change) != nil {
		t.Fatalf("install: status %d, %s%s", status, stdout, stderr)
	}
	m.attach()
	defer m.detach()
	m.boots(change.Deployment)
	m.must("switch", "oci:/img:2")
	if err := json.Unmarshal([]byte(m.must("finalize", "--json")), &change); err != nil {
		t.Fatal(err)
	}
	m.sh("mkdir -p /run/esp; mount -t vfat ${D}p1 /run/esp; cd /run/esp/loader/entries; for f in *+*; do mv $f ${f%%+*}.conf; done; cd /; umount /run/esp")
	m.boots(change.Deployment)
	return m
}

// copy is the machine once more, as it is on its disk.
func (m *chrootMachine) copy(t *testing.T) *chrootMachine {
	t.Helper()
	c := *m
	c.t, c.file = t, filepath.Join(t.TempDir(), "disk")
	c.sh("cp --sparse=always " + m.file + " " + c.file)
	c.attach()
	t.Cleanup(c.detach)
	c.boots(m.booted)
	return &c
}

// systemTar is the one layer of a small operating system.
func systemTar(t *testing.T, release string) []byte {
	t.Helper()
	files := map[string]string{
		"usr/lib/modules/6.12/vmlinuz": strings.Repeat("kernel "+release, 100_000), "usr/lib/modules/6.12/initramfs.img": strings.Repeat("initrd "+release, 1000),
		"usr/lib/os-release": "ID=toy\nVERSION_ID=" + release + "\n", "usr/lib/systemd/boot/efi/systemd-bootx64.efi": string(peloader.SystemdBoot("257.13-1")),
		"etc/hostname": "toy\n", "root": "-> var/roothome",
	}
	for _, name := range []string{"boot", "sysroot", "efi", "var", "run", "tmp", "proc", "sys", "dev"} {
		files[name+"/"] = ""
	}
	for name := range maps.Clone(files) {
		for dir := filepath.Dir(strings.TrimSuffix(name, "/")); dir != "."; dir = filepath.Dir(dir) {
			files[dir+"/"] = ""
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: name, Mode: 0o755, Typeflag: tar.TypeReg, Size: int64(len(files[name]))}
		text := files[name]
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, text = tar.TypeSymlink, target, 0, ""
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag = tar.TypeDir
		}
		err := w.WriteHeader(h)
		if err == nil {
			_, err = w.Write([]byte(text))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestRootBadInput: what may be wrong with the disks of a machine is one clear line and an exit status that tells what kind of trouble it
// is, from every command; or it is no trouble at all.
func TestRootBadInput(t *testing.T) {
	onESP := func(script string) string {
		return "mkdir -p /run/esp; mount -t vfat ${D}p1 /run/esp; cd /run/esp; " + script + "; cd /; umount /run/esp"
	}
	addXBOOTLDR := func(mkfs string) string {
		return "dd if=${D}p1 of=/run/esp.img bs=1M status=none; umount $S; sfdisk -q --delete $D 1; " +
			"printf 'start=2048,size=60M,type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B\\nsize=40M,type=BC13C2FF-59E6-4262-A352-B275FD6F7172\\n' | sfdisk -q -a --force $D; " +
			mkfs + " ${D}p3; mkfs.vfat ${D}p1 >/dev/null; mount -t vfat -o loop,ro /run/esp.img /mnt; mkdir -p /run/esp; mount -t vfat ${D}p1 /run/esp; cp -r /mnt/. /run/esp; umount /run/esp /mnt; rm /run/esp.img; mount -t ext4 ${D}p2 $S"
	}
	base := newChrootMachine(t)
	commands := [][]string{{"status"}, {"switch", "oci:/img:3"}, {"finalize"}, {"rollback"}, {"gc"}, {"gc", "--dry-run"}, {"resume"}}
	for _, x := range []struct {
		name   string
		damage string
		status int // of all commands but status, which is always 0
		text   string
		only   string // the only command that this is about; the others succeed
		told   string // what status says of it; "": nothing of the kind
	}{
		{name: "nothing"},
		{"ESP missing", "umount $S; sfdisk -q --part-type $D 1 0FC63DAF-8483-4772-8E79-3D69D8477DE4; mount -t ext4 ${D}p2 $S", 3, "no EFI system partition: disk DISK has 2 partitions, none of the type ESP or XBOOTLDR", "", "none of the type ESP"},
		{"ESP read-only", "blockdev --setro ${D}p1", 3, `boot partition "/dev/DISKp1" is read-only`, "", `boot partition "/dev/DISKp1" is read-only`},
		{"ESP zeroed", "dd if=/dev/zero of=${D}p1 bs=1M count=8 conv=fsync status=none", 3, `boot partition "/dev/DISKp1" (ESP on the disk of the root file system): no FAT file system`, "", "no FAT file system"},
		{"ESP damaged", "yes ZZZZ | head -c 32768 | dd of=${D}p1 bs=512 seek=32 conv=fsync,notrunc status=none", 3, `boot partition "/dev/DISKp1" cannot be read; fsck.fat may repair it: input/output error`, "", "fsck.fat"},
		{"ESP too small", onESP("dd if=/dev/zero of=big bs=1M status=none 2>/dev/null || true"), 4, "no space at \"/dev/DISKp1\": need ", "switch", ""},
		{"ESP with torn files", onESP("touch loader/entries/torn.conf; head -c 4096 /dev/zero >loader/entries/zeros.conf; printf '\\377\\376linux' >loader/entries/noise.conf"), 0, "", "", ""},
		{"ESP with 200 foreign entries", onESP("for i in $(seq 200); do printf 'title Other\\nlinux /other\\n' >loader/entries/other-$i.conf; done"), 0, "", "", ""},
		{"a file as directory of payloads", onESP("mv cfsboot away; touch cfsboot"), 6, "in the way on the boot partition: cfsboot (no directory)", "", ""},
		{"a file as directory of entries", onESP("mv loader/entries away; touch loader/entries"), 6, "in the way on the boot partition: loader/entries (no directory)", "", "loader/entries"},
		{"a directory as kernel", onESP("for d in cfsboot/*; do rm $d/vmlinuz; mkdir $d/vmlinuz; done"), 6, "/vmlinuz (no regular file)", "rollback", "vmlinuz"},
		{"XBOOTLDR of another system, ext4", addXBOOTLDR("mkfs.ext4 -q -F"), 0, "", "", ""},
		{"XBOOTLDR of another system, vfat", addXBOOTLDR("mkfs.vfat >/dev/null"), 0, "", "", ""},
		{"journal gone", "mv $S/state/cfsboot/journal $S/away", 3, "the journal /sysroot/state/cfsboot/journal is gone", "", "is gone"},
		{"repository gone", "mv $S/composefs $S/away", 3, "the repository of this machine, which holds its images, is gone", "", "no such file"},
		{"root file system full", "dd if=/dev/zero of=$S/fill bs=64k status=none 2>/dev/null || true; dd if=/dev/zero of=$S/fill2 bs=512 oflag=sync status=none 2>/dev/null || true", 4, "no space at \"/sysroot/", "switch", ""},
		{"root file system not mounted", "umount $S", 3, "is not mounted at /sysroot", "", "is not mounted at /sysroot"},
		{"root file system read-only", "mount -o remount,ro $S", 3, "is read-only", "", ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := base.copy(t)
			m.sh(x.damage)
			disk := strings.TrimPrefix(m.device, "/dev/")
			want := strings.ReplaceAll(x.text, "DISK", disk)
			for _, args := range commands {
				status, text := m.run(append(args, "--progress=none")...)
				switch {
				case args[0] == "status":
					if told := strings.ReplaceAll(x.told, "DISK", disk); status != 0 || !strings.Contains(text, told) || strings.Contains(text, "run as root") {
						t.Errorf("status: %d, want %q\n%s", status, told, text)
					}
				case x.status == 0 || x.only != "" && x.only != args[0]:
					if status != 0 {
						t.Errorf("%v: status %d\n%s", args, status, text)
					}
				case status != x.status || !strings.HasPrefix(text, "cfsboot: ") || !strings.Contains(firstLineOf(text), want) || strings.Contains(text, "run it as root"):
					t.Errorf("%v: status %d, want %d and %q\n%s", args, status, x.status, want, text)
				}
			}
		})
	}
}

func firstLineOf(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
