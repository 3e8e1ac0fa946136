package oci_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// TestForget: records stay as long as any ref leads to an image that needs them; a layer of two images needs one of them.
func TestForget(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	shared := ocitest.Layer{Dump: tinyDump, Compression: ocitest.Gzip}
	own := ocitest.Layer{Dump: tinyDump + "/usr/b 6 100644 1 0 0 0 1700000000.0 - world\\n -\n"}
	one, two := store(t, r, tiny(t, ocitest.Spec{Layers: []ocitest.Layer{shared}}), nil), store(t, r, tiny(t, ocitest.Spec{Layers: []ocitest.Layer{shared, own}}), nil)
	for _, img := range []*oci.Image{one, two} {
		if err := oci.MarkComputed(t.Context(), r, img.ManifestDigest, oci.Computed{Plain: put(t, r, img.ManifestDigest.String())}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(when string, images, layers int) {
		t.Helper()
		if err := oci.Forget(t.Context(), r); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		for dir, n := range map[string]int{"images": images, "verified": layers} {
			list, err := os.ReadDir(filepath.Join(r.Path(), "cfsboot", dir))
			if err != nil || len(list) != n {
				t.Errorf("%s: %d records of %s, %v, want %d", when, len(list), dir, err, n)
			}
		}
	}
	if err := oci.Tag(t.Context(), r, one.ManifestDigest, "one"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetRef(t.Context(), repo.Streams, "cfsboot/ab", oci.ManifestStream(two.ManifestDigest)); err != nil {
		t.Fatal(err)
	}
	want("both have a ref", 2, 2)
	if err := r.RemoveRef(t.Context(), repo.Streams, "cfsboot/ab"); err != nil {
		t.Fatal(err)
	}
	// What cannot be read may need anything.
	if err := os.Symlink("../oci-manifest-sha256:1", filepath.Join(r.Path(), "streams/refs/odd")); err != nil {
		t.Fatal(err)
	}
	if err := oci.Forget(t.Context(), r); err == nil {
		t.Error("a ref that nobody understands is no error")
	}
	if err := os.Remove(filepath.Join(r.Path(), "streams/refs/odd")); err != nil {
		t.Fatal(err)
	}
	want("one has none", 1, 1)
	if ok, err := oci.IsVerified(r, one.Layers[0].DiffID, one.Layers[0].Stream); !ok || err != nil {
		t.Errorf("the shared layer is forgotten: %v, %v", ok, err)
	}
}
