package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/repo"
)

// shop is a repository with things that are in use and things that are not.
type shop struct {
	r             *repo.Repository
	used, garbage map[string]fsverity.Digest
}

// names lists what is in a map, for present.
func (s shop) names(maps ...map[string]fsverity.Digest) (all map[string]fsverity.Digest, names []string) {
	all = map[string]fsverity.Digest{}
	for _, m := range maps {
		for name, d := range m {
			all[name] = d
			names = append(names, name)
		}
	}
	return all, names
}

// stock fills a repository.
func stock(t *testing.T, r *repo.Repository) shop {
	t.Helper()
	ctx := t.Context()
	s := shop{r, map[string]fsverity.Digest{}, map[string]fsverity.Digest{}}
	publish := func(name string, seed int, set map[string]fsverity.Digest) fsverity.Digest {
		t.Helper()
		set["object of "+name] = sum(pattern(70_000, seed))
		id, err := stream(ctx, r, pattern(70_000, seed))
		must(t, err)
		must(t, r.PublishStream(ctx, name, id))
		set[name] = id
		return id
	}
	publish("tagged", 1, s.used)
	must(t, r.SetRef(ctx, repo.Streams, "oci/os%3A1", "tagged"))
	// A named reference by digest, whose name leads elsewhere by now: repository.md 4.4.
	old := publish("config", 2, s.used)
	img := image(t, r, pattern(70_000, 3))
	must(t, r.PublishImage(ctx, img))
	s.used["image of the config"], s.used["its object"] = img, sum(pattern(70_000, 3))
	oldConfig := named(t, r, old, img)
	must(t, r.PublishStream(ctx, "superseded", oldConfig))
	s.used["old config"] = oldConfig
	manifest := named(t, r, oldConfig)
	must(t, r.PublishStream(ctx, "manifest", manifest))
	must(t, r.SetRef(ctx, repo.Streams, "cfsboot/"+strings.Repeat("ab", 64), "manifest"))
	s.used["manifest"] = manifest
	publish("superseded", 4, s.garbage)
	held := image(t, r, pattern(70_000, 5))
	must(t, r.PublishImage(ctx, held))
	must(t, r.SetRef(ctx, repo.Images, "cfsboot/"+strings.Repeat("ab", 64)+"/boot", held.Hex()))
	s.used["held image"], s.used["object of the held image"] = held, sum(pattern(70_000, 5))

	publish("untagged", 6, s.garbage)
	lone := image(t, r, pattern(70_000, 7))
	must(t, r.PublishImage(ctx, lone))
	s.garbage["image without a ref"], s.garbage["its own object"] = lone, sum(pattern(70_000, 7))
	s.garbage["object"] = put(t, r, pattern(70_000, 8))
	must(t, r.Sync(ctx))
	return s
}

// foreign puts files into a repository that are none of its business.
func foreign(t *testing.T, path string) []string {
	t.Helper()
	list := []string{"README", "objects/notes", "objects/ab/readme.txt", "streams/odd", "images/refs/LICENSE", "streams/refs/oci/file", "objects/.tmp-object-new"}
	for _, name := range list {
		must(t, os.MkdirAll(filepath.Join(path, filepath.Dir(name)), 0o755))
		must(t, os.WriteFile(filepath.Join(path, name), []byte("mine"), 0o600))
	}
	must(t, os.Symlink("../elsewhere", filepath.Join(path, "streams/link")))
	must(t, os.Symlink("x", filepath.Join(path, ".symlink-new")))
	return append(list, "streams/link", ".symlink-new")
}

func TestCollect(t *testing.T) {
	ctx := t.Context()
	s := stock(t, newRepo(t))
	mine := foreign(t, s.r.Path())
	old := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"objects/.tmp-object-old"} {
		must(t, os.WriteFile(filepath.Join(s.r.Path(), name), pattern(5000, 1), 0o600))
		must(t, os.Chtimes(filepath.Join(s.r.Path(), name), old, old))
	}
	before := files(t, s.r.Path())
	dry, err := s.r.Collect(ctx, repo.CollectOptions{DryRun: true})
	must(t, err)
	if after := files(t, s.r.Path()); !slices.Equal(before, after) {
		t.Errorf("a dry run has changed something")
	}
	got, err := s.r.Collect(ctx, repo.CollectOptions{})
	must(t, err)
	if got.Objects != dry.Objects || got.Bytes != dry.Bytes || got.Streams != dry.Streams || got.Images != dry.Images || got.KeptObjects != dry.KeptObjects || got.KeptStreams != dry.KeptStreams {
		t.Errorf("got %+v, the dry run said %+v", got, dry)
	}
	if got.Objects != len(s.garbage) || got.Images != 1 || got.Streams != 2 || got.Temporaries != 1 || got.KeptImages != 2 || got.Bytes < 4*70_000 {
		t.Errorf("got %+v, garbage %d", got, len(s.garbage))
	}
	all, _ := s.names(s.used, s.garbage)
	_, want := s.names(s.used)
	present(t, s.r, "after Collect", all, want...)
	for _, name := range mine {
		if _, err := os.Lstat(filepath.Join(s.r.Path(), name)); err != nil {
			t.Errorf("a foreign file is gone: %v", err)
		}
	}
	if again, err := s.r.Collect(ctx, repo.CollectOptions{}); err != nil || again.Objects+again.Streams+again.Images+again.Temporaries != 0 || again.Bytes != 0 {
		t.Errorf("again: got %+v, %v", again, err)
	}
	// The handle goes on, and has no wrong idea of what is there.
	put(t, s.r, pattern(70_000, 8))
	present(t, s.r, "stored again", map[string]fsverity.Digest{"object": s.garbage["object"]}, "object")
	if err := repo.Lock(ctx, openDir(t, s.r.Path()), true, 0); err == nil {
		t.Error("the shared lock is gone")
	}
}

func images(ids ...string) func() ([]string, error) {
	return func() ([]string, error) { return ids, nil }
}

// TestCollectAsksUnderLock: what is in use is asked when nobody can change it any
// more. An error then is that of the collection, which removes nothing.
func TestCollectAsksUnderLock(t *testing.T) {
	ctx := t.Context()
	s := stock(t, newRepo(t))
	all, want := s.names(s.used, s.garbage)
	asked, broken := 0, errors.New("nobody knows")
	o := repo.CollectOptions{Images: func() ([]string, error) {
		asked++
		var locked *repo.LockedError
		if err := repo.Lock(ctx, openDir(t, s.r.Path()), false, 0); !errors.As(err, &locked) {
			t.Errorf("another one gets the lock: %v", err)
		}
		return nil, broken
	}}
	if _, err := s.r.Collect(ctx, o); !errors.Is(err, broken) || asked != 1 {
		t.Errorf("got %v, asked %d times", err, asked)
	}
	present(t, s.r, "afterwards", all, want...)
}

// TestCollectRoots: images without a ref may be named, and refs be left out of a
// dry run to see what they hold.
func TestCollectRoots(t *testing.T) {
	ctx := t.Context()
	s := stock(t, newRepo(t))
	lone := s.garbage["image without a ref"].Hex()
	got, err := s.r.Collect(ctx, repo.CollectOptions{DryRun: true, Images: images(lone)})
	must(t, err)
	if got.Objects != len(s.garbage)-2 || got.Images != 0 {
		t.Errorf("got %+v", got)
	}
	all, err := s.r.Collect(ctx, repo.CollectOptions{DryRun: true})
	must(t, err)
	id := strings.Repeat("ab", 64)
	got, err = s.r.Collect(ctx, repo.CollectOptions{DryRun: true, Without: []string{"images/refs/cfsboot/" + id + "/", "streams/refs/cfsboot/" + id}})
	must(t, err)
	if want := len(s.used) - 2; got.Objects-all.Objects < want-2 || got.KeptStreams != 1 || got.KeptImages != 0 {
		t.Errorf("got %+v, without refs nothing but what is tagged is in use", got)
	}
	if _, err := s.r.Collect(ctx, repo.CollectOptions{Without: []string{"streams/refs/oci/os%3A1"}}); err == nil {
		t.Error("refs were left out of more than a dry run")
	}
	var roots *repo.RootsError
	if _, err := s.r.Collect(ctx, repo.CollectOptions{Images: images(strings.Repeat("0", 128)), DropDangling: true}); !errors.As(err, &roots) || roots.Problems[0].Dangling {
		t.Errorf("got %v, want a RootsError", err)
	}
}

// TestCollectRefuses: where it cannot be said what is in use, nothing is removed,
// and everything that is in the way is told.
func TestCollectRefuses(t *testing.T) {
	ctx := t.Context()
	overwrite := func(r *repo.Repository, d fsverity.Digest) error {
		return errors.Join(os.Remove(objectFile(r, d)), os.WriteFile(objectFile(r, d), pattern(300, 1), 0o600))
	}
	for _, tc := range []struct {
		name     string
		damage   func(s shop) error
		problems int
		dangling bool
	}{
		{"stream", func(s shop) error { return overwrite(s.r, s.used["tagged"]) }, 1, false},
		{"image", func(s shop) error { return overwrite(s.r, s.used["held image"]) }, 1, false},
		{"stream that only a digest names", func(s shop) error { return overwrite(s.r, s.used["old config"]) }, 1, false},
		{"link", func(s shop) error {
			name := filepath.Join(s.r.Path(), "streams/tagged")
			return errors.Join(os.Remove(name), os.Symlink("../x", name))
		}, 1, false},
		{"refs to nothing", func(s shop) error {
			return errors.Join(os.Symlink("../../gone", filepath.Join(s.r.Path(), "streams/refs/oci/gone")), os.Remove(objectFile(s.r, s.used["tagged"])))
		}, 2, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := stock(t, newRepo(t))
			must(t, tc.damage(s))
			before := files(t, s.r.Path())
			for _, dry := range []bool{true, false} {
				_, err := s.r.Collect(ctx, repo.CollectOptions{DryRun: dry})
				var roots *repo.RootsError
				if !errors.As(err, &roots) || len(roots.Problems) != tc.problems || roots.Problems[0].Dangling != tc.dangling {
					t.Fatalf("got %v, want a RootsError with %d problems", err, tc.problems)
				}
				t.Log(err)
				if after := files(t, s.r.Path()); !slices.Equal(before, after) {
					t.Error("something was removed")
				}
			}
			got, err := s.r.Collect(ctx, repo.CollectOptions{DropDangling: true})
			if !tc.dangling {
				if err == nil {
					t.Error("what is damaged was dropped")
				}
				return
			}
			if err != nil || len(got.Dangling) != 2 {
				t.Errorf("got %+v, %v", got, err)
			}
			check(t, s.r)
		})
	}
}

// TestCollectLocked: whoever has a handle may have stored what has no name yet.
func TestCollectLocked(t *testing.T) {
	ctx := t.Context()
	s := stock(t, newRepo(t))
	other := open(t, openDir(t, s.r.Path()))
	all, want := s.names(s.used, s.garbage)
	var locked *repo.LockedError
	if _, err := s.r.Collect(ctx, repo.CollectOptions{LockWait: 20 * time.Millisecond}); !errors.As(err, &locked) {
		t.Errorf("got %v, want a LockedError", err)
	}
	present(t, s.r, "locked", all, want...)
	if got, err := s.r.Collect(ctx, repo.CollectOptions{DryRun: true}); err != nil || got.Objects == 0 {
		t.Errorf("dry run: got %+v, %v", got, err)
	}
	must(t, other.Close())
	run := s.r.Begin()
	if _, err := s.r.Collect(ctx, repo.CollectOptions{}); err == nil {
		t.Error("collected in the middle of a run")
	}
	_, err := run.Keep(ctx)
	must(t, err)
	if _, err := s.r.Collect(ctx, repo.CollectOptions{}); err != nil {
		t.Error(err)
	}
}

// TestCollectSurvivesEveryFault: an error or a kill at any call, and a power cut
// after it, leave everything that is in use, and names with all their objects; a
// second call does the rest.
func TestCollectSurvivesEveryFault(t *testing.T) {
	ctx := t.Context()
	base := durabletest.New(t)
	stock(t, newFaultyRepo(t, base))
	want := func(path string) []string {
		clean := durabletest.Over(t, path).PowerLoss()
		_, err := open(t, clean.Open()).Collect(ctx, repo.CollectOptions{})
		must(t, err)
		return files(t, clean.Path())
	}(base.Path())
	finish := func(fs *durabletest.FS, when string) {
		t.Helper()
		r := open(t, fs.Open())
		if rep := check(t, r); len(rep.Unused) > 0 {
			t.Errorf("%s: %v", when, rep.Unused)
		}
		if _, err := r.Collect(ctx, repo.CollectOptions{}); err != nil {
			t.Fatalf("%s: again: %v", when, err)
		}
		check(t, r)
		if got := files(t, fs.Path()); !slices.Equal(got, want) {
			t.Fatalf("%s: got %q, want %q", when, got, want)
		}
		must(t, r.Close())
	}
	for mode, arm := range []func(fs *durabletest.FS, n int){
		func(fs *durabletest.FS, n int) { fs.FailAt(n, unix.EIO) },
		func(fs *durabletest.FS, n int) { fs.FailAt(n, unix.ENOSPC) },
		func(fs *durabletest.FS, n int) { fs.KillAt(n, durabletest.Before) },
		func(fs *durabletest.FS, n int) { fs.KillAt(n, durabletest.After) },
	} {
		for n := 0; ; n++ {
			fs := durabletest.Over(t, base.PowerLoss().Path())
			r := open(t, fs.Open())
			arm(fs, n)
			_, err := r.Collect(ctx, repo.CollectOptions{})
			if !fs.Triggered() {
				must(t, err)
				finish(fs.PowerLoss(), "success")
				break
			}
			when := fs.Op(n)
			if err == nil && mode < 3 {
				t.Errorf("fault %d (%s) was swallowed", n, when)
			}
			must(t, r.Close())
			for seed := range uint64(3) {
				finish(fs.PowerLossRandom(seed), when)
			}
			if mode < 2 {
				finish(durabletest.Over(t, fs.Path()), when)
			}
		}
	}
}

// TestOracleCollect: what we leave is sound to cfsctl, and it finds nothing more to remove.
func TestOracleCollect(t *testing.T) {
	tool := cfsctl.Find(t)
	s := stock(t, newRepo(t))
	if _, err := s.r.Collect(t.Context(), repo.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	must(t, s.r.Close())
	args := []string{"--insecure", "--repo", s.r.Path()}
	if got := run(t, nil, tool, append(args, "fsck")...); !strings.Contains(got, "status: ok") {
		t.Errorf("fsck: %s", got)
	}
}
