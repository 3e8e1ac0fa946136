package repo_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

func run(t *testing.T, stdin []byte, name string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}

// TestOracleReadsOurs: cfsctl opens our repository, finds nothing wrong with it,
// reassembles our streams and collects nothing that a ref holds.
func TestOracleReadsOurs(t *testing.T) {
	tool := cfsctl.Find(t)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		t.Run(a.Name(), func(t *testing.T) {
			ctx := t.Context()
			dir := openDir(t, t.TempDir())
			must(t, repo.Init(ctx, dir, repo.InitOptions{Algorithm: a, Insecure: true}))
			r := open(t, dir)
			long := bytes.Repeat(pattern(4096, 1), 800) // more than a spool keeps in memory
			w, err := r.NewStream(ctx, splitstream.Layer)
			must(t, err)
			var want bytes.Buffer
			for i, piece := range [][]byte{pattern(512, 1), pattern(65, 2), nil, pattern(200_000, 3), long, pattern(5000, 4), pattern(1024, 5)} {
				want.Write(piece)
				if i%2 == 0 {
					_, err = w.Write(piece)
				} else {
					err = w.External(put(t, r, piece), int64(len(piece)))
				}
				must(t, err)
			}
			img := image(t, r, pattern(70_000, 6))
			must(t, w.Named("composefs.image.v1", img))
			layer, err := w.Commit(ctx)
			must(t, err)
			empty, err := r.NewStream(ctx, splitstream.Blob)
			must(t, err)
			nothing, err := empty.Commit(ctx)
			must(t, err)
			must(t, r.PublishStream(ctx, "layer", layer))
			must(t, r.PublishStream(ctx, "empty", nothing))
			must(t, r.PublishImage(ctx, img))
			must(t, r.SetRef(ctx, repo.Streams, "cfsboot/a/layer", "layer"))
			must(t, r.SetRef(ctx, repo.Images, "cfsboot/a/plain", img.Hex()))
			must(t, r.Sync(ctx))
			kept := check(t, r).Objects
			put(t, r, []byte("garbage")) // in a file system without O_TMPFILE this would differ
			must(t, r.Close())

			args := []string{"--insecure", "--repo", dir.Path()}
			call := func(more ...string) string { return run(t, nil, tool, append(args, more...)...) }
			if got := call("fsck"); !strings.Contains(got, "status: ok") {
				t.Errorf("fsck: %s", got)
			}
			if got := call("cat", "layer"); got != want.String() {
				t.Errorf("cat: got %d bytes, want %d", len(got), want.Len())
			}
			if got := call("images"); !strings.Contains(got, "cfsboot/a/plain") || !strings.Contains(got, img.Hex()[:12]) {
				t.Errorf("images: %s", got)
			}
			if got := call("gc"); !strings.Contains(got, "Objects: 2 removed") { // garbage and the empty stream
				t.Errorf("gc: %s", got)
			}
			if rep := check(t, open(t, dir)); rep.Objects != kept-1 || rep.Refs != 2 {
				t.Errorf("after gc: got %d objects and %d refs, want %d and 2", rep.Objects, rep.Refs, kept-1)
			}
		})
	}
}

// TestOracleInit: the peer writes the same meta.json, and each accepts the other's.
func TestOracleInit(t *testing.T) {
	tool := cfsctl.Find(t)
	for _, a := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		path := filepath.Join(t.TempDir(), "theirs")
		run(t, nil, tool, "--insecure", "--repo", path, "init", "--algorithm", a.String())
		want, err := repo.NewMetadata(a, repo.Formats{Default: 1}).Marshal()
		must(t, err)
		if got := readMeta(t, path); got != string(want) {
			t.Errorf("meta.json of the peer: got %s, want %s", got, want)
		}
		r := open(t, openDir(t, path))
		put(t, r, []byte("ours"))
		check(t, r)
		must(t, r.Close())
	}
}

// TestOracleWritesOurs: we read what cfsctl has put into a repository of ours.
func TestOracleWritesOurs(t *testing.T) {
	tool := cfsctl.Find(t)
	ctx := t.Context()
	r := newRepo(t)
	source := t.TempDir()
	must(t, os.WriteFile(filepath.Join(source, "small"), pattern(10, 1), 0o600))
	must(t, os.WriteFile(filepath.Join(source, "large"), pattern(150_000, 1), 0o600))
	out := run(t, nil, tool, "--insecure", "--repo", r.Path(), "create-image", "--no-propagate-usr-to-root", source, "theirs")
	d, err := r.ResolveImage("refs/theirs")
	must(t, err)
	if !strings.Contains(out, d.Hex()) {
		t.Errorf("got %v, the peer says %s", d, out)
	}
	f, err := r.OpenImage(ctx, d)
	must(t, err)
	must(t, f.Close())
	if b, err := r.ReadObject(ctx, sum(pattern(150_000, 1)), 1<<20); err != nil || len(b) != 150_000 {
		t.Errorf("object of the peer: %v", err)
	}
	if rep := check(t, r); rep.Images != 1 || len(rep.Unused) > 0 {
		t.Errorf("got %+v", rep)
	}
}
