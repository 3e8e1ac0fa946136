package pull_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/internal/testutil/recipes"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
)

// peer runs the program of composefs-rs on a repository.
type peer struct {
	t    *testing.T
	path string
	repo string
}

func (c peer) run(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, append([]string{"--repo", c.repo}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		line, _, _ := strings.Cut(errs.String(), "\n")
		c.t.Logf("cfsctl %s: %v: %s", strings.Join(args, " "), err, line)
	}
	return out.String(), err
}

func (c peer) must(args ...string) string {
	c.t.Helper()
	out, err := c.run(args...)
	if err != nil {
		c.t.Fatalf("cfsctl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// pullLayout pulls a layout directory into a repository of ours.
func pullLayout(t *testing.T, r *repo.Repository, dir, name string) (*pull.Result, error) {
	t.Helper()
	src, err := remote.Open(t.Context(), "oci:"+dir, remote.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	return pull.Pull(t.Context(), r, src, options(name, true))
}

// TestOracle: cfsctl finds nothing wrong with a repository that we filled, lists
// our images, and each program reuses and extends what the other one stored, with
// the same image IDs.
func TestOracle(t *testing.T) {
	tool := cfsctl.Find(t)
	for name, c := range map[string]struct {
		algorithm fsverity.Algorithm
		format    erofs.Version
	}{
		"sha256": {fsverity.SHA256, erofs.V1}, "sha512": {fsverity.SHA512, erofs.V1}, "sha512, format 2": {fsverity.SHA512, erofs.V2},
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := repotest.NewFormat(t, c.algorithm, c.format), t.TempDir()
			o := peer{t, tool, ours.Path()}
			p := peer{t, tool, theirs}
			p.must("init", "--insecure", "--algorithm", "fsverity-"+c.algorithm.Name()+"-12", "--erofs-version", fmt.Sprint(c.format), theirs)
			if a, b := readMeta(t, ours.Path()), readMeta(t, theirs); a != b {
				t.Errorf("meta.json: got %s, cfsctl writes %s", a, b)
			}
			names := 0
			for _, c := range recipes.All(t) {
				dir := t.TempDir()
				if err := c.Image.WriteLayout(dir, ""); err != nil {
					t.Fatal(err)
				}
				res, ourErr := pullLayout(t, ours, dir, c.Name)
				_, theirErr := p.run("oci", "pull", "--bootable", "oci:"+dir, c.Name)
				if (ourErr == nil) != (theirErr == nil) {
					t.Errorf("%s: we say %v, cfsctl %v", c.Name, ourErr, theirErr)
				}
				if ourErr != nil || theirErr != nil {
					continue
				}
				names++
				plain, _ := res.Verified.Digest(keyring.Plain)
				boot, _ := res.Verified.Digest(keyring.Boot)
				want := inspect(t, p, c.Name)
				if plain.Hex() != want.Plain || boot.Hex() != want.Boot {
					t.Errorf("%s: images %s and %s, cfsctl has %s and %s", c.Name, plain.Hex(), boot.Hex(), want.Plain, want.Boot)
				}
				if got := inspect(t, o, c.Name); got != want {
					t.Errorf("%s: cfsctl inspects ours as %+v, its own as %+v", c.Name, got, want)
				}
			}
			if out := o.must("fsck"); !strings.Contains(out, "ok") {
				t.Errorf("cfsctl fsck: %s", out)
			}
			o.must("oci", "fsck")
			sameListing(t, o, ours, names)
			repotest.Check(t, ours)
			if err := ours.Close(); err != nil { // our shared lock would stop the collector
				t.Fatal(err)
			}
			o.must("gc") // everything is held by tags
			o.must("oci", "fsck")
		})
	}
}

func readMeta(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path, "meta.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// sameListing compares `oci images --json` of cfsctl with our listing.
func sameListing(t *testing.T, c peer, r *repo.Repository, want int) {
	t.Helper()
	var theirs struct {
		Images []oci.Summary `json:"images"`
	}
	if err := json.Unmarshal([]byte(c.must("oci", "images", "--json")), &theirs); err != nil {
		t.Fatal(err)
	}
	ours, problems, err := oci.Images(t.Context(), r)
	if err != nil || len(problems) > 0 || len(ours) != want {
		t.Fatalf("we list %d images, want %d; problems %v, %v", len(ours), want, problems, err)
	}
	less := func(a, b oci.Summary) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(ours, less)
	slices.SortFunc(theirs.Images, less)
	for i := range ours { // our own additions
		ours[i].Version, ours[i].Plain, ours[i].Boot = "", "", ""
	}
	if d := cmp.Diff(theirs.Images, ours); d != "" {
		t.Errorf("listing mismatch (-cfsctl +ours):\n%s", d)
	}
}

type inspected struct {
	Manifest, Config string
	Plain            string `json:"composefs_erofs"`
	Boot             string `json:"composefs_boot_erofs"`
}

func inspect(t *testing.T, c peer, name string) inspected {
	t.Helper()
	var in inspected
	if err := json.Unmarshal([]byte(c.must("oci", "inspect", name)), &in); err != nil {
		t.Fatal(err)
	}
	return in
}

// TestOracleTakesTurns: we pull into a repository that cfsctl filled, and cfsctl
// into one of ours.
func TestOracleTakesTurns(t *testing.T) {
	tool := cfsctl.Find(t)
	img := bootable(t)
	dir := t.TempDir()
	if err := img.WriteLayout(dir, ""); err != nil {
		t.Fatal(err)
	}
	r := repotest.New(t, fsverity.SHA512)
	c := peer{t, tool, r.Path()}
	c.must("oci", "pull", "oci:"+dir, "theirs")
	var said []string
	src, err := remote.Open(t.Context(), "oci:"+dir, remote.Options{Platform: amd64})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	opts := options("ours", true)
	opts.Parallel = 1
	opts.Progress = reporter(func(e progress.Event) { said = append(said, fmt.Sprint(e)) })
	res, err := pull.Pull(t.Context(), r, src, opts)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(said, "\n"), "was stored by another program"); n != 2 {
		t.Errorf("%d layers were compared, want 2: %q", n, said)
	}
	if res.Stats.LayersFetched != 0 || res.Stats.LayersPresent != 2 {
		t.Errorf("layers of cfsctl: %+v, want them compared and used", res.Stats)
	}
	c.must("oci", "pull", "--bootable", "oci:"+dir, "theirs-again")
	again, err := pullLayout(t, r, dir, "ours-again")
	if err != nil || again.Verified != res.Verified {
		t.Errorf("after cfsctl rewrote the config: %v", err)
	}
	c.must("fsck")
	c.must("oci", "fsck")
	stored, err := oci.OpenImage(t.Context(), r, res.ManifestDigest)
	if err != nil || len(stored.Images) != 2 {
		t.Errorf("images %v, %v", stored.Images, err)
	}
}
