package remote_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
)

// layoutDir is an OCI layout being written.
type layoutDir struct {
	t   *testing.T
	dir string
}

func newLayout(t *testing.T) *layoutDir {
	t.Helper()
	l := &layoutDir{t, t.TempDir()}
	if err := os.MkdirAll(filepath.Join(l.dir, "blobs/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *layoutDir) path(d v1.Descriptor) string {
	return filepath.Join(l.dir, "blobs/sha256", d.Digest.Encoded())
}

func (l *layoutDir) blob(mediaType string, b []byte) v1.Descriptor {
	l.t.Helper()
	d := describe(mediaType, b)
	if err := os.WriteFile(l.path(d), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
	return d
}

func (l *layoutDir) image(p v1.Platform) v1.Descriptor {
	l.t.Helper()
	config := mustJSON(l.t, v1.Image{Platform: p, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(big)}}})
	return l.blob(v1.MediaTypeImageManifest, mustJSON(l.t, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: l.blob(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{l.blob(v1.MediaTypeImageLayer, big)},
	}))
}

func (l *layoutDir) index(ds ...v1.Descriptor) {
	l.t.Helper()
	b := mustJSON(l.t, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: ds})
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), b, 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func tagged(d v1.Descriptor, tag string, p *v1.Platform) v1.Descriptor {
	d.Annotations, d.Platform = map[string]string{v1.AnnotationRefName: tag}, p
	return d
}

func (l *layoutDir) pull(suffix string) (oci.Resolved, error) {
	l.t.Helper()
	s := open(l.t, "oci:"+l.dir+suffix, remote.Options{Platform: amd64})
	return pull(l.t.Context(), s)
}

var arm64 = v1.Platform{OS: "linux", Architecture: "arm64"}

func TestLayout(t *testing.T) {
	t.Parallel()
	l := newLayout(t)
	a, b := l.image(amd64), l.image(arm64)
	nested := l.blob(v1.MediaTypeImageIndex, mustJSON(t, v1.Index{Manifests: []v1.Descriptor{tagged(b, "", &arm64), tagged(a, "", &amd64)}}))
	twice := l.blob(v1.MediaTypeImageIndex, mustJSON(t, v1.Index{Manifests: []v1.Descriptor{nested}}))
	artifact := l.blob(v1.MediaTypeImageManifest, mustJSON(t, v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, Config: l.blob(v1.MediaTypeEmptyJSON, []byte("{}")), Layers: []v1.Descriptor{},
	}))
	for _, tc := range []struct {
		name, suffix string
		index        []v1.Descriptor
		want         digest.Digest
		nested       bool
		err          any
		text         string
	}{
		{name: "single, no tag", index: []v1.Descriptor{a}, want: a.Digest},
		{name: "tag given", suffix: ":v1", index: []v1.Descriptor{tagged(b, "v0", nil), tagged(a, "v1", nil)}, want: a.Digest},
		{name: "tag missing", suffix: ":v2", index: []v1.Descriptor{tagged(a, "v1", nil), tagged(b, "v1", nil), a, tagged(b, "v3", nil)}, err: new(*remote.LayoutError), text: `no image is tagged "v2"; there are: "v1", "v3"`},
		{name: "several tags, none given", index: []v1.Descriptor{tagged(a, "v1", nil), tagged(b, "v2", nil), tagged(l.image(v1.Platform{OS: "linux", Architecture: "amd64", Variant: "v2"}), "v3", nil)}, err: new(*remote.LayoutError), text: `name the tag of one; there are: "v1", "v2", "v3"`},
		{name: "several tags of one image", index: []v1.Descriptor{tagged(a, "v1", nil), tagged(a, "v2", nil)}, want: a.Digest},
		{name: "several tags, one for the platform", index: []v1.Descriptor{tagged(b, "arm", &arm64), tagged(a, "amd", &amd64)}, want: a.Digest},
		{name: "platform in the descriptor", index: []v1.Descriptor{tagged(b, "", &arm64), tagged(a, "", &amd64)}, want: a.Digest},
		{name: "platform from the config", index: []v1.Descriptor{b, a}, want: a.Digest},
		{name: "other platform only", index: []v1.Descriptor{b}, err: new(*oci.PlatformError), text: "linux/arm64"},
		{name: "index as the only entry", index: []v1.Descriptor{nested}, want: a.Digest, nested: true},
		{name: "index under a tag", suffix: ":m", index: []v1.Descriptor{tagged(b, "x", nil), tagged(nested, "m", nil)}, want: a.Digest, nested: true},
		{name: "index in an index", index: []v1.Descriptor{twice}, err: new(*oci.FormatError), text: "inside another index"},
		{name: "empty index", err: new(*oci.FormatError), text: "empty"},
		{name: "many without a platform", index: slices.Repeat([]v1.Descriptor{b}, 300), err: new(*oci.FormatError), text: "more than 256 manifests"},
		{name: "artifact", index: []v1.Descriptor{artifact}, err: new(*oci.MediaTypeError), text: "want a container image"},
	} {
		l.index(tc.index...)
		res, err := l.pull(tc.suffix)
		if tc.err != nil {
			if !errors.As(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: got %v, want %T with %q", tc.name, err, tc.err, tc.text)
			}
			continue
		}
		if err != nil || res.Descriptor.Digest != tc.want || (res.IndexDigest == nested.Digest) != tc.nested {
			t.Errorf("%s: got %s through %q, %v; want %s", tc.name, res.Descriptor.Digest, res.IndexDigest, err, tc.want)
		}
	}
}

// TestLayoutDamage: every file of a layout is checked, not only its size.
func TestLayoutDamage(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"manifest", "config", "layer"} {
		for _, damage := range []string{"flip", "cut", "grow", "gone", "symlink", "fifo", "directory"} {
			l := newLayout(t)
			img := l.image(amd64)
			l.index(img)
			config := describe("", mustJSON(t, v1.Image{Platform: amd64, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(big)}}}))
			path := l.path(map[string]v1.Descriptor{"manifest": img, "config": config, "layer": describe("", big)}[what])
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			var digestError *oci.DigestError
			var layoutError *remote.LayoutError
			var want any = &digestError
			switch damage {
			case "flip":
				b = bytes.Clone(b)
				b[len(b)-3] ^= 1
				err = os.WriteFile(path, b, 0o644)
			case "cut":
				err = os.WriteFile(path, b[:len(b)-1], 0o644)
			case "grow":
				err = os.WriteFile(path, append(b[:len(b):len(b)], ' '), 0o644)
			case "gone":
				want = &layoutError
			case "symlink":
				other := filepath.Join(t.TempDir(), "elsewhere")
				err = errors.Join(os.WriteFile(other, b, 0o644), os.Symlink(other, path))
				want = &layoutError
			case "fifo":
				err = syscall.Mkfifo(path, 0o644)
				want = &layoutError
			case "directory":
				err = os.Mkdir(path, 0o755)
				want = &layoutError
			}
			if err != nil {
				t.Fatal(err)
			}
			_, err = l.pull("")
			if !errors.As(err, want) {
				t.Errorf("%s %s: got %v, want %T", what, damage, err, want)
			}
			if named := map[string]string{"manifest": "manifest of oci:" + l.dir, "config": "config of oci:" + l.dir}[what]; errors.As(err, &digestError) && !strings.HasPrefix(err.Error(), named) {
				t.Errorf("%s %s: got %v, want %q first", what, damage, err, named)
			}
		}
	}
}

func TestLayoutBadIndex(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{"text": "hello", "digest": `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:../../../etc/passwd","size":3}]}`,
		"algorithm": `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"md5:00","size":3}]}`,
		"size":      `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":-3}]}`,
		"huge":      `{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":5000000}]}`,
	} {
		l := newLayout(t)
		if err := os.WriteFile(filepath.Join(l.dir, "index.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		var f *oci.FormatError
		if _, err := l.pull(""); !errors.As(err, &f) {
			t.Errorf("%s: got %v, want a *oci.FormatError", name, err)
		}
	}
	l := newLayout(t)
	var e *remote.LayoutError
	if _, err := l.pull(""); !errors.As(err, &e) {
		t.Errorf("no index.json: %v", err)
	}
}
