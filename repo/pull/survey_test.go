package pull_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// sizes lists a tree: paths, kinds, sizes.
func sizes(prefix string, dir *tree.Node) (out []string) {
	for name, n := range dir.All() {
		out = append(out, fmt.Sprintf("%s%s %s %d", prefix, name, n.Kind, n.Size))
		if n.IsDir() {
			out = append(out, sizes(prefix+name+"/", n)...)
		}
	}
	return out
}

// everything lists all names below a directory.
func everything(t *testing.T, root string) (out []string) {
	t.Helper()
	if err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSurvey: a survey sees the names and sizes that a pull makes, has the contents
// that were asked for, and leaves nothing.
func TestSurvey(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	r := repotest.New(t, fsverity.SHA512)
	before := everything(t, r.Path())
	var asked []string
	keep := func(path string) bool {
		asked = append(asked, path)
		return strings.HasSuffix(path, "usr/prog")
	}
	src := &ocitest.Source{Image: img}
	got, err := pull.Survey(t.Context(), r, src, options("", true), keep)
	if err != nil {
		t.Fatal(err)
	}
	if after := everything(t, r.Path()); !slices.Equal(before, after) {
		t.Errorf("left in the repository: %d names, before %d", len(after), len(before))
	}
	res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("", true))
	if err != nil {
		t.Fatal(err)
	}
	plain, _ := res.Verified.Digest(keyring.Plain)
	f, err := r.OpenImage(t.Context(), plain)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want, err := erofs.Decode(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	if g, w := sizes("", got), sizes("", want); len(w) < 5 || !slices.Equal(g, w) {
		t.Errorf("got %d entries, want those of the pull, %d", len(g), len(w))
	}
	prog, err := got.Find("usr/prog")
	if err != nil || string(prog.Inline) != random(40000) {
		t.Errorf("the file that was asked for: %v (asked about %q)", err, asked)
	}
	// What is stored is not read again.
	again := &ocitest.Source{Image: img}
	if _, err := pull.Survey(t.Context(), r, again, options("", true), keep); err != nil || again.Reads(img.Layers[0].Digest) != 0 {
		t.Errorf("after the pull: %v, %d reads of a layer", err, again.Reads(img.Layers[0].Digest))
	}
}

// TestSurveyFails: broken layers and lines, and other platforms, are errors.
func TestSurveyFails(t *testing.T) {
	t.Parallel()
	line := errors.New("the line was cut")
	fault := func(f func(io.Reader) (io.Reader, error)) func(v1.Descriptor, io.Reader) (io.Reader, error) {
		img := bootable(t)
		return func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
			if d.Digest != img.Layers[1].Digest {
				return r, nil
			}
			return f(r)
		}
	}
	var format *oci.FormatError
	var sum *oci.DigestError
	for name, tc := range map[string]struct {
		fault func(v1.Descriptor, io.Reader) (io.Reader, error)
		want  func(error) bool
	}{
		"cut":   {fault(func(io.Reader) (io.Reader, error) { return nil, line }), func(err error) bool { return errors.Is(err, line) }},
		"short": {fault(func(r io.Reader) (io.Reader, error) { return io.LimitReader(r, 700), nil }), func(err error) bool { return errors.As(err, &format) || errors.As(err, &sum) }},
	} {
		r := repotest.New(t, fsverity.SHA512)
		_, err := pull.Survey(t.Context(), r, &ocitest.Source{Image: bootable(t), Fault: tc.fault}, options("", true), func(string) bool { return false })
		if !tc.want(err) || !strings.Contains(err.Error(), "layer 2 of 2") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	o := options("", true)
	o.Platform = v1.Platform{OS: "linux", Architecture: "riscv64"}
	var platform *oci.PlatformError
	if _, err := pull.Survey(t.Context(), repotest.New(t, fsverity.SHA512), &ocitest.Source{Image: bootable(t)}, o, func(string) bool { return false }); !errors.As(err, &platform) {
		t.Errorf("got %v, want a PlatformError", err)
	}
}
