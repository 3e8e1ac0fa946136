package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// direct is what a boot without firmware needs, taken from an installed disk.
type direct struct {
	kernel, initrd string
	cmdline        string // of the boot entry
	image          string // hex digits of the boot image
}

// fromESP reads the only boot entry of a disk and copies its kernel and initrd.
func fromESP(t *testing.T, l *lab.Lab, disk string) direct {
	t.Helper()
	dir := t.TempDir()
	out, err := l.Guest(t.Context(), disk, fmt.Sprintf(`cp "$ESP"/cfsboot/*/vmlinuz "$ESP"/cfsboot/*/initrd %q; grep ^options "$ESP"/loader/entries/*.conf`, dir))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^options +(.*composefs\.digest=v1-sha512-12:([0-9a-f]{128}).*)$`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no boot entry with a digest: %q", out)
	}
	return direct{kernel: dir + "/vmlinuz", initrd: dir + "/initrd", cmdline: m[1], image: m[2]}
}

// spoil overwrites the first block of a file of the root file system on the
// disk, below the file system.
func spoil(t *testing.T, disk, name string) {
	t.Helper()
	table, err := exec.CommandContext(t.Context(), "sfdisk", "--json", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	var parsed struct {
		Table struct {
			SectorSize int64 `json:"sectorsize"`
			Partitions []struct {
				Start int64 `json:"start"`
			} `json:"partitions"`
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(table, &parsed); err != nil || len(parsed.Table.Partitions) != 2 {
		t.Fatalf("partition table %s: %v", table, err)
	}
	offset := parsed.Table.Partitions[1].Start * 512
	out, err := debugfs(t.Context(), disk, offset, "blocks "+name)
	if err != nil {
		t.Fatal(err)
	}
	block, err := strconv.ParseInt(strings.Fields(out + " -")[0], 10, 64)
	if err != nil {
		t.Fatalf("blocks of %s: %q", name, out)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Not the beginning: of an EROFS image only the superblock, 1024 bytes in, is used there.
	if _, err := f.WriteAt([]byte("tampered with"), offset+block*4096+1024); err != nil {
		t.Fatal(err)
	}
}

func debugfs(ctx context.Context, disk string, offset int64, request string) (string, error) {
	cmd := exec.CommandContext(ctx, "debugfs", "-R", request, fmt.Sprintf("%s?offset=%d", disk, offset))
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("debugfs %s: %w", request, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// victim is a file of the image that is an object of its own, and not needed to boot.
const victim = "/usr/share/common-licenses/GPL-3"

// TestVMAttacked boots without firmware from disks that somebody changed. It is
// one test of several boots, so that it takes as long as the others beside it.
func TestVMAttacked(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	t.Run("tampered object without meta.json", func(t *testing.T) { tampered(t, l) })
	refused(t, l)
}

// tampered boots although the repository's meta.json is gone (peers then stop
// checking, P2), and reads an object of which one block is overwritten.
func tampered(t *testing.T, l *lab.Lab) {
	m := newMachine(t, l, "tampered")
	d := fromESP(t, l, m.Disk)

	// The object is found by its content, as an attacker would.
	dir := t.TempDir()
	store, err := osimage.OpenStore()
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Extract(t.Context(), l.Images.Name1, dir, victim); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, victim))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	object, _, err := fsverity.SumReader(fsverity.SHA512, f)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Guest(t.Context(), m.Disk, `rm "$MNT/composefs/meta.json"`); err != nil {
		t.Fatal(err)
	}
	spoil(t, m.Disk, "/composefs/objects/"+object.ObjectPath())

	if err := m.StartKernel(t.Context(), d.kernel, d.initrd, d.cmdline); err != nil {
		t.Fatal(err)
	}
	sh, err := m.Login(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := must(t, sh, "findmnt -no SOURCE,FSTYPE,OPTIONS /")
	if !strings.Contains(root, d.image) || !strings.Contains(root, "verity=require") {
		t.Errorf("root without meta.json is %q, want the image %s with verity=require", root, d.image)
	}
	r := run(t, sh, "cat "+victim+" >/dev/null")
	if r.Status == 0 || !strings.Contains(r.Output, "Input/output error") {
		t.Errorf("reading the tampered file: status %d, %q, want an input/output error", r.Status, r.Output)
	}
	if out := must(t, sh, "dmesg | grep -i 'file corrupted'"); !strings.Contains(out, "FILE CORRUPTED") {
		t.Errorf("the kernel says %q", out)
	}
	must(t, sh, "cat /usr/share/common-licenses/GPL-2 >/dev/null")
}

func run(t *testing.T, sh *qemu.Shell, command string) qemu.Result {
	t.Helper()
	r, err := sh.Run(t.Context(), lab.CommandLimit, command)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// refused boots into roots that must not be mounted. The console has one line
// with the reason, and nothing of the real root runs.
func refused(t *testing.T, l *lab.Lab) {
	golden, err := l.Golden()
	if err != nil {
		t.Fatal(err)
	}
	d := fromESP(t, l, golden)
	other := strings.Repeat("0123456789abcdef", 8)
	link := `readlink "$MNT/composefs/images/` + d.image + `"`
	for _, c := range []struct {
		name    string
		change  string   // in User Mode Linux, before the boot
		spoil   bool     // overwrite a block of the image
		digest  string   // on the kernel command line
		kargs   string   // added to it
		message []string // all in the one line
	}{
		{name: "another digest, planted as a ref", digest: other,
			change:  `ln -s "../$(` + link + `)" "$MNT/composefs/images/refs/` + other + `"`,
			message: []string{"composefs.digest", other, "images/" + other}},
		{name: "missing image", digest: d.image,
			change:  `rm "$MNT/composefs/images/$(` + link + `)" "$MNT/composefs/images/` + d.image + `"`,
			message: []string{"composefs.digest", d.image, "images/" + d.image}},
		{name: "tampered image", digest: d.image, spoil: true,
			message: []string{"composefs.digest", d.image}},
		{name: "masked unit", digest: d.image, kargs: " rd.systemd.mask=cfsboot-setup-root.service",
			message: []string{"no composefs root was assembled here"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t, l, "refused")
			if c.change != "" {
				if out, err := l.Guest(t.Context(), m.Disk, c.change); err != nil {
					t.Fatal(err, out)
				}
			}
			if c.spoil {
				id, err := fsverity.ParseHex(d.image)
				if err != nil {
					t.Fatal(err)
				}
				spoil(t, m.Disk, "/composefs/objects/"+id.ObjectPath())
			}
			cmdline := strings.Replace(d.cmdline, d.image, c.digest, 1) + c.kargs
			if err := m.StartKernel(t.Context(), d.kernel, d.initrd, cmdline); err != nil {
				t.Fatal(err)
			}
			m.Console.Forbid(`login: `, `Switching root`, `Welcome to cfsboot demo`)
			_, text, err := m.Console.Expect(t.Context(), lab.BootLimit, `CFS-B\d+: .*\n`)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(text), "\n")
			line := lines[len(lines)-1]
			t.Log(line)
			for _, want := range c.message {
				if !strings.Contains(line, want) {
					t.Errorf("the line lacks %q", want)
				}
			}
			// Nothing else is tried: the machine reboots, which ends QEMU here.
			if err := m.Wait(lab.BootLimit); err != nil {
				t.Error(err)
			}
			if _, _, err := m.Console.Expect(t.Context(), lab.CommandLimit, `reboot: Restarting system`); err != nil {
				t.Error(err)
			}
		})
	}
}
