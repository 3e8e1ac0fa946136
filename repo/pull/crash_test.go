package pull_test

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// crash is the machine of one fault: a repository that has release 1 tagged "os",
// and a pull of release 2 under the same tag.
type crash struct {
	t     *testing.T
	fs    *durabletest.FS
	next  *ocitest.Image
	first keyring.Verified
	want  keyring.Verified // of release 2
}

func newCrash(t *testing.T) *crash {
	t.Helper()
	c := &crash{t: t, fs: durabletest.New(t)}
	repotest.NewIn(t, c.fs.Dir(), fsverity.SHA256).Close()
	c.first = c.mustPull(bootable(t))
	c.next = build(t, ocitest.Spec{Layers: []ocitest.Layer{osLayer(""), topLayer(t, "prog", strings.Repeat("two ", 400)), topLayer(t, "more", strings.Repeat("more ", 300))}})
	return c
}

// pull runs one process: it opens the repository, pulls and ends.
func (c *crash) pull(img *ocitest.Image) (keyring.Verified, error) {
	dir := c.fs.Open()
	defer dir.Close()
	return pullInto(c.t, dir, img)
}

func pullInto(t *testing.T, dir *durable.Dir, img *ocitest.Image) (keyring.Verified, error) {
	t.Helper()
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	if err != nil {
		return keyring.Verified{}, err
	}
	defer r.Close()
	o := options("os", true)
	o.Parallel = 1 // the same calls in the same order each time
	res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: img}, o)
	if err != nil {
		return keyring.Verified{}, err
	}
	return res.Verified, nil
}

func (c *crash) mustPull(img *ocitest.Image) keyring.Verified {
	c.t.Helper()
	v, err := c.pull(img)
	if err != nil {
		c.t.Fatal(err)
	}
	return v
}

// check looks at a repository after a fault: it is sound, the tag names a
// complete image, and the pull can be repeated.
func (c *crash) check(what string, fs *durabletest.FS) {
	c.t.Helper()
	dir := fs.Open()
	defer dir.Close()
	r, err := repo.Open(c.t.Context(), dir, repo.Options{})
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	report, err := r.Check(c.t.Context())
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	for _, p := range report.Problems {
		c.t.Errorf("%s: %s", what, p)
	}
	c.checkTag(what, r)
	c.checkMarks(what, r)
	r.Close()
	again, err := pullInto(c.t, dir, c.next)
	if err != nil {
		c.t.Fatalf("%s: repeated pull: %v", what, err)
	}
	if c.want != again {
		c.t.Errorf("%s: repeated pull gives other images", what)
	}
}

func (c *crash) checkTag(what string, r *repo.Repository) {
	c.t.Helper()
	d, err := oci.Resolve(r, "os")
	if err != nil {
		c.t.Fatalf("%s: the tag is gone: %v", what, err)
	}
	img, err := oci.OpenImage(c.t.Context(), r, d)
	if err != nil {
		c.t.Fatalf("%s: %v", what, err)
	}
	_, boot := img.Default(r)
	f, err := r.OpenImage(c.t.Context(), boot)
	if err != nil {
		c.t.Errorf("%s: boot image of the tag: %v", what, err)
		return
	}
	f.Close()
}

// checkMarks: a layer that is marked as compared has the right content.
func (c *crash) checkMarks(what string, r *repo.Repository) {
	c.t.Helper()
	for _, d := range c.next.DiffIDs {
		id, err := r.LookupStream(oci.LayerStream(d))
		if errors.Is(err, repo.ErrNotFound) {
			continue
		}
		if err != nil {
			c.t.Errorf("%s: %v", what, err)
			continue
		}
		if ok, err := oci.IsVerified(r, d, id); err != nil {
			c.t.Errorf("%s: %v", what, err)
		} else if ok {
			if err := oci.VerifyLayer(c.t.Context(), r, d, id); err != nil {
				c.t.Errorf("%s: marked layer: %v", what, err)
			}
		}
	}
}

// countCalls runs the pull once without a fault.
func countCalls(t *testing.T) (int, keyring.Verified) {
	t.Helper()
	c := newCrash(t)
	c.fs.Disarm()
	v := c.mustPull(c.next)
	return c.fs.Count(), v
}

// TestEveryFault fails each mutating call of a pull once, with the error of a
// full disk and of a broken one.
func TestEveryFault(t *testing.T) {
	t.Parallel()
	calls, want := countCalls(t)
	for n := range calls {
		if testing.Short() && n%7 != 0 {
			continue
		}
		errno := []error{unix.EIO, unix.ENOSPC}[n%2]
		c := newCrash(t)
		c.want = want
		c.fs.FailAt(n, errno)
		_, err := c.pull(c.next)
		if !c.fs.Triggered() {
			t.Fatalf("call %d of %d did not happen", n, calls)
		}
		op := c.fs.Op(n)
		if err == nil {
			t.Errorf("call %d (%s): the fault was swallowed", n, op)
		} else if !errors.Is(err, errno) {
			t.Errorf("call %d (%s): got %v, want %v", n, op, err, errno)
		}
		c.fs.Disarm()
		c.check("after a fault at "+op, c.fs)
	}
}

// TestEveryKill ends the process before and after each mutating call; and cuts
// the power there.
func TestEveryKill(t *testing.T) {
	t.Parallel()
	calls, want := countCalls(t)
	for n := range calls {
		if testing.Short() && n%7 != 0 {
			continue
		}
		c := newCrash(t)
		c.want = want
		when := []durabletest.When{durabletest.Before, durabletest.After}[n%2]
		c.fs.KillAt(n, when)
		_, err := c.pull(c.next)
		if last := n == calls-1 && when == durabletest.After; !errors.Is(err, durabletest.ErrKilled) && !last {
			t.Fatalf("kill at call %d of %d: got %v", n, calls, err)
		}
		op := c.fs.Op(n)
		cuts := []*durabletest.FS{c.fs.PowerLoss(), c.fs.PowerLossNames(), c.fs.PowerLossRandom(uint64(n))}
		c.fs.Disarm()
		c.check("after a kill at "+op, c.fs)
		for i, cut := range cuts {
			c.check([]string{"power loss", "power loss, names kept", "power loss, mixed"}[i]+" at "+op, cut)
		}
	}
}

// TestDurableWhenReported: what Pull returned survives a power cut at once.
func TestDurableWhenReported(t *testing.T) {
	t.Parallel()
	c := newCrash(t)
	c.want = c.mustPull(c.next)
	after := c.fs.PowerLoss()
	dir := after.Open()
	defer dir.Close()
	r := repotest.Open(t, dir)
	if d, err := oci.Resolve(r, "os"); err != nil || d != c.next.Descriptor.Digest {
		t.Errorf("tag %s, %v", d, err)
	}
	boot, _ := c.want.Digest(keyring.Boot)
	if f, err := r.OpenImage(t.Context(), boot); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	repotest.Check(t, r)
	src := &ocitest.Source{Image: c.next}
	if res, err := pull.Pull(t.Context(), r, src, options("os", true)); err != nil || res.Stats.LayersFetched != 0 {
		t.Errorf("repeated pull: %+v, %v", res, err)
	}
}
