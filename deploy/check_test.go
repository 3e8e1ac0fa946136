package deploy_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/testutil/jsonschema"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// manifestOnly is a source that gives nothing but manifests.
type manifestOnly struct {
	oci.Source
	t *testing.T
}

func (s manifestOnly) Blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	s.t.Errorf("blob %s was asked for", d.Digest)
	return nil, errors.New("no blobs")
}

// checked runs a check as somebody who may not take the lock, and fails the test
// if it does more than a check may.
func (w *world) checked(o deploy.CheckOptions) (*deploy.Checked, error) {
	w.t.Helper()
	o.Options, o.PullOptions = w.options(), w.pull()
	open := o.OpenSource
	o.OpenSource = func(ctx context.Context, ref string) (oci.Source, error) {
		s, err := open(ctx, ref)
		return manifestOnly{s, w.t}, err
	}
	lock, err := durable.OpenDir(filepath.Join(w.root.Path(), "state/cfsboot"))
	must(w.t, err)
	defer lock.Close()
	must(w.t, repo.Lock(w.t.Context(), lock, true, 0))
	before, records := w.fingerprint(), w.records()
	c, err := deploy.Check(w.t.Context(), o)
	if d := cmp.Diff(before, w.fingerprint()); d != "" || !slices.Equal(records, w.records()) {
		w.t.Errorf("the check changed the machine: %s", d)
	}
	return c, err
}

// TestCheck: it says what an upgrade would do, and does nothing (the peers' D1).
func TestCheck(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r1, r2 := release(t, "1"), release(t, "2")
	one := w.releases(r1)[0]
	w.tag = r1
	c, err := w.checked(deploy.CheckOptions{})
	if !errors.Is(err, deploy.ErrNothingToDo) || c.Available || c.Action != "nothing" || c.Booted != one || c.BootedDigest != c.ManifestDigest {
		t.Errorf("nothing new: %+v, %v", c, err)
	}
	if u := w.status().Status.Booted.CachedUpdate; u != nil {
		t.Errorf("cached update %+v", u)
	}
	w.tag = r2
	c, err = w.checked(deploy.CheckOptions{})
	if err != nil || !c.Available || c.Action != "stage" || c.Reference != reference || c.Layers != 1 || c.SizeBytes == 0 || c.ManifestDigest != r2.Descriptor.Digest.String() {
		t.Errorf("a new one: %+v, %v", c, err)
	}
	s := w.status()
	if u := s.Status.Booted.CachedUpdate; u == nil || u.ImageDigest != c.ManifestDigest || u.Image.Image != "registry.example/os:stable" {
		t.Errorf("cached update %+v", u)
	}
	jsonschema.Load(t, "../docs/schema/status-1.schema.json").Check(t, statusJSON(t, s))
	// The whole image in the repository makes no difference, nor does what is staged.
	must(t, settled(w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})))
	c, err = w.checked(deploy.CheckOptions{})
	if !errors.Is(err, deploy.ErrNothingToDo) || c.Available || c.Action != "keep" || c.Staged == "" {
		t.Errorf("it is staged: %+v, %v", c, err)
	}
	w.tag = r1
	if c, err = w.checked(deploy.CheckOptions{}); err != nil || !c.Available || c.Action != "drop" {
		t.Errorf("the tag moved back: %+v, %v", c, err)
	}
	w.tag = release(t, "3")
	if c, err = w.checked(deploy.CheckOptions{}); err != nil || !c.Available || c.Action != "stage" || c.Staged == "" {
		t.Errorf("newer than what is staged: %+v, %v", c, err)
	}
}

// TestCheckRefuses what an upgrade would refuse.
func TestCheckRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.releases(release(t, "1"))
	w.failed(release(t, "bad"))
	var refused *deploy.RefusedError
	if _, err := w.checked(deploy.CheckOptions{}); !errors.As(err, &refused) || refused.Code != deploy.CodeFailed {
		t.Errorf("check of what did not boot: %v", err)
	}
	if c, err := w.checked(deploy.CheckOptions{Retry: true}); err != nil || !c.Available {
		t.Errorf("with retry: %+v, %v", c, err)
	}
	must(t, os.Remove(filepath.Join(w.running, record.BootedPath)))
	if _, err := w.checked(deploy.CheckOptions{}); !errors.As(err, &refused) || refused.Code != deploy.CodeNotManaged {
		t.Errorf("on another machine: %v", err)
	}
}

// TestCheckHostileManifest: what a pull would refuse is refused, and nothing of it
// is counted.
func TestCheckHostileManifest(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.releases(release(t, "1"))
	for name, change := range map[string]func(*v1.Manifest){
		"negative":  func(m *v1.Manifest) { m.Layers[0].Size = -1 },
		"overflow":  func(m *v1.Manifest) { m.Layers[0].Size = math.MaxInt64; m.Layers = append(m.Layers, m.Layers[0]) },
		"no layers": func(m *v1.Manifest) { m.Layers = nil },
		"artifact":  func(m *v1.Manifest) { m.Config.MediaType = "application/vnd.example" },
	} {
		img := release(t, "2")
		var m v1.Manifest
		must(t, json.Unmarshal(img.Manifest, &m))
		change(&m)
		var err error
		img.Manifest, err = json.Marshal(m)
		must(t, err)
		img.Descriptor.Digest = digest.FromBytes(img.Manifest)
		w.tag = img
		var format *oci.FormatError
		var kind *oci.MediaTypeError
		if c, err := w.checked(deploy.CheckOptions{}); !errors.As(err, &format) && !errors.As(err, &kind) {
			t.Errorf("%s: got %+v, %v", name, c, err)
		}
	}
}

// TestCachedUpdateIgnored: what is not about the running image is not shown.
func TestCachedUpdateIgnored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.releases(release(t, "1"))
	for name, text := range map[string]string{"no JSON": "x", "nothing": "{}", "directory": ""} {
		path := filepath.Join(w.running, record.UpdatePath)
		must(t, os.RemoveAll(path))
		if name == "directory" {
			must(t, os.Mkdir(path, 0o755))
		} else {
			w.writeRunning(record.UpdatePath, text)
		}
		if s := w.status(); s.Status.Booted.CachedUpdate != nil || len(s.Cfsboot.Problems) != len(newWorldProblems(s)) {
			t.Errorf("%s: %+v, problems %+v", name, s.Status.Booted.CachedUpdate, s.Cfsboot.Problems)
		}
	}
	must(t, os.RemoveAll(filepath.Join(w.running, record.UpdatePath)))
	must(t, settled(w.switchTo(otherReference, release(t, "other"), deploy.SwitchOptions{})))
	w.other = release(t, "other 2")
	if c, err := w.checked(deploy.CheckOptions{}); err != nil || c.Reference != otherReference {
		t.Errorf("check: %+v, %v", c, err)
	}
	if u := w.status().Status.Booted.CachedUpdate; u != nil {
		t.Errorf("an update of what is staged is shown at what runs: %+v", u)
	}
}

// newWorldProblems are the problems that a machine made of two directories has.
func newWorldProblems(s deploy.Status) (out []deploy.Problem) {
	for _, p := range s.Cfsboot.Problems {
		if p.Code == deploy.ProblemRootSource || p.Code == deploy.ProblemNoVerity {
			out = append(out, p)
		}
	}
	return out
}
