package repo_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
)

// step is one thing that may be cut short anywhere.
type step struct {
	name    string
	prepare func(ctx context.Context, r *repo.Repository) error // nil for nothing
	run     func(ctx context.Context, r *repo.Repository) error
	done    func(r *repo.Repository) error // nil if the result is there
}

func publishStream(ctx context.Context, r *repo.Repository, name string, seed int) error {
	id, err := stream(ctx, r, pattern(5000, seed), pattern(70_000, seed))
	if err != nil {
		return err
	}
	return r.PublishStream(ctx, name, id)
}

func publishImage(ctx context.Context, r *repo.Repository) (string, error) {
	data := pattern(5000, 1)
	d, err := r.PutObject(ctx, data)
	if err != nil {
		return "", err
	}
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	root.Set("file", &tree.Node{Kind: tree.Regular, Meta: tree.Meta{Mode: 0o644}, Size: 5000, Digest: d})
	var b bytes.Buffer
	if err := erofs.Encode(&b, root, erofs.V1); err != nil {
		return "", err
	}
	if d, err = r.PutObject(ctx, b.Bytes()); err != nil {
		return "", err
	}
	return d.Hex(), r.PublishImage(ctx, d)
}

// failedRun publishes two streams, stores another one without a name, and takes
// back what it can, one of the names too.
func failedRun(ctx context.Context, r *repo.Repository) error {
	run := r.Begin()
	err := publishStream(ctx, r, "kept", 1)
	if err == nil {
		err = publishStream(ctx, r, "given up", 2)
	}
	if err == nil {
		_, err = stream(ctx, r, pattern(70_000, 3))
	}
	_, undo := run.Undo(ctx, "given up")
	return errors.Join(err, undo)
}

var steps = []step{
	{
		name: "object",
		run: func(ctx context.Context, r *repo.Repository) error {
			_, _, err := store(ctx, r, pattern(70_000, 4), 9000)
			return err
		},
		done: func(r *repo.Repository) error {
			_, err := r.ReadObject(context.Background(), sum(pattern(70_000, 4)), 1<<20)
			return err
		},
	},
	{
		name: "damaged object",
		prepare: func(ctx context.Context, r *repo.Repository) error {
			d, err := r.PutObject(ctx, pattern(70_000, 4))
			if err != nil {
				return err
			}
			if err := r.Sync(ctx); err != nil {
				return err
			}
			return errors.Join(os.Remove(objectFile(r, d)), os.WriteFile(objectFile(r, d), []byte("short"), 0o600))
		},
		run: func(ctx context.Context, r *repo.Repository) error {
			_, _, err := store(ctx, r, pattern(70_000, 4), 9000)
			return err
		},
		done: func(r *repo.Repository) error {
			_, err := r.ReadObject(context.Background(), sum(pattern(70_000, 4)), 1<<20)
			return err
		},
	},
	{
		name: "stream",
		run: func(ctx context.Context, r *repo.Repository) error {
			return publishStream(ctx, r, "oci-layer-sha256:ab", 1)
		},
		done: func(r *repo.Repository) error {
			_, err := r.LookupStream("oci-layer-sha256:ab")
			return err
		},
	},
	{
		name: "stream replaced, with refs",
		prepare: func(ctx context.Context, r *repo.Repository) error {
			return errors.Join(publishStream(ctx, r, "m", 1), r.SetRef(ctx, repo.Streams, "oci/tag", "m"))
		},
		run: func(ctx context.Context, r *repo.Repository) error {
			if err := publishStream(ctx, r, "m", 2); err != nil {
				return err
			}
			if err := publishStream(ctx, r, "n", 3); err != nil {
				return err
			}
			if err := r.SetRef(ctx, repo.Streams, "oci/tag", "n"); err != nil {
				return err
			}
			return r.SetRef(ctx, repo.Streams, "cfsboot/id", "m")
		},
		done: func(r *repo.Repository) error {
			target, err := r.ResolveRef(repo.Streams, "oci/tag")
			if err == nil && target != "n" {
				err = fmt.Errorf("the tag leads to %q", target)
			}
			_, err2 := r.ResolveRef(repo.Streams, "cfsboot/id")
			return errors.Join(err, err2)
		},
	},
	{
		name: "image with ref",
		run: func(ctx context.Context, r *repo.Repository) error {
			hex, err := publishImage(ctx, r)
			if err != nil {
				return err
			}
			return r.SetRef(ctx, repo.Images, "cfsboot/id/plain", hex)
		},
		done: func(r *repo.Repository) error {
			_, err := r.ResolveImage("refs/cfsboot/id/plain")
			return err
		},
	},
	{
		name: "failed run",
		run:  failedRun,
		done: func(r *repo.Repository) error {
			_, err := r.LookupStream("kept")
			switch _, gone := r.LookupStream("given up"); {
			case gone == nil:
				err = errors.Join(err, errors.New("the name was not given up"))
			case !errors.Is(gone, repo.ErrNotFound):
				err = errors.Join(err, gone)
			}
			return err
		},
	},
	{
		name: "run that makes room",
		prepare: func(ctx context.Context, r *repo.Repository) error {
			_, err := stream(ctx, r, pattern(70_000, 6))
			return errors.Join(err, publishStream(ctx, r, "left", 7))
		},
		run: func(ctx context.Context, r *repo.Repository) error {
			run := r.Begin()
			o := repo.ReclaimOptions{Streams: func(name string) bool { return name == "left" }}
			_, kerr := run.Keep(ctx)
			_, err := r.Reclaim(ctx, o)
			run = r.Begin()
			if err = errors.Join(kerr, err); err == nil {
				err = publishStream(ctx, r, "kept", 1)
			}
			_, undo := run.Undo(ctx)
			if undo == nil {
				_, undo = r.Reclaim(ctx, o)
			}
			return errors.Join(err, undo)
		},
		done: func(r *repo.Repository) error {
			_, err := r.LookupStream("kept")
			for _, d := range []fsverity.Digest{sum(pattern(70_000, 6)), sum(pattern(70_000, 7))} {
				if has, herr := r.HasObject(d); has || herr != nil {
					err = errors.Join(err, herr, fmt.Errorf("object %s is left: %v", d, has))
				}
			}
			return err
		},
	},
	{
		name: "failed run that moved a name",
		run: func(ctx context.Context, r *repo.Repository) error {
			run := r.Begin()
			err := func() error {
				if err := publishStream(ctx, r, "m", 1); err != nil {
					return err
				}
				if err := r.Sync(ctx); err != nil {
					return err
				}
				return publishStream(ctx, r, "m", 2) // the medium may still have the first one
			}()
			_, undo := run.Undo(ctx)
			return errors.Join(err, undo)
		},
		done: func(r *repo.Repository) error {
			_, err := r.LookupStream("m")
			return err
		},
	},
	{
		name: "ref removed",
		prepare: func(ctx context.Context, r *repo.Repository) error {
			return errors.Join(publishStream(ctx, r, "m", 1), r.SetRef(ctx, repo.Streams, "oci/tag", "m"))
		},
		run: func(ctx context.Context, r *repo.Repository) error {
			if err := r.RemoveRef(ctx, repo.Streams, "oci/tag"); err != nil && !errors.Is(err, repo.ErrNotFound) {
				return err
			}
			return nil
		},
		done: func(r *repo.Repository) error {
			if _, err := r.ResolveRef(repo.Streams, "oci/tag"); !errors.Is(err, repo.ErrNotFound) {
				return fmt.Errorf("the ref is still there: %w", err)
			}
			return nil
		},
	},
}

// begin makes a repository in which the step can start.
func (s step) begin(t *testing.T) (*durabletest.FS, *repo.Repository) {
	t.Helper()
	fs := durabletest.New(t)
	r := newFaultyRepo(t, fs)
	if s.prepare != nil {
		must(t, s.prepare(t.Context(), r))
		must(t, r.Sync(t.Context()))
	}
	// A new handle, which does not know what was stored.
	must(t, r.Close())
	return fs, open(t, fs.Open())
}

// full runs the step and makes it durable.
func (s step) full(ctx context.Context, r *repo.Repository) error {
	if err := s.run(ctx, r); err != nil {
		return err
	}
	return r.Sync(ctx)
}

// sound checks that the repository in fs has no partial result, that the step can
// be repeated in it, and that what it then says is durable is so.
func (s step) sound(t *testing.T, fs *durabletest.FS, when string) {
	t.Helper()
	ctx := t.Context()
	fs.Disarm()
	r, err := repo.Open(ctx, fs.Open(), repo.Options{})
	if err != nil {
		t.Fatalf("%s: open: %v", when, err)
	}
	defer r.Close()
	rep, err := r.Check(ctx)
	must(t, err)
	if !rep.OK() {
		t.Fatalf("%s: %v", when, rep.Problems)
	}
	if err := s.full(ctx, r); err != nil {
		t.Fatalf("%s: repeated: %v", when, err)
	}
	if err := s.done(r); err != nil {
		t.Fatalf("%s: after repeating: %v", when, err)
	}
	after, err := repo.Open(ctx, fs.PowerLoss().Dir(), repo.Options{})
	must(t, err)
	defer after.Close()
	rep, err = after.Check(ctx)
	must(t, err)
	if err := s.done(after); err != nil || !rep.OK() {
		t.Fatalf("%s: repeated, then a power cut: %v, %v", when, err, rep.Problems)
	}
}

func (s step) soundAfterPowerLoss(t *testing.T, fs *durabletest.FS, when string) {
	t.Helper()
	s.sound(t, fs.PowerLoss(), when+", only what was synced")
	s.sound(t, fs.PowerLossNames(), when+", names without data")
	for seed := range uint64(3) {
		s.sound(t, fs.PowerLossRandom(seed), fmt.Sprintf("%s, mixture %d", when, seed))
	}
}

// everyCall runs body for call 0, 1, ... in a test of its own, so that each cleans
// up, until body says that there was no such call.
func everyCall(t *testing.T, body func(t *testing.T, n int) (more bool)) {
	t.Helper()
	for n, more := 0, true; more; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { more = body(t, n) })
		if t.Failed() {
			return
		}
		if !more && n < 2 {
			t.Fatalf("only %d calls were seen", n)
		}
	}
}

// TestPublishSurvivesEveryFault lets each mutating call fail in turn.
func TestPublishSurvivesEveryFault(t *testing.T) {
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) { everyCall(t, s.survivesFault) })
	}
}

func (s step) survivesFault(t *testing.T, n int) bool {
	fs, r := s.begin(t)
	errno := []error{unix.EIO, unix.ENOSPC}[n%2]
	fs.FailAt(n, errno)
	err := s.full(t.Context(), r)
	if !fs.Triggered() {
		must(t, err)
		return false
	}
	when := fmt.Sprintf("fault %d (%s)", n, fs.Op(n))
	if !errors.Is(err, errno) {
		t.Fatalf("%s: got %v, want %v", when, err, errno)
	}
	must(t, r.Close())
	s.soundAfterPowerLoss(t, fs, when)
	s.sound(t, fs, when)
	return true
}

// TestPublishSurvivesEveryKill ends the process before and after each mutating
// call, with and without a power cut.
func TestPublishSurvivesEveryKill(t *testing.T) {
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) { everyCall(t, s.survivesKill) })
	}
}

func (s step) survivesKill(t *testing.T, n int) bool {
	for _, side := range []durabletest.When{durabletest.Before, durabletest.After} {
		fs, r := s.begin(t)
		fs.KillAt(n, side)
		err := s.full(t.Context(), r)
		if !fs.Triggered() {
			must(t, err)
			return false
		}
		when := fmt.Sprintf("killed at %d (%s), side %d", n, fs.Op(n), side)
		must(t, r.Close()) // the kernel closes what a dead process had open
		s.soundAfterPowerLoss(t, fs, when)
		s.sound(t, fs, when)
	}
	return true
}

// TestInitSurvivesEveryFault: meta.json is absent or complete, and Init can be
// repeated.
func TestInitSurvivesEveryFault(t *testing.T) {
	ctx := t.Context()
	sound := func(fs *durabletest.FS, when string) {
		fs.Disarm()
		b, err := os.ReadFile(filepath.Join(fs.Path(), "meta.json"))
		if err == nil && string(b) != defaultMeta || err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: got %q, %v", when, b, err)
		}
		if err := repo.Init(ctx, fs.Dir(), insecure); err != nil {
			t.Fatalf("%s: repeated: %v", when, err)
		}
		must(t, open(t, fs.PowerLoss().Dir()).Close())
	}
	for n := 0; ; n++ {
		fs := durabletest.New(t)
		fs.FailAt(n, unix.EIO)
		err := repo.Init(ctx, fs.Dir(), insecure)
		if !fs.Triggered() {
			must(t, err)
			sound(fs, "success")
			return
		}
		when := fmt.Sprintf("fault %d (%s)", n, fs.Op(n))
		if !errors.Is(err, unix.EIO) {
			t.Fatalf("%s: got %v", when, err)
		}
		for _, side := range []durabletest.When{durabletest.Before, durabletest.After} {
			killed := durabletest.New(t)
			killed.KillAt(n, side)
			if err := repo.Init(ctx, killed.Dir(), insecure); !errors.Is(err, durabletest.ErrKilled) && killed.Op(n+1) != "none" {
				t.Fatalf("killed at %d: got %v", n, err)
			}
			for seed := range uint64(4) {
				sound(killed.PowerLossRandom(seed), fmt.Sprintf("killed at %d, mixture %d", n, seed))
			}
			sound(killed, fmt.Sprintf("killed at %d", n))
		}
		sound(fs.PowerLoss(), when)
		sound(fs.PowerLossNames(), when)
		sound(fs, when)
	}
}

// TestSyncsAreBatched: many objects and names cost three syncs in all, and a
// run that stores nothing costs one.
func TestSyncsAreBatched(t *testing.T) {
	ctx := t.Context()
	fs := durabletest.New(t)
	r := newFaultyRepo(t, fs)
	fs.Disarm()
	for i := range 10 {
		put(t, r, pattern(100*i, i))
	}
	for i := range 5 {
		id, err := stream(ctx, r)
		must(t, err)
		must(t, r.PublishStream(ctx, fmt.Sprint("s", i), id))
	}
	for i := range 5 {
		must(t, r.SetRef(ctx, repo.Streams, fmt.Sprint("r", i), "s0"))
	}
	must(t, r.Sync(ctx))
	must(t, r.Sync(ctx))
	syncs := 0
	for i := range fs.Count() {
		if fs.Op(i) == "syncfs "+fs.Path() {
			syncs++
		}
	}
	if syncs != 3 {
		t.Errorf("got %d syncs, want 3", syncs)
	}
}
