package pull_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/internal/testutil/recipes"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// options accept what is computed, for the platform of the test images.
func options(name string, bootable bool) pull.Options {
	return pull.Options{Name: name, Bootable: bootable, Policy: keyring.Computed{}, Platform: amd64}
}

func build(t testing.TB, s ocitest.Spec) *ocitest.Image {
	t.Helper()
	img, err := ocitest.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// reporter is a function that is told about progress.
type reporter func(progress.Event)

func (f reporter) Event(e progress.Event) { f(e) }

// osDump is a small bootable tree.
const osDump = `/ 4096 40755 2 0 0 0 0.0 - - -
/boot 4096 40755 2 0 0 0 5.0 - - -
/etc 4096 40755 2 0 0 0 1700000000.0 - - -
/run 4096 40755 2 0 0 0 6.0 - - -
/sysroot 4096 40755 2 0 0 0 7.0 - - -
/usr 4096 40755 2 0 0 0 1700000000.0 - - -
/usr/small 6 100644 1 0 0 0 1700000000.0 - hello\n -
`

func osLayer(extra string) ocitest.Layer {
	return ocitest.Layer{Dump: osDump + extra, Compression: ocitest.Gzip}
}

// topLayer has a file of its own, with an object.
func topLayer(t testing.TB, name, content string) ocitest.Layer {
	t.Helper()
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	usr := tree.NewDir(tree.Meta{Mode: 0o755, MtimeSec: 1700000000})
	root.Set("usr", usr)
	usr.Set(name, tree.NewInline(tree.Meta{Mode: 0o644, MtimeSec: 1700000001}, []byte(content)))
	var b bytes.Buffer
	if err := ocitest.WriteTar(&b, root); err != nil {
		t.Fatal(err)
	}
	return ocitest.Layer{Tar: b.Bytes(), Compression: ocitest.Gzip}
}

// tarLayer has one member without a body.
func tarLayer(t testing.TB, h tar.Header) ocitest.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	typ := h.Typeflag
	h.Typeflag = tar.TypeReg
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The writer refuses sparse members: another type, and its checksum.
	head := b.Bytes()[:512]
	head[156] = typ
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return ocitest.Layer{Tar: b.Bytes(), Compression: ocitest.Gzip}
}

// linkLayer has a symbolic link.
func linkLayer(t testing.TB, target string) ocitest.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "usr/l", Typeflag: tar.TypeSymlink, Linkname: target}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return ocitest.Layer{Tar: b.Bytes()}
}

// bootable is an image of two layers.
func bootable(t testing.TB) *ocitest.Image {
	t.Helper()
	return build(t, ocitest.Spec{
		Layers: []ocitest.Layer{osLayer(""), topLayer(t, "prog", random(40000))},
		Labels: map[string]string{v1.AnnotationVersion: "13.1"},
	})
}

// random returns bytes that do not compress, the same every time.
func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b) // never fails
	return string(b)
}

// exists tells whether a name of the repository is there.
func exists(t testing.TB, r *repo.Repository, name string) bool {
	t.Helper()
	_, err := os.Lstat(filepath.Join(r.Path(), name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// TestVectors: every layout of the vectors gives both image IDs of composefs-rs in
// formats 1 and 2, read from a layout directory as cfsctl did, or is refused.
func TestVectors(t *testing.T) {
	t.Parallel()
	for _, c := range recipes.All(t) {
		for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
			for _, v := range []erofs.Version{erofs.V1, erofs.V2} {
				t.Run(fmt.Sprintf("%s/%s/%d", c.Name, a.Name(), v), func(t *testing.T) {
					t.Parallel()
					pullVector(t, c, a, v)
				})
			}
		}
	}
}

func pullVector(t *testing.T, c recipes.Case, a fsverity.Algorithm, v erofs.Version) {
	t.Helper()
	dir := t.TempDir()
	if err := c.Image.WriteLayout(dir, "v"); err != nil {
		t.Fatal(err)
	}
	r := repotest.NewFormat(t, a, v)
	key := fmt.Sprintf("%s-v%d", a.Name(), v)
	for _, role := range []keyring.Role{keyring.Plain, keyring.Boot} {
		want, ok := map[keyring.Role]map[string]string{keyring.Plain: c.Want.Plain, keyring.Boot: c.Want.Boot}[role][key]
		if !ok {
			continue
		}
		src, err := remote.Open(t.Context(), "oci:"+dir+":v", remote.Options{Platform: amd64})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		res, err := pull.Pull(t.Context(), r, src, options("img", role == keyring.Boot))
		switch {
		case want == recipes.Refused:
			if err == nil {
				t.Errorf("%s: accepted", c.Want.Intent)
			} else if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %v", err)
			}
			continue
		case err != nil:
			t.Fatalf("%s: %v", role, err)
		}
		if got, ok := res.Verified.Digest(role); !ok || got.Hex() != want {
			t.Errorf("%s image: got %s, want %s", role, got, want)
		}
	}
	repotest.Check(t, r)
}

// TestFormats: a pull makes images in the format of the repository, lists them under
// its keys, and finds them again; the collector keeps all that they need.
func TestFormats(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	ids := map[fsverity.Digest]erofs.Version{}
	for v, keys := range map[erofs.Version][2]string{
		erofs.V0: {"composefs.image.v1", "composefs.image.boot.v1"},
		erofs.V1: {"composefs.image.v1", "composefs.image.boot.v1"},
		erofs.V2: {"composefs.image", "composefs.image.boot"},
	} {
		r := repotest.NewFormat(t, fsverity.SHA512, v)
		res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("os", true))
		if err != nil {
			t.Fatalf("format %d: %v", v, err)
		}
		stored, err := oci.OpenImage(t.Context(), r, res.ManifestDigest)
		if err != nil {
			t.Fatal(err)
		}
		plain, _ := res.Verified.Digest(keyring.Plain)
		boot, _ := res.Verified.Digest(keyring.Boot)
		if len(stored.Images) != 2 || stored.Images[keys[0]] != plain || stored.Images[keys[1]] != boot {
			t.Errorf("format %d: images on the config: %v", v, stored.Images)
		}
		for _, id := range []fsverity.Digest{plain, boot} {
			if other, ok := ids[id]; ok {
				t.Errorf("format %d has the image %s of format %d", v, id, other)
			}
			ids[id] = v
			if got := headerVersion(t, r, id); got != v {
				t.Errorf("image in a repository of format %d: got format %d", v, got)
			}
			if n, err := decode(t, r, id).Find("usr/prog"); err != nil || n.Size != 40000 {
				t.Errorf("format %d: usr/prog: %+v, %v", v, n, err)
			}
		}
		again, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("os", true))
		if err != nil || again.Verified != res.Verified || again.Stats.LayersFetched != 0 || again.Stats.ObjectsNew != 0 {
			t.Errorf("format %d, again: %+v, %v", v, again, err)
		}
		if c, err := r.Collect(t.Context(), repo.CollectOptions{}); err != nil || c.Objects != 0 || c.Images != 0 {
			t.Errorf("format %d: collected %+v, %v", v, c, err)
		}
		repotest.Check(t, r)
	}
}

// headerVersion reads the format of a stored image.
func headerVersion(t *testing.T, r *repo.Repository, id fsverity.Digest) erofs.Version {
	t.Helper()
	f, err := r.OpenImage(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, 16)
	if _, err := f.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	return erofs.Version(head[12])
}

func TestPull(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA512)
	img := bootable(t)
	src := &ocitest.Source{Image: img}
	res, err := pull.Pull(t.Context(), r, src, options("quay.io/x/os:1", true))
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := res.Verified.Digest(keyring.Plain)
	boot, ok := res.Verified.Digest(keyring.Boot)
	if !ok || plain == boot || res.Verified.Rule() != "computed" {
		t.Errorf("verified %s and %s by %q", plain, boot, res.Verified.Rule())
	}
	if res.ManifestDigest != img.Descriptor.Digest || res.ConfigDigest != digest.FromBytes(img.Config) || res.Version != "13.1" || res.Architecture != "amd64" || res.Tag != "quay.io/x/os:1" {
		t.Errorf("result %+v", res)
	}
	size := img.Layers[0].Size + img.Layers[1].Size
	if s := res.Stats; s.LayersFetched != 2 || s.LayersPresent != 0 || s.BytesFetched != size || s.ObjectsNew == 0 {
		t.Errorf("stats %+v, want 2 layers of %d bytes", s, size)
	}
	stored, err := oci.OpenImage(t.Context(), r, res.ManifestDigest)
	if err != nil {
		t.Fatal(err)
	}
	if len(stored.Images) != 2 || stored.Images["composefs.image.v1"] != plain || stored.Images["composefs.image.boot.v1"] != boot {
		t.Errorf("images on the config: %v", stored.Images)
	}
	for _, l := range stored.Layers {
		if id, err := r.LookupStream(oci.LayerStream(l.DiffID)); err != nil || id != l.Stream {
			t.Errorf("layer %s: %s, %v", l.DiffID, id, err)
		}
	}
	if d, err := oci.Resolve(r, "quay.io/x/os:1"); err != nil || d != res.ManifestDigest {
		t.Errorf("tag: %s, %v", d, err)
	}
	// The plain image holds the layers, the boot image has an empty /boot.
	root := decode(t, r, plain)
	if n, err := root.Find("usr/prog"); err != nil || n.Size != 40000 {
		t.Errorf("usr/prog: %+v, %v", n, err)
	}
	repotest.Check(t, r)
}

func decode(t *testing.T, r *repo.Repository, id fsverity.Digest) *tree.Node {
	t.Helper()
	f, err := r.OpenImage(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	root, err := erofs.Decode(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// TestPullAgain: nothing is fetched or made twice, whatever the order of plain
// and bootable pulls.
func TestPullAgain(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	img := bootable(t)
	src := &ocitest.Source{Image: img}
	var events []string
	run := func(name string, bootable bool) *pull.Result {
		t.Helper()
		o := options(name, bootable)
		events = nil
		o.Progress = reporter(func(e progress.Event) { events = append(events, fmt.Sprintf("%T %v", e, e)) })
		o.Parallel = 1
		res, err := pull.Pull(t.Context(), r, src, o)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	first := run("a", false)
	if s := strings.Join(events, "\n"); strings.Count(s, "progress.Start {layer") != 2 || strings.Count(s, "progress.End {layer") != 2 || strings.Count(s, "{plain image bytes") != 1 {
		t.Errorf("events:\n%s", s)
	}
	second := run("b", true) // adds the boot image from the stored layers
	third := run("c", true)
	if len(events) != 0 || third.Stats != (pull.Stats{LayersPresent: 2}) {
		t.Errorf("third pull: %+v, events %q", third.Stats, events)
	}
	fourth := run("d", false)
	if fourth.Stats.ObjectsNew != 0 {
		t.Errorf("plain pull after a bootable one: %+v", fourth.Stats)
	}
	if _, ok := fourth.Verified.Digest(keyring.Boot); ok {
		t.Error("a plain pull returns a boot image")
	}
	for _, l := range img.Layers {
		if n := src.Reads(l.Digest); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	p1, _ := first.Verified.Digest(keyring.Plain)
	for i, res := range []*pull.Result{second, third, fourth} {
		if p, _ := res.Verified.Digest(keyring.Plain); p != p1 {
			t.Errorf("pull %d: plain image %s, want %s", i+2, p, p1)
		}
	}
	stored, err := oci.OpenImage(t.Context(), r, first.ManifestDigest)
	if err != nil || stored.Images["composefs.image.boot.v1"].IsZero() {
		t.Errorf("the boot image is no longer listed: %v, %v", stored.Images, err)
	}
	list, _, err := oci.Images(t.Context(), r)
	if err != nil || len(list) != 4 {
		t.Errorf("%d tags, %v", len(list), err)
	}
	repotest.Check(t, r)
}

// TestForeignImageIDsAreNotBelieved: what another program lists on the config is
// computed again, and other keys stay.
func TestForeignImageIDsAreNotBelieved(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	img := bootable(t)
	good, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("a", true))
	if err != nil {
		t.Fatal(err)
	}
	evil, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), topLayer(t, "prog", "evil")}})}, options("evil", true))
	if err != nil {
		t.Fatal(err)
	}
	evilBoot, _ := evil.Verified.Digest(keyring.Boot)
	stored, err := oci.OpenImage(t.Context(), r, good.ManifestDigest)
	if err != nil {
		t.Fatal(err)
	}
	v2 := put(t, r, "an image in format 2")
	stored.Images["composefs.image.boot.v1"], stored.Images["composefs.image"] = evilBoot, v2
	if err := errors.Join(oci.StoreImage(t.Context(), r, stored), oci.PublishImage(t.Context(), r, stored)); err != nil {
		t.Fatal(err)
	}
	again, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("a", true))
	if err != nil {
		t.Fatal(err)
	}
	want, _ := good.Verified.Digest(keyring.Boot)
	if got, _ := again.Verified.Digest(keyring.Boot); got != want {
		t.Errorf("boot image %s, want %s", got, want)
	}
	if stored, err = oci.OpenImage(t.Context(), r, good.ManifestDigest); err != nil || stored.Images["composefs.image.boot.v1"] != want || stored.Images["composefs.image"] != v2 {
		t.Errorf("listed %v, %v", stored.Images, err)
	}
}

func put(t *testing.T, r *repo.Repository, s string) fsverity.Digest {
	t.Helper()
	d, err := r.PutObject(t.Context(), []byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestEqualLayers: a layer that occurs twice is fetched once and stacked twice.
func TestEqualLayers(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	wipe := topLayer(t, ".wh.prog", "")
	prog := topLayer(t, "prog", strings.Repeat("p", 100))
	img := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), prog, wipe, prog}})
	src := &ocitest.Source{Image: img}
	res, err := pull.Pull(t.Context(), r, src, options("a", false))
	if err != nil {
		t.Fatal(err)
	}
	if src.Reads(img.Layers[1].Digest) != 1 || res.Stats.LayersFetched != 3 {
		t.Errorf("%d reads, %+v", src.Reads(img.Layers[1].Digest), res.Stats)
	}
	plain, _ := res.Verified.Digest(keyring.Plain)
	if n, err := decode(t, r, plain).Find("usr/prog"); err != nil || n.Size != 100 {
		t.Errorf("usr/prog: %v", err)
	}
}

// TestLayerPoisoning: an image that lists the diff_id of a layer of another image
// over other bytes fails, and the other image is not changed by it, whichever
// comes first, and if another tool has planted the layer already.
func TestLayerPoisoning(t *testing.T) {
	t.Parallel()
	good := bootable(t)
	poison := topLayer(t, "prog", strings.Repeat("evil ", 5000))
	poison.DiffID = good.DiffIDs[1]
	evil := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), poison}})
	want := func() fsverity.Digest {
		r := repotest.New(t, fsverity.SHA256)
		res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: good}, options("good", false))
		if err != nil {
			t.Fatal(err)
		}
		d, _ := res.Verified.Digest(keyring.Plain)
		return d
	}()

	r := repotest.New(t, fsverity.SHA256)
	var d *oci.DigestError
	_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: evil}, options("evil", false))
	if !errors.As(err, &d) || d.Want != good.DiffIDs[1] {
		t.Errorf("the evil image: %v", err)
	}
	if exists(t, r, "streams/"+oci.LayerStream(good.DiffIDs[1])) || exists(t, r, "streams/refs/oci/evil") {
		t.Error("the evil layer or tag has a name")
	}
	// As composefs-rs would have stored it: under the name, unseen.
	planted, err := oci.ImportLayer(t.Context(), r, bytes.NewReader(evil.Blobs[evil.Layers[1].Digest]), digest.FromBytes(poison.Tar))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.PublishStream(t.Context(), oci.LayerStream(good.DiffIDs[1]), planted.Stream); err != nil {
		t.Fatal(err)
	}
	res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: good}, options("good", false))
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := res.Verified.Digest(keyring.Plain); got != want {
		t.Errorf("plain image %s, want %s", got, want)
	}
}

// flaky fails on some blobs and counts calls.
type flaky struct {
	ocitest.Source
	resolved int
}

func (f *flaky) Resolve(ctx context.Context) (oci.Resolved, error) {
	f.resolved++
	return f.Source.Resolve(ctx)
}

// TestBadSources: each gives one error of the right type, and no name.
func TestBadSources(t *testing.T) {
	t.Parallel()
	edit := func(t *testing.T, img *ocitest.Image, change func(m *v1.Manifest)) *ocitest.Image {
		t.Helper()
		var m v1.Manifest
		if err := json.Unmarshal(img.Manifest, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		if err := img.SetManifest(m); err != nil {
			t.Fatal(err)
		}
		return img
	}
	fault := func(kind int, change func([]byte) []byte) func(t *testing.T) oci.Source {
		return func(t *testing.T) oci.Source {
			t.Helper()
			img := bootable(t)
			s := &ocitest.Source{Image: img}
			s.Fault = func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
				if d.Digest != append([]v1.Descriptor{{Digest: digest.FromBytes(img.Config)}}, img.Layers...)[kind].Digest {
					return r, nil
				}
				b, err := io.ReadAll(r)
				return bytes.NewReader(change(bytes.Clone(b))), err
			}
			return s
		}
	}
	const config, base, top = 0, 1, 2
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	grow := func(b []byte) []byte { return append(b, "more"...) }
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	image := func(s ocitest.Spec) func(t *testing.T) oci.Source {
		return func(t *testing.T) oci.Source { t.Helper(); return &ocitest.Source{Image: build(t, s)} }
	}
	layers := func(ls ...ocitest.Layer) func(t *testing.T) oci.Source { return image(ocitest.Spec{Layers: ls}) }
	edited := func(change func(m *v1.Manifest)) func(t *testing.T) oci.Source {
		return func(t *testing.T) oci.Source {
			t.Helper()
			return &ocitest.Source{Image: edit(t, bootable(t), change)}
		}
	}
	without := func(name string) ocitest.Layer {
		var kept []string
		for _, line := range strings.SplitAfter(osLayer("").Dump, "\n") {
			if !strings.HasPrefix(line, "/"+name+" ") && !strings.HasPrefix(line, "/"+name+"/") {
				kept = append(kept, line)
			}
		}
		return ocitest.Layer{Dump: strings.Join(kept, "")}
	}
	const selinux = "/etc/selinux 0 40755 2 0 0 0 1.0 - - -\n/etc/selinux/config 14 100644 1 0 0 0 1.0 - SELINUXTYPE=t\\n -\n/etc/selinux/t 0 40755 2 0 0 0 1.0 - - -\n" +
		"/etc/selinux/t/contexts 0 40755 2 0 0 0 1.0 - - -\n/etc/selinux/t/contexts/files 0 40755 2 0 0 0 1.0 - - -\n"
	policy := func(contexts string) func(t *testing.T) oci.Source {
		return layers(osLayer(fmt.Sprintf("%s/etc/selinux/t/contexts/files/file_contexts %s -\n", selinux, contexts)))
	}
	for _, tc := range []struct {
		name string
		src  func(t *testing.T) oci.Source
		want any
		text string
	}{
		{"config cut", fault(config, cut), new(*oci.DigestError), "config of test:image sha256:"},
		{"config grown", fault(config, grow), new(*oci.DigestError), "at least"},
		{"config changed", fault(config, flip), new(*oci.DigestError), "config of test:image: got digest"},
		{"layer cut", fault(base, cut), new(*oci.DigestError), "layer 1 of 2"},
		{"layer grown", fault(base, grow), new(*oci.DigestError), "layer 1 of 2"},
		{"layer changed", fault(top, flip), nil, "layer 2 of 2"},
		{"layer empty", fault(top, func([]byte) []byte { return nil }), new(*oci.DigestError), "got 0 bytes"},
		{"false diff_id", layers(ocitest.Layer{Dump: osLayer("").Dump, DiffID: digest.FromString("x")}), new(*oci.DigestError), "uncompressed layer"},
		{"layer of another media type", layers(ocitest.Layer{Dump: osLayer("").Dump, MediaType: "application/vnd.example"}), new(*oci.MediaTypeError), "application/vnd.example"},
		{"layer that is no tar", layers(ocitest.Layer{Tar: bytes.Repeat([]byte("no tar "), 1000)}), new(*oci.FormatError), "invalid tar header"},
		{"layer with .. in a name", layers(osLayer(""), tarLayer(t, tar.Header{Name: "usr/../../etc/passwd", Typeflag: tar.TypeReg})), new(*oci.FormatError), `entry "usr/../../etc/passwd"`},
		{"layer with a sparse member", layers(osLayer(""), tarLayer(t, tar.Header{Name: "usr/big", Typeflag: tar.TypeGNUSparse, Format: tar.FormatGNU})), new(*oci.FormatError), "sparse"},
		{"symbolic link with a long target", layers(osLayer(""), linkLayer(t, strings.Repeat("t", 5000))), new(*oci.FormatError), `target of "/usr/l": 5000 bytes`},
		{"config size differs", edited(func(m *v1.Manifest) { m.Config.Size++ }), new(*oci.DigestError), "bytes"},
		{"config too large", edited(func(m *v1.Manifest) { m.Config.Size = 1 << 40 }), new(*oci.FormatError), "limit"},
		{"layer larger than the disk", edited(func(m *v1.Manifest) { m.Layers[1].Size = 1 << 60 }), new(*durable.SpaceError), "no space"},
		{"layers whose sizes overflow", edited(func(m *v1.Manifest) { m.Layers[0].Size, m.Layers[1].Size = 1<<63-1, 1<<63-1 }), new(*durable.SpaceError), "no space"},
		{"fewer layers than diff_ids", edited(func(m *v1.Manifest) { m.Layers = m.Layers[:1] }), new(*oci.FormatError), "2 diff_ids for 1 layers"},
		{"layers in another order", edited(func(m *v1.Manifest) { m.Layers[0], m.Layers[1] = m.Layers[1], m.Layers[0] }), new(*oci.DigestError), "uncompressed layer"},
		{"artifact", edited(func(m *v1.Manifest) { m.Config.MediaType = v1.MediaTypeEmptyJSON }), new(*oci.MediaTypeError), "a container image"},
		{"another architecture", image(ocitest.Spec{Layers: []ocitest.Layer{osLayer("")}, Platform: v1.Platform{OS: "linux", Architecture: "riscv64"}}), new(*oci.PlatformError), "is not for linux/amd64, but for linux/riscv64"},
		{"another system", image(ocitest.Spec{Layers: []ocitest.Layer{osLayer("")}, Platform: v1.Platform{OS: "windows", Architecture: "amd64"}}), new(*oci.PlatformError), "windows/amd64"},
		{"no /usr", layers(without("usr")), new(*tree.RequiredError), "/usr"},
		{"no /boot", layers(without("boot")), new(*tree.RequiredError), "/boot"},
		{"no /sysroot", layers(without("sysroot")), new(*tree.RequiredError), "/sysroot"},
		{"aboot", layers(osLayer("/boot/aboot-6.1.img 1 100644 1 0 0 0 0.0 - x -\n")), new(*bootimage.ResourceError), "/boot/aboot-6.1.img: aboot images are not supported"},
		{"policy without file_contexts", layers(osLayer(selinux)), new(*bootimage.FileError), "/etc/selinux/t/contexts/files/file_contexts of the image: file does not exist"},
		{"policy with a bad type letter", policy("7 100644 1 0 0 0 1.0 - /a\\x20-x\\x20b"), new(*bootimage.SELinuxError), `file_contexts line 1, column 4: file type "-x"`},
		{"policy with a bad expression", policy("5 100644 1 0 0 0 1.0 - /(a\\x20b"), new(*bootimage.SELinuxError), "line 1, column 2: bad expression: a ( without its )"},
		{"policy with a large expression", policy("21 100644 1 0 0 0 1.0 - (((a{99}){99}){99})\\x20b"), new(*bootimage.SELinuxError), "more than 20000 instructions"},
		{"policy in a link", policy("1 120777 1 0 0 0 1.0 x -"), new(*bootimage.FileError), "a symlink, want a regular file"},
		{"/boot is a file", layers(without("boot"), ocitest.Layer{Dump: "/ 4096 40755 2 0 0 0 0.0 - - -\n/boot 1 100644 1 0 0 0 0.0 - x -\n"}), new(*tree.RequiredError), "/boot"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := repotest.New(t, fsverity.SHA256)
			src := tc.src(t)
			res, err := pull.Pull(t.Context(), r, src, options("img", true))
			if err == nil {
				t.Fatalf("accepted: %+v", res)
			}
			t.Log(err)
			if tc.want != nil && !errors.As(err, tc.want) {
				t.Errorf("got %v (%T), want %T", err, err, tc.want)
			}
			if !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, tc.text)
			}
			noImageNames(t, r)
			repotest.Check(t, r)
		})
	}
}

// TestMetadataLimit: layers that are small one by one do not take all memory
// together, nor does one that is listed again and again.
func TestMetadataLimit(t *testing.T) {
	layer := osLayer("")
	for name, spec := range map[string]ocitest.Spec{
		"different": {Layers: []ocitest.Layer{layer, topLayer(t, "a", "x"), topLayer(t, "b", "x"), topLayer(t, "c", "x")}},
		"the same":  {Layers: slices.Repeat([]ocitest.Layer{layer}, 4)},
	} {
		for limit, ok := range map[int64]bool{4000: false, 20_000: true} {
			restore := pull.SetMaxMetadata(limit)
			r := repotest.New(t, fsverity.SHA256)
			_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: build(t, spec)}, options("img", false))
			restore()
			var f *oci.FormatError
			if ok != (err == nil) || !ok && (!errors.As(err, &f) || !strings.Contains(err.Error(), "more than 4000 bytes")) {
				t.Errorf("%s, limit %d: got %v", name, limit, err)
			}
			if !ok {
				noImageNames(t, r)
			}
		}
	}
}

func TestStatsText(t *testing.T) {
	t.Parallel()
	for s, want := range map[pull.Stats]string{
		{ObjectsNew: 42, ObjectsPresent: 100, BytesNew: 1500000, BytesInlined: 800}: "42 new + 100 already present objects; 1.43 MiB stored, 800 B inlined",
		{}: "0 new + 0 already present objects; 0 B stored, 0 B inlined",
	} {
		if got := s.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// noImageNames: after a failed pull only complete layers have names.
func noImageNames(t *testing.T, r *repo.Repository) {
	t.Helper()
	for _, kind := range []repo.Kind{repo.Images, repo.Streams} {
		names, err := os.ReadDir(filepath.Join(r.Path(), kind.String()))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range names {
			name := e.Name()
			if name == "refs" {
				continue
			}
			diffID, ok := strings.CutPrefix(name, "oci-layer-")
			if !ok {
				t.Errorf("%s/%s was published", kind, name)
				continue
			}
			id, err := r.LookupStream(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := oci.VerifyLayer(t.Context(), r, digest.Digest(diffID), id); err != nil {
				t.Errorf("published layer: %v", err)
			}
		}
		for ref, err := range r.Refs(kind, "") {
			t.Errorf("ref %s of %s was published (%v)", ref.Name, kind, err)
		}
	}
}

// TestNothingIsFetchedInVain: what can be refused before the source is asked is.
func TestNothingIsFetchedInVain(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	for _, tc := range []struct {
		name string
		make func(t *testing.T) (*repo.Repository, pull.Options)
		want any
	}{
		{"bad tag", func(t *testing.T) (*repo.Repository, pull.Options) {
			t.Helper()
			return repotest.New(t, fsverity.SHA256), options("@x", false)
		}, nil},
		{"unknown feature", func(t *testing.T) (*repo.Repository, pull.Options) {
			t.Helper()
			dir := t.TempDir()
			meta := `{"version":1,"algorithm":"fsverity-sha256-12","features":{"read-only-compatible":["v1_erofs","future"]},"erofs_formats":{"default":1}}`
			if err := os.WriteFile(filepath.Join(dir, "meta.json"), []byte(meta), 0o644); err != nil {
				t.Fatal(err)
			}
			return openDir(t, dir), options("a", false)
		}, new(*repo.FeatureError)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, o := tc.make(t)
			src := &flaky{Source: ocitest.Source{Image: img}}
			_, err := pull.Pull(t.Context(), r, src, o)
			if err == nil || (tc.want != nil && !errors.As(err, tc.want)) {
				t.Errorf("got %v, want %T", err, tc.want)
			}
			if src.resolved != 0 {
				t.Error("the source was asked")
			}
		})
	}
}

func openDir(t *testing.T, path string) *repo.Repository {
	t.Helper()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return repotest.Open(t, dir)
}

// TestPolicyDecides: a refused image has no name and moves no tag.
func TestPolicyDecides(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	img := bootable(t)
	first, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("os", true))
	if err != nil {
		t.Fatal(err)
	}
	boot, _ := first.Verified.Digest(keyring.Boot)
	other := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), topLayer(t, "prog", "other")}})
	for name, policy := range map[string]keyring.Policy{"other pin": keyring.Pinned{Digests: []fsverity.Digest{boot}}, "no pin": keyring.Pinned{}, "no policy": nil} {
		for _, what := range []*ocitest.Image{other, img} { // not stored yet, and stored
			if what == img && name == "other pin" {
				continue
			}
			o := options("os", true)
			o.Policy = policy
			_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: what}, o)
			var p *keyring.PolicyError
			if !errors.As(err, &p) {
				t.Errorf("%s: %v, want a *keyring.PolicyError", name, err)
			}
		}
	}
	if d, err := oci.Resolve(r, "os"); err != nil || d != first.ManifestDigest {
		t.Errorf("the tag moved to %s, %v", d, err)
	}
	if exists(t, r, "streams/"+oci.ManifestStream(other.Descriptor.Digest)) {
		t.Error("the refused image has a name")
	}
	o := options("os", true)
	o.Policy = keyring.Pinned{Digests: []fsverity.Digest{boot}}
	res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, o)
	if err != nil || res.Verified.Rule() != "pinned" {
		t.Errorf("the pinned image: %v, %v", res, err)
	}
}

// TestInterruptedPull: what was complete is not fetched again.
func TestInterruptedPull(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	r := repotest.New(t, fsverity.SHA256)
	broken := errors.New("cable")
	src := &ocitest.Source{Image: img, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		if d.Digest == img.Layers[0].Digest { // the smaller one, so it comes last
			return nil, broken
		}
		return r, nil
	}}
	o := options("os", true)
	o.Parallel = 1
	if img.Layers[0].Size > img.Layers[1].Size {
		t.Fatal("the test needs a larger top layer")
	}
	if _, err := pull.Pull(t.Context(), r, src, o); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	noImageNames(t, r)
	src.Fault = nil
	res, err := pull.Pull(t.Context(), r, src, o)
	if err != nil {
		t.Fatal(err)
	}
	if n := src.Reads(img.Layers[1].Digest); n != 1 || res.Stats.LayersFetched != 1 || res.Stats.LayersPresent != 1 {
		t.Errorf("the complete layer was read %d times; %+v", n, res.Stats)
	}
	repotest.Check(t, r)
}

// TestCompleteLayersGetNames: in a long pull a layer has its name while the next
// one is fetched, so that a killed process need not begin again.
func TestCompleteLayersGetNames(t *testing.T) {
	defer pull.SetPublishInterval(0)()
	img := bootable(t)
	r := repotest.New(t, fsverity.SHA256)
	seen := false
	src := &ocitest.Source{Image: img, Fault: func(d v1.Descriptor, rd io.Reader) (io.Reader, error) {
		if d.Digest == img.Layers[0].Digest { // comes last
			_, err := r.LookupStream(oci.LayerStream(img.DiffIDs[1]))
			seen = err == nil
		}
		return rd, nil
	}}
	o := options("os", true)
	o.Parallel = 1
	if _, err := pull.Pull(t.Context(), r, src, o); err != nil || !seen {
		t.Errorf("the first layer had its name: %v; %v", seen, err)
	}
}

// TestPullsAtTheSameTime: several handles on one repository, as of several
// processes, the same image and others.
func TestPullsAtTheSameTime(t *testing.T) {
	t.Parallel()
	path := t.TempDir()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	repotest.NewIn(t, dir, fsverity.SHA256)
	images := []*ocitest.Image{bootable(t), bootable(t), build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), topLayer(t, "prog", strings.Repeat("other ", 99))}})}
	var g errgroup.Group
	for i := range 6 {
		r := openDir(t, path)
		g.Go(func() error {
			_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: images[i%3]}, options(fmt.Sprintf("os-%d", i), i%2 == 0))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	r := openDir(t, path)
	list, problems, err := oci.Images(t.Context(), r)
	if err != nil || len(list) != 6 || len(problems) != 0 {
		t.Errorf("%d images, problems %v, %v", len(list), problems, err)
	}
	repotest.Check(t, r)
}

func TestCancelledPull(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	r := repotest.New(t, fsverity.SHA256)
	ctx, cancel := context.WithCancel(t.Context())
	src := &ocitest.Source{Image: img, Fault: func(_ v1.Descriptor, r io.Reader) (io.Reader, error) {
		return io.MultiReader(io.LimitReader(r, 50), readerFunc(func([]byte) (int, error) {
			cancel()
			<-ctx.Done()
			return 0, ctx.Err()
		})), nil
	}}
	src.Fault = func(fault func(v1.Descriptor, io.Reader) (io.Reader, error)) func(v1.Descriptor, io.Reader) (io.Reader, error) {
		return func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
			if d.Digest == digest.FromBytes(img.Config) {
				return r, nil
			}
			return fault(d, r)
		}
	}(src.Fault)
	if _, err := pull.Pull(ctx, r, src, options("os", true)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	noImageNames(t, r)
	repotest.Check(t, r)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestManyLayersInParallel also gives the race detector something to look at.
func TestManyLayersInParallel(t *testing.T) {
	t.Parallel()
	spec := ocitest.Spec{Layers: []ocitest.Layer{osLayer("")}}
	for i := range 12 {
		spec.Layers = append(spec.Layers, topLayer(t, fmt.Sprintf("f%d", i%5), strings.Repeat(fmt.Sprintf("%d ", i), 200+i)))
	}
	img := build(t, spec)
	var want fsverity.Digest
	for _, parallel := range []int{1, 4, 20} {
		r := repotest.New(t, fsverity.SHA512)
		o := options("a", true)
		o.Parallel = parallel
		res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, o)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := res.Verified.Digest(keyring.Boot)
		if want.IsZero() {
			want = got
		}
		if got != want {
			t.Errorf("%d at a time: %s, want %s", parallel, got, want)
		}
	}
}
