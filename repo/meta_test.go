package repo_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

const defaultMeta = `{
  "version": 1,
  "algorithm": "fsverity-sha512-12",
  "features": {
    "compatible": [],
    "read-only-compatible": [
      "v1_erofs"
    ],
    "incompatible": []
  },
  "erofs_formats": {
    "default": 1
  }
}
`

func TestMetadataBytes(t *testing.T) {
	for _, c := range []struct {
		name      string
		algorithm fsverity.Algorithm
		formats   repo.Formats
		want      string
	}{
		{"default", fsverity.SHA512, repo.Formats{Default: 1}, defaultMeta},
		{"sha256", fsverity.SHA256, repo.Formats{Default: 1}, strings.Replace(defaultMeta, "sha512", "sha256", 1)},
		{"format 2", fsverity.SHA512, repo.Formats{Default: 2}, strings.NewReplacer(
			"[\n      \"v1_erofs\"\n    ]", "[]", `"default": 1`, `"default": 2`).Replace(defaultMeta)},
		{"format 0", fsverity.SHA512, repo.Formats{}, strings.NewReplacer(
			"[\n      \"v1_erofs\"\n    ]", "[]", `"default": 1`, `"default": 0`).Replace(defaultMeta)},
		{"dual", fsverity.SHA512, repo.Formats{Default: 1, Extra: []erofs.Version{2, 1}}, strings.Replace(defaultMeta,
			`"default": 1`, "\"default\": 1,\n    \"extra\": [\n      2\n    ]", 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := repo.NewMetadata(c.algorithm, c.formats)
			got, err := m.Marshal()
			must(t, err)
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("mismatch (-want +got):\n%s", diff)
			}
			back, err := repo.ParseMetadata(got)
			if err != nil || !back.Equal(m) {
				t.Errorf("parsed back: got %v, %v, want %v", back, err, m)
			}
		})
	}
	// Recorded from the serialisation rules of composefs-rs.
	for algorithm, want := range map[fsverity.Algorithm]string{
		fsverity.SHA512: "412fb0551a52276280623a1775f3108a6fe434caaa9bd0bc0d80e69cf7a173c1",
		fsverity.SHA256: "ce490cd54dea426ea1f0bf50bd761abc89a6377adf85b6966472041836fcfe50",
	} {
		b, err := repo.NewMetadata(algorithm, repo.Formats{Default: 1}).Marshal()
		must(t, err)
		if sum := sha256.Sum256(b); len(b) != 219 || hex.EncodeToString(sum[:]) != want {
			t.Errorf("%v: %d bytes with SHA-256 %x, want 219 bytes with %s", algorithm, len(b), sum, want)
		}
	}
}

func TestEffectiveFormats(t *testing.T) {
	const head = `{"version":1,"algorithm":"fsverity-sha512-12"`
	const flag = `,"features":{"read-only-compatible":["v1_erofs"]}`
	for text, want := range map[string][]erofs.Version{
		head + `}`:                   {2},
		head + flag + `}`:            {1},
		head + `,"erofs_version":1}`: {2},
		head + flag + `,"erofs_formats":{"default":2}}`:             {1},
		head + `,"erofs_formats":{"default":2}}`:                    {2},
		head + flag + `,"erofs_formats":{"default":2,"extra":[1]}}`: {2, 1},
		head + flag + `,"erofs_formats":{"default":1,"extra":[2]}}`: {1, 2},
		head + `,"erofs_formats":{"default":1,"extra":[2,1,0]}}`:    {1, 0, 2},
		head + `,"features":{},"erofs_formats":null}`:               {2},
	} {
		m, err := repo.ParseMetadata([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if diff := cmp.Diff(want, m.EffectiveFormats().All()); diff != "" {
			t.Errorf("%s: mismatch (-want +got):\n%s", text, diff)
		}
	}
}

var badMetadata = []struct{ name, text, want string }{
	{"empty", ``, "unexpected end of JSON input"},
	{"truncated", defaultMeta[:100], "unexpected end of JSON input"},
	{"null", `null`, "null, want an object"},
	{"list", `[]`, "cannot unmarshal array"},
	{"no version", `{"algorithm":"fsverity-sha512-12"}`, `field "version" is missing`},
	{"no algorithm", `{"version":1}`, `field "algorithm" is missing`},
	{"version as text", `{"version":"1","algorithm":"fsverity-sha512-12"}`, `field "version": json: cannot unmarshal string`},
	{"version null", `{"version":null,"algorithm":"fsverity-sha512-12"}`, `field "version" is null`},
	{"Version", `{"Version":1,"algorithm":"fsverity-sha512-12"}`, `field "version" is missing`},
	{"unknown algorithm", `{"version":1,"algorithm":"fsverity-sha1-12"}`, `unknown hash "sha1", want sha256 or sha512`},
	{"block size", `{"version":1,"algorithm":"fsverity-sha512-16"}`, "unsupported block size 2^16, want 12"},
	{"null for a list", `{"version":1,"algorithm":"fsverity-sha512-12","features":{"compatible":null}}`, `features: field "compatible" is null`},
	{"null features", `{"version":1,"algorithm":"fsverity-sha512-12","features":null}`, "features: null, want an object"},
	{"format 7", `{"version":1,"algorithm":"fsverity-sha512-12","erofs_formats":{"default":7}}`, "EROFS format 7, want 0, 1 or 2"},
	{"extra format -1", `{"version":1,"algorithm":"fsverity-sha512-12","erofs_formats":{"default":1,"extra":[-1]}}`, "EROFS format -1, want 0, 1 or 2"},
	{"no default format", `{"version":1,"algorithm":"fsverity-sha512-12","erofs_formats":{"extra":[1]}}`, `erofs_formats: field "default" is missing`},
	{"extra null", `{"version":1,"algorithm":"fsverity-sha512-12","erofs_formats":{"default":1,"extra":null}}`, `erofs_formats: field "extra" is null`},
	{"bytes behind", defaultMeta + `x`, "after top-level value"},
}

// TestMetadataRejects: each with its own reason, and so by Open, which names the file.
func TestMetadataRejects(t *testing.T) {
	for _, c := range badMetadata {
		if m, err := repo.ParseMetadata([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, %v, want an error with %q", c.name, m, err, c.want)
		}
		path := withMeta(t, c.text)
		_, err := repo.Open(t.Context(), openDir(t, path), repo.Options{})
		var e *repo.MetadataError
		if !errors.As(err, &e) || e.Path != filepath.Join(path, "meta.json") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: open: got %v, want a MetadataError with %q", c.name, err, c.want)
		}
	}
}

func FuzzParseMetadata(f *testing.F) {
	f.Add([]byte(defaultMeta))
	for _, c := range badMetadata {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := repo.ParseMetadata(b)
		if err != nil {
			return
		}
		again, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		back, err := repo.ParseMetadata(again)
		if err != nil || back.String() != m.String() {
			t.Fatalf("%q: written back as %s, which is %v, %v", b, again, back, err)
		}
	})
}

// withMeta makes a directory with this meta.json.
func withMeta(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir()
	must(t, os.WriteFile(filepath.Join(path, "meta.json"), []byte(text), 0o644))
	return path
}

func TestOpenRefuses(t *testing.T) {
	old := t.TempDir()
	must(t, os.Mkdir(filepath.Join(old, "objects"), 0o755))
	features := func(tier string) string {
		return `{"version":1,"algorithm":"fsverity-sha512-12","features":{"` + tier + `":["x","y"]}}`
	}
	for _, c := range []struct {
		name, path string
		opts       repo.Options
		want       func(error) bool
	}{
		{"no meta.json", t.TempDir(), repo.Options{}, func(err error) bool {
			var e *repo.MetadataMissingError
			return errors.As(err, &e) && !e.OldFormat && errors.Is(err, fs.ErrNotExist)
		}},
		{"objects without meta.json", old, repo.Options{}, func(err error) bool {
			var e *repo.MetadataMissingError
			return errors.As(err, &e) && e.OldFormat && strings.Contains(err.Error(), "needs an upgrade, which any command of cfsctl does")
		}},
		{"version 2", withMeta(t, strings.Replace(defaultMeta, `"version": 1`, `"version": 2`, 1)), repo.Options{}, func(err error) bool {
			var e *repo.VersionError
			return errors.As(err, &e) && e.Got == 2
		}},
		{"other algorithm", withMeta(t, defaultMeta), repo.Options{Algorithm: fsverity.SHA256}, func(err error) bool {
			var e *repo.AlgorithmError
			return errors.As(err, &e) && e.Got == fsverity.SHA512 && e.Want == fsverity.SHA256
		}},
		{"incompatible features", withMeta(t, features("incompatible")), repo.Options{}, func(err error) bool {
			var e *repo.FeatureError
			return errors.As(err, &e) && !e.ReadOnly && cmp.Equal(e.Features, []string{"x", "y"})
		}},
		{"verity required", withMeta(t, defaultMeta), repo.Options{RequireVerity: true}, func(err error) bool {
			var e *repo.InsecureError
			return errors.As(err, &e)
		}},
		{"meta.json is a link", withLink(t), repo.Options{}, func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := repo.Open(t.Context(), openDir(t, c.path), c.opts)
			if err == nil {
				t.Fatal("opened", r.Close())
			}
			if !c.want(err) {
				t.Errorf("got %T: %v", err, err)
			}
		})
	}
	open(t, openDir(t, withMeta(t, features("compatible"))))
}

// withLink makes a repository whose meta.json is a link to one outside.
func withLink(t *testing.T) string {
	t.Helper()
	path := t.TempDir()
	must(t, os.Symlink(filepath.Join(withMeta(t, defaultMeta), "meta.json"), filepath.Join(path, "meta.json")))
	return path
}

// TestReadOnlyFeatures: an unknown read-only-compatible feature stops every call
// that writes, and no other.
func TestReadOnlyFeatures(t *testing.T) {
	path := t.TempDir()
	dir := openDir(t, path)
	ctx := t.Context()
	must(t, repo.Init(ctx, dir, insecure))
	w := open(t, dir)
	id, err := stream(ctx, w, pattern(100, 1))
	must(t, err)
	object := put(t, w, []byte("object"))
	must(t, w.PublishStream(ctx, "s", id))
	must(t, w.SetRef(ctx, repo.Streams, "r", "s"))
	must(t, w.Close())
	meta := filepath.Join(path, "meta.json")
	must(t, os.WriteFile(meta, []byte(strings.Replace(defaultMeta, `"v1_erofs"`, `"v1_erofs", "new"`, 1)), 0o644))

	r := open(t, dir)
	before := files(t, path)
	calls := map[string]error{"Writable": r.Writable()}
	_, calls["PutObject"] = r.PutObject(ctx, []byte("new"))
	_, calls["PutObject of a present one"] = r.PutObject(ctx, []byte("object"))
	_, calls["NewObject"] = r.NewObject(ctx)
	_, calls["NewStream"] = r.NewStream(ctx, splitstream.Layer)
	f, err := os.Open(meta)
	must(t, err)
	defer f.Close()
	_, _, calls["PutFile"] = repo.PutFile(r, ctx, f)
	calls["PublishStream"] = r.PublishStream(ctx, "s2", id)
	calls["PublishImage"] = r.PublishImage(ctx, object)
	calls["SetRef"] = r.SetRef(ctx, repo.Streams, "r2", "s")
	calls["RemoveRef"] = r.RemoveRef(ctx, repo.Streams, "r")
	for name, err := range calls {
		var e *repo.FeatureError
		if !errors.As(err, &e) || !e.ReadOnly || !cmp.Equal(e.Features, []string{"new"}) {
			t.Errorf("%s: got %v, want a FeatureError about new", name, err)
		}
	}
	if diff := cmp.Diff(before, files(t, path)); diff != "" {
		t.Errorf("files changed (-before +after):\n%s", diff)
	}
	if got, err := r.LookupStream("s"); err != nil || got != id {
		t.Errorf("look-up: got %v, %v, want %v", got, err, id)
	}
	check(t, r)
}
