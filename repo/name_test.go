package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

func readlink(t *testing.T, r *repo.Repository, name string) string {
	t.Helper()
	s, err := os.Readlink(filepath.Join(r.Path(), name))
	must(t, err)
	return s
}

// image stores an EROFS image of one file.
func image(t testing.TB, r *repo.Repository, data []byte) fsverity.Digest {
	t.Helper()
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("file", &tree.Node{Kind: tree.Regular, Meta: tree.Meta{Mode: 0o644}, Size: int64(len(data)), Digest: put(t, r, data)})
	var b bytes.Buffer
	must(t, erofs.Encode(&b, root, erofs.V1))
	return put(t, r, b.Bytes())
}

func TestStreams(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	parts := [][]byte{pattern(65, 1), pattern(100_000, 2)}
	id, err := stream(ctx, r, parts...)
	must(t, err)
	const name = "oci-layer-sha256:3a55b67ca209018d178db9ce0fa0a63acd4d83e8df951d2010e725475fe98967"
	if _, err := r.LookupStream(name); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("before: got %v, want ErrNotFound", err)
	}
	must(t, r.PublishStream(ctx, name, id))
	if got, want := readlink(t, r, "streams/"+name), "../objects/"+id.ObjectPath(); got != want {
		t.Errorf("link: got %q, want %q", got, want)
	}
	s, err := openStream(ctx, r, name, splitstream.Layer)
	must(t, err)
	defer s.Close()
	var got bytes.Buffer
	n, err := s.WriteTo(&got)
	want := "inline" + string(parts[0]) + "inline" + string(parts[1])
	if err != nil || got.String() != want || n != int64(len(want)) || s.Digest() != id {
		t.Errorf("got %d bytes, %v", n, err)
	}
	var format *splitstream.FormatError
	if _, err := openStream(ctx, r, name, splitstream.Config); !errors.As(err, &format) {
		t.Errorf("other type: got %v, want a FormatError", err)
	}
	other, err := stream(ctx, r, pattern(1, 1))
	must(t, err)
	must(t, r.PublishStream(ctx, name, other))
	if d, err := r.LookupStream(name); err != nil || d != other {
		t.Errorf("replaced: got %v, %v, want %v", d, err, other)
	}
	check(t, r)
	// A link to an object that is gone is no stream.
	must(t, os.Remove(objectFile(r, other)))
	if _, err := open(t, openDir(t, r.Path())).LookupStream(name); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("object gone: got %v, want ErrNotFound", err)
	}
}

func TestSingle(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	w, err := r.NewStream(ctx, splitstream.Config)
	must(t, err)
	must(t, w.External(put(t, r, []byte("{}")), 2))
	must(t, w.Named("config:x", put(t, r, []byte("other"))))
	id, err := w.Commit(ctx)
	must(t, err)
	s, err := r.OpenStreamByID(ctx, id, splitstream.Config)
	must(t, err)
	defer s.Close()
	if b, err := s.ReadSingle(ctx, 2); err != nil || string(b) != "{}" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestNamesAreChecked(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	d, err := stream(ctx, r)
	must(t, err)
	must(t, r.PublishStream(ctx, "ok", d))
	for _, name := range []string{"", ".", "..", "refs", "a/b", "/a", "a\x00b", strings.Repeat("n", 256)} {
		if err := r.PublishStream(ctx, name, d); err == nil {
			t.Errorf("stream %q was published", name)
		}
		if _, err := r.LookupStream(name); err == nil || errors.Is(err, repo.ErrNotFound) {
			t.Errorf("look-up of %q: got %v", name, err)
		}
		if err := r.SetRef(ctx, repo.Streams, "ref", name); err == nil {
			t.Errorf("a ref to %q was set", name)
		}
	}
	for _, name := range []string{"", ".", "..", "a/../b", "/a", "a/", "a//b", "a\x00b", strings.Repeat("n", 256)} {
		if err := r.SetRef(ctx, repo.Streams, name, "ok"); err == nil {
			t.Errorf("ref %q was set", name)
		}
		if err := r.RemoveRef(ctx, repo.Streams, name); err == nil || errors.Is(err, repo.ErrNotFound) {
			t.Errorf("removal of %q: got %v", name, err)
		}
	}
	if err := r.PublishStream(ctx, "s", fsverity.Sum(fsverity.SHA512, []byte("nowhere"))); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("missing object: got %v, want ErrNotFound", err)
	}
	if err := r.SetRef(ctx, repo.Streams, "dangling", "nowhere"); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("missing stream: got %v, want ErrNotFound", err)
	}
	check(t, r)
}

func TestRefs(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	id, err := stream(ctx, r, pattern(1, 1))
	must(t, err)
	for _, name := range []string{"s1", "s2"} {
		must(t, r.PublishStream(ctx, name, id))
	}
	img := image(t, r, pattern(5000, 1))
	must(t, r.PublishImage(ctx, img))
	for _, c := range []struct {
		kind               repo.Kind
		name, target, link string
	}{
		{repo.Streams, "plain", "s1", "../s1"},
		{repo.Streams, "oci/a:b", "s1", "../../s1"},
		{repo.Streams, "oci/a:b", "s2", "../../s2"},
		{repo.Streams, "cfsboot/id/deep", "s2", "../../../s2"},
		{repo.Images, "cfsboot/id/boot", img.Hex(), "../../../" + img.Hex()},
	} {
		must(t, r.SetRef(ctx, c.kind, c.name, c.target))
		if got := readlink(t, r, c.kind.String()+"/refs/"+c.name); got != c.link {
			t.Errorf("%s: got %q, want %q", c.name, got, c.link)
		}
		if got, err := r.ResolveRef(c.kind, c.name); err != nil || got != c.target {
			t.Errorf("resolve %s: got %q, %v, want %q", c.name, got, err, c.target)
		}
	}
	list := func(kind repo.Kind, prefix string) (list []string) {
		for ref, err := range r.Refs(kind, prefix) {
			must(t, err)
			list = append(list, ref.Name+"="+ref.Target)
		}
		return list
	}
	if diff := cmp.Diff([]string{"cfsboot/id/deep=s2", "oci/a:b=s2", "plain=s1"}, list(repo.Streams, "")); diff != "" {
		t.Errorf("all refs mismatch (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"oci/a:b=s2"}, list(repo.Streams, "oci/")); diff != "" {
		t.Errorf("refs below oci mismatch (-want +got):\n%s", diff)
	}
	if got := list(repo.Images, "nowhere"); got != nil {
		t.Errorf("missing prefix: got %v", got)
	}
	check(t, r)
	must(t, r.RemoveRef(ctx, repo.Streams, "oci/a:b"))
	if err := r.RemoveRef(ctx, repo.Streams, "oci/a:b"); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("second removal: got %v, want ErrNotFound", err)
	}
	must(t, os.WriteFile(filepath.Join(r.Path(), "streams/refs/oci/junk"), nil, 0o600))
	bad := 0
	for _, err := range r.Refs(repo.Streams, "") {
		if err != nil {
			bad++
		}
	}
	if bad != 1 {
		t.Errorf("got %d errors for one junk file", bad)
	}
}

// TestImageLookup: the order of names, and that a ref never stands in for a
// digest (the peer's defect P1).
func TestImageLookup(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	d, other := image(t, r, pattern(5000, 1)), image(t, r, pattern(5000, 2))
	if _, err := r.OpenImage(ctx, d); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("stored but not listed: got %v, want ErrNotFound", err)
	}
	must(t, r.PublishImage(ctx, d))
	must(t, r.PublishImage(ctx, other))
	must(t, r.SetRef(ctx, repo.Images, "x", d.Hex()))
	must(t, r.SetRef(ctx, repo.Images, "deep/y", other.Hex()))
	for name, want := range map[string]fsverity.Digest{
		d.Hex(): d, strings.ToUpper(d.Hex()): d, "refs/x": d, "x": d, "refs/deep/y": other, "deep/y": other,
	} {
		got, err := r.ResolveImage(name)
		if err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", name, got, err, want)
			continue
		}
		f, err := r.OpenImage(ctx, got)
		must(t, err)
		b, err := io.ReadAll(f)
		must(t, errors.Join(err, f.Close()))
		if fsverity.Sum(fsverity.SHA512, b) != want {
			t.Errorf("%q: another file was opened", name)
		}
	}
	var notFound *repo.NotFoundError
	for _, name := range []string{"y", "refs/nowhere", fsverity.Sum(fsverity.SHA512, []byte("no")).Hex()} {
		if got, err := r.ResolveImage(name); !errors.As(err, &notFound) {
			t.Errorf("%q: got %v, %v, want a NotFoundError", name, got, err)
		}
	}
	if got, err := r.ResolveImage("../x"); err == nil {
		t.Errorf("\"../x\": got %v", got)
	}
	check(t, r)

	// P1: images/<d> is gone, images/refs/<d> leads to another image.
	must(t, os.Remove(filepath.Join(r.Path(), "images", d.Hex())))
	must(t, os.Symlink("../"+other.Hex(), filepath.Join(r.Path(), "images/refs", d.Hex())))
	if _, err := r.OpenImage(ctx, d); !errors.As(err, &notFound) {
		t.Errorf("planted ref: got %v, want a NotFoundError", err)
	}
	if got, err := r.ResolveImage(d.Hex()); !errors.As(err, &notFound) {
		t.Errorf("planted ref: resolved to %v, %v", got, err)
	}
	// images/<d> itself leads to another image.
	var mismatch *fsverity.MismatchError
	must(t, os.Symlink("../objects/"+other.ObjectPath(), filepath.Join(r.Path(), "images", d.Hex())))
	if _, err := r.OpenImage(ctx, d); !errors.As(err, &mismatch) {
		t.Errorf("planted link: got %v, want a MismatchError", err)
	}
	// The object of an image has other content.
	must(t, os.Remove(objectFile(r, other)))
	must(t, os.WriteFile(objectFile(r, other), pattern(4096, 9), 0o600))
	if _, err := r.OpenImage(ctx, other); !errors.As(err, &mismatch) || !strings.Contains(err.Error(), "objects/"+other.ObjectPath()) {
		t.Errorf("changed content: got %v, want a MismatchError that names the object", err)
	}
	// So has one of a file.
	file := put(t, r, pattern(4096, 10))
	must(t, r.Close())
	must(t, errors.Join(os.Remove(objectFile(r, file)), os.WriteFile(objectFile(r, file), pattern(4096, 11), 0o600)))
	r = open(t, openDir(t, r.Path()))
	if _, err := r.ReadObject(ctx, file, 1<<20); !errors.As(err, &mismatch) || !strings.Contains(err.Error(), "objects/"+file.ObjectPath()) {
		t.Errorf("changed file: got %v, want a MismatchError that names the object", err)
	}
}

// TestDualFormat: both images of a commit are listed and the name is on one.
func TestDualFormat(t *testing.T) {
	ctx := t.Context()
	dir := openDir(t, t.TempDir())
	must(t, repo.Init(ctx, dir, repo.InitOptions{Formats: &repo.Formats{Default: 1, Extra: []erofs.Version{2}}, Insecure: true}))
	r := open(t, dir)
	if diff := cmp.Diff([]erofs.Version{1, 2}, r.Formats()); diff != "" {
		t.Fatalf("formats mismatch (-want +got):\n%s", diff)
	}
	first, second := put(t, r, []byte("format 1")), put(t, r, []byte("format 2"))
	for _, d := range []fsverity.Digest{first, second} {
		must(t, r.PublishImage(ctx, d))
	}
	must(t, r.SetRef(ctx, repo.Images, "os", first.Hex()))
	if got, err := r.ResolveImage("os"); err != nil || got != first {
		t.Errorf("got %v, %v, want %v", got, err, first)
	}
	for _, d := range []fsverity.Digest{first, second} {
		if got := readlink(t, r, "images/"+d.Hex()); got != "../objects/"+d.ObjectPath() {
			t.Errorf("got the link %q", got)
		}
	}
}

// TestReplaceIsAtomic: readers that loop over a name never find it absent while
// it is replaced.
func TestReplaceIsAtomic(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	ids := []fsverity.Digest{put(t, r, []byte("a")), put(t, r, []byte("b"))}
	must(t, r.PublishStream(ctx, "s", ids[0]))
	must(t, r.PublishStream(ctx, "t", ids[1]))
	must(t, r.SetRef(ctx, repo.Streams, "x/y", "s"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := r.LookupStream("s"); err != nil {
					t.Errorf("stream: %v", err)
					return
				}
				if _, err := r.ResolveRef(repo.Streams, "x/y"); err != nil {
					t.Errorf("ref: %v", err)
					return
				}
			}
		})
	}
	for i := range 200 {
		must(t, r.PublishStream(ctx, "s", ids[i%2]))
		must(t, r.SetRef(ctx, repo.Streams, "x/y", []string{"s", "t"}[i%2]))
	}
	close(done)
	wg.Wait()
	for _, f := range files(t, r.Path()) {
		if strings.HasPrefix(f, ".symlink-") {
			t.Errorf("%s is left", f)
		}
	}
}

// FuzzLinkTarget: what a link of the repository leads to is an object of its
// algorithm, or nothing.
func FuzzLinkTarget(f *testing.F) {
	f.Add("../objects/" + strings.Repeat("ab", 32)[:2] + "/" + strings.Repeat("ab", 31))
	f.Add("../../objects/ab/" + strings.Repeat("cd", 63))
	f.Add("../")
	f.Fuzz(func(t *testing.T, target string) {
		for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
			d, err := repo.ParseTarget(a, target)
			if err == nil && (d.Algorithm() != a || !strings.HasPrefix(target, "../") || !strings.HasSuffix(strings.ToLower(target), d.ObjectPath())) {
				t.Errorf("%q is %v", target, d)
			}
		}
	})
}

func TestLock(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	other := openDir(t, r.Path())
	var locked *repo.LockedError
	err := repo.Lock(ctx, other, true, 20*time.Millisecond)
	if !errors.As(err, &locked) || !locked.Exclusive || locked.PID != os.Getpid() {
		t.Errorf("exclusive beside a user: got %v, want a LockedError with this process", err)
	}
	must(t, repo.Lock(ctx, other, false, 0))
	must(t, r.Close())
	must(t, repo.Lock(ctx, other, true, 0))
	dir := openDir(t, r.Path())
	if _, err := repo.Open(ctx, dir, repo.Options{}); !errors.As(err, &locked) || locked.Exclusive {
		t.Errorf("user beside exclusive: got %v, want a LockedError", err)
	}
	time.AfterFunc(50*time.Millisecond, func() { _ = other.Close() })
	again, err := repo.Open(ctx, dir, repo.Options{LockWait: 10 * time.Second})
	must(t, err)
	must(t, again.Close())
}

// TestCheckFinds: what the walk is for.
func TestCheckFinds(t *testing.T) {
	build := func(t *testing.T) (*repo.Repository, fsverity.Digest, fsverity.Digest) {
		ctx := t.Context()
		r := newRepo(t)
		object := put(t, r, pattern(5000, 1))
		id, err := stream(ctx, r, pattern(5000, 1))
		must(t, err)
		must(t, r.PublishStream(ctx, "s", id))
		must(t, r.SetRef(ctx, repo.Streams, "a/b", "s"))
		must(t, r.PublishImage(ctx, image(t, r, pattern(5000, 1))))
		check(t, r)
		return r, object, id
	}
	for want, damage := range map[string]func(t *testing.T, r *repo.Repository, object, id fsverity.Digest) error{
		"object-digest-mismatch": func(_ *testing.T, r *repo.Repository, object, _ fsverity.Digest) error {
			return errors.Join(os.Remove(objectFile(r, object)), os.WriteFile(objectFile(r, object), nil, 0o600))
		},
		"object-invalid-name": func(_ *testing.T, r *repo.Repository, object, _ fsverity.Digest) error {
			return os.WriteFile(objectFile(r, object)+"0", nil, 0o600)
		},
		"missing-object-ref": func(_ *testing.T, r *repo.Repository, object, _ fsverity.Digest) error {
			return os.Remove(objectFile(r, object))
		},
		"broken-symlink": func(_ *testing.T, r *repo.Repository, _, id fsverity.Digest) error {
			return os.Remove(objectFile(r, id))
		},
		"stream-open-failed": func(t *testing.T, r *repo.Repository, object, _ fsverity.Digest) error {
			return r.PublishStream(t.Context(), "no-stream", object)
		},
		"image-invalid": func(t *testing.T, r *repo.Repository, object, _ fsverity.Digest) error {
			return r.PublishImage(t.Context(), object)
		},
		"entry-not-symlink": func(_ *testing.T, r *repo.Repository, _, _ fsverity.Digest) error {
			return os.WriteFile(filepath.Join(r.Path(), "images/junk"), nil, 0o600)
		},
		"unexpected-file-type": func(_ *testing.T, r *repo.Repository, _, _ fsverity.Digest) error {
			return os.WriteFile(filepath.Join(r.Path(), "streams/refs/junk"), nil, 0o600)
		},
	} {
		t.Run(want, func(t *testing.T) {
			r, object, id := build(t)
			must(t, damage(t, r, object, id))
			rep, err := open(t, openDir(t, r.Path())).Check(t.Context())
			must(t, err)
			found := fmt.Sprint(rep.Problems)
			if rep.OK() || !strings.Contains(found, want) {
				t.Errorf("got %v, want %s", found, want)
			}
		})
	}
}
