package repo_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// present fails unless exactly the wanted ones of the objects are there.
func present(t *testing.T, r *repo.Repository, what string, objects map[string]fsverity.Digest, want ...string) {
	t.Helper()
	var got []string
	for name, d := range objects {
		if _, err := os.Stat(objectFile(r, d)); err == nil {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: there are %q, want %q", what, got, want)
	}
}

// named stores a stream with named references.
func named(t *testing.T, r *repo.Repository, refs ...fsverity.Digest) fsverity.Digest {
	t.Helper()
	w, err := r.NewStream(t.Context(), splitstream.Manifest)
	must(t, err)
	defer w.Abort()
	for i, d := range refs {
		must(t, w.Named(fmt.Sprintf("ref%d", i), d))
	}
	must(t, w.External(put(t, r, pattern(100, len(refs))), 100))
	d, err := w.Commit(t.Context())
	must(t, err)
	return d
}

// TestUndo: what a failed run has stored is removed, unless something leads to it,
// and nothing else is.
func TestUndo(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	before := put(t, r, pattern(5000, 10))
	damaged := put(t, r, pattern(5000, 11))
	must(t, errors.Join(os.Remove(objectFile(r, damaged)), os.WriteFile(objectFile(r, damaged), []byte("short"), 0o600)))
	must(t, r.Close())
	r = open(t, openDir(t, r.Path()))

	run := r.Begin()
	objects := map[string]fsverity.Digest{"before": before, "damaged": damaged}
	for i, name := range []string{"alone", "in a stream", "in an image", "in a stream that only a digest names"} {
		objects[name] = put(t, r, pattern(70_000, 20+i))
	}
	put(t, r, pattern(5000, 10))
	put(t, r, pattern(5000, 11))
	put(t, r, pattern(70_000, 20)) // twice
	id, err := stream(ctx, r, pattern(70_000, 21))
	must(t, err)
	must(t, r.PublishStream(ctx, "s", id))
	objects["the stream"] = id
	img := image(t, r, pattern(70_000, 22))
	must(t, r.PublishImage(ctx, img))
	objects["the image"] = img
	// A name that led to the inner stream leads to another one by now.
	inner, err := stream(ctx, r, pattern(70_000, 23))
	must(t, err)
	must(t, r.PublishStream(ctx, "inner", inner))
	must(t, r.PublishStream(ctx, "outer", named(t, r, inner)))
	must(t, r.PublishStream(ctx, "inner", id))
	large, _, err := store(ctx, r, pattern(200_000, 30), 9000)
	must(t, err)
	objects["large"] = large
	orphan, err := stream(ctx, r, pattern(70_000, 31))
	must(t, err)
	objects["stream without a name"] = orphan

	removed, err := run.Undo(ctx)
	must(t, err)
	present(t, r, "after Undo", objects, "before", "damaged", "in a stream", "in an image", "in a stream that only a digest names", "the stream", "the image")
	if removed.Objects != 4 || removed.Bytes < 340_000 || len(removed.Streams) > 0 {
		t.Errorf("got %+v, want 4 objects", removed) // alone, large, the orphan and its object
	}
	check(t, r)
	// The handle goes on, and has no wrong idea of what is there.
	put(t, r, pattern(70_000, 20))
	present(t, r, "stored again", map[string]fsverity.Digest{"alone": objects["alone"]}, "alone")
	if err := repo.Lock(ctx, openDir(t, r.Path()), true, 0); err == nil {
		t.Error("the shared lock is gone")
	}
}

// TestKeep: what a run that succeeded has stored stays, named or not.
func TestKeep(t *testing.T) {
	r := newRepo(t)
	run := r.Begin()
	d := put(t, r, pattern(5000, 1))
	if removed, err := run.Keep(t.Context()); err != nil || removed.Objects != 0 {
		t.Errorf("got %+v, %v", removed, err)
	}
	// Nor is it the next one's.
	run = r.Begin()
	put(t, r, pattern(5000, 1))
	if removed, err := run.Undo(t.Context()); err != nil || removed.Objects != 0 {
		t.Errorf("got %+v, %v", removed, err)
	}
	present(t, r, "kept", map[string]fsverity.Digest{"kept": d}, "kept")
}

// TestUndoStreams: names of the run go with their objects, unless a ref or another
// stream leads to them.
func TestUndoStreams(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	run := r.Begin()
	objects := map[string]fsverity.Digest{}
	publish := func(name string, seed int) fsverity.Digest {
		objects[name] = put(t, r, pattern(70_000, seed))
		id, err := stream(ctx, r, pattern(70_000, seed))
		must(t, err)
		must(t, r.PublishStream(ctx, name, id))
		return id
	}
	publish("unused", 1)
	publish("with a ref", 2)
	must(t, r.SetRef(ctx, repo.Streams, "x/y", "with a ref"))
	must(t, r.PublishStream(ctx, "manifest", named(t, r, publish("named", 3))))
	publish("not given", 4)
	removed, err := run.Undo(ctx, "unused", "with a ref", "named", "never made")
	must(t, err)
	present(t, r, "after Undo", objects, "with a ref", "named", "not given")
	if !slices.Equal(removed.Streams, []string{"unused"}) || removed.Objects != 2 {
		t.Errorf("got %+v", removed)
	}
	if _, err := r.LookupStream("unused"); !errors.Is(err, repo.ErrNotFound) {
		t.Errorf("the name is still there: %v", err)
	}
	for _, name := range []string{"with a ref", "named", "not given"} {
		if _, err := r.LookupStream(name); err != nil {
			t.Error(err)
		}
	}
	check(t, r)
}

// TestUndoLocked: while somebody else has a handle, whose objects have no names
// yet, nothing is removed.
func TestUndoLocked(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	other := open(t, openDir(t, r.Path()))
	run := r.Begin()
	objects := map[string]fsverity.Digest{"shared": put(t, r, pattern(5000, 1))}
	put(t, other, pattern(5000, 1)) // finds it
	_, err := run.Undo(ctx)
	var locked *repo.LockedError
	if !errors.As(err, &locked) || !locked.Exclusive {
		t.Errorf("got %v, want a LockedError", err)
	}
	present(t, r, "locked", objects, "shared")
	must(t, other.Close())
	// The kernel drops the shared lock when it refuses the exclusive one.
	if err := repo.Lock(ctx, openDir(t, r.Path()), true, 0); !errors.As(err, &locked) {
		t.Errorf("the shared lock is gone: %v", err)
	}
	put(t, r, pattern(5000, 2))
}

// TestUndoOverlapping: nothing is removed before the last run of a handle ends.
func TestUndoOverlapping(t *testing.T) {
	ctx := t.Context()
	r := newRepo(t)
	first, second := r.Begin(), r.Begin()
	objects := map[string]fsverity.Digest{"first": put(t, r, pattern(5000, 1)), "second": put(t, r, pattern(70_000, 2))}
	removed, err := first.Undo(ctx)
	if err != nil || removed.Objects != 0 {
		t.Errorf("got %+v, %v", removed, err)
	}
	present(t, r, "one is running", objects, "first", "second")
	id, err := stream(ctx, r, pattern(70_000, 2))
	must(t, err)
	must(t, r.PublishStream(ctx, "s", id))
	removed, err = second.Keep(ctx)
	if err != nil || removed.Objects != 1 {
		t.Errorf("got %+v, %v", removed, err)
	}
	present(t, r, "all have ended", objects, "second")
}

// TestKeepFree: objects stop before the file system is full.
func TestKeepFree(t *testing.T) {
	ctx := t.Context()
	with := func(keep int64) *repo.Repository {
		t.Helper()
		r := newRepo(t)
		must(t, r.Close())
		r, err := repo.Open(ctx, openDir(t, r.Path()), repo.Options{KeepFree: keep})
		must(t, err)
		t.Cleanup(func() { _ = r.Close() })
		return r
	}
	full := with(1 << 61)
	for name, write := range map[string]func() error{
		"small object": func() error { _, err := full.PutObject(ctx, pattern(100, 1)); return err },
		"large object": func() error { _, _, err := store(ctx, full, pattern(200_000, 1), 9000); return err },
		"stream": func() error {
			w, err := full.NewStream(ctx, splitstream.Layer)
			must(t, err)
			defer w.Abort()
			for i := 0; i < 1000 && err == nil; i++ { // the file for what does not fit into memory
				_, err = w.Write(pattern(64<<10, i))
			}
			return err
		},
		"question": func() error { return full.Need(1, 1) },
	} {
		var space *durable.SpaceError
		if err := write(); !errors.As(err, &space) || !errors.Is(err, unix.ENOSPC) || space.Need <= 1<<61 || space.Have <= 0 {
			t.Errorf("%s: got %v, want a SpaceError", name, err)
		} else {
			t.Log(name, err)
		}
	}
	if list := files(t, full.Path()); len(list) != 1 { // meta.json
		t.Errorf("left: %q", list)
	}
	for _, keep := range []int64{0, -1, 1 << 20} {
		r := with(keep)
		put(t, r, pattern(100, 1))
		must(t, r.Need(1, 1))
		if err := r.Need(1<<63-1, 1); err == nil {
			t.Error("there is room for everything")
		}
	}
}

// TestRoom: what is left free, and a file system that tells no limit.
func TestRoom(t *testing.T) {
	const gib, none = 1 << 30, 1 << 60
	for _, tc := range []struct {
		name         string
		space        durable.Space
		keep         int64
		bytes, files int64
	}{
		{"disk", durable.Space{Bytes: 4 * gib, Size: 8 * gib, Inodes: 5000, MaxInodes: 9000}, 0, 4*gib - 64<<20, 5000 - 1024},
		{"small disk", durable.Space{Bytes: 4 << 20, Size: 16 << 20, Inodes: 500, MaxInodes: 800}, 0, 2 << 20, 400},
		{"nothing kept", durable.Space{Bytes: 4 << 20, Size: 16 << 20, Inodes: 500, MaxInodes: 800}, -1, 4 << 20, 500},
		{"no number of inodes", durable.Space{Bytes: 4 << 20, Size: 16 << 20, Inodes: -1, MaxInodes: -1}, 1 << 20, 3 << 20, none},
		{"ramfs", durable.Space{Inodes: -1, MaxInodes: -1}, 0, none, none},
		{"ramfs, to keep much", durable.Space{Inodes: -1, MaxInodes: -1}, gib, none, none},
		{"tmpfs without a limit", durable.Space{Inodes: 500, MaxInodes: 800}, 0, none, 500},
	} {
		if bytes, files := repo.Room(tc.space, tc.keep); bytes != tc.bytes || files != tc.files {
			t.Errorf("%s: room for %d bytes and %d files, want %d and %d", tc.name, bytes, files, tc.bytes, tc.files)
		}
	}
}

// TestSyncErrorStays: the kernel reports a failed write-back once, but what was
// lost stays lost.
func TestSyncErrorStays(t *testing.T) {
	ctx := t.Context()
	fs := durabletest.New(t)
	r := newFaultyRepo(t, fs)
	put(t, r, pattern(5000, 1))
	fs.FailAt(0, unix.EIO)
	for i := range 2 {
		if err := r.Sync(ctx); !errors.Is(err, unix.EIO) {
			t.Errorf("sync %d: got %v, want EIO", i+1, err)
		}
	}
	if err := r.PublishStream(ctx, "s", sum(pattern(5000, 1))); !errors.Is(err, unix.EIO) {
		t.Errorf("got %v, want EIO", err)
	}
}
