package repo_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// leave puts into a repository what killed pulls have left: objects, a stream
// without a name, and layers with names, of which one is needed.
func leave(t *testing.T, r *repo.Repository) (objects map[string]fsverity.Digest, wanted []string) {
	t.Helper()
	ctx := t.Context()
	objects = map[string]fsverity.Digest{"object": put(t, r, pattern(70_000, 1))}
	id, err := stream(ctx, r, pattern(70_000, 2))
	must(t, err)
	objects["stream"], objects["object of the stream"] = id, sum(pattern(70_000, 2))
	for i, name := range []string{"layer-left", "layer-needed", "layer-tagged", "other"} {
		id, err := stream(ctx, r, pattern(70_000, 10+i))
		must(t, err)
		must(t, r.PublishStream(ctx, name, id))
		objects[name], objects["object of "+name] = id, sum(pattern(70_000, 10+i))
	}
	must(t, r.PublishStream(ctx, "config", named(t, r, objects["layer-needed"])))
	must(t, r.SetRef(ctx, repo.Streams, "oci/x", "layer-tagged"))
	must(t, r.Sync(ctx))
	for _, name := range []string{"layer-needed", "layer-tagged", "other"} {
		wanted = append(wanted, name, "object of "+name)
	}
	return objects, wanted
}

func isLayer(name string) bool { return strings.HasPrefix(name, "layer-") }

// TestReclaim: what killed pulls have left goes, after a failed run and without one,
// and nothing that has a name or is needed.
func TestReclaim(t *testing.T) {
	ctx := t.Context()
	for _, failed := range []bool{false, true} {
		r := newRepo(t)
		objects, want := leave(t, r)
		must(t, r.Close())
		r = open(t, openDir(t, r.Path()))
		run := r.Begin()
		objects["own"] = put(t, r, pattern(70_000, 3))
		wantObjects := 6
		if failed {
			own, err := run.Undo(ctx)
			if err != nil || own.Objects != 1 || own.Bytes < 70_000 {
				t.Errorf("undo: got %+v, %v", own, err)
			}
			wantObjects = 5
		} else {
			_, err := run.Keep(ctx)
			must(t, err)
		}
		removed, err := r.Reclaim(ctx, repo.ReclaimOptions{Streams: isLayer})
		must(t, err)
		present(t, r, "afterwards", objects, want...)
		if !slices.Equal(removed.Streams, []string{"layer-left"}) || removed.Objects != wantObjects || removed.Bytes < int64(wantObjects-2)*70_000 {
			t.Errorf("got %+v", removed)
		}
		check(t, r)
		// What the next run stores is its own again.
		run = r.Begin()
		objects["later"] = put(t, r, pattern(70_000, 4))
		removed, err = run.Undo(ctx)
		if err != nil || removed.Objects != 1 {
			t.Errorf("got %+v, %v", removed, err)
		}
	}
}

// TestReclaimOverlapping: while a run is open nothing is removed.
func TestReclaimOverlapping(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	objects, want := leave(t, r)
	first, second := r.Begin(), r.Begin()
	o := repo.ReclaimOptions{Streams: isLayer}
	for _, end := range []func() (repo.Removed, error){func() (repo.Removed, error) { return first.Undo(ctx) }, func() (repo.Removed, error) { return second.Keep(ctx) }} {
		if removed, err := r.Reclaim(ctx, o); !errors.Is(err, repo.ErrRunning) || removed.Objects != 0 {
			t.Errorf("got %+v, %v, want ErrRunning", removed, err)
		}
		if removed, err := end(); err != nil || removed.Objects != 0 {
			t.Errorf("got %+v, %v", removed, err)
		}
	}
	if removed, err := r.Reclaim(ctx, o); err != nil || removed.Objects != 5 {
		t.Errorf("got %+v, %v", removed, err)
	}
	present(t, r, "all have ended", objects, want...)
}

// TestReclaimWaits: another handle is waited for, which is told, and for so long only.
func TestReclaimWaits(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	objects, want := leave(t, r)
	var all []string
	for name := range objects {
		all = append(all, name)
	}
	other := open(t, openDir(t, r.Path()))
	told := 0
	o := repo.ReclaimOptions{LockWait: 300 * time.Millisecond, Streams: isLayer, Waiting: func(e *repo.LockedError) {
		if told++; e.PID == 0 {
			t.Errorf("nobody is named: %v", e)
		}
	}}
	var locked *repo.LockedError
	if _, err := r.Reclaim(ctx, o); !errors.As(err, &locked) || told != 1 {
		t.Errorf("got %v, told %d times", err, told)
	}
	present(t, r, "locked", objects, all...)
	o.LockWait, o.Waiting = time.Minute, func(*repo.LockedError) { must(t, other.Close()) }
	_, err := r.Reclaim(ctx, o)
	must(t, err)
	present(t, r, "waited", objects, want...)
}

// TestUndoWaits: a copy of a closed handle, in a process that was forked at the
// wrong moment, does not keep a run from taking back what it has stored.
func TestUndoWaits(t *testing.T) {
	r := newRepo(t)
	other := open(t, openDir(t, r.Path()))
	run := r.Begin()
	put(t, r, pattern(5000, 1))
	time.AfterFunc(100*time.Millisecond, func() { _ = other.Close() })
	if removed, err := run.Undo(t.Context()); err != nil || removed.Objects != 1 {
		t.Errorf("got %+v, %v", removed, err)
	}
}

// TestReclaimDamaged: what is damaged does not switch the clean-up off. What it
// names is kept; what cannot be read may name anything but what the run has stored.
func TestReclaimDamaged(t *testing.T) {
	ctx := t.Context()
	rewrite := func(name string, change func([]byte) []byte) error {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return errors.Join(os.Remove(name), os.WriteFile(name, change(b), 0o600))
	}
	for _, tc := range []struct {
		name     string
		damage   func(r *repo.Repository, img, id fsverity.Digest) error
		told     bool
		readable bool
		fails    bool
	}{
		{"image with other content", func(r *repo.Repository, img, _ fsverity.Digest) error {
			return rewrite(objectFile(r, img), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, true, true, false},
		{"stream with other content", func(r *repo.Repository, _, id fsverity.Digest) error {
			return rewrite(objectFile(r, id), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, true, true, false},
		{"image that is no image", func(r *repo.Repository, img, _ fsverity.Digest) error {
			return rewrite(objectFile(r, img), func(b []byte) []byte { return b[:2000] })
		}, true, false, false},
		{"link that leads elsewhere", func(r *repo.Repository, _, _ fsverity.Digest) error {
			return os.Symlink("../x", r.Path()+"/streams/odd")
		}, false, true, false},
		{"another format", func(r *repo.Repository, _, _ fsverity.Digest) error {
			d, err := r.PutObject(ctx, append([]byte{0x9a, 0x62, 0x78, 0xd0}, pattern(300, 9)...))
			return errors.Join(err, r.PublishImage(ctx, d))
		}, false, false, true},
	} {
		for _, all := range []bool{false, true} {
			r := newRepo(t)
			objects, want := leave(t, r)
			objects["of the image"], objects["of the stream"] = sum(pattern(70_000, 40)), sum(pattern(70_000, 41))
			want = append(want, "of the image", "of the stream")
			img := image(t, r, pattern(70_000, 40))
			must(t, r.PublishImage(ctx, img))
			id, err := stream(ctx, r, pattern(70_000, 41))
			must(t, err)
			must(t, r.PublishStream(ctx, "s", id))
			must(t, tc.damage(r, img, id))
			must(t, r.Close())
			r = open(t, openDir(t, r.Path()))
			run := r.Begin()
			objects["own"] = put(t, r, pattern(70_000, 3))
			var removed repo.Removed
			removed, err = run.Undo(ctx)
			if all {
				var rerr error
				removed, rerr = r.Reclaim(ctx, repo.ReclaimOptions{Streams: isLayer})
				err = errors.Join(err, rerr)
			}
			if (err != nil) != tc.fails || (len(removed.Damaged) > 0) != tc.told && !tc.fails {
				t.Errorf("%s, all %v: got %+v, %v", tc.name, all, removed, err)
			}
			if tc.told || !all {
				want = append(want, "layer-left", "object of layer-left") // what is damaged may need it
			}
			if !all || !tc.readable {
				want = append(want, "object", "stream", "object of the stream")
			}
			if tc.fails {
				want = append(want, "own")
				if all {
					want = append(want, "layer-left", "object of layer-left")
				}
			}
			present(t, r, tc.name, objects, want...)
		}
	}
}
