package splitstream_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

func vector(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".hex")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func read(t testing.TB, b []byte, a fsverity.Algorithm) *splitstream.Reader {
	t.Helper()
	r, err := splitstream.NewReader(bytes.NewReader(b), int64(len(b)), a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// chunks describes the chunks of the stream: -n for n inline bytes, an object by
// its index.
func chunks(t *testing.T, r *splitstream.Reader) (list []int64, inline []byte) {
	t.Helper()
	for {
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list, inline
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.Object.IsZero() {
			b, err := io.ReadAll(r)
			if err != nil || int64(len(b)) != c.Size {
				t.Fatalf("chunk of %d bytes: got %d bytes, %v", c.Size, len(b), err)
			}
			list, inline = append(list, -c.Size), append(inline, b...)
			continue
		}
		for i := range r.Objects() {
			if r.Object(i) == c.Object {
				list = append(list, int64(i))
			}
		}
	}
}

// header returns a ustar header as in the worked example.
func header(name string, typ byte, mode, size int, mtime int64, link string) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o\x00", mode))
	copy(b[108:], "0000000\x00")
	copy(b[116:], "0000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", size))
	copy(b[136:], fmt.Sprintf("%011o\x00", mtime))
	copy(b[148:], "        ")
	b[156] = typ
	copy(b[157:], link)
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%07o\x00", sum))
	return b
}

func pad(b string) []byte {
	return append([]byte(b), make([]byte, (512-len(b)%512)%512)...)
}

// exampleLayer is the tar of the worked example, cut where the splitter cuts.
func exampleLayer() (before, object, after []byte) {
	const mtime = 1700000000
	body := strings.Repeat("x", 100)
	before = bytes.Join([][]byte{
		header("usr/", '5', 0o755, 0, mtime, ""),
		header("usr/a", '0', 0o644, 6, mtime, ""), pad("hello\n"),
		header("usr/b", '0', 0o755, 100, mtime, ""),
	}, nil)
	after = bytes.Join([][]byte{
		pad(body)[100:],
		header("usr/c", '1', 0o644, 0, mtime, "usr/b"),
		header("usr/d", '2', 0o777, 0, mtime, "b"),
		make([]byte, 1024),
	}, nil)
	return before, []byte(body), after
}

func opener(objects ...[]byte) func(fsverity.Digest) (io.ReadCloser, error) {
	return func(d fsverity.Digest) (io.ReadCloser, error) {
		for _, o := range objects {
			if fsverity.Sum(d.Algorithm(), o) == d {
				return io.NopCloser(bytes.NewReader(o)), nil
			}
		}
		return nil, os.ErrNotExist
	}
}

const (
	layerID   = "b27a5e9eb7414cc01c98bc0286728e797e251fb5caed400e30dff0debdddd61f"
	configID  = "708d981bd5460d42e42c2308dbdfa8209ba98b2f745cb035f3c23c5d4edafe42"
	diffID    = "sha256:3a55b67ca209018d178db9ce0fa0a63acd4d83e8df951d2010e725475fe98967"
	configSum = "sha256:5be2f1fa52d38ce2dc1ab3a2330919f06771e49a747181f8155a9b8128f428b5"
)

func TestVectors(t *testing.T) {
	for _, c := range []struct {
		name, id string
		typ      splitstream.ContentType
		size     int64
		chunks   []int64
		objects  []string
		named    []string
	}{
		{"hello", "fbf48665a4925a6b9a6d6d606228574b6db1ce2002db657c21647e948d3e2c91", splitstream.Untyped, 5, []int64{-5}, nil, nil},
		{"layer", layerID, splitstream.Layer, 4608, []int64{-2048, 0, -2460},
			[]string{"dac5f3c6c05fd30c02ab06d9447b03e0a0e7cbf3353d05b86a67eee17fb1c818"}, nil},
		{"config", configID, splitstream.Config, 176, []int64{0},
			[]string{"c6868ed5d47239ef83d03fbbfaea503aaa94acabd9351f9b49f8ab30acbef7b4"}, []string{diffID + "=" + layerID}},
		{"manifest", "002b99b01f5779777f1bccd722f6ad4f6d41b5ab8a86fef020cb1e0ace4a7b1f", splitstream.Manifest, 397, []int64{0},
			[]string{"1fbd9ab8da9d83416cb5d221f28b22ed36040dfb8f25c9ca2cc306158a2875fd"},
			[]string{"config:" + configSum + "=" + configID, diffID + "=" + layerID}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := vector(t, c.name)
			if got := fsverity.Sum(fsverity.SHA256, b).Hex(); got != c.id {
				t.Errorf("ID: got %s, want %s", got, c.id)
			}
			r := read(t, b, fsverity.SHA256)
			if r.ContentType() != c.typ || r.Size() != c.size {
				t.Errorf("got type %v and %d bytes, want %v and %d", r.ContentType(), r.Size(), c.typ, c.size)
			}
			var objects, named []string
			for i := range r.Objects() {
				objects = append(objects, r.Object(i).Hex())
			}
			for _, n := range r.NamedRefs() {
				named = append(named, n.Name+"="+n.Digest.Hex())
			}
			if diff := cmp.Diff(c.objects, objects); diff != "" {
				t.Errorf("object_refs mismatch (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.named, named); diff != "" {
				t.Errorf("named_refs mismatch (-want +got):\n%s", diff)
			}
			list, _ := chunks(t, r)
			if diff := cmp.Diff(c.chunks, list); diff != "" {
				t.Errorf("chunks mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVectorContent(t *testing.T) {
	before, object, after := exampleLayer()
	var got bytes.Buffer
	if err := read(t, vector(t, "layer"), fsverity.SHA256).Cat(&got, opener(object)); err != nil {
		t.Fatal(err)
	}
	want := bytes.Join([][]byte{before, object, after}, nil)
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("the reassembled layer differs from the tar that the description gives")
	}
	if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(got.Bytes())); sum != diffID {
		t.Errorf("diff_id: got %s, want %s", sum, diffID)
	}
	if _, inline := chunks(t, read(t, vector(t, "hello"), fsverity.SHA256)); string(inline) != "hello" {
		t.Errorf("got %q, want \"hello\"", inline)
	}
}

// TestWriterLikeVectors: all but the compressed bytes and the offsets behind them
// is the same as in the vectors.
func TestWriterLikeVectors(t *testing.T) {
	before, object, after := exampleLayer()
	w := splitstream.NewWriter(fsverity.SHA256, splitstream.WriterOptions{ContentType: splitstream.Layer})
	write(t, w, before, object, after)
	got, want := finish(t, w), vector(t, "layer")
	if !bytes.Equal(got[:0x48], want[:0x48]) || !bytes.Equal(got[0x50:0x50+0x10], want[0x50:0x60]) && len(got) == len(want) {
		t.Errorf("header and info:\ngot  %x\nwant %x", got[:112], want[:112])
	}
	if !bytes.Equal(got[0x60:0x90], want[0x60:0x90]) {
		t.Errorf("content type, size and object_refs:\ngot  %x\nwant %x", got[0x60:0x90], want[0x60:0x90])
	}
}

// TestAlgorithmInHeader: the vector with algorithm byte 2 has the recorded
// SHA-512 ID.
func TestAlgorithmInHeader(t *testing.T) {
	b := vector(t, "hello")
	b[14] = 2
	const want = "c41b88fa5ad7500696abeb11341aa3f0cec91083040b5f414dea28132065bab3" +
		"ffe9ad9c75020252819a9075b1b314b38275f9e6d4fdd7b12aa3f87eb09edf15"
	if got := fsverity.Sum(fsverity.SHA512, b).Hex(); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if _, inline := chunks(t, read(t, b, fsverity.SHA512)); string(inline) != "hello" {
		t.Errorf("got %q, want \"hello\"", inline)
	}
}

// oldHeader rewrites a splitstream to the layout before composefs-rs 0.7.0.
func oldHeader(b []byte) []byte {
	old := bytes.Clone(b)
	copy(old[0:16], b[16:32]) // info
	copy(old[16:18], b[12:14])
	copy(old[18:29], b[0:11])
	old[29], old[30], old[31] = b[11], b[14], b[15]
	return old
}

func TestOldHeader(t *testing.T) {
	b := vector(t, "hello")
	old := oldHeader(b)
	if got, want := hex.EncodeToString(old[:32]), "20000000000000007000000000000000000053706c697453747265616d00010c"; got != want {
		t.Fatalf("header: got %s, want %s", got, want)
	}
	if got, want := fsverity.Sum(fsverity.SHA256, old).Hex(), "4e9616e123cbb13ef416f5a2cf445dbaa212fa89a6ba3e597e10b764ec6b2936"; got != want {
		t.Errorf("ID: got %s, want %s", got, want)
	}
	if _, inline := chunks(t, read(t, old, fsverity.SHA256)); string(inline) != "hello" {
		t.Errorf("got %q, want \"hello\"", inline)
	}
	w := splitstream.NewWriter(fsverity.SHA256, splitstream.WriterOptions{})
	write(t, w, []byte("hello"))
	if got := finish(t, w); bytes.Equal(got[:32], old[:32]) || !bytes.Equal(got[:32], b[:32]) {
		t.Errorf("the writer's header is %x", got[:32])
	}
}
