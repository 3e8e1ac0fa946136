package uki_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/internal/testutil/peimage"
)

// lab returns a file that `lab setup` leaves in the cache, the newest if several match.
// Without it the test is skipped, unless CFSBOOT_REQUIRE_ORACLES=1.
func lab(t *testing.T, pattern string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "cfsboot", pattern))
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	var at int64
	for _, p := range found {
		if st, err := os.Stat(p); err == nil && st.ModTime().UnixNano() > at {
			newest, at = p, st.ModTime().UnixNano()
		}
	}
	if newest == "" {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatalf("%s is not in the cache: run the lab's setup", pattern)
		}
		t.Skipf("%s is not in the cache: the lab's setup makes it", pattern)
	}
	return newest
}

// debianKernel takes the kernel out of the base of the OS images.
func debianKernel(t *testing.T) []byte {
	f, err := os.Open(lab(t, "base-*.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("find the kernel of the base: %v", err)
		}
		if ok, _ := path.Match("usr/lib/modules/*/vmlinuz", strings.TrimPrefix(h.Name, "./")); ok {
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
}

// case of a comparison; "" and nil are left out.
type oracleCase struct {
	name                              string
	stub, kernel                      []byte
	initrds                           [][]byte
	microcode, splash                 []byte
	cmdline, osRelease, uname         string
	cmdlineInFile, releaseInFile, any bool
}

// input is the case for Build.
func (c oracleCase) input() uki.Input {
	in := uki.Input{Stub: bytes.NewReader(c.stub), Kernel: bytes.NewReader(c.kernel), Cmdline: c.cmdline, OSRelease: c.osRelease, Uname: c.uname, AnyKernel: c.any}
	for _, b := range c.initrds {
		in.Initrds = append(in.Initrds, bytes.NewReader(b))
	}
	if c.microcode != nil {
		in.Microcode = bytes.NewReader(c.microcode)
	}
	if c.splash != nil {
		in.Splash = bytes.NewReader(c.splash)
	}
	return in
}

// ukify runs the case and returns what it wrote.
func (c oracleCase) ukify(t *testing.T, program string) []byte {
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	text := func(name, text string, inFile bool) string {
		if inFile {
			return "@" + file(name, []byte(text))
		}
		return text
	}
	out := filepath.Join(dir, "out.efi")
	args := []string{"build", "--linux=" + file("linux", c.kernel), "--stub=" + file("stub", c.stub), "--os-release=" + text("osrel", c.osRelease, c.releaseInFile), "--output=" + out}
	if c.cmdline != "" {
		args = append(args, "--cmdline="+text("cmdline", c.cmdline, c.cmdlineInFile))
	}
	for i, b := range c.initrds {
		args = append(args, "--initrd="+file(fmt.Sprint("initrd", i), b))
	}
	if c.microcode != nil {
		args = append(args, "--microcode="+file("ucode", c.microcode))
	}
	if c.splash != nil {
		args = append(args, "--splash="+file("splash", c.splash))
	}
	if c.uname != "" {
		args = append(args, "--uname="+c.uname)
	}
	if text, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
		t.Fatalf("ukify %q: %v\n%s", args, err, text)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestOracleUkify: our bytes are those of ukify, with Debian's stub and kernel and with
// small files that have what those lack.
func TestOracleUkify(t *testing.T) {
	program := lab(t, "ukify/bin/ukify")
	stub, err := os.ReadFile(lab(t, "ukify/root/usr/lib/systemd/boot/efi/linuxx64.efi.stub"))
	if err != nil {
		t.Fatal(err)
	}
	const release = "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"Test OS\"\n"
	small, kernel := peimage.Stub(), peimage.Kernel("6.1.0-test", "", false)
	cases := []oracleCase{
		{name: "Debian", stub: stub, kernel: debianKernel(t), initrds: [][]byte{bytes.Repeat([]byte("initrd"), 100001)}, cmdline: "composefs=" + hexA + " rw", osRelease: release, releaseInFile: true},
		{name: "kernel with sbat", stub: stub, kernel: peimage.Kernel("6.1", peimage.SBATHead+"linux,1,Linux,linux,1,https://example.org/\n\x00", false), cmdline: "a=b", osRelease: release},
		{name: "kernel with foreign sbat", stub: small, kernel: peimage.Kernel("6.1", "linux,1,Linux\n", false), cmdline: "a=b", osRelease: release},
		{name: "kernel with unended sbat", stub: small, kernel: peimage.Kernel("6.1", peimage.SBATHead+"linux,1,x\nlinux.y,2,x", false), cmdline: "a=b", osRelease: release},
		{name: "kernel without NX", stub: stub, kernel: peimage.Kernel("6.1.0-x", "", true), cmdline: "a=b", osRelease: release, initrds: [][]byte{[]byte("x")}},
		{name: "no kernel", stub: small, kernel: []byte("KERNEL"), cmdline: "a=b", osRelease: release, uname: "6.12.0", any: true},
		{name: "everything", stub: stub, kernel: kernel, initrds: [][]byte{[]byte("one"), []byte("four"), []byte("three"), {0}}, microcode: []byte("ucode"), splash: []byte("BM picture"), cmdline: "a=b\n", cmdlineInFile: true, osRelease: release, uname: "6.99"},
		{name: "no command line", stub: stub, kernel: kernel, osRelease: release},
		{name: "stub without sbat", stub: peimage.Image{Sections: []peimage.Section{{Name: ".text", Data: []byte("code"), Flags: 0x60000020}, {Name: ".bss", VirtualSize: 0x2345, Flags: 0xc0000080}}}.Bytes(), kernel: kernel, cmdline: "a=b", osRelease: release},
		{name: "empty release line", stub: stub, kernel: kernel, cmdline: `quiet "a b"  c="d"`, cmdlineInFile: true, osRelease: "\nNAME='é'\n\n", releaseInFile: true},
	}
	r := rand.New(rand.NewPCG(5, 4))
	random := func(n int) []byte {
		b := make([]byte, 1+r.IntN(n))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for i := range 6 {
		c := oracleCase{name: fmt.Sprint("random ", i), stub: stub, kernel: peimage.Kernel(fmt.Sprintf("6.%d", i), "", i%2 == 0), osRelease: "ID=x\n#" + fmt.Sprintf("%x\n", random(600)), releaseInFile: true, cmdline: fmt.Sprintf("x=%x", random(900))}
		for range r.IntN(4) {
			c.initrds = append(c.initrds, random(9000))
		}
		cases = append(cases, c)
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			want := c.ukify(t, program)
			got, _ := build(t, c.input())
			if !bytes.Equal(got, want) {
				at := 0
				for at < min(len(got), len(want)) && got[at] == want[at] {
					at++
				}
				t.Fatalf("%d bytes, ukify makes %d; the first other byte is %#x", len(got), len(want), at)
			}
			if pe, err := uki.Parse(bytes.NewReader(want), int64(len(want))); err != nil {
				t.Error(err)
			} else if _, err := uki.Inspect(pe); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestOracleProfiles reads a UKI with two profiles.
func TestOracleProfiles(t *testing.T) {
	program, stubs := lab(t, "ukify/bin/ukify"), lab(t, "ukify/root/usr/lib/systemd/boot/efi")
	dir := t.TempDir()
	kernel, profile, out := filepath.Join(dir, "kernel"), filepath.Join(dir, "profile"), filepath.Join(dir, "out")
	if err := os.WriteFile(kernel, peimage.Kernel("6.1", "", false), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--profile=ID=recovery\nTITLE=Rescue me", "--cmdline=rescue composefs=" + hexA, "--stub=" + filepath.Join(stubs, "addonx64.efi.stub"), "--output=" + profile},
		{"--profile=ID=main", "--cmdline=quiet", "--os-release=ID=x", "--linux=" + kernel, "--stub=" + filepath.Join(stubs, "linuxx64.efi.stub"), "--join-profile=" + profile, "--output=" + out},
	} {
		if text, err := exec.CommandContext(t.Context(), program, append([]string{"build"}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("ukify %q: %v\n%s", args, err, text)
		}
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range inspect(t, data).Profiles {
		got = append(got, strings.Join([]string{p.ID, p.Title, p.Cmdline, p.OSRelease.ID(), p.Uname}, "|"))
	}
	if want := []string{"main||quiet|x|6.1", "recovery|Rescue me|rescue composefs=" + hexA + "|x|6.1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
