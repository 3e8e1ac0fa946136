package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/recipes"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// importAll imports the layers of an image without publishing them.
func importAll(t *testing.T, r *repo.Repository, blobs map[digest.Digest][]byte, layers []v1.Descriptor, diffIDs []digest.Digest) ([]*oci.Layer, error) {
	t.Helper()
	out := make([]*oci.Layer, len(layers))
	for i, d := range layers {
		l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(blobs[d.Digest]), diffIDs[i])
		if err != nil {
			return nil, err
		}
		out[i] = l
	}
	return out, nil
}

func plainID(t *testing.T, r *repo.Repository, layers []*oci.Layer) (fsverity.Digest, error) {
	t.Helper()
	b := tree.NewBuilder()
	for i, l := range layers {
		if err := oci.Stack(b, l, i, len(layers)); err != nil {
			return fsverity.Digest{}, err
		}
	}
	if err := tree.TransformOCI(b.Root(), tree.AllowlistOnly); err != nil {
		return fsverity.Digest{}, err
	}
	h := fsverity.NewHasher(r.Algorithm())
	err := erofs.Encode(h, b.Root(), erofs.V1)
	return h.Sum(), err
}

// TestVectorsPlain: the layouts of the vectors give the IDs of composefs-rs, from
// the tar and again from the stored streams, or are refused.
func TestVectorsPlain(t *testing.T) {
	t.Parallel()
	for _, c := range recipes.All(t) {
		for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
			want, ok := c.Want.Plain[a.Name()+"-v1"]
			if !ok {
				continue
			}
			t.Run(c.Name+"/"+a.Name(), func(t *testing.T) {
				t.Parallel()
				r := repotest.New(t, a)
				layers, err := importAll(t, r, c.Image.Blobs, c.Image.Layers, c.Image.DiffIDs)
				var got fsverity.Digest
				if err == nil {
					got, err = plainID(t, r, layers)
				}
				if want == recipes.Refused {
					if err == nil {
						t.Fatalf("%s was accepted as %s", c.Want.Intent, got)
					}
					t.Log(err)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got.Hex() != want {
					t.Errorf("%s: got %s, want %s", c.Want.Intent, got.Hex(), want)
				}
				stored := make([]*oci.Layer, len(layers))
				for i, l := range layers {
					if stored[i], err = oci.LoadLayer(t.Context(), r, l.DiffID, l.Stream); err != nil {
						t.Fatal(err)
					}
					if err := oci.VerifyLayer(t.Context(), r, l.DiffID, l.Stream); err != nil {
						t.Error(err)
					}
				}
				if again, err := plainID(t, r, stored); err != nil || again != got {
					t.Errorf("from the stored layers: %s, %v", again, err)
				}
			})
		}
	}
}

// TestLayerRoundTrip: a stored layer gives back its tar, and the objects and
// chunks are those of the format.
func TestLayerRoundTrip(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1, 63, 64, 65, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20}
	var members []raw
	objects := map[fsverity.Digest]bool{}
	for i, n := range sizes {
		body := strings.Repeat("abcdefg"+fmt.Sprint(i), n)[:n]
		members = append(members, raw{name: fmt.Sprintf("f%d", n), typ: '0', body: body})
		if n > 64 {
			objects[fsverity.Sum(fsverity.SHA256, []byte(body))] = true
		}
	}
	in := append(archive(members...), strings.Repeat("\x00", 9999)+"tail"...)
	diffID := digest.FromBytes(in)
	r := repotest.New(t, fsverity.SHA256)
	l, err := oci.ImportLayer(t.Context(), r, iotest.OneByteReader(bytes.NewReader(in)), diffID)
	if err != nil {
		t.Fatal(err)
	}
	if l.Size != int64(len(in)) || len(l.Entries) != len(sizes) {
		t.Errorf("%d bytes, %d entries, want %d and %d", l.Size, len(l.Entries), len(in), len(sizes))
	}
	s, err := r.OpenStreamByID(t.Context(), l.Stream, splitstream.Layer)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range s.Objects() {
		if !objects[s.Object(i)] {
			t.Errorf("unexpected object %s", s.Object(i))
		}
	}
	if s.Objects() != len(objects) || s.Size() != int64(len(in)) {
		t.Errorf("%d objects in a stream of %d bytes, want %d and %d", s.Objects(), s.Size(), len(objects), len(in))
	}
	// In one piece it gives the same stream.
	whole, err := oci.ImportLayer(t.Context(), repotest.New(t, fsverity.SHA256), bytes.NewReader(in), diffID)
	if err != nil || whole.Stream != l.Stream {
		t.Errorf("in one piece: %v, %v, want the stream %s", whole, err, l.Stream)
	}
	var out bytes.Buffer
	if _, err := s.WriteTo(&out); err != nil || !bytes.Equal(out.Bytes(), in) {
		t.Errorf("reassembled %d bytes, %v; want %d", out.Len(), err, len(in))
	}
	repotest.Check(t, r)
}

// TestLayerStats: what an import stores, and that a second look stores nothing.
func TestLayerStats(t *testing.T) {
	t.Parallel()
	var members []raw
	for _, n := range []int{0, 4095, 4096, 4097} {
		members = append(members, raw{name: fmt.Sprint(n), typ: '0', body: strings.Repeat("\x00", n)})
	}
	in := archive(members...)
	r := repotest.New(t, fsverity.SHA256)
	l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), digest.FromBytes(in))
	if err != nil {
		t.Fatal(err)
	}
	if err := oci.PublishLayer(t.Context(), r, l); err != nil {
		t.Fatal(err)
	}
	first := r.Stats()
	const files = 4095 + 4096 + 4097
	if first.ObjectsCopied != 3+1 || first.ObjectsPresent != 0 || l.Inline != int64(len(in))-files { // the stream is an object too
		t.Errorf("got %+v and %d bytes inline, want 4 copied objects, none present, %d bytes", first, l.Inline, len(in)-files)
	}
	for i, want := range map[int]string{ // repository.md 1.13
		1: "5372beb83c78537c8970c8361e3254119fafdf1763854ecd57d3f0fe2da7c719",
		2: "babc284ee4ffe7f449377fbf6692715b43aec7bc39c094a95878904d34bac97e",
		3: "093756e4ea9683329106d4a16982682ed182c14bf076463a9e7f97305cbac743",
	} {
		if got := l.Entries[i].Node.Digest.Hex(); got != want {
			t.Errorf("%s: object %s, want %s", l.Entries[i].Path, got, want)
		}
	}
	id, ok, err := oci.FindLayer(t.Context(), r, l.DiffID, nil)
	if err != nil || !ok || id != l.Stream {
		t.Errorf("found %s, %v, %v, want %s", id, ok, err, l.Stream)
	}
	again, err := oci.LoadLayer(t.Context(), r, l.DiffID, id)
	if err != nil || again.Inline != l.Inline || again.Memory != l.Memory || again.Size != l.Size {
		t.Errorf("loaded %+v, %v, want the numbers of %+v", again, err, l)
	}
	if second := r.Stats(); second != first {
		t.Errorf("the second time stored something: %+v, then %+v", first, second)
	}
}

// TestPinnedLayers are the three layers whose config composefs-rs pins in a test
// (repository.md 2.11 a). The diff_ids say that the tars are the same; how they are
// cut is what the pinned digest rests on.
func TestPinnedLayers(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	for _, c := range []struct {
		name, diffID string
		size         int
	}{
		{"alpha", "757d6903198804b6ed96421a93a9973f5facc0e445a2a6c61cb0129eb67026e2", 1000},
		{"beta", "77dd145166ef191089dabd4d2c52d32143850a3c81a074fedf48dca360e2dcb9", 2000},
		{"gamma", "9b57f0e91c403b650e9391fd5e4154cac5dc1469acc0f3312e6149aa34f160ef", 3000},
	} {
		in := archive(raw{name: c.name, typ: '0', mode: "0000700\x00", body: strings.Repeat("\x00", c.size), bare: true})
		l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), digest.Digest("sha256:"+c.diffID))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := oci.PublishLayer(t.Context(), r, l); err != nil {
			t.Fatal(err)
		}
		object := fsverity.Sum(fsverity.SHA256, make([]byte, c.size)).Hex()
		if got, want := describeStream(t, r, oci.LayerStream(l.DiffID), nil), fmt.Sprintf("-512 %s -%d", object, -c.size&511+1024); got != want {
			t.Errorf("%s: chunks %s, want %s", c.name, got, want)
		}
	}
}

// TestWorkedExample is repository.md 3.9: names, tables and chunks of every
// stream of a small image.
func TestWorkedExample(t *testing.T) {
	t.Parallel()
	const mtime = "14524770400\x00"
	m := func(r raw, mode string) raw {
		r.mode, r.mtime, r.bare = mode+"\x00", mtime, true
		return r
	}
	in := archive(
		m(raw{name: "usr/", typ: '5'}, "0000755"), m(raw{name: "usr/a", typ: '0', body: "hello\n"}, "0000644"),
		m(raw{name: "usr/b", typ: '0', body: strings.Repeat("x", 100)}, "0000755"),
		m(raw{name: "usr/c", typ: '1', link: "usr/b"}, "0000644"), m(raw{name: "usr/d", typ: '2', link: "b"}, "0000777"))
	const (
		diffID   = "sha256:3a55b67ca209018d178db9ce0fa0a63acd4d83e8df951d2010e725475fe98967"
		config   = "sha256:5be2f1fa52d38ce2dc1ab3a2330919f06771e49a747181f8155a9b8128f428b5"
		manifest = "sha256:4c2188419dbea86a9e6b722c9c0a24112355018f32e95bbf2bdd81cdaf936bdf"
		object   = "dac5f3c6c05fd30c02ab06d9447b03e0a0e7cbf3353d05b86a67eee17fb1c818"
	)
	r := repotest.New(t, fsverity.SHA256)
	l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), diffID)
	if err != nil {
		t.Fatal(err)
	}
	img := &oci.Image{
		ManifestDigest: manifest, ConfigDigest: config, Layers: []oci.LayerRef{{DiffID: l.DiffID, Stream: l.Stream}},
		ConfigJSON: []byte(`{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["` + diffID + `"]},"history":[]}`),
		ManifestJSON: []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"` + config +
			`","size":176},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + diffID + `","size":4608}]}`),
	}
	if err := errors.Join(oci.VerifyBytes("config", img.ConfigJSON, config), oci.VerifyBytes("manifest", img.ManifestJSON, manifest)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(oci.PublishLayer(t.Context(), r, l), oci.StoreImage(t.Context(), r, img), oci.PublishImage(t.Context(), r, img), oci.Tag(t.Context(), r, manifest, "demo:1")); err != nil {
		t.Fatal(err)
	}
	if target, err := os.Readlink(filepath.Join(r.Path(), "streams/refs/oci/demo:1")); err != nil || target != "../../oci-manifest-"+manifest {
		t.Errorf("tag points at %q, %v", target, err)
	}
	for name, want := range map[string]string{
		"oci-layer-" + diffID:      "-2048 " + object + " -2460",
		"oci-config-" + config:     "c6868ed5d47239ef83d03fbbfaea503aaa94acabd9351f9b49f8ab30acbef7b4 " + diffID + "=layer",
		"oci-manifest-" + manifest: "1fbd9ab8da9d83416cb5d221f28b22ed36040dfb8f25c9ca2cc306158a2875fd config:" + config + "=config " + diffID + "=layer",
	} {
		if got := describeStream(t, r, name, map[fsverity.Digest]string{l.Stream: "layer", img.ConfigStream: "config"}); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	repotest.Check(t, r)
}

// describeStream lists the chunks and named references of a stream.
func describeStream(t *testing.T, r *repo.Repository, name string, names map[fsverity.Digest]string) string {
	t.Helper()
	id, err := r.LookupStream(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.OpenAnyStreamByID(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var out []string
	for {
		c, err := s.Next()
		if oci.IsEOF(err) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if c.Object.IsZero() {
			out = append(out, fmt.Sprint(-c.Size))
		} else {
			out = append(out, c.Object.Hex())
		}
	}
	for _, n := range s.NamedRefs() {
		out = append(out, n.Name+"="+names[n.Digest])
	}
	return strings.Join(out, " ")
}

func compressed(t *testing.T, w io.WriteCloser, out *bytes.Buffer, b []byte) []byte {
	t.Helper()
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func gz(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	return compressed(t, gzip.NewWriter(&out), &out, b)
}

func zst(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	return compressed(t, w, &out, b)
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestCompression(t *testing.T) {
	t.Parallel()
	in := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 300_000)}, raw{name: "b", typ: '0', body: strings.Repeat("y", 90)})
	half := len(in) / 2
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}
	damaged := gz(t, in)
	damaged[len(damaged)-6] ^= 1
	for _, tc := range []struct {
		name string
		blob []byte
		ok   bool
	}{
		{"plain", in, true},
		{"gzip", gz(t, in), true},
		{"gzip members", join(gz(t, in[:half]), gz(t, nil), gz(t, in[half:])), true},
		{"zstd", zst(t, in), true},
		{"zstd frames", join(skippable, zst(t, in[:half]), skippable, zst(t, in[half:]), skippable), true},
		{"gzip, second member cut", join(gz(t, in[:half]), gz(t, in[half:])[:200]), false},
		{"gzip, second member gone", gz(t, in[:half]), false},
		{"gzip, garbage behind", join(gz(t, in), []byte("garbage")), false},
		{"gzip, wrong checksum", damaged, false},
		{"zstd, second frame cut", join(zst(t, in[:half]), zst(t, in[half:])[:30]), false},
		{"zstd, garbage behind", join(zst(t, in), []byte("garbage")), false},
		{"only a magic number", []byte{0x1f, 0x8b}, false},
		{"empty", nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := repotest.New(t, fsverity.SHA256)
			l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(tc.blob), digest.FromBytes(in))
			if tc.ok {
				if err != nil || len(l.Entries) != 2 {
					t.Fatalf("got %v", err)
				}
				return
			}
			var f *oci.FormatError
			var d *oci.DigestError
			if !errors.As(err, &f) && !errors.As(err, &d) {
				t.Errorf("got %v, want a *FormatError or *DigestError", err)
			}
		})
	}
}

func TestDiffIDAlgorithms(t *testing.T) {
	t.Parallel()
	in := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 100)})
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512} {
		r := repotest.New(t, fsverity.SHA512)
		if _, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), a.FromBytes(in)); err != nil {
			t.Errorf("%s: %v", a, err)
		}
		wrong := a.FromString("other")
		_, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), wrong)
		var d *oci.DigestError
		if !errors.As(err, &d) || d.Want != wrong || d.Got != a.FromBytes(in) {
			t.Errorf("wrong %s: %v", a, err)
		}
	}
	var f *oci.FormatError
	if _, err := oci.ImportLayer(t.Context(), repotest.New(t, fsverity.SHA512), bytes.NewReader(in), "md5:00"); !errors.As(err, &f) {
		t.Errorf("unknown algorithm: %v", err)
	}
}

// TestSourceErrorIsKept: a connection that breaks is not taken for bad data.
func TestSourceErrorIsKept(t *testing.T) {
	t.Parallel()
	in := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 300_000)})
	for _, cause := range []error{io.ErrUnexpectedEOF, io.EOF} {
		broken := fmt.Errorf("cable: %w", cause)
		for _, blob := range [][]byte{in, gz(t, in), zst(t, in)} {
			for _, at := range []int{0, 1, 100, len(blob) - 1} {
				r := repotest.New(t, fsverity.SHA256)
				_, err := oci.ImportLayer(t.Context(), r, io.MultiReader(bytes.NewReader(blob[:at]), &failing{broken}), digest.FromBytes(in))
				var f *oci.FormatError
				if !errors.Is(err, broken) || errors.As(err, &f) {
					t.Errorf("cut after %d of %d bytes: %v", at, len(blob), err)
				}
			}
		}
	}
}

type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }

func TestImportIsCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	r := repotest.New(t, fsverity.SHA256)
	blob := readerFunc(func(p []byte) (int, error) {
		cancel() // and then go on for ever
		copy(p, archive(raw{name: "a", typ: '6'})[:512])
		return min(512, len(p)), nil
	})
	if _, err := oci.ImportLayer(ctx, r, blob, digest.FromString("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestFindLayer: only layers that were compared are used.
func TestFindLayer(t *testing.T) {
	t.Parallel()
	good := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 100)})
	evil := archive(raw{name: "a", typ: '0', body: strings.Repeat("!", 100)})
	diffID := digest.FromBytes(good)
	find := func(r *repo.Repository) (fsverity.Digest, bool) {
		t.Helper()
		id, ok, err := oci.FindLayer(t.Context(), r, diffID, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id, ok
	}
	// foreign imports a layer and publishes it as composefs-rs does, by a name that
	// nobody has compared.
	foreign := func(r *repo.Repository, b []byte) fsverity.Digest {
		t.Helper()
		l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(b), digest.FromBytes(b))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.PublishStream(t.Context(), oci.LayerStream(diffID), l.Stream); err != nil {
			t.Fatal(err)
		}
		return l.Stream
	}

	r := repotest.New(t, fsverity.SHA256)
	if _, ok := find(r); ok {
		t.Error("found in an empty repository")
	}
	evilID := foreign(r, evil)
	if id, ok := find(r); ok {
		t.Errorf("a planted layer is used: %s", id)
	}
	goodID := foreign(r, good)
	if verified, err := oci.IsVerified(r, diffID, goodID); verified || err != nil {
		t.Errorf("verified before the comparison: %v", err)
	}
	if id, ok := find(r); !ok || id != goodID {
		t.Errorf("a good layer of another tool is not used: %s, %v", id, ok)
	}
	if verified, err := oci.IsVerified(r, diffID, goodID); !verified || err != nil {
		t.Errorf("the comparison was not recorded: %v", err)
	}
	if verified, err := oci.IsVerified(r, diffID, evilID); verified || err != nil {
		t.Errorf("the record covers another stream: %v", err)
	}
	foreign(r, evil) // the name moves, the record does not
	if id, ok := find(r); ok {
		t.Errorf("a planted layer is used: %s", id)
	}
}

// TestDamagedObjectOfForeignLayer: an object whose content is not what its name
// says is found, although the file has the right size.
func TestDamagedObjectOfForeignLayer(t *testing.T) {
	t.Parallel()
	in := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 100)})
	r := repotest.New(t, fsverity.SHA256)
	l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), digest.FromBytes(in))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.Path(), "objects", l.Entries[0].Node.Digest.ObjectPath())
	if err := os.WriteFile(path, bytes.Repeat([]byte{'y'}, 100), 0o600); err != nil {
		t.Fatal(err)
	}
	err = oci.VerifyLayer(t.Context(), r, l.DiffID, l.Stream)
	var m *fsverity.MismatchError
	if !errors.As(err, &m) {
		t.Errorf("got %v, want a *fsverity.MismatchError", err)
	}
}

// countdown is a context that ends after it was asked n times.
type countdown struct {
	context.Context
	n int
}

func (c *countdown) Err() error {
	if c.n--; c.n < 0 {
		return context.Canceled
	}
	return nil
}

// TestVerifyLayerIsCancelled: within one large object, too.
func TestVerifyLayerIsCancelled(t *testing.T) {
	t.Parallel()
	in := archive(raw{name: "a", typ: '0', body: strings.Repeat("x", 4<<20)})
	r := repotest.New(t, fsverity.SHA256)
	l, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(in), digest.FromBytes(in))
	if err != nil {
		t.Fatal(err)
	}
	ctx := &countdown{t.Context(), 20}
	if err := oci.VerifyLayer(ctx, r, l.DiffID, l.Stream); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func BenchmarkImportLayer(b *testing.B) {
	var members []raw
	for i := range 2000 {
		members = append(members, raw{name: fmt.Sprintf("usr/lib/file%05d", i), typ: '0', body: strings.Repeat(fmt.Sprintf("%08d", i), 1+i%4000)})
	}
	in := archive(members...)
	diffID := digest.FromBytes(in)
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		r := repotest.New(b, fsverity.SHA512)
		if _, err := oci.ImportLayer(b.Context(), r, bytes.NewReader(in), diffID); err != nil {
			b.Fatal(err)
		}
	}
}

// TestStoredLayerRejected: streams that no writer of layers produces.
func TestStoredLayerRejected(t *testing.T) {
	t.Parallel()
	header := func(r raw, size int) []byte {
		r.size = fmt.Sprintf("%011o\x00", size)
		return r.bytes()
	}
	file := raw{name: "f", typ: '0'}
	end := make([]byte, 1024)
	type part struct {
		inline []byte
		object string
	}
	for name, tc := range map[string]struct {
		parts []part
		want  string
	}{
		"object of a small file":     {[]part{{inline: header(file, 64)}, {object: strings.Repeat("x", 64)}, {inline: end}}, "no file body of more than 64 bytes"},
		"inline body of a large one": {[]part{{inline: join(header(file, 65), make([]byte, 512), end)}}, "a file body of 65 bytes that is not an object"},
		"object at the start":        {[]part{{object: strings.Repeat("x", 600)}, {inline: end}}, "no file body"},
		"object of a directory":      {[]part{{inline: header(raw{name: "d", typ: '5'}, 0)}, {object: strings.Repeat("x", 512)}, {inline: end}}, "no file body"},
		"object in the padding":      {[]part{{inline: header(file, 3)}, {object: "abc"}, {inline: end}}, "no file body"},
		"no object":                  {[]part{{inline: header(file, 100)}}, "unexpected EOF"},
		"no padding":                 {[]part{{inline: header(file, 100)}, {object: strings.Repeat("x", 100)}}, "unexpected EOF"},
		"bad header":                 {[]part{{inline: make([]byte, 700)}}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := repotest.New(t, fsverity.SHA256)
			w, err := r.NewStream(t.Context(), splitstream.Layer)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range tc.parts {
				if p.object != "" {
					err = w.External(put(t, r, p.object), int64(len(p.object)))
				} else {
					_, err = w.Write(p.inline)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			id, err := w.Commit(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			_, err = oci.LoadLayer(t.Context(), r, digest.FromString("x"), id)
			var f *oci.FormatError
			if !errors.As(err, &f) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want a *FormatError with %q", err, tc.want)
			}
		})
	}
}

// FuzzDecompress: a blob is read to its end, or refused as one that breaks its
// format.
func FuzzDecompress(f *testing.F) {
	var g, z bytes.Buffer
	zw, err := zstd.NewWriter(&z)
	if err != nil {
		f.Fatal(err)
	}
	for _, w := range []io.WriteCloser{gzip.NewWriter(&g), zw} {
		if _, err := w.Write([]byte("some bytes")); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
	}
	for _, b := range [][]byte{nil, []byte("plain"), {0x1f, 0x8b}, g.Bytes(), join(g.Bytes(), g.Bytes()), z.Bytes(), join(z.Bytes(), []byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'a'})} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := oci.Decompress(b, 1<<20)
		var format *oci.FormatError
		if err != nil && !errors.As(err, &format) {
			t.Errorf("got %v (%T), want a *FormatError", err, err)
		}
	})
}
