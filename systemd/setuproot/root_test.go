package setuproot_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

func TestRootBoot(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.boot(m.options(karg(m.image)))

	want := []struct{ point, fstype, source string }{
		{"/sysroot", "overlay", "composefs:" + m.image.Hex()},
		{"/sysroot/etc", "ext4", m.loop},
		{"/sysroot/var", "ext4", m.loop},
		{"/sysroot/sysroot", "ext4", m.loop},
	}
	got := m.mounts()
	if len(got) != len(want) {
		t.Fatalf("mounts %+v, want 4", got)
	}
	for i, w := range want {
		if got[i].Point != w.point || got[i].Type != w.fstype || got[i].Source != w.source {
			t.Errorf("mount %d: %+v, want %+v", i, got[i], w)
		}
	}
	if !strings.Contains(got[0].SuperOptions, "verity=require") {
		t.Errorf("root options %q, want verity=require", got[0].SuperOptions)
	}
	if s := readFile(t, m.path("etc/passwd")); s != "deployment\n" {
		t.Errorf("/etc/passwd: %q", s)
	}
	if s := readFile(t, m.path("var/kept")); s != "var\n" {
		t.Errorf("/var/kept: %q", s)
	}
	if s := readFile(t, m.path("usr/bin/data")); len(s) != dataSize/8*len("data 1\n") {
		t.Errorf("/usr/bin/data has %d bytes", len(s))
	}
	for path, want := range map[string]error{"etc/new": nil, "var/new": nil, "usr/new": unix.EROFS, "new": unix.EROFS, "sysroot/new": unix.EROFS} {
		if err := os.WriteFile(m.path(path), nil, 0o644); !errors.Is(err, want) {
			t.Errorf("write /%s: %v, want %v", path, err, want)
		}
	}
	if _, err := os.Lstat(m.path("sysroot/state/os/default/var/new")); err != nil {
		t.Errorf("/var is not the shared directory of the state: %v", err)
	}
	entries, err := os.ReadDir(m.run)
	must(t, err)
	if len(entries) != 1 || entries[0].Name() != "booted.json" {
		t.Errorf("run directory holds %v, want booted.json only", entries)
	}
	checkBooted(t, m)
	if err := setuproot.Guard(m.options("")); err != nil {
		t.Errorf("guard: %v", err)
	}
}

func checkBooted(t *testing.T, m *machine) {
	t.Helper()
	b, err := record.ParseBooted([]byte(readFile(t, m.run+"/booted.json")))
	must(t, err)
	if b.Digest != m.image.Hex() || b.Algorithm != "sha512-12" || b.Karg != karg(m.image) || !b.Secure || b.Gate != "digest" ||
		b.Etc != "bind" || b.Var != "bind" || b.Root != "ro" || b.Erofs != "file" || b.Kernel == "" || b.Sysroot.Dev == "" {
		t.Errorf("booted.json: %+v", b)
	}
	st, err := os.Stat(m.run + "/booted.json")
	must(t, err)
	if st.Mode().Perm() != 0o644 {
		t.Errorf("booted.json has mode %v, want readable by everyone", st.Mode())
	}
}

// TestRootPrivateWritable: the machine tool writes to the read-only /sysroot through a mount of its own.
func TestRootPrivateWritable(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.boot(m.options(karg(m.image)))
	f, err := mnt.PrivateWritable(m.path("sysroot"))
	must(t, err)
	defer f.Close()
	fd, err := unix.Openat(int(f.Fd()), "state/written", unix.O_CREAT|unix.O_WRONLY, 0o644)
	must(t, err)
	must(t, unix.Close(fd))
	if _, err := os.Stat(m.path("sysroot/state/written")); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(m.path("sysroot/state/refused"), nil, 0o644); !errors.Is(err, unix.EROFS) {
		t.Errorf("the visible /sysroot became writable: %v", err)
	}
	if n := len(m.mounts()); n != 4 {
		t.Errorf("%d mounts, want 4", n)
	}
}

func TestRootSecondRunDoesNothing(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	o := m.options(karg(m.image))
	first, err := setuproot.Run(t.Context(), o)
	must(t, err)
	second, err := setuproot.Run(t.Context(), o)
	must(t, err)
	if first.Digest != second.Digest || first.Kernel != second.Kernel || len(m.mounts()) != 4 {
		t.Errorf("second run: %+v, mounts %+v", second, m.mounts())
	}
}

// TestRootInterruptedRun: what a run that was killed left behind does not stop the next one.
func TestRootInterruptedRun(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	private := filepath.Join(m.run, "private")
	must(t, os.MkdirAll(private, 0o755))
	must(t, mnt.PrivateDir(private))
	must(t, os.Mkdir(private+"/meta", 0o755))
	must(t, os.Mkdir(private+"/root", 0o755))
	must(t, unix.Mount("tmpfs", private+"/meta", "tmpfs", 0, ""))
	m.boot(m.options(karg(m.image)))
	if n := len(m.mounts()); n != 4 {
		t.Errorf("mounts %+v, want 4", m.mounts())
	}
}

// TestRootOrder: the first image that exists is mounted; missing ones are recorded.
func TestRootOrder(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	gone := fsverity.Sum(fsverity.SHA512, []byte("an image that is not there"))
	other := m.addImage("2")
	m.addState(other)
	b, err := setuproot.Run(t.Context(), m.options(karg(gone)+" "+karg(other)+" "+karg(m.image)))
	must(t, err)
	if b.Digest != other.Hex() || len(b.Tried) != 1 || b.Tried[0].Digest != gone.Hex() || b.Tried[0].Result != "missing" {
		t.Errorf("%+v", b)
	}
}

// TestRootTamperedObject: a block of a file that is altered on the disk cannot be read, the rest can.
func TestRootTamperedObject(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.corrupt(m.path(objectName(m.files["usr/bin/data"])), 5)
	m.boot(m.options(karg(m.image)))
	if _, err := os.ReadFile(m.path("usr/bin/data")); !errors.Is(err, unix.EIO) {
		t.Errorf("read of the altered file: %v, want EIO", err)
	}
	if s := readFile(t, m.path("usr/sbin/init")); !strings.HasPrefix(s, "init 1") {
		t.Errorf("another file: %.20q", s)
	}
}

// TestRootReplacedObject: an object with other content, or without fs-verity, cannot be opened.
func TestRootReplacedObject(t *testing.T) {
	needKernel(t)
	for name, verity := range map[string]bool{"other content with fs-verity": true, "same content without fs-verity": false} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			object := objectName(m.files["usr/bin/data"])
			data := readFile(t, m.path(object))
			if verity {
				data = strings.Replace(data, "data", "evil", 1)
			}
			m.replace(object, []byte(data), verity)
			m.boot(m.options(karg(m.image)))
			if _, err := os.ReadFile(m.path("usr/bin/data")); !errors.Is(err, unix.EIO) {
				t.Errorf("read: %v, want EIO", err)
			}
		})
	}
}

// TestRootTamperedInit: what the system needs to start is read before the switch.
func TestRootTamperedInit(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.corrupt(m.path(objectName(m.files["usr/sbin/init"])), 0)
	m.refuse(m.options(karg(m.image)), setuproot.CodeObject, karg(m.image), "/sbin/init", "input/output error")
}

// TestRootTamperedImage: every way to alter the image on the disk ends the boot.
func TestRootTamperedImage(t *testing.T) {
	needKernel(t)
	t.Run("block altered", func(t *testing.T) {
		m := newMachine(t)
		m.corrupt(m.path(objectName(m.image)), 0)
		m.refuse(m.options(karg(m.image)), setuproot.CodeDigest, karg(m.image), "images/"+m.image.Hex(), m.image.String())
	})
	t.Run("other image with fs-verity", func(t *testing.T) {
		m := newMachine(t)
		evil := m.encode("evil")
		m.replace(objectName(m.image), evil, true)
		m.refuse(m.options(karg(m.image)), setuproot.CodeDigest, karg(m.image), "images/"+m.image.Hex(), m.image.String(), fsverity.Sum(fsverity.SHA512, evil).String())
	})
	t.Run("link to another image", func(t *testing.T) {
		m := newMachine(t)
		other := m.addImage("2")
		m.remove("composefs/images/" + m.image.Hex())
		must(t, os.Symlink("../objects/"+other.ObjectPath(), m.path("composefs/images/"+m.image.Hex())))
		m.refuse(m.options(karg(m.image)), setuproot.CodeDigest, karg(m.image), "images/"+m.image.Hex(), m.image.String(), other.String())
	})
	t.Run("without fs-verity", func(t *testing.T) {
		m := newMachine(t)
		m.replace(objectName(m.image), m.encode("1"), false)
		m.refuse(m.options(karg(m.image)), setuproot.CodeNoVerity, karg(m.image), "images/"+m.image.Hex(), m.image.String(), "fs-verity is not enabled")
	})
	t.Run("link out of the repository", func(t *testing.T) {
		m := newMachine(t)
		m.remove("composefs/images/" + m.image.Hex())
		must(t, os.Symlink("/etc/passwd", m.path("composefs/images/"+m.image.Hex())))
		m.refuse(m.options(karg(m.image)), setuproot.CodeMissing, karg(m.image), "images/"+m.image.Hex())
	})
}

// TestRootNoSecondChance: after a wrong digest no other image is tried.
func TestRootNoSecondChance(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	other := m.addImage("2")
	m.addState(other)
	m.replace(objectName(m.image), m.encode("evil"), true)
	m.refuse(m.options(karg(m.image)+" "+karg(other)), setuproot.CodeDigest, m.image.String())
}

func TestRootMissingImage(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	other := m.addImage("2")
	m.remove("composefs/images/"+m.image.Hex(), objectName(m.image))
	f := m.refuse(m.options(karg(m.image)), setuproot.CodeMissing, karg(m.image), m.path("composefs/images/"+m.image.Hex()), m.image.String())
	if notes := strings.Join(f.Notes, "\n"); !strings.Contains(notes, "present: images/"+other.Hex()) {
		t.Errorf("notes do not list the image that is there: %s", notes)
	}
}

// TestRootTwins: if the image is missing because the wrong one of two copies of the disk was mounted, the failure says so.
func TestRootTwins(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.remove("composefs/images/"+m.image.Hex(), objectName(m.image))
	o := m.options(karg(m.image))
	o.Devices = t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(o.Devices, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(m.path("."), &st); err != nil {
		t.Fatal(err)
	}
	dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	for name, dev := range map[string]string{"first": dev, "second": "8:18"} {
		write("run/udev/data/b"+dev, "E:ID_FS_UUID=4f68\nE:ID_FS_USAGE=filesystem\n")
		write("sys/devices/"+name+"/dev", dev)
		if err := errors.Join(os.MkdirAll(filepath.Join(o.Devices, "sys/dev/block"), 0o755), os.Symlink("../../devices/"+name, filepath.Join(o.Devices, "sys/dev/block", dev))); err != nil {
			t.Fatal(err)
		}
	}
	f := m.refuse(o, setuproot.CodeMissing)
	if notes := strings.Join(f.Notes, "\n"); !strings.Contains(notes, "first and second have file systems with one UUID, and first was mounted") {
		t.Errorf("notes do not name the other file system: %s", notes)
	}
}

// TestRootImageByObject: the digest is the name; the link is only a convenience.
func TestRootImageByObject(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.remove("composefs/images/" + m.image.Hex())
	m.boot(m.options(karg(m.image)))
}

func TestRootWrongKarg(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	wrong := fsverity.Sum(fsverity.SHA512, []byte("wrong"))
	hex := m.image.Hex()
	for _, c := range []struct {
		name, kargs string
		code        setuproot.Code
		words       []string
	}{
		{"other digest", karg(wrong), setuproot.CodeMissing, []string{karg(wrong), "images/" + wrong.Hex(), wrong.String()}},
		{"no parameter", "", setuproot.CodeNoKarg, []string{"composefs.digest="}},
		{"flag only", "composefs", setuproot.CodeNoKarg, nil},
		{"no digest", "composefs.digest=v1-sha512-12:xyz", setuproot.CodeBadKarg, []string{"composefs.digest=v1-sha512-12:xyz"}},
		{"unknown format", "composefs.digest=v3-sha512-12:" + hex, setuproot.CodeBadKarg, []string{"v3"}},
		{"unknown algorithm", "composefs.digest=v1-sha512-16:" + hex, setuproot.CodeBadKarg, []string{"sha512-16"}},
		{"good and malformed", karg(m.image) + " composefs=foo", setuproot.CodeBadKarg, []string{"composefs=foo"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.t = t
			m.refuse(m.options(c.kargs), c.code, c.words...)
		})
	}
}

func TestRootSysroot(t *testing.T) {
	needKernel(t)
	t.Run("not mounted", func(t *testing.T) {
		m := newMachine(t)
		m.unmount()
		_, err := setuproot.Run(t.Context(), m.options(karg(m.image)))
		var f *setuproot.Failure
		if !errors.As(err, &f) || f.Code != setuproot.CodeSysroot || !strings.Contains(err.Error(), "not a mount point") {
			t.Errorf("got %v", err)
		}
		m.mount("")
	})
	t.Run("no repository", func(t *testing.T) {
		m := newMachine(t)
		must(t, os.Rename(m.path("composefs"), m.path("elsewhere")))
		f := m.refuse(m.options(karg(m.image)), setuproot.CodeSysroot, m.path("composefs"), karg(m.image))
		if notes := strings.Join(f.Notes, "\n"); !strings.Contains(notes, "type ext4") || !strings.Contains(notes, "3 entries") {
			t.Errorf("notes: %q", notes)
		}
	})
}

func TestRootState(t *testing.T) {
	needKernel(t)
	dir := func(m *machine) string { return "state/deploy/" + m.image.Hex() }
	for _, c := range []struct {
		name   string
		change func(m *machine) error
		code   setuproot.Code
		word   string
	}{
		{"missing", func(m *machine) error { return os.RemoveAll(m.path(dir(m))) }, setuproot.CodeNoState, "state/deploy/"},
		{"etc missing", func(m *machine) error { return os.RemoveAll(m.path(dir(m) + "/etc")) }, setuproot.CodeNoState, "/etc"},
		{"etc empty", func(m *machine) error { return os.Remove(m.path(dir(m) + "/etc/passwd")) }, setuproot.CodeNoState, "empty"},
		{"etc is a link", func(m *machine) error {
			return errors.Join(os.RemoveAll(m.path(dir(m)+"/etc")), os.Symlink("../../os/default/var", m.path(dir(m)+"/etc")))
		}, setuproot.CodeNoState, "/etc"},
		{"etc of an overlay", func(m *machine) error {
			return errors.Join(os.Remove(m.path(dir(m)+"/etc/passwd")), os.Mkdir(m.path(dir(m)+"/etc/upper"), 0o755), os.Mkdir(m.path(dir(m)+"/etc/work"), 0o755))
		}, setuproot.CodeNoState, "overlay"},
		{"var missing", func(m *machine) error { return os.Remove(m.path(dir(m) + "/var")) }, setuproot.CodeNoState, "/var"},
		{"var leads out of the disk", func(m *machine) error {
			return errors.Join(os.Remove(m.path(dir(m)+"/var")), os.Symlink("../../../../../../../../../../../../../../tmp", m.path(dir(m)+"/var")))
		}, setuproot.CodeNoState, "/var"},
		{"var is an absolute link", func(m *machine) error {
			return errors.Join(os.Remove(m.path(dir(m)+"/var")), os.Symlink("/tmp", m.path(dir(m)+"/var")))
		}, setuproot.CodeNoState, "/var"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMachine(t)
			must(t, c.change(m))
			m.refuse(m.options(karg(m.image)), c.code, karg(m.image), c.word)
		})
	}
}

// TestRootReadOnlyDisk: an unsealed machine starts with changes in memory and says so; a sealed one does not.
func TestRootReadOnlyDisk(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.unmount()
	m.mount("ro")
	sealed := m.options(karg(m.image))
	sealed.Policy.Sealed = true
	m.refuse(sealed, setuproot.CodeReadOnly, karg(m.image))
	b, err := setuproot.Run(t.Context(), m.options(karg(m.image)))
	must(t, err)
	if b.Etc != "transient" || b.Var != "transient" {
		t.Errorf("etc %q, var %q, want transient", b.Etc, b.Var)
	}
	if s := readFile(t, m.path("etc/passwd")); s != "image\n" {
		t.Errorf("/etc/passwd: %q", s)
	}
	must(t, os.WriteFile(m.path("etc/new"), nil, 0o644))
	must(t, os.WriteFile(m.path("var/new"), nil, 0o644))
}

// TestRootInsecure: '?' allows a repository without fs-verity, but not another image.
func TestRootInsecure(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	insecure := strings.Replace(karg(m.image), "=", "=?", 1)
	m.replace(objectName(m.image), m.encode("1"), false)
	data := objectName(m.files["usr/bin/data"])
	m.replace(data, []byte(readFile(t, m.path(data))), false)

	sealed := m.options(insecure)
	sealed.Policy.Sealed = true
	m.refuse(sealed, setuproot.CodeBadKarg, insecure)

	b, err := setuproot.Run(t.Context(), m.options(insecure))
	must(t, err)
	if b.Secure || readFile(t, m.path("usr/bin/data")) == "" {
		t.Errorf("%+v", b)
	}
	if got := m.mounts()[0].SuperOptions; strings.Contains(got, "verity=require") {
		t.Errorf("root options %q", got)
	}

	m.reset()
	m.replace(objectName(m.image), m.encode("evil"), false)
	m.refuse(m.options(insecure), setuproot.CodeDigest, m.image.String())
}

// TestRootNotRequired: a policy may let a machine without the parameter boot; the guard then lets it pass.
func TestRootNotRequired(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	o := m.options("")
	o.Policy.RequireKarg = false
	if err := setuproot.Guard(o); err == nil {
		t.Error("the guard lets a root pass that nobody looked at")
	}
	if _, err := setuproot.Run(t.Context(), o); !errors.Is(err, setuproot.ErrNotComposefs) {
		t.Errorf("got %v", err)
	}
	if err := setuproot.Guard(o); err != nil {
		t.Errorf("guard: %v", err)
	}
}

// TestRootGuard: the physical root is not switched to.
func TestRootGuard(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	o := m.options(karg(m.image))
	if err := setuproot.Guard(o); err == nil || !strings.Contains(err.Error(), "CFS-B01: "+m.sysroot) || !strings.Contains(err.Error(), "masked") {
		t.Errorf("without booted.json: %v", err)
	}
	m.boot(o)
	if err := setuproot.Guard(o); err != nil {
		t.Errorf("refuses the root that was assembled: %v", err)
	}
	name := m.run + "/booted.json"
	record := readFile(t, name)
	must(t, os.WriteFile(name, []byte(strings.ReplaceAll(record, m.image.Hex(), fsverity.Sum(fsverity.SHA512, nil).Hex())), 0o644))
	if err := setuproot.Guard(o); err == nil {
		t.Error("passes a root that is not the one of booted.json")
	}
	must(t, os.WriteFile(name, []byte(record), 0o644))
	must(t, unix.Unmount(m.sysroot, unix.MNT_DETACH))
	m.mount("")
	if err := setuproot.Guard(o); err == nil {
		t.Error("passes the physical root because booted.json is there")
	}
}

func TestRootNoSysrootDirectory(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	image := osTree(m, "3")
	image.Remove("sysroot")
	d := m.addTree(image)
	m.addState(d)
	var log bytes.Buffer
	o := m.options(karg(d))
	o.Logger = textLogger(&log)
	m.boot(o)
	if !strings.Contains(log.String(), "no directory /sysroot") {
		t.Errorf("log: %s", log.String())
	}
	m.reset()
	image = osTree(m, "4")
	image.Remove("etc")
	d = m.addTree(image)
	m.addState(d)
	m.refuse(m.options(karg(d)), setuproot.CodeNoDir, "/etc")
}

// TestRootNoInit: an image that cannot start is refused before the physical root is left.
func TestRootNoInit(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	m.refuse(m.options(karg(m.image)+" init=/opt/none"), setuproot.CodeObject, "/opt/none")
	if _, err := os.Lstat(m.path("state")); errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
