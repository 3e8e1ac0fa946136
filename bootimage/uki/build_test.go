package uki_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/internal/testutil/peimage"
)

const hexA = "8b7df143d91c716ecfa5fc1730022f6b421b05cedee8fd52b1fc65a96030ad52"

func content(s string) uki.Content { return bytes.NewReader([]byte(s)) }

// vector is the input whose output was made with ukify 257.13.
func vector() uki.Input {
	return uki.Input{
		Stub: bytes.NewReader(peimage.Stub()), Kernel: content("KERNEL-PAYLOAD"), AnyKernel: true, Initrds: []uki.Content{content("INITRD-PAYLOAD\n")},
		Cmdline: "composefs=" + hexA + " rw", OSRelease: "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"Test OS\"\n", Uname: "6.12.0",
	}
}

func build(t testing.TB, in uki.Input) ([]byte, *uki.Built) {
	t.Helper()
	var out bytes.Buffer
	b, err := uki.Build(context.Background(), &out, in)
	if err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), b
}

func sum(b []byte) string {
	d := sha256.Sum256(b)
	return hex.EncodeToString(d[:])
}

// TestVector: the same bytes as ukify 257.13 made of the same input.
func TestVector(t *testing.T) {
	if got := sum(peimage.Stub()); got != "f5c30762849b733680a96edad046f818e7feff95cf6a36eb9918e3e0b5680ee3" {
		t.Fatalf("the stub: %s", got)
	}
	out, b := build(t, vector())
	if got, want := sum(out), "837478f19b3591708acc5355aa23933c2b07f4ca938d40643c8fc10411f0da97"; got != want || len(out) != 4608 {
		t.Fatalf("got %d bytes, %s, want 4608, %s", len(out), got, want)
	}
	if hex.EncodeToString(b.Digest[:]) != sum(out) || hex.EncodeToString(b.StubDigest[:]) != sum(peimage.Stub()) || b.Size != int64(len(out)) || b.Uname != "6.12.0" {
		t.Errorf("the report says %+v", b)
	}
	var sbat string
	for _, s := range b.Sections {
		if s.Name == ".sbat" {
			sbat = hex.EncodeToString(s.Digest[:])
		}
	}
	if want := "093e9a6ad1a756d05b00720861bb745849038248e6e310b074167365de46817a"; sbat != want {
		t.Errorf(".sbat: got %s, want %s", sbat, want)
	}
}

// TestBuildReadsBack: what is built is what the reader finds, and the same every time.
func TestBuildReadsBack(t *testing.T) {
	in := uki.Input{
		Stub: bytes.NewReader(peimage.Stub()), Kernel: bytes.NewReader(peimage.Kernel("6.12.3+x", peimage.SBATHead+"linux,1,Linux\n", true)),
		Initrds: []uki.Content{content("one"), content("three")}, Microcode: content("ucode"), Splash: content("BM"),
		Cmdline: "quiet composefs.digest=v1-sha256-12:" + hexA + "\n", OSRelease: "ID=test\nPRETTY_NAME='Test OS'\nVERSION_ID=7\n",
	}
	out, b := build(t, in)
	if again, _ := build(t, in); !bytes.Equal(out, again) {
		t.Error("two builds differ")
	}
	img := inspect(t, out)
	if len(img.Sections) != len(b.Sections) || img.DLLCharacteristics&0x100 != 0 {
		t.Errorf("%d sections, want %d; flags %#x, want no NX as the kernel has none", len(img.Sections), len(b.Sections), img.DLLCharacteristics)
	}
	for i, s := range b.Sections {
		if d, err := img.Digest(t.Context(), i); err != nil || d != s.Digest || img.Sections[i] != s.Section {
			t.Errorf("%s: %+v, error %v; want %+v", s.Name, img.Sections[i], err, s)
		}
	}
	read := func(name string) string {
		data, err := io.ReadAll(img.Content(img.Lookup(name)))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if got := read(".initrd"); got != "one\x00three\x00\x00\x00" {
		t.Errorf(".initrd: %q", got)
	}
	want := peimage.SBATHead + "example-stub,1,Example,example-stub,1,https://example.com/\nlinux,1,Linux\n" +
		"uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/\n\x00"
	if got := read(".sbat"); got != want {
		t.Errorf(".sbat: got %q, want %q", got, want)
	}
	p := img.Profiles[0]
	images, err := p.Composefs()
	if err != nil || len(images) != 1 || images[0].Digest.Hex() != hexA || images[0].Version != 1 {
		t.Errorf("composefs: %+v, %v", images, err)
	}
	if p.Uname != "6.12.3+x" || p.OSRelease.Title() != "Test OS" || p.Cmdline != "quiet composefs.digest=v1-sha256-12:"+hexA || b.Uname != p.Uname || b.Machine != uki.AMD64 {
		t.Errorf("got %+v", p)
	}
}

// TestBuildRefuses: input that gives no UKI, or one that its own reader would refuse.
func TestBuildRefuses(t *testing.T) {
	stub := func(change func(b []byte)) func(*uki.Input) {
		return func(in *uki.Input) {
			b := peimage.Stub()
			change(b)
			in.Stub = bytes.NewReader(b)
		}
	}
	sections := func(n int) []peimage.Section {
		var out []peimage.Section
		for range n {
			out = append(out, peimage.Section{Name: ".x", Data: []byte("x")})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		change func(*uki.Input)
		what   string
		detail string
	}{
		{"stub is no PE file", func(in *uki.Input) { in.Stub = content(strings.Repeat("x", 100)) }, "stub", "want \"MZ\""},
		{"stub is huge", func(in *uki.Input) { in.Stub = io.NewSectionReader(nil, 0, 1<<40) }, "stub", "want at most"},
		{"stub is a UKI", func(in *uki.Input) { out, _ := build(t, vector()); in.Stub = bytes.NewReader(out) }, "stub", "a UKI already"},
		{"stub has a symbol table", stub(func(b []byte) { put32(b, peimage.PEHeader+12, 0x800) }), "stub", "symbol table"},
		{"stub is signed", func(in *uki.Input) {
			b := append(peimage.Stub(), make([]byte, 8)...)
			put32(b, peimage.Optional+144, uint32(len(b)-8))
			put32(b, peimage.Optional+148, 8)
			in.Stub = bytes.NewReader(b)
		}, "stub", "signed"},
		{"stub is for another machine", stub(func(b []byte) { put16(b, peimage.PEHeader+4, 0xaa64) }), "kernel", "for x64, but the stub is for aa64"},
		{"stub's sections are not aligned", stub(func(b []byte) { put32(b, peimage.Table+12, 0x1010) }), "stub", "not aligned"},
		{"stub's sections are not in order", stub(func(b []byte) { put32(b, peimage.Table+12, 0x2000); put32(b, peimage.Table+52, 0x1000) }), "stub", "before .text"},
		{"stub has two sbat", func(in *uki.Input) {
			in.Stub = bytes.NewReader(peimage.Image{Sections: []peimage.Section{{Name: ".sbat", Data: []byte("x")}, {Name: ".sbat", Data: []byte("x")}}}.Bytes())
		}, "stub", "two sections"},
		{"stub has no room for headers", func(in *uki.Input) {
			in.Stub = bytes.NewReader(peimage.Image{Sections: sections(13)}.Bytes())
		}, "stub", "no room for another section (.initrd)"},
		{"stub has no room for sbat", func(in *uki.Input) {
			in.Kernel = bytes.NewReader(peimage.Kernel("6.1", peimage.SBATHead+strings.Repeat("linux,1,x\n", 40), false))
		}, "stub", "has room for 512 bytes"},
		{"kernel is empty", func(in *uki.Input) { in.Kernel = content("") }, "kernel", "0 bytes"},
		{"kernel is compressed", func(in *uki.Input) { in.Kernel = content("\x1f\x8b\x08\x00\x00\x00\x00") }, "kernel", "gzip"},
		{"kernel is no PE file", func(in *uki.Input) { in.Kernel = content(strings.Repeat("KERNEL", 100)) }, "kernel", "want \"MZ\""},
		{"kernel is cut", func(in *uki.Input) { in.Kernel = bytes.NewReader(peimage.Kernel("6.1", "", false)[:0x402]) }, "kernel", "section .text"},
		{"kernel is a UKI", func(in *uki.Input) { out, _ := build(t, vector()); in.Kernel = bytes.NewReader(out) }, "kernel", "already"},
		{"kernel does not tell its release", func(in *uki.Input) { in.Kernel = bytes.NewReader(peimage.Stub()) }, "kernel release", "has to be given"},
		{"kernel's release is empty", func(in *uki.Input) { in.Kernel = bytes.NewReader(peimage.Kernel("", "", false)) }, "kernel release", "has to be given"},
		{"release of two words", func(in *uki.Input) { in.Uname = "6.1 x" }, "kernel release", "want one word"},
		{"long release", func(in *uki.Input) { in.Uname = strings.Repeat("6", 65) }, "kernel release", "want one word of at most 64"},
		{"release with control characters", func(in *uki.Input) { in.Uname = "6\x1b[31m" }, "kernel release", "control character"},
		{"empty initrd", func(in *uki.Input) { in.Initrds = []uki.Content{content("")} }, "section .initrd", "no contents"},
		{"huge initrd", func(in *uki.Input) { in.Initrds = []uki.Content{io.NewSectionReader(nil, 0, 1<<30)} }, "section .initrd", "1073741824 bytes"},
		{"huge initrds", func(in *uki.Input) {
			in.Initrds = []uki.Content{io.NewSectionReader(nil, 0, 1<<29), io.NewSectionReader(nil, 0, 1<<29)}
		}, "section .initrd", "larger than"},
		{"command line with NUL", func(in *uki.Input) { in.Cmdline = "a\x00b" }, "command line", "control character 0x00 at byte 1"},
		{"command line with vertical tab", func(in *uki.Input) { in.Cmdline = "a\vb" }, "command line", "control character"},
		{"command line that is not UTF-8", func(in *uki.Input) { in.Cmdline = "a\xff" }, "command line", "not UTF-8 at byte 1"},
		{"command line that is long", func(in *uki.Input) { in.Cmdline = strings.Repeat("x", 2048) }, "command line", "2048 bytes, want at most 2047"},
		{"os-release that is long", func(in *uki.Input) { in.OSRelease = strings.Repeat("ID=x\n", 16<<10) }, "os-release", "want at most 65536"},
		{"malformed composefs parameter", func(in *uki.Input) { in.Cmdline = "composefs=12" }, "command line", "composefs=12"},
		{"os-release without a name", func(in *uki.Input) { in.OSRelease = "VERSION_ID=1\n" }, "os-release", "would not show it"},
		{"os-release with NUL", func(in *uki.Input) { in.OSRelease = "ID=x\x00" }, "os-release", "control character"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := uki.Input{
				Stub: bytes.NewReader(peimage.Stub()), Kernel: bytes.NewReader(peimage.Kernel("6.1", "", false)), Initrds: []uki.Content{content("x")},
				Cmdline: "quiet", OSRelease: "ID=x\n",
			}
			c.change(&in)
			var out bytes.Buffer
			_, err := uki.Build(t.Context(), &out, in)
			var ie *uki.InputError
			if !errors.As(err, &ie) || ie.What != c.what || !strings.Contains(err.Error(), c.detail) {
				t.Errorf("got %T %v, want an *InputError about the %s with %q", err, err, c.what, c.detail)
			}
			if out.Len() > 0 {
				t.Errorf("%d bytes were written", out.Len())
			}
		})
	}
}

// short is a content that has less than it says.
type short struct{ *bytes.Reader }

func (s short) Size() int64 { return s.Reader.Size() + 1 }

// TestBuildReadErrors: a file that got shorter meanwhile, and a context that ended.
func TestBuildReadErrors(t *testing.T) {
	for _, name := range []string{"stub", "kernel", "initrd"} {
		in := vector()
		in.Kernel, in.AnyKernel = bytes.NewReader(peimage.Kernel("6.1", "", false)), false
		switch name {
		case "stub":
			in.Stub = short{bytes.NewReader(peimage.Stub())}
		case "kernel":
			in.Kernel = short{bytes.NewReader(peimage.Kernel("6.1", "", false))}
		case "initrd":
			in.Initrds = []uki.Content{short{bytes.NewReader([]byte("x"))}}
		}
		if _, err := uki.Build(t.Context(), io.Discard, in); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), name) && name != "kernel" {
			t.Errorf("%s: got %v, want io.ErrUnexpectedEOF", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := uki.Build(ctx, io.Discard, vector()); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}

// zeros is a content of zeros.
type zeros int64

func (z zeros) Size() int64 { return int64(z) }

func (z zeros) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	return len(p), nil
}

// TestBuildStreams: the initrd is not held in memory.
func TestBuildStreams(t *testing.T) {
	in := vector()
	in.Initrds = []uki.Content{zeros(64 << 20)}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := uki.Build(t.Context(), io.Discard, in); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 4<<20 {
		t.Errorf("%d bytes were allocated for an initrd of 64 MiB", got)
	}
}

// TestBuildFileFaults fails and kills every call that changes something: the old file or the new one is there, whole, and nothing
// else, and the command repeated makes the new one.
func TestBuildFileFaults(t *testing.T) {
	want, _ := build(t, vector())
	for _, old := range []string{"", "old"} {
		for _, mode := range []string{"fail", "kill before", "kill after"} {
			for n := 0; ; n++ {
				fs := durabletest.New(t)
				if old != "" {
					if err := errors.Join(fs.Dir().WriteFile("out.efi", []byte(old), 0o644), fs.Dir().Sync()); err != nil {
						t.Fatal(err)
					}
				}
				switch mode {
				case "fail":
					fs.FailAt(n, unix.EIO)
				case "kill before":
					fs.KillAt(n, durabletest.Before)
				case "kill after":
					fs.KillAt(n, durabletest.After)
				}
				_, err := uki.BuildFile(t.Context(), fs.Dir(), "out.efi", vector())
				if !fs.Triggered() {
					if err != nil {
						t.Fatal(err)
					}
					if n < 4 {
						t.Fatalf("only %d calls", n)
					}
					break
				}
				if err == nil && mode != "kill after" {
					t.Fatalf("%s at %d (%s) was swallowed", mode, n, fs.Op(n))
				}
				for _, after := range []*durabletest.FS{fs.PowerLoss(), fs.PowerLossNames()} {
					d := after.Open()
					got, err := d.ReadFile("out.efi", 1<<20)
					if errors.Is(err, os.ErrNotExist) && old == "" {
						got, err = nil, nil
					}
					if err != nil || string(got) != old && !bytes.Equal(got, want) {
						t.Fatalf("%s at %d (%s): %d bytes are there, error %v", mode, n, fs.Op(n), len(got), err)
					}
					if _, err := uki.BuildFile(t.Context(), d, "out.efi", vector()); err != nil {
						t.Fatal(err)
					}
					if got, err := d.ReadFile("out.efi", 1<<20); err != nil || !bytes.Equal(got, want) {
						t.Fatalf("repeated: %d bytes, error %v", len(got), err)
					}
				}
			}
		}
	}
}

func FuzzBuild(f *testing.F) {
	f.Add(peimage.Stub(), peimage.Kernel("6.1", peimage.SBATHead+"linux,1,x\n", false), "quiet composefs="+hexA, "ID=x\n")
	f.Add(peimage.Image{Sections: []peimage.Section{{Name: ".text", Data: []byte("x")}, {Name: ".bss", VirtualSize: 77}}}.Bytes(), []byte("MZ"), "", "NAME='x'")
	f.Fuzz(func(t *testing.T, stub, kernel []byte, cmdline, release string) {
		in := uki.Input{Stub: bytes.NewReader(stub), Kernel: bytes.NewReader(kernel), Initrds: []uki.Content{content("x")}, Cmdline: cmdline, OSRelease: release}
		var out bytes.Buffer
		_, err := uki.Build(t.Context(), &out, in)
		if err != nil {
			var ie *uki.InputError
			if !errors.As(err, &ie) || out.Len() > 0 {
				t.Fatalf("%d bytes written, then %T %v", out.Len(), err, err)
			}
			return
		}
		img := inspect(t, out.Bytes())
		p := img.Profiles[0]
		if p.Cmdline != strings.Trim(cmdline, " \t\n\r") || p.OSRelease == nil || p.Uname == "" {
			t.Errorf("got %+v", p)
		}
		if data, err := io.ReadAll(img.Content(img.Lookup(".linux"))); err != nil || !bytes.Equal(data, kernel) {
			t.Errorf("the kernel is another: %v", err)
		}
	})
}
