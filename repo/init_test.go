package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

func readMeta(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path, "meta.json"))
	must(t, err)
	return string(b)
}

func TestInit(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "new")
	dir, err := repo.MakeDir(path)
	must(t, err)
	defer dir.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("directory: got %v, %v, want mode 0700", st.Mode(), err)
	}
	must(t, repo.Init(ctx, dir, insecure))
	if diff := cmp.Diff(defaultMeta, readMeta(t, path)); diff != "" {
		t.Errorf("meta.json mismatch (-want +got):\n%s", diff)
	}
	st, err := os.Stat(filepath.Join(path, "meta.json"))
	must(t, err)
	must(t, repo.Init(ctx, dir, insecure))
	if again, err := os.Stat(filepath.Join(path, "meta.json")); err != nil || !os.SameFile(st, again) {
		t.Errorf("the second Init replaced meta.json: %v", err)
	}
	if diff := cmp.Diff([]string{"meta.json"}, files(t, path)); diff != "" {
		t.Errorf("files mismatch (-want +got):\n%s", diff)
	}
	r := open(t, dir)
	if r.Secure() || r.Algorithm() != fsverity.SHA512 {
		t.Errorf("got secure %v, %v", r.Secure(), r.Algorithm())
	}
	if dir, err := repo.MakeDir(path); err != nil {
		t.Errorf("MakeDir of an existing directory: %v", err)
	} else {
		must(t, dir.Close())
	}
}

// TestCreate: a directory that was made for nothing is removed, and no other.
func TestCreate(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "new")
	bad := repo.InitOptions{Algorithm: 99, Insecure: true}
	if _, err := repo.Create(ctx, path+"/", bad); err == nil {
		t.Error("an unknown algorithm is accepted")
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	must(t, os.Mkdir(path, 0o700))
	if _, err := repo.Create(ctx, path, bad); err == nil {
		t.Error("an unknown algorithm is accepted")
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a directory that was there is gone: %v", err)
	}
	for range 2 {
		dir, err := repo.Create(ctx, path, insecure)
		must(t, err)
		must(t, errors.Join(open(t, dir).Close(), dir.Close()))
	}
	if _, err := repo.Create(ctx, path, repo.InitOptions{Algorithm: fsverity.SHA256, Insecure: true}); err == nil {
		t.Error("another algorithm is accepted")
	}
	if _, err := os.Stat(filepath.Join(path, "meta.json")); err != nil {
		t.Error(err)
	}
	if _, err := repo.Create(ctx, filepath.Join(path, "missing/new"), insecure); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a parent that is missing: %v", err)
	}
}

func TestInitConflicts(t *testing.T) {
	two := repo.Formats{Default: 2}
	for name, c := range map[string]struct{ first, second repo.InitOptions }{
		"algorithm":   {insecure, repo.InitOptions{Algorithm: fsverity.SHA256, Insecure: true}},
		"format 1, 2": {insecure, repo.InitOptions{Formats: &two, Insecure: true}},
		"format 2, 1": {repo.InitOptions{Formats: &two, Insecure: true}, insecure},
	} {
		t.Run(name, func(t *testing.T) {
			dir := openDir(t, t.TempDir())
			must(t, repo.Init(t.Context(), dir, c.first))
			before := readMeta(t, dir.Path())
			err := repo.Init(t.Context(), dir, c.second)
			var e *repo.ConflictError
			if !errors.As(err, &e) || e.Got.String() == e.Want.String() {
				t.Errorf("got %v, want a ConflictError with both configurations", err)
			}
			if readMeta(t, dir.Path()) != before {
				t.Error("meta.json was changed")
			}
		})
	}
	dir := openDir(t, t.TempDir())
	must(t, repo.Init(t.Context(), dir, insecure))
	var e *repo.InsecureError
	if err := repo.Init(t.Context(), dir, repo.InitOptions{}); !errors.As(err, &e) {
		t.Errorf("secure over insecure: got %v, want an InsecureError", err)
	}
}

// TestInitWithoutVerity: where the file system has no fs-verity a secure
// repository is refused with that reason, and nothing is left.
func TestInitWithoutVerity(t *testing.T) {
	dir := openDir(t, t.TempDir())
	err := repo.Init(t.Context(), dir, repo.InitOptions{})
	if err == nil {
		t.Skip("this file system has fs-verity")
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got %v, want an error that is ErrUnsupported", err)
	}
	if left := files(t, dir.Path()); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDefaultPath(t *testing.T) {
	for _, c := range []struct {
		uid        int
		home, want string
	}{{0, "/root", "/sysroot/composefs"}, {0, "", "/sysroot/composefs"}, {7, "/home/u", "/home/u/.var/lib/composefs"}, {7, "", ""}} {
		got, err := repo.DefaultPath(c.uid, c.home)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("uid %d, home %q: got %q, %v, want %q", c.uid, c.home, got, err, c.want)
		}
	}
}

// legacy makes a repository of before meta.json with one object of n hex digits.
func legacy(t *testing.T, a fsverity.Algorithm) string {
	t.Helper()
	path := t.TempDir()
	d := fsverity.Sum(a, []byte("x"))
	file := filepath.Join(path, "objects", d.ObjectPath())
	must(t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(t, os.WriteFile(file, []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(path, "objects", ".tmp-object-abc"), nil, 0o600))
	return path
}

func TestEnsure(t *testing.T) {
	ctx := t.Context()
	two := repo.Formats{Default: 2}
	fresh, existing := t.TempDir(), t.TempDir()
	must(t, repo.Init(ctx, openDir(t, existing), repo.InitOptions{Formats: &two, Insecure: true}))
	old := legacy(t, fsverity.SHA512)
	for _, c := range []struct {
		name, path string
		want       repo.Status
		format     int
	}{
		{"fresh", fresh, repo.Created, 1},
		{"existing keeps its format", existing, repo.Opened, 2},
		{"legacy", old, repo.Upgraded, 2},
		{"again", old, repo.Opened, 2},
	} {
		r, status, err := repo.Ensure(ctx, openDir(t, c.path), insecure, repo.Options{})
		must(t, err)
		if status != c.want || int(r.Formats()[0]) != c.format {
			t.Errorf("%s: got status %d and format %v, want %d and %d", c.name, status, r.Formats(), c.want, c.format)
		}
		must(t, r.Close())
	}
	_, _, err := repo.Ensure(ctx, openDir(t, fresh), repo.InitOptions{Algorithm: fsverity.SHA256, Insecure: true}, repo.Options{})
	var e *repo.AlgorithmError
	if !errors.As(err, &e) {
		t.Errorf("other algorithm: got %v, want an AlgorithmError", err)
	}
}

func TestUpgrade(t *testing.T) {
	ctx := t.Context()
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		path := legacy(t, a)
		must(t, repo.Upgrade(ctx, openDir(t, path), 0))
		want := strings.NewReplacer("sha512", a.Name(), "[\n      \"v1_erofs\"\n    ]", "[]", `"default": 1`, `"default": 2`).Replace(defaultMeta)
		if diff := cmp.Diff(want, readMeta(t, path)); diff != "" {
			t.Errorf("%v: meta.json mismatch (-want +got):\n%s", a, diff)
		}
		must(t, repo.Upgrade(ctx, openDir(t, path), 0))
		check(t, open(t, openDir(t, path)))
	}
	var algorithm *repo.AlgorithmError
	if err := repo.Upgrade(ctx, openDir(t, legacy(t, fsverity.SHA512)), fsverity.SHA256); !errors.As(err, &algorithm) {
		t.Errorf("other algorithm: got %v, want an AlgorithmError", err)
	}
	empty := t.TempDir()
	must(t, os.Mkdir(filepath.Join(empty, "objects"), 0o755))
	if err := repo.Upgrade(ctx, openDir(t, empty), 0); !errors.Is(err, repo.ErrNoObjects) {
		t.Errorf("empty objects: got %v, want ErrNoObjects", err)
	}
}

func TestResetMetadata(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	id, err := stream(ctx, r, pattern(1000, 0))
	must(t, err)
	must(t, r.PublishStream(ctx, "s", id))
	must(t, r.SetRef(ctx, repo.Streams, "oci/x", "s"))
	var locked *repo.LockedError
	dir := openDir(t, r.Path())
	if err := repo.ResetMetadata(ctx, dir, repo.Options{}); !errors.As(err, &locked) {
		t.Fatalf("while open: got %v, want a LockedError", err)
	}
	must(t, r.Close())
	must(t, repo.ResetMetadata(ctx, dir, repo.Options{}))
	for _, f := range files(t, dir.Path()) {
		if !strings.HasPrefix(f, "objects/") {
			t.Errorf("%s is left", f)
		}
	}
	if n := len(files(t, dir.Path())); n != 2 {
		t.Errorf("got %d objects, want 2", n)
	}
	must(t, repo.Init(ctx, dir, repo.InitOptions{Algorithm: fsverity.SHA256, Insecure: true}))
	if got := open(t, dir).Algorithm(); got != fsverity.SHA256 {
		t.Errorf("got %v", got)
	}
}
