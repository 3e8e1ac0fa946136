package pull_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs/tree"
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

// quota is a disk with room for so many objects.
type quota struct {
	mu   sync.Mutex
	left int
}

func (q *quota) Before(op durable.Op) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if op.Kind == durable.OpLink && q.left == 0 {
		return unix.ENOSPC
	}
	return nil
}

func (q *quota) After(op durable.Op, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case err != nil || strings.Contains(op.Name, ":"): // the name of a stream or record
	case op.Kind == durable.OpLink:
		q.left--
	case op.Kind == durable.OpUnlink:
		q.left++
	}
}

// withQuota returns a repository on such a disk.
func withQuota(t *testing.T, room int) (*repo.Repository, *quota) {
	t.Helper()
	q := &quota{left: 1 << 30}
	plain, err := durable.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	dir, err := plain.WithHook(q)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	r := repotest.NewIn(t, dir, fsverity.SHA256)
	q.left = room
	return r, q
}

// filesLayer has n files of the given size, all different.
func filesLayer(t testing.TB, name string, n, size int) ocitest.Layer {
	t.Helper()
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	usr := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("usr", usr)
	for i := range n {
		word := fmt.Sprintf("%s %d ", name, i)
		content := strings.Repeat(word, size/len(word)+1)[:size]
		usr.Set(fmt.Sprintf("%s-%d", name, i), tree.NewInline(tree.Meta{Mode: 0o644}, []byte(content)))
	}
	var b strings.Builder
	if err := ocitest.WriteTar(&b, root); err != nil {
		t.Fatal(err)
	}
	return ocitest.Layer{Tar: []byte(b.String()), Compression: ocitest.Gzip}
}

// objectsOf lists the objects of a repository.
func objectsOf(t testing.TB, r *repo.Repository) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(r.Path(), "objects/*/*"))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestFullDiskIsNotLeftFull: an image that does not fit is removed again, with the
// layers of it that were complete, so that a smaller one fits.
func TestFullDiskIsNotLeftFull(t *testing.T) {
	defer pull.SetPublishInterval(0)() // complete layers get their names at once
	r, q := withQuota(t, 60)
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, options("os", true)); err != nil {
		t.Fatal(err)
	}
	before, left := objectsOf(t, r), q.left
	big := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "a", 10, 100_000), filesLayer(t, "b", 10, 900), filesLayer(t, "c", 100, 80)}})
	o := options("os", true)
	o.Parallel = 1 // the largest layers first
	var text []string
	o.Progress = reporter(func(e progress.Event) {
		if m, ok := e.(progress.Message); ok {
			text = append(text, m.Text)
		}
	})
	src := &ocitest.Source{Image: big}
	_, err := pull.Pull(t.Context(), r, src, o)
	var space *durable.SpaceError
	if !errors.As(err, &space) {
		t.Fatalf("got %v, want a *durable.SpaceError", err)
	}
	for _, l := range []int{1, 3} {
		if src.Reads(big.Layers[l].Digest) == 0 {
			t.Errorf("layer %d was not tried", l+1)
		}
	}
	if after := objectsOf(t, r); !slices.Equal(after, before) || q.left != left {
		t.Errorf("%d objects are left, want %d", len(after), len(before))
	}
	for _, d := range big.DiffIDs[1:] {
		if exists(t, r, "streams/"+oci.LayerStream(d)) || exists(t, r, "cfsboot/verified/"+d.String()) {
			t.Errorf("layer %s has a name", d)
		}
	}
	if want := "what the failed pull has stored is removed again"; !strings.Contains(strings.Join(text, "\n"), want) {
		t.Errorf("messages %q, want one with %q", text, want)
	}
	repotest.Check(t, r)
	small := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "d", 20, 900)}})
	if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: small}, options("os", true)); err != nil {
		t.Errorf("a small image after it: %v", err)
	}
	repotest.Check(t, r)
}

// TestFailedPullKeepsLayers: after another error than a full disk, layers that are
// complete stay, and only what is not is removed.
func TestFailedPullKeepsLayers(t *testing.T) {
	t.Parallel()
	r := repotest.New(t, fsverity.SHA256)
	img := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "a", 300, 900), filesLayer(t, "b", 100, 900)}})
	broken := errors.New("the line was cut")
	src := &ocitest.Source{Image: img}
	src.Fault = func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		if d.Digest == img.Layers[2].Digest {
			return io.MultiReader(io.LimitReader(r, d.Size/2), failing{broken}), nil
		}
		return r, nil
	}
	o := options("os", true)
	o.Parallel = 1 // largest first: layer 2, then layer 3
	_, err := pull.Pull(t.Context(), r, src, o)
	if !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	if n := len(objectsOf(t, r)); n != 301 { // the files of layer 2 and its stream
		t.Errorf("%d objects are left, want 301", n)
	}
	repotest.Check(t, r)
	src.Fault = nil
	res, err := pull.Pull(t.Context(), r, src, o)
	if err != nil || res.Stats.LayersPresent != 1 || src.Reads(img.Layers[1].Digest) != 1 {
		t.Errorf("repeated: %+v, %v", res, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestFailedPullBesideAnother: a pull that fails takes nothing away from one that
// runs beside it and has found the same objects, on the same handle or another.
func TestFailedPullBesideAnother(t *testing.T) {
	t.Parallel()
	common := filesLayer(t, "common", 50, 900)
	bad := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), common, filesLayer(t, "b", 5, 900)}})
	good := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "g", 2, 70), common}})
	for _, same := range []bool{true, false} {
		r := repotest.New(t, fsverity.SHA256)
		other := r
		if !same {
			other = repotest.Open(t, r.Dir())
		}
		// The bad one fails when the good one has stored the common layer and waits.
		waits, failed := make(chan struct{}), make(chan struct{})
		goodSource := &ocitest.Source{Image: good, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
			if d.Digest == good.Layers[1].Digest {
				close(waits)
				<-failed
			}
			return r, nil
		}}
		badSource := &ocitest.Source{Image: bad, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
			if d.Digest == bad.Layers[2].Digest {
				<-waits
				return nil, &durable.SpaceError{Where: "test", Err: unix.ENOSPC}
			}
			return r, nil
		}}
		o := options("good", true)
		o.Parallel = 1
		done := make(chan error)
		go func() {
			defer close(failed)
			o := options("bad", true)
			o.Parallel = 1
			_, err := pull.Pull(t.Context(), r, badSource, o)
			go func() { done <- err }()
		}()
		res, err := pull.Pull(t.Context(), other, goodSource, o)
		if err != nil {
			t.Fatalf("same handle %v: %v", same, err)
		}
		if err := <-done; !errors.Is(err, unix.ENOSPC) {
			t.Errorf("same handle %v: the bad one: %v", same, err)
		}
		boot, _ := res.Verified.Digest(keyring.Boot)
		decode(t, other, boot)
		repotest.Check(t, other)
	}
}

// TestOneLayerFails: the error is told once, by the layer that failed.
func TestOneLayerFails(t *testing.T) {
	t.Parallel()
	img := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), filesLayer(t, "a", 3, 900), filesLayer(t, "b", 3, 900)}})
	broken := errors.New("404 Not Found")
	var reading sync.WaitGroup
	reading.Add(2)
	src := &ocitest.Source{Image: img, Fault: func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		switch d.Digest {
		case img.Layers[1].Digest:
			reading.Wait()
			return nil, broken
		case img.Layers[0].Digest, img.Layers[2].Digest:
			reading.Done()
			return slow{}, nil
		}
		return r, nil
	}}
	o := options("os", true)
	o.Parallel = 3
	var mu sync.Mutex
	ends := map[string]error{}
	o.Progress = reporter(func(e progress.Event) {
		if e, ok := e.(progress.End); ok {
			mu.Lock()
			defer mu.Unlock()
			ends[e.Component] = e.Err
		}
	})
	_, err := pull.Pull(t.Context(), repotest.New(t, fsverity.SHA256), src, o)
	if !errors.Is(err, broken) || strings.Count(err.Error(), "layer ") != 1 || !strings.HasPrefix(err.Error(), "layer 2 of 3: ") {
		t.Errorf("got %v", err)
	}
	told := 0
	for name, err := range ends {
		if errors.Is(err, broken) {
			told++
		} else if err == nil || err.Error() != "context canceled" {
			t.Errorf("%s: got %v, want only that it was stopped", name, err)
		}
	}
	if told != 1 || len(ends) != 3 {
		t.Errorf("got %v", ends)
	}
}

// slow sends zeros for ever, which are no gzip and a valid beginning of a tar.
type slow struct{}

func (slow) Read(p []byte) (int, error) {
	time.Sleep(time.Millisecond)
	clear(p[:1])
	return 1, nil
}

// TestRootSmallDisk: an image that unpacks to more than the disk leaves room on it
// even while it fails, and a small one fits afterwards; likewise where files are
// too many.
func TestRootSmallDisk(t *testing.T) {
	at := needKernel(t)
	for name, tc := range map[string]struct {
		mount  string
		big    ocitest.Layer
		inodes bool
	}{
		"bytes":  {"size=60m", filesLayer(t, "a", 90, 1<<20), false},
		"inodes": {"size=60m,nr_inodes=900", filesLayer(t, "a", 2000, 80), true},
	} {
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, tc.mount+",mode=755"); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}()
			dir, err := durable.OpenDir(at)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			r := repotest.NewIn(t, dir, fsverity.SHA512)
			defer r.Close()
			var least durable.Space
			o := options("os", true)
			o.Progress = reporter(func(e progress.Event) {
				if _, ok := e.(progress.End); ok {
					least, _ = dir.Space()
				}
			})
			big := build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), tc.big}})
			_, err = pull.Pull(t.Context(), r, &ocitest.Source{Image: big}, o)
			var space *durable.SpaceError
			if !errors.As(err, &space) || space.Inodes != tc.inodes {
				t.Fatalf("%s: got %v, want a *durable.SpaceError", name, err)
			}
			t.Log(err)
			if least.Bytes < least.Size/10 || least.Inodes < least.MaxInodes/10 {
				t.Errorf("%s: the pull left only %+v", name, least)
			}
			if _, err := os.Stat(filepath.Join(at, "objects")); err != nil || len(objectsOf(t, r)) > 0 {
				t.Errorf("%s: %d objects are left, %v", name, len(objectsOf(t, r)), err)
			}
			if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, options("os", true)); err != nil {
				t.Errorf("%s: a small image after it: %v", name, err)
			}
			repotest.Check(t, r)
		}()
	}
}
