package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// store imports an image as a pull does, with the given EROFS images.
func store(t *testing.T, r *repo.Repository, in *ocitest.Image, images map[string]fsverity.Digest) *oci.Image {
	t.Helper()
	img := &oci.Image{ManifestDigest: in.Descriptor.Digest, ManifestJSON: in.Manifest, ConfigDigest: digest.FromBytes(in.Config), ConfigJSON: in.Config, Images: images}
	layers, err := importAll(t, r, in.Blobs, in.Layers, in.DiffIDs)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		if err := oci.PublishLayer(t.Context(), r, l); err != nil {
			t.Fatal(err)
		}
		img.Layers = append(img.Layers, oci.LayerRef{DiffID: l.DiffID, Stream: l.Stream})
	}
	if err := oci.StoreImage(t.Context(), r, img); err != nil {
		t.Fatal(err)
	}
	if err := oci.PublishImage(t.Context(), r, img); err != nil {
		t.Fatal(err)
	}
	return img
}

const tinyDump = `/ 4096 40755 2 0 0 0 0.0 - - -
/usr 4096 40755 2 0 0 0 1700000000.0 - - -
/usr/a 6 100644 1 0 0 0 1700000000.0 - hello\n -
`

func tiny(t *testing.T, s ocitest.Spec) *ocitest.Image {
	t.Helper()
	if len(s.Layers) == 0 {
		s.Layers = []ocitest.Layer{{Dump: tinyDump, Compression: ocitest.Gzip}}
	}
	img, err := ocitest.Build(s)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func put(t *testing.T, r *repo.Repository, s string) fsverity.Digest {
	t.Helper()
	d, err := r.PutObject(t.Context(), []byte(s))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStoreAndOpen(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA512)
	in := tiny(t, ocitest.Spec{Layers: []ocitest.Layer{{Dump: tinyDump}, {Dump: tinyDump, Compression: ocitest.Gzip}}, Labels: map[string]string{v1.AnnotationVersion: "7"}})
	images := map[string]fsverity.Digest{
		"composefs.image.v1": put(t, r, "plain"), "composefs.image.boot.v1": put(t, r, "boot"), "composefs.image": put(t, r, "v2"),
		"composefs.image.boot.v1.xattrs=keep-user-xattrs": put(t, r, "other"),
	}
	want := store(t, r, in, images)
	got, err := oci.OpenImage(t.Context(), r, in.Descriptor.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Layers, got.Layers, cmp.Comparer(func(a, b fsverity.Digest) bool { return a == b })); d != "" {
		t.Errorf("layers mismatch (-want +got):\n%s", d)
	}
	if len(got.Images) != 4 || got.Images["composefs.image.v1"] != images["composefs.image.v1"] {
		t.Errorf("images %v, want %v", got.Images, images)
	}
	if plain, boot := got.Default(r); plain != images["composefs.image.v1"] || boot != images["composefs.image.boot.v1"] {
		t.Errorf("default images %s and %s", plain, boot)
	}
	if got.Version() != "7" || !bytes.Equal(got.ConfigJSON, in.Config) || !bytes.Equal(got.ManifestJSON, in.Manifest) {
		t.Errorf("opened %+v", got)
	}
	kept, err := oci.ConfigImages(t.Context(), r, got.ConfigDigest)
	if err != nil || len(kept) != 4 {
		t.Errorf("ConfigImages: %v, %v", kept, err)
	}
	if kept, err := oci.ConfigImages(t.Context(), r, digest.FromString("x")); err != nil || kept != nil {
		t.Errorf("ConfigImages of a missing config: %v, %v", kept, err)
	}
	// Both documents are one external object, whatever their size.
	for _, id := range []fsverity.Digest{got.ConfigStream, got.ManifestStream} {
		s, err := r.OpenAnyStreamByID(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if s.Objects() != 1 {
			t.Errorf("%d objects in a %s stream, want 1", s.Objects(), s.ContentType())
		}
		s.Close()
	}
	repotest.Check(t, r)
}

// TestOddJSONIsKept: documents are stored byte for byte.
func TestOddJSONIsKept(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	in := tiny(t, ocitest.Spec{})
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, in.Config, " ", "\t"); err != nil {
		t.Fatal(err)
	}
	if err := in.SetConfig(append(bytes.Replace(pretty.Bytes(), []byte("{"), []byte(`{"zzz": [1.0, "\u0041"],`), 1), "\n\n"...)); err != nil {
		t.Fatal(err)
	}
	store(t, r, in, nil)
	img, err := oci.OpenImage(t.Context(), r, in.Descriptor.Digest)
	if err != nil || !bytes.Equal(img.ConfigJSON, in.Config) {
		t.Errorf("config %q, %v", img.ConfigJSON, err)
	}
	store(t, r, in, map[string]fsverity.Digest{"composefs.image.v1": put(t, r, "x")}) // the rewrite
	img, err = oci.OpenImage(t.Context(), r, in.Descriptor.Digest)
	if err != nil || !bytes.Equal(img.ConfigJSON, in.Config) || !bytes.Equal(img.ManifestJSON, in.Manifest) || len(img.Images) != 1 {
		t.Errorf("after the rewrite: config %q, %d images, %v", img.ConfigJSON, len(img.Images), err)
	}
}

func TestOpenImageErrors(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	in := tiny(t, ocitest.Spec{})
	img := store(t, r, in, nil)
	publish := func(name string, ct splitstream.ContentType, body string, refs ...splitstream.NamedRef) {
		t.Helper()
		w, err := r.NewStream(t.Context(), ct)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range refs {
			if err := w.Named(n.Name, n.Digest); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.External(put(t, r, body), int64(len(body))); err != nil {
			t.Fatal(err)
		}
		id, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.PublishStream(t.Context(), name, id); err != nil {
			t.Fatal(err)
		}
	}
	open := func(d digest.Digest) error {
		_, err := oci.OpenImage(t.Context(), r, d)
		return err
	}
	var format *oci.FormatError
	var wrong *oci.DigestError
	var kind *oci.MediaTypeError
	var stream *splitstream.FormatError

	if err := open(digest.FromString("nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
	if err := open("sha256:short"); !errors.As(err, &format) {
		t.Errorf("malformed digest: %v", err)
	}
	other := digest.FromString("other")
	publish(oci.ManifestStream(other), splitstream.Manifest, string(in.Manifest))
	if err := open(other); !errors.As(err, &wrong) || wrong.Want != other {
		t.Errorf("manifest under another digest: %v", err)
	}
	publish(oci.ManifestStream(other), splitstream.Config, string(in.Manifest))
	if err := open(other); !errors.As(err, &stream) {
		t.Errorf("manifest of another content type: %v", err)
	}
	d := in.Descriptor.Digest
	publish(oci.ManifestStream(d), splitstream.Manifest, string(in.Manifest))
	if err := open(d); !errors.As(err, &format) || !strings.Contains(err.Error(), "no reference to its config") {
		t.Errorf("manifest without config: %v", err)
	}
	config := splitstream.NamedRef{Name: "config:" + img.ConfigDigest.String(), Digest: img.Layers[0].Stream}
	publish(oci.ManifestStream(d), splitstream.Manifest, string(in.Manifest), config)
	if err := open(d); !errors.As(err, &stream) {
		t.Errorf("layer in place of the config: %v", err)
	}
	publish("x", splitstream.Config, string(in.Config))
	id, err := r.LookupStream("x")
	if err != nil {
		t.Fatal(err)
	}
	config.Digest = id
	publish(oci.ManifestStream(d), splitstream.Manifest, string(in.Manifest), config)
	if err := open(d); !errors.As(err, &format) || !strings.Contains(err.Error(), "no reference to layer") {
		t.Errorf("config without layers: %v", err)
	}
	artifact := `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`
	publish(oci.ManifestStream(digest.FromString(artifact)), splitstream.Manifest, artifact)
	if err := open(digest.FromString(artifact)); !errors.As(err, &kind) {
		t.Errorf("artifact: %v", err)
	}
}

func TestParseManifestAndConfig(t *testing.T) {
	t.Parallel()
	good := tiny(t, ocitest.Spec{Layers: []ocitest.Layer{{Dump: tinyDump}, {Dump: tinyDump, MediaType: "application/vnd.docker.image.rootfs.diff.tar.gzip"}}})
	edit := func(change func(m *v1.Manifest)) []byte {
		var m v1.Manifest
		if err := json.Unmarshal(good.Manifest, &m); err != nil {
			t.Fatal(err)
		}
		change(&m)
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	m, err := oci.ParseManifest("manifest", good.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.ParseManifest("manifest", edit(func(m *v1.Manifest) { m.MediaType = "" })); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		b    []byte
		want any
	}{
		"no JSON":          {[]byte("x"), new(*oci.FormatError)},
		"index":            {edit(func(m *v1.Manifest) { m.MediaType = v1.MediaTypeImageIndex }), new(*oci.MediaTypeError)},
		"schema 1":         {edit(func(m *v1.Manifest) { m.SchemaVersion = 1 }), new(*oci.FormatError)},
		"artifact":         {edit(func(m *v1.Manifest) { m.Config.MediaType = v1.MediaTypeEmptyJSON }), new(*oci.MediaTypeError)},
		"no layers":        {edit(func(m *v1.Manifest) { m.Layers = nil }), new(*oci.FormatError)},
		"layer media type": {edit(func(m *v1.Manifest) { m.Layers[1].MediaType = "application/json" }), new(*oci.MediaTypeError)},
		"encrypted layer":  {edit(func(m *v1.Manifest) { m.Layers[1].MediaType = v1.MediaTypeImageLayerGzip + "+encrypted" }), new(*oci.MediaTypeError)},
		"layer digest":     {edit(func(m *v1.Manifest) { m.Layers[1].Digest = "sha256:x" }), new(*oci.FormatError)},
		"layer size":       {edit(func(m *v1.Manifest) { m.Layers[1].Size = -1 }), new(*oci.FormatError)},
		"config digest":    {edit(func(m *v1.Manifest) { m.Config.Digest = "md5:00" }), new(*oci.FormatError)},
	} {
		if _, err := oci.ParseManifest("manifest", tc.b); !errors.As(err, tc.want) {
			t.Errorf("%s: got %v, want %T", name, err, tc.want)
		}
	}
	if _, err := oci.ParseConfig("config", good.Config, &m); err != nil {
		t.Error(err)
	}
	for name, s := range map[string]string{
		"no JSON": "x", "no rootfs": "{}", "other type": `{"rootfs":{"type":"x","diff_ids":["` + good.DiffIDs[0].String() + `","` + good.DiffIDs[1].String() + `"]}}`,
		"too few": `{"rootfs":{"type":"layers","diff_ids":["` + good.DiffIDs[0].String() + `"]}}`, "bad": `{"rootfs":{"type":"layers","diff_ids":["a","b"]}}`,
	} {
		var f *oci.FormatError
		if _, err := oci.ParseConfig("config", []byte(s), &m); !errors.As(err, &f) {
			t.Errorf("config with %s: %v", name, err)
		}
	}
}

func TestTagNames(t *testing.T) {
	t.Parallel()
	for tag, file := range map[string]string{
		"myimage:latest": "myimage:latest", "library/nginx": "library%2Fnginx", "docker://busybox": "docker:%2F%2Fbusybox", "test%2F": "test%252F",
		"localhost/bootc-sha256:abc": "localhost%2Fbootc-sha256:abc", "weird%name/with/slashes": "weird%25name%2Fwith%2Fslashes",
		"a/b%c": "a%2Fb%25c", "100%": "100%25", "%25already-encoded": "%2525already-encoded", "double%%percent": "double%25%25percent", "%2F": "%252F",
	} {
		if got := oci.EncodeTag(tag); got != file {
			t.Errorf("EncodeTag(%q) = %q, want %q", tag, got, file)
		}
		if got := oci.DecodeTag(file); got != tag {
			t.Errorf("DecodeTag(%q) = %q, want %q", file, got, tag)
		}
		if err := oci.CheckTag(tag); err != nil {
			t.Error(err)
		}
	}
	if got := oci.DecodeTag("a%3Ab%2fc%"); got != "a%3Ab%2fc%" {
		t.Errorf("unknown escapes became %q", got)
	}
	for _, tag := range []string{"", ".", "..", "@x", "a\x00b", strings.Repeat("x", 256), strings.Repeat("/", 86)} {
		if err := oci.CheckTag(tag); err == nil {
			t.Errorf("tag %q is accepted", tag)
		}
	}
}

func TestTags(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	in := tiny(t, ocitest.Spec{})
	img := store(t, r, in, nil)
	d := img.ManifestDigest
	if err := oci.Tag(t.Context(), r, digest.FromString("missing"), "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("tagging a missing manifest: %v", err)
	}
	if _, err := oci.Resolve(r, "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a failed tag is there: %v", err)
	}
	if err := oci.Tag(t.Context(), r, d, "quay.io/x/os:1"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"quay.io/x/os:1", "@" + d.String()} {
		if got, err := oci.Resolve(r, name); err != nil || got != d {
			t.Errorf("%s is %s, %v", name, got, err)
		}
	}
	if _, err := oci.Resolve(r, "@sha256:1"); err == nil {
		t.Error("a malformed digest resolves")
	}
	// A damaged tag is a problem of its own, the others are listed.
	if err := os.Symlink("../../oci-layer-"+in.DiffIDs[0].String(), filepath.Join(r.Path(), "streams/refs/oci/broken")); err != nil {
		t.Fatal(err)
	}
	list, problems, err := oci.Images(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != "quay.io/x/os:1" || list[0].ManifestDigest != d || !list[0].IsContainer || list[0].LayerCount != 1 || list[0].Architecture != "amd64" {
		t.Errorf("images %+v", list)
	}
	if len(problems) != 1 || problems[0].Name != "broken" {
		t.Errorf("problems %+v", problems)
	}
}

// TestJSONNames: scripts written for cfsctl find its keys.
func TestJSONNames(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	in := tiny(t, ocitest.Spec{Labels: map[string]string{v1.AnnotationVersion: "42"}})
	plain := put(t, r, "plain")
	img := store(t, r, in, map[string]fsverity.Digest{oci.ImageKey(erofs.V1): plain})
	if err := oci.Tag(t.Context(), r, img.ManifestDigest, "a"); err != nil {
		t.Fatal(err)
	}
	keys := func(v any) map[string]any {
		t.Helper()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	list, _, err := oci.Images(t.Context(), r)
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	got := keys(list[0])
	for key, want := range map[string]any{
		"name": "a", "manifest_digest": img.ManifestDigest.String(), "is_container": true, "architecture": "amd64", "os": "linux",
		"created": "", "layer_count": 1.0, "referrer_count": 0.0, "version": "42", "composefs_erofs": plain.Hex(), "composefs_boot_erofs": "",
	} {
		if fmt.Sprint(got[key]) != fmt.Sprint(want) {
			t.Errorf("images: %s is %v, want %v", key, got[key], want)
		}
	}
	ins, err := oci.Inspect(t.Context(), r, "a")
	if err != nil {
		t.Fatal(err)
	}
	got = keys(ins)
	for key, want := range map[string]any{
		"manifest": string(in.Manifest), "config": string(in.Config), "referrers": []any{}, "composefs_erofs": plain.Hex(), "composefs_boot_erofs": nil,
		"schema": "cfsboot.oci-inspect/1", "config_digest": img.ConfigDigest.String(), "images": map[string]any{"composefs.image.v1": plain.Hex()},
	} {
		if d := cmp.Diff(want, got[key]); d != "" {
			t.Errorf("inspect: %s mismatch (-want +got):\n%s", key, d)
		}
	}
	if len(ins.Layers) != 1 || !ins.Layers[0].Verified || ins.Layers[0].DiffID != in.DiffIDs[0] || ins.Layers[0].Size != in.Layers[0].Size {
		t.Errorf("layers %+v", ins.Layers)
	}
}

func TestReferrers(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	subject, a := tiny(t, ocitest.Spec{}), tiny(t, ocitest.Spec{Annotations: map[string]string{"a": "1"}})
	store(t, r, subject, nil)
	store(t, r, a, nil)
	s, ad := subject.Descriptor.Digest, a.Descriptor.Digest
	gone := digest.FromString("gone")
	dir := filepath.Join(r.Path(), "streams/refs/oci-referrers", s.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]digest.Digest{ad.String(): ad, gone.String(): gone, digest.FromString("disagrees").String(): ad} {
		if err := os.Symlink("../../../oci-manifest-"+target.String(), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := oci.Referrers(r, s)
	if err != nil || len(got) != 1 || got[0] != ad {
		t.Errorf("referrers %v, %v", got, err)
	}
	if got, err := oci.Referrers(r, ad); err != nil || got == nil || len(got) != 0 {
		t.Errorf("no referrers: %v, %v", got, err)
	}
}

// FuzzDocuments: manifests and configs from outside never panic, and what is
// accepted is consistent.
func FuzzDocuments(f *testing.F) {
	in, err := ocitest.Build(ocitest.Spec{Layers: []ocitest.Layer{{Dump: tinyDump}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(in.Manifest, in.Config)
	f.Add([]byte(`{"schemaVersion":2,"layers":[{}]}`), []byte(`{"rootfs":null}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		m, err := oci.ParseManifest("m", manifest)
		if err != nil {
			return
		}
		c, err := oci.ParseConfig("c", config, &m)
		if err != nil {
			return
		}
		if len(c.RootFS.DiffIDs) != len(m.Layers) || len(m.Layers) == 0 {
			t.Errorf("%d diff_ids, %d layers", len(c.RootFS.DiffIDs), len(m.Layers))
		}
	})
}
