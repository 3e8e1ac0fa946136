package systemd_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/cfsboot/cfsboot/systemd"
)

var program = append([]byte("\x7fELF"), bytes.Repeat([]byte("setup-root "), 1000)...)

// member is one member of a test archive: a directory if the name ends with "/", a link if link is set.
type member struct{ name, data, link string }

// dracutInitrd is what matters of an initrd that dracut makes.
var dracutInitrd = []member{
	{name: "usr/"}, {name: "usr/lib/"}, {name: "usr/lib/systemd/"}, {name: "usr/lib/systemd/system/"}, {name: "etc/"},
	{name: "init", link: "usr/lib/systemd/systemd"}, {name: "lib", link: "usr/lib"},
	{name: "usr/lib/systemd/systemd", data: "systemd"}, {name: "usr/lib/initrd-release", data: "ID=debian\n"},
	{name: "etc/initrd-release", link: "../usr/lib/initrd-release"}, {name: "usr/lib/systemd/system/initrd-root-fs.target", data: "[Unit]\n"},
	{name: "usr/lib/modules/6.12.1/modules.dep", data: "kernel/fs/ext4/ext4.ko.xz:\n"},
	{name: "usr/lib/modules/6.12.1/modules.builtin", data: "kernel/fs/ramfs/ramfs.ko\n"},
}

var dracutModules = []member{
	{name: "usr/lib/modules/6.12.1/kernel/fs/erofs/erofs.ko.xz", data: "erofs"}, {name: "usr/lib/modules/6.12.1/kernel/fs/overlayfs/overlay.ko.xz", data: "overlay"},
}

// archive makes a cpio archive by hand, so that the tests do not depend on the writer they test.
func archive(members ...member) []byte {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	for i, m := range append(slices.Clone(members), member{name: "TRAILER!!!"}) {
		mode, data := 0o100644, m.data
		name := strings.TrimSuffix(m.name, "/")
		switch {
		case m.name == "TRAILER!!!":
			mode = 0
		case strings.HasSuffix(m.name, "/"):
			mode = 0o040755
		case m.link != "":
			mode, data = 0o120777, m.link
		}
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", i+1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
		pad()
		b.WriteString(data)
		pad()
	}
	return b.Bytes()
}

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// compressed runs a compressor of the system, or skips.
func compressed(t *testing.T, b []byte, command ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(command[0]); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func appendHook(t *testing.T, initrd []byte, o systemd.InitrdOptions) ([]byte, *systemd.InitrdResult, error) {
	t.Helper()
	var out bytes.Buffer
	r, err := systemd.AppendInitrd(t.Context(), &out, bytes.NewReader(initrd), int64(len(initrd)), o)
	return out.Bytes(), r, err
}

func TestAppendInitrd(t *testing.T) {
	full := archive(append(slices.Clone(dracutInitrd), dracutModules...)...)
	early := archive(member{name: "kernel/"}, member{name: "kernel/x86/"}, member{name: "kernel/x86/microcode.bin", data: "ucode"})
	for _, c := range []struct {
		name        string
		initrd      func(t *testing.T) []byte
		compression []string
	}{
		{"plain", func(*testing.T) []byte { return full }, []string{"none"}},
		{"gzip", func(t *testing.T) []byte { return gzipped(t, full) }, []string{"gzip"}},
		{"zstd", func(t *testing.T) []byte { return zstded(t, full) }, []string{"zstd"}},
		{"zstd of the program", func(t *testing.T) []byte { return compressed(t, full, "zstd", "-qc19") }, []string{"zstd"}},
		{"xz", func(t *testing.T) []byte { return compressed(t, full, "xz", "-c", "--check=crc32") }, []string{"xz"}},
		{"lz4", func(t *testing.T) []byte { return compressed(t, full, "lz4", "-lc") }, []string{"lz4"}},
		{"bzip2", func(t *testing.T) []byte { return compressed(t, full, "bzip2", "-c") }, []string{"bzip2"}},
		{"microcode, then gzip", func(t *testing.T) []byte {
			return slices.Concat(early, make([]byte, 512-len(early)%512), gzipped(t, full))
		}, []string{"none", "gzip"}},
		{"microcode, then zstd, then odd zeros", func(t *testing.T) []byte { return slices.Concat(early, zstded(t, full), make([]byte, 7)) }, []string{"none", "zstd"}},
		{"two gzip parts", func(t *testing.T) []byte {
			return slices.Concat(gzipped(t, archive(dracutInitrd...)), gzipped(t, archive(dracutModules...)))
		}, []string{"gzip", "gzip"}},
		{"two archives in one stream", func(t *testing.T) []byte {
			return gzipped(t, slices.Concat(archive(dracutInitrd...), make([]byte, 100), archive(dracutModules...)))
		}, []string{"gzip"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			initrd := c.initrd(t)
			out, r, err := appendHook(t, initrd, systemd.InitrdOptions{Program: program, Config: []byte("[policy]\n")})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(r.Compression, c.compression) || !r.Changed || r.SizeBytes != int64(len(out)) || len(r.Modules) != 0 {
				t.Errorf("%+v", r)
			}
			if !bytes.HasPrefix(out, initrd) {
				t.Error("the initrd itself was changed")
			}
			start := len(initrd) + -len(initrd)&3
			checkHook(t, out[start:], "[policy]\n")

			again, r, err := appendHook(t, out, systemd.InitrdOptions{Program: program, Config: []byte("[policy]\n")})
			if err != nil || r.Changed || !bytes.Equal(again, out) {
				t.Errorf("second call: %+v, %v, equal %v", r, err, bytes.Equal(again, out))
			}
			newer := append(slices.Clone(program), "newer"...)
			updated, r, err := appendHook(t, out, systemd.InitrdOptions{Program: newer})
			if err != nil || !r.Changed || !bytes.HasPrefix(updated, initrd) || bytes.Count(updated, []byte("WantedBy=initrd.target")) != 1 {
				t.Errorf("update: %+v, %v", r, err)
			}
		})
	}
}

// checkHook unpacks the archive with cpio(1) and looks at what came out.
func checkHook(t *testing.T, hook []byte, config string) {
	t.Helper()
	if _, err := exec.LookPath("cpio"); err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Log("not checked by cpio: ", err)
		return
	}
	dir := t.TempDir()
	// The folders that the initrd has are not in the hook.
	if err := os.MkdirAll(dir+"/usr/lib/systemd/system", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-id", "--no-preserve-owner", "--quiet")
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(hook)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	got, err := os.ReadFile(dir + systemd.SetupRootProgram)
	if err != nil || !bytes.Equal(got, program) {
		t.Errorf("program: %d bytes, %v", len(got), err)
	}
	if st, err := os.Stat(dir + systemd.SetupRootProgram); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("program: %v, %v", st, err)
	}
	if got, err := os.ReadFile(dir + systemd.InitramfsConfig); err != nil || string(got) != config {
		t.Errorf("configuration: %q, %v", got, err)
	}
	unit, err := os.ReadFile(dir + "/usr/lib/systemd/system/initrd-root-fs.target.requires/" + systemd.SetupRootUnit)
	if err != nil || !bytes.Contains(unit, []byte("ExecStart="+systemd.SetupRootProgram)) {
		t.Errorf("unit through its link: %v", err)
	}
}

func TestAppendInitrdRefuses(t *testing.T) {
	full := archive(append(slices.Clone(dracutInitrd), dracutModules...)...)
	without := func(name string) []member {
		return slices.DeleteFunc(append(slices.Clone(dracutInitrd), dracutModules...), func(m member) bool { return strings.Contains(m.name, name) })
	}
	damaged := func(change func([]byte)) []byte {
		b := slices.Clone(full)
		change(b)
		return b
	}
	hooked, _, err := appendHook(t, full, systemd.InitrdOptions{Program: program})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		initrd []byte
		word   string
		typed  bool
	}{
		{"initramfs-tools", archive(member{name: "init", data: "#!/bin/sh\n"}, member{name: "usr/lib/systemd/systemd-udevd", data: "x"}), "dracut", true},
		{"no initrd-release", archive(without("initrd-release")...), "dracut", true},
		{"no initrd-root-fs.target", archive(without("initrd-root-fs.target")...), "initrd-root-fs.target", true},
		{"no erofs", archive(without("erofs.ko")...), "erofs", true},
		{"empty", nil, "empty", false},
		{"zeros", make([]byte, 1000), "empty", false},
		{"not an initrd", []byte("MZ this is a kernel"), "magic", false},
		{"cut archive", full[:len(full)/2], "unexpected EOF", false},
		{"cut gzip", gzipped(t, full)[:200], "unexpected EOF", false},
		{"cut zstd", zstded(t, full)[:100], "EOF", false},
		{"number field", damaged(func(b []byte) { b[60] = 'x' }), "hex digits", false},
		{"name size zero", damaged(func(b []byte) { copy(b[94:102], "00000000") }), "name", false},
		{"name size huge", damaged(func(b []byte) { copy(b[94:102], "ffffffff") }), "name", false},
		{"file size huge", damaged(func(b []byte) { copy(b[54:62], "ffffffff") }), "unexpected EOF", false},
		{"old ASCII format", damaged(func(b []byte) { copy(b, "070707") }), "magic", false},
		{"text behind the archive in a stream", gzipped(t, append(slices.Clone(full), "text"...)), "behind", false},
		{"marker with a wrong number", bytes.Replace(hooked, fmt.Appendf(nil, "cfsboot-hook 1 %016x", len(full)), []byte("cfsboot-hook 1 00000000000000ff"), 1), "earlier hook", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, _, err := appendHook(t, c.initrd, systemd.InitrdOptions{Program: program})
			if err == nil || !strings.Contains(err.Error(), c.word) {
				t.Fatalf("got %v, want an error with %q", err, c.word)
			}
			var typed *systemd.InitrdError
			if errors.As(err, &typed) != c.typed {
				t.Errorf("%T: %v", err, err)
			}
			if len(out) != 0 {
				t.Errorf("%d bytes were written", len(out))
			}
		})
	}
	if _, _, err := appendHook(t, full, systemd.InitrdOptions{Program: []byte("#!/bin/sh\n")}); err == nil {
		t.Error("a script was taken as program")
	}
}

// TestAppendInitrdByDracut: an initrd that has the hook from the dracut module stays as it is.
func TestAppendInitrdByDracut(t *testing.T) {
	members := append(append(slices.Clone(dracutInitrd), dracutModules...), member{name: strings.TrimPrefix(systemd.SetupRootProgram, "/"), data: "x"})
	initrd := gzipped(t, archive(members...))
	out, r, err := appendHook(t, initrd, systemd.InitrdOptions{Program: program})
	if err != nil || r.Changed || !bytes.Equal(out, initrd) {
		t.Errorf("%+v, %v", r, err)
	}
}

// modulesFolder makes a /usr/lib/modules/<version> with erofs depending on a library module.
func modulesFolder(t *testing.T, version string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), version)
	for name, data := range map[string]string{
		"modules.dep":                        "kernel/fs/erofs/erofs.ko.xz: kernel/lib/libcrc32c.ko.xz\nkernel/fs/overlayfs/overlay.ko.xz:\nkernel/lib/libcrc32c.ko.xz:\nkernel/fs/xfs/xfs.ko.xz:\n",
		"modules.dep.bin":                    "index",
		"modules.builtin":                    "kernel/fs/ramfs/ramfs.ko\n",
		"kernel/fs/erofs/erofs.ko.xz":        "erofs",
		"kernel/fs/overlayfs/overlay.ko.xz":  "overlay",
		"kernel/lib/libcrc32c.ko.xz":         "crc",
		"kernel/fs/xfs/xfs.ko.xz":            "xfs",
		"kernel/fs/erofs/unrelated/file.txt": "x",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAppendInitrdModules(t *testing.T) {
	initrd := archive(dracutInitrd...)
	out, r, err := appendHook(t, initrd, systemd.InitrdOptions{Program: program, Modules: modulesFolder(t, "6.12.1")})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"kernel/fs/erofs/erofs.ko.xz", "kernel/fs/overlayfs/overlay.ko.xz", "kernel/lib/libcrc32c.ko.xz"}
	slices.Sort(r.Modules)
	if !slices.Equal(r.Modules, want) {
		t.Errorf("modules %q, want %q", r.Modules, want)
	}
	for _, name := range append(want, "modules.dep.bin", "modules.dep") {
		if !bytes.Contains(out[len(initrd):], []byte("usr/lib/modules/6.12.1/"+name+"\x00")) {
			t.Errorf("%s is not in the hook", name)
		}
	}
	if bytes.Contains(out[len(initrd):], []byte("xfs.ko")) && !bytes.Contains(out, []byte("xfs.ko.xz:\n")) {
		t.Error("a module that nobody needs is in the hook")
	}
	again, r, err := appendHook(t, out, systemd.InitrdOptions{Program: program, Modules: modulesFolder(t, "6.12.1")})
	if err != nil || r.Changed || !bytes.Equal(again, out) {
		t.Errorf("second call: %+v, %v", r, err)
	}
	again, r, err = appendHook(t, out, systemd.InitrdOptions{Program: program})
	if err != nil || r.Changed || !bytes.Equal(again, out) {
		t.Errorf("second call that names no modules folder: %+v, %v", r, err)
	}

	_, _, err = appendHook(t, initrd, systemd.InitrdOptions{Program: program, Modules: modulesFolder(t, "6.1.0")})
	if err == nil || !strings.Contains(err.Error(), "6.1.0") || !strings.Contains(err.Error(), "6.12.1") {
		t.Errorf("modules of another kernel: %v", err)
	}
	builtin := slices.Clone(dracutInitrd)
	builtin[len(builtin)-1].data = "kernel/fs/erofs/erofs.ko\nkernel/fs/overlayfs/overlay.ko\n"
	if _, r, err := appendHook(t, archive(builtin...), systemd.InitrdOptions{Program: program}); err != nil || len(r.Modules) != 0 {
		t.Errorf("kernel with both built in: %+v, %v", r, err)
	}
}

// A policy that an earlier call added must not get lost when another one forgets to name it.
func TestAppendInitrdKeepsConfig(t *testing.T) {
	c := slices.Clone(dracutInitrd)
	c[len(c)-1].data = "kernel/fs/erofs/erofs.ko\nkernel/fs/overlayfs/overlay.ko\n"
	sealed, _, err := appendHook(t, archive(c...), systemd.InitrdOptions{Program: program, Config: []byte("sealed = true\n")})
	if err != nil {
		t.Fatal(err)
	}
	out, r, err := appendHook(t, sealed, systemd.InitrdOptions{Program: program})
	if err != nil || r.Changed || !bytes.Equal(out, sealed) {
		t.Errorf("second call without a configuration: %+v, %v", r, err)
	}
	out, r, err = appendHook(t, sealed, systemd.InitrdOptions{Program: program, Config: []byte("sealed = false\n")})
	if err != nil || !r.Changed || bytes.Contains(out, []byte("sealed = true\n")) || !bytes.Contains(out, []byte("sealed = false\n")) {
		t.Errorf("second call with another configuration: %+v, %v", r, err)
	}
}

func TestAppendInitrdFile(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "initrd")
	initrd := gzipped(t, archive(append(slices.Clone(dracutInitrd), dracutModules...)...))
	if err := os.WriteFile(in, initrd, 0o640); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if _, err := systemd.AppendInitrdFile(t.Context(), in, out, systemd.InitrdOptions{Program: program}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(in); err != nil || !bytes.Equal(b, initrd) {
		t.Errorf("the input changed: %v", err)
	}
	r, err := systemd.AppendInitrdFile(t.Context(), in, in, systemd.InitrdOptions{Program: program})
	if err != nil || !r.Changed {
		t.Fatalf("%+v, %v", r, err)
	}
	a, errA := os.ReadFile(in)
	b, errB := os.ReadFile(out)
	if err := errors.Join(errA, errB); err != nil || !bytes.Equal(a, b) {
		t.Errorf("in place and to another file differ: %v", err)
	}
	st, err := os.Stat(in)
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want that of the initrd", st.Mode(), err)
	}
	if r, err := systemd.AppendInitrdFile(t.Context(), in, in, systemd.InitrdOptions{Program: program}); err != nil || r.Changed {
		t.Errorf("second call: %+v, %v", r, err)
	}
	if after, err := os.Stat(in); err != nil || !os.SameFile(st, after) {
		t.Errorf("the second call wrote the file again: %v", err)
	}
	if err := os.WriteFile(out, []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := systemd.AppendInitrdFile(t.Context(), out, in, systemd.InitrdOptions{Program: program}); err == nil || !strings.Contains(err.Error(), out) {
		t.Errorf("garbage: %v", err)
	}
	if after, err := os.ReadFile(in); err != nil || !bytes.Equal(after, a) {
		t.Errorf("a failure changed the output: %v", err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 2 {
		t.Errorf("left in the folder: %v, %v", names, err)
	}
}

// TestOracleCpio reads an archive that cpio(1) made, and lets it read ours.
func TestOracleCpio(t *testing.T) {
	cpio, err := exec.LookPath("cpio")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	// An archive that cpio made is read back.
	dir := t.TempDir()
	for _, m := range append(slices.Clone(dracutInitrd), dracutModules...) {
		path := filepath.Join(dir, m.name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		switch {
		case strings.HasSuffix(m.name, "/"):
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		case m.link != "":
			err = errors.Join(err, os.Symlink(m.link, path))
		default:
			err = errors.Join(err, os.WriteFile(path, []byte(m.data), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("sh", "-c", "find . | LC_ALL=C sort | "+cpio+" -o -H newc --quiet")
	cmd.Dir = dir
	made, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	out, r, err := appendHook(t, made, systemd.InitrdOptions{Program: program, Config: []byte("[policy]\n")})
	if err != nil || !r.Changed {
		t.Fatalf("%+v, %v", r, err)
	}
	checkHook(t, out[len(made):], "[policy]\n")
}

func FuzzAppendInitrd(f *testing.F) {
	full := archive(append(slices.Clone(dracutInitrd), dracutModules...)...)
	f.Add(full)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(full)
	_ = w.Close()
	f.Add(gz.Bytes())
	var out bytes.Buffer
	if _, err := systemd.AppendInitrd(f.Context(), &out, bytes.NewReader(full), int64(len(full)), systemd.InitrdOptions{Program: program}); err != nil {
		f.Fatal(err)
	}
	f.Add(out.Bytes())
	f.Fuzz(func(t *testing.T, initrd []byte) {
		for _, magic := range []string{"\xfd7zXZ", "\x5d\x00\x00", "BZh", "\x02\x21\x4c\x18", "\x89LZO"} {
			if bytes.Contains(initrd, []byte(magic)) {
				t.Skip("needs a program for each run")
			}
		}
		var once, twice bytes.Buffer
		o := systemd.InitrdOptions{Program: program}
		if _, err := systemd.AppendInitrd(t.Context(), &once, bytes.NewReader(initrd), int64(len(initrd)), o); err != nil {
			return
		}
		r, err := systemd.AppendInitrd(t.Context(), &twice, bytes.NewReader(once.Bytes()), int64(once.Len()), o)
		if err != nil || r.Changed || !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Errorf("second call: %+v, %v", r, err)
		}
	})
}
