package setuproot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

// The tests of this file are named after the defects of other implementations that boot.md 0.4 lists. P3 and P10 are
// about units and are tested in package systemd; P6, P7, P12 and P13 belong to bootimage/bls and deploy/esp.

// TestRootP1: a ref is not an image. With the image gone and a ref planted under its name that leads to another sealed
// image, nothing is booted.
func TestRootP1RefIsNoImage(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	evil := m.addImage("evil")
	m.addState(evil)
	m.remove("composefs/images/"+m.image.Hex(), objectName(m.image))
	must(t, os.Symlink("../../objects/"+evil.ObjectPath(), m.path("composefs/images/refs/"+m.image.Hex())))
	must(t, os.Symlink("../"+evil.Hex(), m.path("composefs/streams/refs/"+m.image.Hex())))
	m.refuse(m.options(karg(m.image)), setuproot.CodeMissing, karg(m.image), "images/"+m.image.Hex(), m.image.String())

	// Also not by the way of a link from the image's name to the ref: the digest is measured.
	must(t, os.Symlink("refs/"+m.image.Hex(), m.path("composefs/images/"+m.image.Hex())))
	m.refuse(m.options(karg(m.image)), setuproot.CodeDigest, karg(m.image), m.image.String(), evil.String())
}

// TestRootP2: meta.json on the disk does not decide whether fs-verity is needed.
func TestRootP2MetaDoesNotDecide(t *testing.T) {
	needKernel(t)
	for name, change := range map[string]func(m *machine){
		"removed":  func(m *machine) { m.remove("composefs/meta.json") },
		"insecure": func(m *machine) { m.replace("composefs/meta.json", []byte(`{"version":1,"insecure":true}`), false) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			change(m)
			m.boot(m.options(karg(m.image))) // a good image boots all the same, with every check
			if o := m.mounts()[0].SuperOptions; !strings.Contains(o, "verity=require") {
				t.Errorf("root options %q, want verity=require", o)
			}
			m.reset()
			meta := readIfThere(t, m.path("composefs/meta.json"))

			m.replace(objectName(m.image), m.encode("1"), false)
			m.refuse(m.options(karg(m.image)), setuproot.CodeNoVerity, karg(m.image), m.image.String())
			m.replace(objectName(m.image), m.encode("evil"), false)
			m.refuse(m.options(karg(m.image)), setuproot.CodeNoVerity, karg(m.image), m.image.String())
			if got := readIfThere(t, m.path("composefs/meta.json")); got != meta {
				t.Errorf("meta.json became %q", got)
			}
		})
	}
}

func readIfThere(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(b)
}

// TestRootP4: with a transient root, /etc, /var and /sysroot are in the visible tree.
func TestRootP4TransientRootKeepsState(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	o := m.options(karg(m.image))
	o.Policy.TransientRoot = true
	b, err := setuproot.Run(t.Context(), o)
	must(t, err)
	if got := m.mounts(); b.Root != "transient" || len(got) != 4 || got[0].Source != "transient:composefs="+m.image.Hex() {
		t.Errorf("root %q, mounts %+v", b.Root, got)
	}
	if s := readFile(t, m.path("etc/passwd")); s != "deployment\n" {
		t.Errorf("/etc/passwd: %q", s)
	}
	must(t, os.WriteFile(m.path("var/new"), nil, 0o644))
	if _, err := os.Stat(m.path("sysroot/state/os/default/var/new")); err != nil {
		t.Errorf("/var is not persistent: %v", err)
	}
	must(t, os.WriteFile(m.path("usr/new"), []byte("x"), 0o644))
	var st unix.Stat_t
	must(t, unix.Stat(m.sysroot, &st))
	if st.Mode&0o7777 != 0o755 {
		t.Errorf("/ has mode %o, want 755", st.Mode&0o7777)
	}
	if s := m.mounts()[0].SuperOptions; !strings.Contains(s, "verity=require") {
		t.Errorf("root options %q, want verity=require", s)
	}
	if err := setuproot.Guard(o); err != nil {
		t.Errorf("guard: %v", err)
	}
	m.reset()
	m.boot(m.options(karg(m.image)))
	if _, err := os.Lstat(m.path("usr/new")); err == nil {
		t.Error("a change of a transient root was kept")
	}
}

// TestRootP5: transient root and an overlay for /etc fit into the two levels that the kernel allows.
func TestRootP5TransientRootWithEtcOverlay(t *testing.T) {
	needKernel(t)
	for _, mode := range []setuproot.MountMode{setuproot.MountOverlay, setuproot.MountTransient} {
		for _, transient := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, transient root %v", mode, transient), func(t *testing.T) {
				m := newMachine(t)
				must(t, os.RemoveAll(m.path("state/deploy/"+m.image.Hex()+"/etc")))
				o := m.options(karg(m.image))
				o.Policy.TransientRoot, o.Policy.Etc = transient, mode
				m.boot(o)
				if s := readFile(t, m.path("etc/passwd")); s != "image\n" {
					t.Errorf("/etc/passwd: %q", s)
				}
				must(t, os.WriteFile(m.path("etc/new"), []byte("kept"), 0o644))
				if n := len(m.mounts()); n != 4 {
					t.Errorf("mounts %+v, want 4", m.mounts())
				}
				m.reset()
				m.boot(o)
				if _, err := os.Lstat(m.path("etc/new")); (err == nil) != (mode == setuproot.MountOverlay) {
					t.Errorf("/etc/new after a reboot: %v", err)
				}
			})
		}
	}
}

// TestRootP9: layers of /etc that have to be made get owner, permissions, time and labels of the image's /etc.
func TestRootP9UpperLooksLikeTheImage(t *testing.T) {
	needKernel(t)
	for _, mode := range []setuproot.MountMode{setuproot.MountOverlay, setuproot.MountTransient} {
		t.Run(string(mode), func(t *testing.T) {
			m := newMachine(t)
			must(t, os.RemoveAll(m.path("state/deploy/"+m.image.Hex()+"/etc")))
			o := m.options(karg(m.image))
			o.Policy.Etc = mode
			m.boot(o)
			var st unix.Stat_t
			must(t, unix.Stat(m.path("etc"), &st))
			if st.Mode&0o7777 != 0o750 || st.Uid != 3 || st.Gid != 4 || st.Mtim.Sec != 1700000000 {
				t.Errorf("/etc: mode %o, owner %d:%d, time %d; want 750, 3:4, 1700000000", st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec)
			}
			label := make([]byte, 64)
			n, err := unix.Getxattr(m.path("etc"), "security.test", label)
			if err != nil || string(label[:n]) != "label of etc" {
				t.Errorf("label of /etc: %q, %v", label[:max(n, 0)], err)
			}
		})
	}
}

// TestRootP11: a boot writes nothing to the repository: not on a read-only disk, and not on a writable one, whatever is
// missing in it.
func TestRootP11RepositoryUntouched(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.remove("composefs/meta.json")
	before := listing(t, m.path("composefs"))
	m.boot(m.options(karg(m.image)))
	if after := listing(t, m.path("sysroot/composefs")); after != before {
		t.Errorf("the repository changed from\n%s\nto\n%s", before, after)
	}
	m.reset()
	m.unmount()
	m.mount("ro")
	m.boot(m.options(karg(m.image)))
}

// listing names every file below dir with size, mode, and times of change.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %d %o %v %v\n", strings.TrimPrefix(path, dir), st.Size, st.Mode, st.Mtim, st.Ctim)
		return nil
	}))
	return b.String()
}

// TestP8NoKeyring: pinned mode needs no kernel keyring, and above all not the user keyring (-4) that another
// implementation took for .fs-verity. Nothing that the program links speaks to one.
func TestP8NoKeyring(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{range .GoFiles}}{{$.Dir}}/{{.}}\n{{end}}{{end}}", "github.com/cfsboot/cfsboot/cmd/cfsboot-setup-root").Output()
	must(t, err)
	keyring := regexp.MustCompile(`unix\.(AddKey|Keyctl\w+|KEY_SPEC_\w+|SYS_ADD_KEY|SYS_KEYCTL)|KEY_SPEC_USER_KEYRING`)
	files := 0
	for path := range strings.Lines(string(out)) {
		path = strings.TrimSpace(path)
		if path == "" || strings.Contains(path, "golang.org/x/sys") {
			continue // x/sys declares them
		}
		files++
		if found := keyring.FindString(readFile(t, path)); found != "" {
			t.Errorf("%s uses %s", path, found)
		}
	}
	if files < 20 {
		t.Errorf("only %d files looked at", files)
	}
}

// A wrong image must not become right by way of the second spelling of the parameter.
func TestRootOldSpelling(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.boot(m.options("composefs=" + m.image.Hex()))
	m.reset()
	wrong := fsverity.Sum(fsverity.SHA512, []byte("wrong"))
	m.refuse(m.options("composefs="+wrong.Hex()), setuproot.CodeMissing, "composefs="+wrong.Hex())
}
