package setuproot_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

// needKernel skips unless the test runs as root on a kernel with fs-verity, as `lab umltest` arranges it. It also makes
// "/" shared, as systemd does in an initramfs: several traps of the mount calls show only then.
func needKernel(t *testing.T) {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root, mounts and fs-verity: CFSBOOT_ROOT_TESTS is not 1")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		t.Fatalf("make / shared: %v", err)
	}
}

// machine is a disk with a repository and the state of one deployment, mounted where an initramfs would have it.
type machine struct {
	t       *testing.T
	backing string // file behind the loop device
	loop    string // /dev/loopN
	sysroot string // mount point
	run     string // /run/cfsboot of this machine
	image   fsverity.Digest
	files   map[string]fsverity.Digest // external files of the image by path
}

const (
	initSize = 20000 // several blocks, so that one that preflight does not read can be altered
	dataSize = 50000
)

// osTree is a small operating system. Its files differ with release.
func osTree(m *machine, release string) *tree.Node {
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	dir := func(parent *tree.Node, name string, mode uint16) *tree.Node {
		n := tree.NewDir(tree.Meta{Mode: mode})
		parent.Set(name, n)
		return n
	}
	file := func(parent *tree.Node, path string, mode uint16, data []byte) {
		meta := tree.Meta{Mode: mode}
		if len(data) <= 64 {
			parent.Set(filepath.Base(path), tree.NewInline(meta, data))
			return
		}
		d := m.object(data)
		m.files[path] = d
		parent.Set(filepath.Base(path), tree.NewExternal(meta, d, int64(len(data))))
	}
	usr := dir(root, "usr", 0o755)
	file(dir(usr, "lib", 0o755), "usr/lib/os-release", 0o644, []byte("ID=test\nVERSION_ID="+release+"\n"))
	file(dir(usr, "sbin", 0o755), "usr/sbin/init", 0o755, bytes.Repeat([]byte("init "+release+"\n"), initSize/8))
	file(dir(usr, "bin", 0o755), "usr/bin/data", 0o755, bytes.Repeat([]byte("data "+release+"\n"), dataSize/8))
	root.Set("sbin", tree.NewSymlink(tree.Meta{Mode: 0o777}, "usr/sbin"))
	etc := dir(root, "etc", 0o755)
	etc.UID, etc.GID, etc.Mode, etc.MtimeSec = 3, 4, 0o750, 1700000000
	etc.Xattrs = []tree.Xattr{{Name: "security.test", Value: "label of etc"}}
	file(etc, "etc/passwd", 0o644, []byte("image\n"))
	for _, name := range []string{"var", "sysroot", "boot", "proc", "run"} {
		dir(root, name, 0o755)
	}
	return root
}

// newMachine makes the disk, the repository and a deployment of one image.
func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, backing: filepath.Join(dir, "disk"), sysroot: filepath.Join(dir, "sysroot"), run: filepath.Join(dir, "run"), files: map[string]fsverity.Digest{}}
	must(t, os.WriteFile(m.backing, nil, 0o600))
	must(t, os.Truncate(m.backing, 64<<20))
	mkfs := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-O", "verity", m.backing)
	mkfs.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := mkfs.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, os.Mkdir(m.sysroot, 0o755))
	m.attachLoop()
	m.mount("")
	t.Cleanup(m.destroy)
	for _, d := range []string{"composefs/objects", "composefs/images/refs", "composefs/streams/refs", "state/os/default/var", "state/deploy"} {
		must(t, os.MkdirAll(m.path(d), 0o755))
	}
	must(t, os.WriteFile(m.path("composefs/meta.json"), []byte(`{"version":1,"algorithm":"fsverity-sha512-12"}`+"\n"), 0o644))
	must(t, os.WriteFile(m.path("state/os/default/var/kept"), []byte("var\n"), 0o644))
	m.image = m.addImage("1")
	m.addState(m.image)
	return m
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (m *machine) path(name string) string { return filepath.Join(m.sysroot, name) }

func (m *machine) attachLoop() {
	m.t.Helper()
	f, err := os.OpenFile(m.backing, os.O_RDWR, 0)
	must(m.t, err)
	defer f.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(m.t, err)
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	must(m.t, err)
	m.loop = "/dev/loop" + string(rune('0'+n%10))
	l, err := os.OpenFile(m.loop, os.O_RDWR, 0)
	must(m.t, err)
	defer l.Close()
	must(m.t, unix.IoctlLoopConfigure(int(l.Fd()), &unix.LoopConfig{Fd: uint32(f.Fd()), Size: 4096}))
}

func (m *machine) mount(options string) {
	m.t.Helper()
	flags := uintptr(0)
	if options == "ro" {
		flags = unix.MS_RDONLY
	}
	must(m.t, unix.Mount(m.loop, m.sysroot, "ext4", flags, ""))
}

func (m *machine) unmount() {
	m.t.Helper()
	must(m.t, unix.Unmount(m.sysroot, 0))
}

// reset goes back from the assembled root to the physical root, as a reboot does.
func (m *machine) reset() {
	m.t.Helper()
	must(m.t, unix.Unmount(m.sysroot, unix.MNT_DETACH))
	must(m.t, os.RemoveAll(m.run))
	m.mount("")
}

// destroy unmounts whatever is at the mount points and detaches the loop device.
func (m *machine) destroy() {
	for unix.Unmount(filepath.Join(m.run, "private"), unix.MNT_DETACH) == nil {
	}
	for unix.Unmount(m.sysroot, unix.MNT_DETACH) == nil {
	}
	l, err := os.OpenFile(m.loop, os.O_RDWR, 0)
	must(m.t, err)
	defer l.Close()
	// The kernel detaches it when the last lazy unmount is done.
	must(m.t, unix.IoctlSetInt(int(l.Fd()), unix.LOOP_CLR_FD, 0))
}

// object stores data under its fs-verity digest.
func (m *machine) object(data []byte) fsverity.Digest {
	m.t.Helper()
	d := fsverity.Sum(fsverity.SHA512, data)
	path := m.path("composefs/objects/" + d.ObjectPath())
	if _, err := os.Lstat(path); err == nil {
		return d
	}
	must(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(m.t, os.WriteFile(path, data, 0o644))
	m.enable(path)
	return d
}

func (m *machine) enable(path string) {
	m.t.Helper()
	f, err := os.Open(path)
	must(m.t, err)
	defer f.Close()
	must(m.t, fsverity.Enable(f, fsverity.SHA512))
}

// encode makes the EROFS image of a release.
func (m *machine) encode(release string) []byte {
	m.t.Helper()
	var b bytes.Buffer
	must(m.t, erofs.Encode(&b, osTree(m, release), erofs.V1))
	return b.Bytes()
}

// addImage stores the image of a release under its digest.
func (m *machine) addImage(release string) fsverity.Digest {
	m.t.Helper()
	return m.addTree(osTree(m, release))
}

func (m *machine) addTree(root *tree.Node) fsverity.Digest {
	m.t.Helper()
	var b bytes.Buffer
	must(m.t, erofs.Encode(&b, root, erofs.V1))
	d := m.object(b.Bytes())
	must(m.t, os.Symlink("../objects/"+d.ObjectPath(), m.path("composefs/images/"+d.Hex())))
	return d
}

func (m *machine) addState(d fsverity.Digest) {
	m.t.Helper()
	dir := m.path("state/deploy/" + d.Hex())
	must(m.t, os.MkdirAll(dir+"/etc", 0o755))
	must(m.t, os.WriteFile(dir+"/etc/passwd", []byte("deployment\n"), 0o644))
	must(m.t, os.Symlink("../../os/default/var", dir+"/var"))
}

// corrupt overwrites the start of one block of a file on the disk behind the kernel's back.
func (m *machine) corrupt(path string, block int) {
	m.t.Helper()
	f, err := os.Open(path)
	must(m.t, err)
	must(m.t, f.Sync())
	n := int32(block)
	const fibmap = 1 // FIBMAP
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fibmap, uintptr(unsafe.Pointer(&n))); errno != 0 || n == 0 {
		m.t.Fatalf("FIBMAP of block %d: %v, %d", block, errno, n)
	}
	must(m.t, f.Close())
	m.unmount()
	disk, err := os.OpenFile(m.backing, os.O_RDWR, 0)
	must(m.t, err)
	_, err = disk.WriteAt([]byte("TAMPERED"), int64(n)*4096+1024)
	must(m.t, errors.Join(err, disk.Close()))
	m.mount("")
}

// remove takes a name away; directories and fs-verity do not hinder it.
func (m *machine) remove(names ...string) {
	m.t.Helper()
	for _, n := range names {
		must(m.t, os.Remove(m.path(n)))
	}
}

// replace puts other content in the place of an object, with or without fs-verity.
func (m *machine) replace(name string, data []byte, verity bool) {
	m.t.Helper()
	m.remove(name)
	must(m.t, os.WriteFile(m.path(name), data, 0o644))
	if verity {
		m.enable(m.path(name))
	}
}

func objectName(d fsverity.Digest) string { return "composefs/objects/" + d.ObjectPath() }

// options are those of a boot of image d under the default policy.
func (m *machine) options(kargs string) setuproot.Options {
	return setuproot.Options{
		Sysroot: m.sysroot, RunDir: m.run, AnyRoot: true, Volatile: "-",
		Cmdline: "BOOT_IMAGE=/vmlinuz root=UUID=0 rw quiet " + kargs, Policy: setuproot.DefaultPolicy(),
	}
}

func karg(d fsverity.Digest) string { return bls.KargImage{Digest: d, Version: 1}.String() }

// mounts lists what is mounted at or below the machine's directories: mount point below the temporary directory and
// source.
func (m *machine) mounts() []mnt.Info {
	m.t.Helper()
	table, err := mnt.Table()
	must(m.t, err)
	var out []mnt.Info
	for _, i := range table {
		if strings.HasPrefix(i.Point, filepath.Dir(m.sysroot)+"/") {
			i.Point = strings.TrimPrefix(i.Point, filepath.Dir(m.sysroot))
			out = append(out, i)
		}
	}
	return out
}

// boot runs setuproot and expects a root.
func (m *machine) boot(o setuproot.Options) {
	m.t.Helper()
	if _, err := setuproot.Run(m.t.Context(), o); err != nil {
		m.t.Fatal(err)
	}
}

// refuse runs setuproot and expects a failure with this code that names all words. The physical root must be where it
// was, and nothing else may be mounted or left below /run.
func (m *machine) refuse(o setuproot.Options, code setuproot.Code, words ...string) *setuproot.Failure {
	m.t.Helper()
	before := m.mounts()
	_, err := setuproot.Run(m.t.Context(), o)
	var f *setuproot.Failure
	if !errors.As(err, &f) {
		m.t.Fatalf("got %v, want a Failure", err)
	}
	m.t.Log(f)
	if f.Code != code {
		m.t.Errorf("code %s, want %s: %v", f.Code, code, f)
	}
	for _, w := range words {
		if !strings.Contains(f.Error(), w) {
			m.t.Errorf("the line does not name %q: %v", w, f)
		}
	}
	if notes := strings.Join(f.Notes, "\n"); strings.Contains(notes, "cleaning up") {
		m.t.Errorf("notes: %s", notes)
	}
	if strings.Contains(f.Error(), "\n") || len(f.Error()) > 900 {
		m.t.Errorf("%d bytes, want one line of at most 900: %q", len(f.Error()), f.Error())
	}
	if got := m.mounts(); len(got) != len(before) || got[0].Source != before[0].Source || got[0].Point != "/sysroot" {
		m.t.Errorf("mounts after the failure: %+v, want %+v", got, before)
	}
	if _, err := os.Lstat(m.path("composefs")); err != nil && code != setuproot.CodeSysroot {
		m.t.Errorf("physical root: %v", err)
	}
	if _, err := os.Lstat(m.run); !errors.Is(err, os.ErrNotExist) {
		m.t.Errorf("run directory: %v, want none", err)
	}
	return f
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
