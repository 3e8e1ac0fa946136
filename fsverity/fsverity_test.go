package fsverity_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"unsafe"

	"github.com/cfsboot/cfsboot/fsverity"
)

type vector struct{ Input, Algorithm, Digest string }

// vectors returns the 40 digests of testdata/vectors.json, which were computed by
// a separate implementation and checked with the fsverity tool.
func vectors(t *testing.T) []vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	if len(vs) != 40 {
		t.Fatalf("got %d vectors, want 40", len(vs))
	}
	return vs
}

// input builds what a vector names: literal text, 0^n (n zero bytes), or P(n)
// (byte i is i mod 251).
func input(t *testing.T, name string) []byte {
	t.Helper()
	if name == "empty" {
		return nil
	}
	if n, ok := strings.CutPrefix(name, "0^"); ok {
		return make([]byte, atoi(t, n))
	}
	if n, ok := strings.CutPrefix(name, "P("); ok {
		return pattern(atoi(t, strings.TrimSuffix(n, ")")))
	}
	return []byte(name)
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 251)
	}
	return b
}

func algorithm(t *testing.T, name string) fsverity.Algorithm {
	t.Helper()
	a, err := fsverity.ParseAlgorithm("fsverity-" + name + "-12")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Algorithm+"/"+v.Input, func(t *testing.T) {
			t.Parallel()
			a, data := algorithm(t, v.Algorithm), input(t, v.Input)
			if got := fsverity.Sum(a, data).Hex(); got != v.Digest {
				t.Errorf("Sum: got %s, want %s", got, v.Digest)
			}
			h := fsverity.NewHasher(a)
			for _, chunk := range []int{1, 7, 4095, 4096, 4097, 65536} {
				if len(data) > 4<<20 && chunk < 4096 {
					continue // seconds of run time, and no other code path than for 1 MiB
				}
				h.Reset()
				for rest := data; len(rest) > 0; {
					n := min(chunk, len(rest))
					if _, err := h.Write(rest[:n]); err != nil {
						t.Fatal(err)
					}
					rest = rest[n:]
				}
				if got := h.Sum().Hex(); got != v.Digest {
					t.Errorf("in chunks of %d: got %s, want %s", chunk, got, v.Digest)
				}
			}
			d, n, err := fsverity.SumReader(a, iotest.HalfReader(bytes.NewReader(data)))
			if err != nil || n != int64(len(data)) || d.Hex() != v.Digest {
				t.Errorf("SumReader: got %s, %d bytes, %v; want %s, %d bytes", d.Hex(), n, err, v.Digest, len(data))
			}
		})
	}
}

// TestSumKeepsState takes the digest of every prefix on the way: Sum must not
// disturb what follows.
func TestSumKeepsState(t *testing.T) {
	data := pattern(3*128*4096 + 5)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		h := fsverity.NewHasher(a)
		for at := 0; at < len(data); {
			n := min(50_021, len(data)-at)
			if _, err := h.Write(data[at : at+n]); err != nil {
				t.Fatal(err)
			}
			at += n
			if got, want := h.Sum(), fsverity.Sum(a, data[:at]); got != want {
				t.Fatalf("%s of %d bytes: got %s, want %s", a, at, got, want)
			}
		}
	}
}

func TestHasherDoesNotAllocate(t *testing.T) {
	block := pattern(64 << 10)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		h := fsverity.NewHasher(a)
		for range 1 << 10 { // 64 MiB: all levels that this test reaches exist
			_, _ = h.Write(block)
		}
		h.Reset()
		allocs := testing.AllocsPerRun(20, func() {
			for range 32 {
				_, _ = h.Write(block)
				_, _ = h.Write(block[:100])
			}
		})
		if allocs > 0 {
			t.Errorf("%s: %.1f allocations per 2 MiB, want 0", a, allocs)
		}
	}
}

func TestSumReaderError(t *testing.T) {
	broken := io.MultiReader(strings.NewReader("some bytes"), iotest.ErrReader(io.ErrUnexpectedEOF))
	if _, n, err := fsverity.SumReader(fsverity.SHA256, broken); !errors.Is(err, io.ErrUnexpectedEOF) || n != 10 {
		t.Errorf("got %d bytes, %v; want 10, %v", n, err, io.ErrUnexpectedEOF)
	}
}

func TestParseAlgorithm(t *testing.T) {
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		got, err := fsverity.ParseAlgorithm(a.String())
		if err != nil || got != a {
			t.Errorf("%s: got %v, %v", a, got, err)
		}
	}
	for in, reason := range map[string]string{
		"":                        "missing prefix",
		"sha256-12":               "missing prefix",
		"garbage":                 "missing prefix",
		"fsverity-sha256":         "missing separator",
		"fsverity-sha1-12":        "unknown hash",
		"fsverity-sha256-abc":     "bad block size",
		"fsverity-sha256-":        "bad block size",
		"fsverity-sha256-16":      "unsupported block size",
		"fsverity-sha256-012":     "unsupported block size",
		"fsverity-sha256-12-more": "bad block size",
	} {
		_, err := fsverity.ParseAlgorithm(in)
		var pe *fsverity.ParseError
		if !errors.As(err, &pe) || !strings.Contains(pe.Reason, reason) {
			t.Errorf("%q: got %v, want a ParseError with %q", in, err, reason)
		}
	}
}

func TestDigestForms(t *testing.T) {
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		d := fsverity.Sum(a, []byte("hello world"))
		if d.Algorithm() != a || len(d.Bytes()) != a.Size() || d.IsZero() {
			t.Errorf("%s: algorithm %v, %d bytes", d, d.Algorithm(), len(d.Bytes()))
		}
		if want := a.Name() + ":" + d.Hex(); d.String() != want {
			t.Errorf("String: got %q, want %q", d, want)
		}
		for form, parse := range map[string]func() (fsverity.Digest, error){
			"hex":         func() (fsverity.Digest, error) { return fsverity.ParseHex(d.Hex()) },
			"upper hex":   func() (fsverity.Digest, error) { return fsverity.ParseHex(strings.ToUpper(d.Hex())) },
			"object path": func() (fsverity.Digest, error) { return fsverity.ParseObjectPath(d.ObjectPath()) },
			"bytes":       func() (fsverity.Digest, error) { return fsverity.NewDigest(a, d.Bytes()) },
			"raw":         func() (fsverity.Digest, error) { return fsverity.DigestFromRaw(d.Raw()) },
			"text": func() (fsverity.Digest, error) {
				text, err := d.MarshalText()
				if err != nil {
					return fsverity.Digest{}, err
				}
				var back fsverity.Digest
				err = back.UnmarshalText(text)
				return back, err
			},
		} {
			got, err := parse()
			if err != nil || got != d {
				t.Errorf("%s: got %v, %v; want %v", form, got, err, d)
			}
		}
	}
	var none fsverity.Digest
	if none.Hex() != "" || none.ObjectPath() != "" || none.String() != "none" || none.Bytes() != nil || none.Algorithm() != 0 {
		t.Errorf("zero digest: %q %q %q", none.Hex(), none.ObjectPath(), none)
	}
	if size := unsafe.Sizeof(none); size > 16 {
		t.Errorf("a digest takes %d bytes in a node, want at most 16", size)
	}
}

func TestParseRejects(t *testing.T) {
	hex64 := strings.Repeat("5a", 32)
	for _, in := range []string{"", "5a", hex64[1:], hex64 + "a", hex64 + "5a", hex64[:63] + "g", "sha256:" + hex64} {
		if d, err := fsverity.ParseHex(in); err == nil {
			t.Errorf("ParseHex(%q) = %v, want an error", in, d)
		}
	}
	for _, in := range []string{
		"", hex64, "5a/" + hex64[3:], "5a/" + hex64[2:] + "5", "5a5/" + hex64[3:], "/5a5" + hex64[3:],
		"5a/" + hex64[4:] + "zz", "5a/5a/" + hex64[5:], "zz/" + hex64[2:], "x5a/" + hex64[2:],
	} {
		if d, err := fsverity.ParseObjectPath(in); err == nil {
			t.Errorf("ParseObjectPath(%q) = %v, want an error", in, d)
		}
	}
	if _, err := fsverity.NewDigest(fsverity.SHA256, make([]byte, 64)); err == nil {
		t.Error("64 bytes passed as SHA-256")
	}
	if _, err := fsverity.NewDigest(3, make([]byte, 32)); err == nil {
		t.Error("algorithm 3 accepted")
	}
	if _, err := fsverity.DigestFromRaw("short"); err == nil {
		t.Error("5 raw bytes accepted")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("fsverity-sha512-12")
	f.Add(strings.Repeat("5a", 32))
	f.Add("5a/" + strings.Repeat("5a", 63))
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := fsverity.ParseAlgorithm(s); err == nil && a.String() != s {
			t.Errorf("algorithm %q became %q", s, a)
		}
		if d, err := fsverity.ParseHex(s); err == nil && d.Hex() != strings.ToLower(s) {
			t.Errorf("digest %q became %q", s, d.Hex())
		}
		if d, err := fsverity.ParseObjectPath(s); err == nil && d.ObjectPath() != strings.ToLower(s) {
			t.Errorf("path %q became %q", s, d.ObjectPath())
		}
	})
}

// TestUnsupported uses procfs, which has no fs-verity on any kernel.
func TestUnsupported(t *testing.T) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	var ue *fsverity.UnsupportedError
	if err := fsverity.Enable(f, fsverity.SHA256); !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &ue) {
		t.Errorf("enable: got %v, want unsupported", err)
	}
	if _, err := fsverity.Measure(f); !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &ue) {
		t.Errorf("measure: got %v, want unsupported", err)
	}
	if err := fsverity.Enable(f, 9); err == nil || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("enable with algorithm 9: got %v", err)
	}
}

// TestTmpfsOrDisk: on whatever file system the tests run, both calls agree on
// whether it has fs-verity.
func TestTmpfsOrDisk(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		name := filepath.Join(dir, fmt.Sprintf("cfsboot-verity-%d", os.Getpid()))
		if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
			t.Skip(err)
		}
		defer os.Remove(name)
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, merr := fsverity.Measure(f)
		eerr := fsverity.Enable(f, fsverity.SHA256)
		switch {
		case errors.Is(merr, errors.ErrUnsupported) && errors.Is(eerr, errors.ErrUnsupported):
		case errors.Is(merr, fsverity.ErrNotEnabled) && eerr == nil:
		case errors.Is(merr, fsverity.ErrNotEnabled) && errors.Is(eerr, errors.ErrUnsupported): // ext4 without the feature
		default:
			t.Errorf("%s: measure: %v; enable: %v", dir, merr, eerr)
		}
	}
}

func TestMismatchErrorNamesBoth(t *testing.T) {
	a, b := fsverity.Sum(fsverity.SHA256, nil), fsverity.Sum(fsverity.SHA512, nil)
	msg := (&fsverity.MismatchError{Where: "objects/ab/cd", Got: a, Want: b}).Error()
	for _, part := range []string{"objects/ab/cd", a.Hex(), b.Hex()} {
		if !strings.Contains(msg, part) {
			t.Errorf("%q lacks %q", msg, part)
		}
	}
}

func BenchmarkHasher(b *testing.B) {
	data := make([]byte, 1<<20)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		b.Run(a.Name(), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			h := fsverity.NewHasher(a)
			for b.Loop() {
				_, _ = h.Write(data)
			}
		})
	}
}
