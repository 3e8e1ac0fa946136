package pull_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// messages collects what is said.
func messages(o *pull.Options) *[]string {
	var text []string
	o.Progress = reporter(func(e progress.Event) {
		if m, ok := e.(progress.Message); ok {
			text = append(text, m.Text)
		}
	})
	return &text
}

// orphans stores n objects without a name, as a pull leaves them that is killed.
func orphans(t *testing.T, path string, n, size int) {
	t.Helper()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r := repotest.Open(t, dir)
	for i := range n {
		b := make([]byte, size)
		copy(b, "orphan "+string(rune('a'+i)))
		if _, err := r.PutObject(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// manyFiles is an image with so many files, all different from those of others.
func manyFiles(t *testing.T, name string, n int) *ocitest.Image {
	t.Helper()
	return build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, name, n, 900)}})
}

// TestRoomOfKilledPulls: what a killed pull has left, a named layer too, is removed
// when there is no room, and the pull begins again.
func TestRoomOfKilledPulls(t *testing.T) {
	r, q := withQuota(t, 60)
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, options("os", true)); err != nil {
		t.Fatal(err)
	}
	before := objectsOf(t, r)
	// A pull that is cut leaves its complete layer, with a name.
	cut := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "left", 12, 900), filesLayer(t, "x", 2, 70)}})
	src := &ocitest.Source{Image: cut, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		if d.Digest == cut.Layers[2].Digest {
			return nil, errors.New("the line was cut")
		}
		return r, nil
	}}
	o := options("cut", true)
	o.Parallel = 1
	if _, err := pull.Pull(t.Context(), r, src, o); err == nil || !exists(t, r, "streams/"+oci.LayerStream(cut.DiffIDs[1])) {
		t.Fatalf("the layer has no name: %v", err)
	}
	orphans(t, r.Path(), 15, 900)
	q.left -= 15
	room := q.left
	o = options("more", true)
	text := messages(&o)
	res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: manyFiles(t, "more", room+5)}, o)
	if err != nil {
		t.Fatalf("room for %d: %v\n%q", room, err, *text)
	}
	for _, want := range []string{"what nothing in the repository needs is removed: 28 objects", "there is more room now: the pull begins again"} {
		if !strings.Contains(strings.Join(*text, "\n"), want) {
			t.Errorf("messages %q, want one with %q", *text, want)
		}
	}
	if exists(t, r, "streams/"+oci.LayerStream(cut.DiffIDs[1])) || exists(t, r, "cfsboot/verified/"+cut.DiffIDs[1].String()) {
		t.Error("the layer that nothing needs is still there")
	}
	for _, name := range before {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("an object of another image is gone: %v", err)
		}
	}
	if res.Tag != "more" {
		t.Errorf("got %+v", res)
	}
	repotest.Check(t, r)
}

// TestRoomLocked: what a pull could not remove, because somebody else had the
// repository open, is told, and the next pull that needs the room removes it.
func TestRoomLocked(t *testing.T) {
	defer pull.SetReclaimWait(400 * time.Millisecond)()
	r, q := withQuota(t, 60)
	before := objectsOf(t, r)
	other := openDir(t, r.Path())
	big := manyFiles(t, "big", 100)
	o := options("os", true)
	text := messages(&o)
	_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: big}, o)
	var space *durable.SpaceError
	var left *pull.LeftError
	var locked *repo.LockedError
	if !errors.As(err, &space) || !errors.As(err, &left) || !errors.As(left.Left, &locked) {
		t.Fatalf("got %v, want a *LeftError around a *durable.SpaceError", err)
	}
	if !strings.Contains(strings.Join(*text, "\n"), "waiting 400ms") || q.left != 0 {
		t.Errorf("messages %q, room %d", *text, q.left)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, options("os", true)); err != nil {
		t.Errorf("a small image after it: %v", err)
	}
	if q.left < 30 {
		t.Errorf("room for %d is left of 60; %d objects were there before", q.left, len(before))
	}
	repotest.Check(t, r)
}

// TestLeftover: a pull that is interrupted for another reason tells what
// it could not remove, too.
func TestLeftover(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	repotest.Open(t, r.Dir())
	img := manyFiles(t, "a", 300)
	broken := errors.New("the line was cut")
	src := &ocitest.Source{Image: img, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		if d.Digest == img.Layers[1].Digest {
			return io.MultiReader(io.LimitReader(r, d.Size/2), failing{broken}), nil
		}
		return r, nil
	}}
	o := options("os", true)
	o.Parallel = 1
	_, err := pull.Pull(t.Context(), r, src, o)
	var left *pull.LeftError
	if !errors.Is(err, broken) || !errors.As(err, &left) {
		t.Errorf("got %v, want a *LeftError", err)
	}
}

// TestRoomBesideDamage: a damaged object does not keep a pull from taking back what
// it has stored.
func TestRoomBesideDamage(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"a bit":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"everything": func([]byte) []byte { return []byte("nothing") },
	} {
		r, q := withQuota(t, 60)
		if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, options("os", true)); err != nil {
			t.Fatal(err)
		}
		damage(t, r, "streams/"+oci.ConfigStream(digest.FromBytes(bootable(t).Config)), spoil)
		before, room := objectsOf(t, r), q.left
		o := options("os", true)
		var log bytes.Buffer
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		_, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: manyFiles(t, "big", 100)}, o)
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("%s: got %v, want ENOSPC", name, err)
		}
		if after := objectsOf(t, r); !slices.Equal(after, before) || q.left != room {
			t.Errorf("%s: %d objects are left, want %d", name, len(after), len(before))
		}
		if !strings.Contains(log.String(), "oci-config-") {
			t.Errorf("%s: the damage is not told: %s", name, log.String())
		}
	}
}

// damage changes the object that a name leads to.
func damage(t *testing.T, r *repo.Repository, name string, spoil func([]byte) []byte) {
	t.Helper()
	file, err := filepath.EvalSymlinks(filepath.Join(r.Path(), name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err == nil {
		err = errors.Join(os.Remove(file), os.WriteFile(file, spoil(b), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPullRepairs: images and layers that are damaged on the disk are made or
// fetched again by a pull of the same image, without being asked to.
func TestPullRepairs(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	for what, name := range map[string]func(r *repo.Repository, res *pull.Result) string{
		"plain image": func(_ *repo.Repository, res *pull.Result) string { return "images/" + imageID(res, keyring.Plain) },
		"boot image":  func(_ *repo.Repository, res *pull.Result) string { return "images/" + imageID(res, keyring.Boot) },
		"layer":       func(*repo.Repository, *pull.Result) string { return "streams/" + oci.LayerStream(img.DiffIDs[0]) },
		"config": func(*repo.Repository, *pull.Result) string {
			return "streams/" + oci.ConfigStream(digest.FromBytes(img.Config))
		},
	} {
		for _, spoil := range []func([]byte) []byte{
			func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
			func([]byte) []byte { return []byte("nothing") },
		} {
			r := repotest.New(t, fsverity.SHA256)
			first, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("os", true))
			if err != nil {
				t.Fatal(err)
			}
			damage(t, r, name(r, first), spoil)
			again := openDir(t, r.Path())
			second, err := pull.Pull(t.Context(), again, &ocitest.Source{Image: img}, options("os", true))
			if err != nil {
				t.Errorf("%s: %v", what, err)
				continue
			}
			if second.Verified != first.Verified {
				t.Errorf("%s: got other images", what)
			}
			repotest.Check(t, again)
		}
	}
}

// TestRepairsWithLittleRoom: damage keeps garbage collection from making room, so the
// pull that mends it must not ask for room that it does not need.
func TestRepairsWithLittleRoom(t *testing.T) {
	t.Parallel()
	img := bootable(t)
	made := repotest.New(t, fsverity.SHA256)
	res, err := pull.Pull(t.Context(), made, &ocitest.Source{Image: img}, options("os", true))
	if err != nil {
		t.Fatal(err)
	}
	damage(t, made, "images/"+imageID(res, keyring.Plain), func([]byte) []byte { return []byte("nothing") })
	dir, err := durable.OpenDir(made.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	const keep = 1 << 20
	r, err := repo.Open(t.Context(), dir, repo.Options{KeepFree: keep, Space: func() (durable.Space, error) {
		return durable.Space{Bytes: keep + 256<<10, Size: 1 << 30, Inodes: -1, MaxInodes: -1, BlockSize: 4096}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var space *durable.SpaceError
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: manyFiles(t, "more", 2)}, options("more", true)); !errors.As(err, &space) {
		t.Errorf("an image with new layers: got %v, want a *durable.SpaceError", err)
	}
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, options("os", true)); err != nil {
		t.Errorf("the image that is damaged: %v", err)
	}
	repotest.Check(t, r)
}

func imageID(res *pull.Result, which keyring.Role) string {
	d, _ := res.Verified.Digest(which)
	return d.Hex()
}
