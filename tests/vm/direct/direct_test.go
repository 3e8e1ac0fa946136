package direct_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
)

// installed is a disk with release 1 and what its boot entry names.
type installed struct {
	lab                     *lab.Lab
	disk                    string
	kernel, initrd, cmdline string
	id                      string // digest of the boot image, hex
}

var karg = regexp.MustCompile(`composefs\.digest=v1-sha512-12:([0-9a-f]{128})`)

// install installs release 1 and copies the payload of its entry to the host.
func install(t *testing.T) *installed {
	t.Helper()
	l, err := lab.Open(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &installed{lab: l}
	if s.disk, err = l.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := l.Guest(t.Context(), s.disk, fmt.Sprintf("cp $MNT/boot/cfsboot/*/vmlinuz $MNT/boot/cfsboot/*/initrd $MNT/boot/loader/entries/*.conf %s", dir)); err != nil {
		t.Fatal(err)
	}
	s.kernel, s.initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	entries, err := filepath.Glob(dir + "/*.conf")
	if err != nil || len(entries) != 1 {
		t.Fatalf("entries %q, %v; want one", entries, err)
	}
	text, err := os.ReadFile(entries[0])
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "options"); ok {
			s.cmdline = strings.TrimSpace(rest)
		}
	}
	m := karg.FindStringSubmatch(s.cmdline)
	if m == nil {
		t.Fatalf("the entry's options have no digest: %q", s.cmdline)
	}
	s.id = m[1]
	return s
}

// start boots a copy of the disk after a script changed it ($MNT is its root file system).
func (s *installed) start(t *testing.T, name, script, cmdline string) *lab.Machine {
	t.Helper()
	m, err := s.lab.NewMachine(t.Context(), name, s.disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Off)
	if script != "" {
		if _, err := s.lab.Guest(t.Context(), m.Disk, script); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.StartKernel(t.Context(), s.kernel, s.initrd, cmdline); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestDirectBoot boots without firmware: the good system, with one altered file, and systems that must not boot.
func TestDirectBoot(t *testing.T) {
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("starts machines: CFSBOOT_VM_TESTS is not 1")
	}
	s := install(t)
	object := "$MNT/composefs/objects/" + s.id[:2] + "/" + s.id[2:]
	wrong := strings.Repeat("0123456789abcdef", 8)

	t.Run("boots", func(t *testing.T) {
		// A file that nothing needs is replaced by one of equal size, in the repository.
		program, err := os.ReadFile(filepath.Join(filepath.Dir(s.lab.Images.Program), "cfsboot-setup-root"))
		if err != nil {
			t.Fatal(err)
		}
		d := fsverity.Sum(fsverity.SHA512, program)
		evil := filepath.Join(t.TempDir(), "evil")
		if err := os.WriteFile(evil, bytes.Repeat([]byte{0x90}, len(program)), 0o644); err != nil {
			t.Fatal(err)
		}
		name := "$MNT/composefs/objects/" + d.ObjectPath()
		m := s.start(t, "direct", fmt.Sprintf("test -f %s; rm %s; cp %s %s", name, name, evil, name), s.cmdline)
		sh, err := m.Login(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		state, err := lab.Look(t.Context(), sh)
		if err != nil {
			t.Fatal(err)
		}
		if err := state.Check(osimage.Version1, s.lab.Images.Digest1); err != nil {
			t.Error(err)
		}
		r, err := sh.Run(t.Context(), lab.CommandLimit, "cat /usr/lib/cfsboot/cfsboot-setup-root >/dev/null")
		if err != nil || r.Status == 0 || !strings.Contains(r.Output, "Input/output error") {
			t.Errorf("read of the altered file: %+v, %v; want EIO", r, err)
		}
		r, err = sh.Run(t.Context(), lab.CommandLimit, "touch /usr/x /sysroot/x; touch /etc/x /var/x && echo written; findmnt -no OPTIONS /sysroot; cat /run/cfsboot/booted.json")
		if err != nil || strings.Count(r.Output, "Read-only file system") != 2 || !strings.Contains(r.Output, "written\nro,") || !strings.Contains(r.Output, `"digest":"`+s.id+`"`) {
			t.Errorf("what is writable: %+v, %v", r, err)
		}
		if err := m.PowerOff(t.Context(), sh); err != nil {
			t.Error(err)
		}
	})

	for _, c := range []struct {
		name, script, cmdline string
		line                  string // on the console
	}{
		{
			// P1 and P2 together: the image is gone, a ref of its name leads to another sealed image of this disk, and
			// meta.json, which could say how strict to be, is gone as well.
			"ref planted for a missing image",
			fmt.Sprintf(`other=$(ls $MNT/composefs/images | grep -v refs | grep -v %[1]s | head -1); test -n "$other"
				target=$(readlink $MNT/composefs/images/$other); rm $MNT/composefs/images/%[1]s %[2]s $MNT/composefs/meta.json
				ln -s ../$target $MNT/composefs/images/refs/%[1]s; test -f $MNT/composefs/images/refs/%[1]s`, s.id, object),
			s.cmdline,
			`CFS-B04: kernel parameter composefs\.digest=v1-sha512-12:` + s.id + `: /sysroot/composefs/images/` + s.id + `: fs-verity digest expected sha512:` + s.id,
		},
		{
			"wrong digest on the command line", "", strings.ReplaceAll(s.cmdline, s.id, wrong),
			`CFS-B04: kernel parameter composefs\.digest=v1-sha512-12:` + wrong + `: /sysroot/composefs/images/` + wrong + `: fs-verity digest expected sha512:` + wrong,
		},
		{
			"image replaced", fmt.Sprintf("cp %[1]s $MNT/copy; rm %[1]s; cp $MNT/copy %[1]s", object), s.cmdline,
			`CFS-B06: kernel parameter composefs\.digest=v1-sha512-12:` + s.id + `: /sysroot/composefs/images/` + s.id + `: fs-verity digest expected sha512:` + s.id + `, found none`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := s.start(t, "attack", c.script, c.cmdline)
			m.Console.Forbid(`login: $`, `Welcome to .*cfsboot demo`)
			for _, want := range []string{c.line, `this boot failed: CFS-B0\d`, `reboot in 15s`} {
				if _, _, err := m.Console.Expect(t.Context(), lab.BootLimit, want); err != nil {
					t.Fatal(err)
				}
			}
			// Started without firmware, QEMU ends where a machine would start again.
			if err := m.Wait(2 * time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
}
