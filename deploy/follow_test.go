package deploy_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// follows reads what a deployment follows: from its record, and its origin, which
// must agree.
func (w *world) follows(id string) string {
	w.t.Helper()
	var out string
	for _, parent := range []string{"state/deploy", "state/cfsboot/staged"} {
		dir := filepath.Join(w.root.Path(), parent, id)
		data, err := os.ReadFile(filepath.Join(dir, record.DeploymentName))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		must(w.t, err)
		d, err := record.ParseDeployment(data)
		must(w.t, err)
		data, err = os.ReadFile(filepath.Join(dir, record.OriginName(id)))
		must(w.t, err)
		o, err := record.ParseOrigin(data)
		must(w.t, err)
		if o.Image.String() != d.Reference {
			w.t.Errorf("%s: the origin says %s, the record %s", parent, o.Image, d.Reference)
		}
		out = d.Reference
	}
	return out
}

// TestSwitch follows another image and goes back, with /etc and /var kept.
func TestSwitch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r1 := release(t, "1")
	one := w.releases(r1)[0]
	w.edit("hostname", "mine\n")
	c, err := w.switchTo(otherReference, release(t, "other"), deploy.SwitchOptions{})
	must(t, err)
	two := c.Deployment
	if c.Action != deploy.ActionStaged || c.Reference != otherReference || c.Booted != one || w.follows(two) != otherReference || w.follows(one) != reference {
		t.Fatalf("switch: %+v", c)
	}
	if s := w.status(); s.Spec.Image == nil || s.Spec.Image.Image != strings.TrimPrefix(otherReference, "docker://") {
		t.Errorf("status.spec.image %+v", s.Spec.Image)
	}
	// What is staged is followed, although it does not run yet.
	if c, err := w.upgradeWith(deploy.UpgradeOptions{}); !errors.Is(err, deploy.ErrNothingToDo) || c.Reference != otherReference {
		t.Errorf("upgrade after the switch: %+v, %v", c, err)
	}
	must(t, settled(w.finalize()))
	if c, err := w.upgradeWith(deploy.UpgradeOptions{}); !errors.Is(err, deploy.ErrNothingToDo) || c.Reference != otherReference {
		t.Errorf("upgrade after finalize: %+v, %v", c, err)
	}
	if got := w.boot(); got != two || w.etc(two, "hostname") != "mine\n" || w.etc(two, "motd") != "welcome to other\n" {
		t.Fatalf("booted %s: hostname %q, motd %q", got, w.etc(two, "hostname"), w.etc(two, "motd"))
	}
	w.bless()
	if data, err := os.ReadFile(filepath.Join(w.root.Path(), "state/deploy", two, "var/lib/seed")); string(data) != "from 1\n" {
		t.Errorf("/var/lib/seed: %q, %v", data, err)
	}
	// A newer image of the one that was left is not taken.
	if _, err := w.upgrade(release(t, "2")); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("upgrade follows the old reference: %v", err)
	}
	w.tag = r1
	c, err = w.switchTo(reference, nil, deploy.SwitchOptions{})
	must(t, err)
	if c.Action != deploy.ActionStaged || c.Deployment != one || c.Reference != reference {
		t.Errorf("switch back: %+v", c)
	}
	must(t, settled(w.finalize()))
	if got := w.boot(); got != one {
		t.Errorf("booted %s", got)
	}
	checkQuiet(t, w)
}

// TestSwitchBackAtOnce: before the reboot, going back only drops what was staged.
func TestSwitchBackAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	must(t, settled(w.switchTo(otherReference, release(t, "other"), deploy.SwitchOptions{})))
	c, err := w.switchTo(reference, nil, deploy.SwitchOptions{})
	must(t, err)
	if c.Action != deploy.ActionDropped || c.Deployment != one || c.Reference != reference || w.state().Staged != nil {
		t.Errorf("switch back: %+v", c)
	}
	checkQuiet(t, w)
}

// TestSwitchSameImage: the same image under another reference, which the peers
// refuse (D21), changes what is followed and nothing else.
func TestSwitchSameImage(t *testing.T) {
	t.Parallel()
	r1 := release(t, "1")
	for name, img := range map[string]*ocitest.Image{"same manifest": r1, "same files": relabelled(t, "1")} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := w.releases(r1)[0]
			before := entriesOf(t, w)
			c, err := w.switchTo(otherReference, img, deploy.SwitchOptions{Apply: true})
			must(t, err)
			if c.Action != deploy.ActionReference || c.Deployment != one || c.Reference != otherReference || c.Reboot || w.follows(one) != otherReference {
				t.Errorf("switch: %+v", c)
			}
			if len(entriesOf(t, w)) != len(before) || w.state().Staged != nil {
				t.Error("something else was changed")
			}
			if c, err = w.switchTo(otherReference, nil, deploy.SwitchOptions{}); !errors.Is(err, deploy.ErrNothingToDo) || c.Action != deploy.ActionNone {
				t.Errorf("the second time: %+v, %v", c, err)
			}
			must(t, settled(w.upgradeWith(deploy.UpgradeOptions{})))
			checkQuiet(t, w)
		})
	}
}

// TestSwitchFails: what was followed before is followed still.
func TestSwitchFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	noKernel := osTree("other")
	delete(noKernel, "usr/lib/modules/6.12/vmlinuz")
	var refused *deploy.RefusedError
	if _, err := w.switchTo(otherReference, buildImage(t, noKernel), deploy.SwitchOptions{}); !errors.As(err, &refused) || refused.Code != deploy.CodeImage {
		t.Errorf("switch to an image without a kernel: %v", err)
	}
	w.edit("motd", "mine\n") // a file, where the image has a directory
	conflicting := osTree("other")
	delete(conflicting, "etc/motd")
	conflicting["etc/motd/"] = ""
	var conflict *deploy.ConflictError
	if _, err := w.switchTo(otherReference, buildImage(t, conflicting), deploy.SwitchOptions{}); !errors.As(err, &conflict) {
		t.Errorf("switch to an image that /etc does not fit: %v", err)
	}
	for _, bad := range []string{"", "docker://", "with space"} {
		if _, err := w.switchTo(bad, nil, deploy.SwitchOptions{}); !errors.As(err, &refused) {
			t.Errorf("switch to %q: %v", bad, err)
		}
	}
	if w.follows(one) != reference || w.state().Staged != nil {
		t.Errorf("it follows %s", w.follows(one))
	}
	if c, err := w.upgrade(release(t, "2")); err != nil || c.Reference != reference {
		t.Errorf("upgrade: %+v, %v", c, err)
	}
	checkQuiet(t, w)
}

// TestSwitchFailsAnywhere: whatever call fails, a switch that reports an error has
// changed neither what is followed nor what boots.
func TestSwitchFailsAnywhere(t *testing.T) {
	t.Parallel()
	r1 := release(t, "1")
	base := newWorld(t)
	one := base.releases(r1)[0]
	for name, img := range map[string]*ocitest.Image{"stage": release(t, "other"), "same manifest": r1, "same files": relabelled(t, "1")} {
		run := func(w *world) error { return settled(w.switchTo(otherReference, img, deploy.SwitchOptions{})) }
		whole := base.copy()
		whole.killer = &killer{at: -1}
		must(t, run(whole))
		calls := whole.killer.n
		failed := 0
		for n := 0; n < calls; n += sampled(calls, 10) {
			w := base.copy()
			w.killer = &killer{at: n, err: unix.EIO}
			err := run(w)
			op := w.killer.op
			w.killer = nil
			if err == nil {
				continue
			}
			failed++
			if got := w.follows(one); got != reference || w.state().Staged != nil {
				t.Errorf("%s: EIO at %d (%s) is %v, and it follows %s, staged %+v", name, n, op, err, got, w.state().Staged)
			}
		}
		if failed == 0 {
			t.Errorf("%s: no fault was reported", name)
		}
	}
}

// TestSwitchToFailed: what did not boot is refused under any reference, unless
// it is asked for.
func TestSwitchToFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	bad := release(t, "bad")
	w.releases(release(t, "1"))
	w.failed(bad)
	var refused *deploy.RefusedError
	if _, err := w.switchTo(otherReference, bad, deploy.SwitchOptions{}); !errors.As(err, &refused) || refused.Code != deploy.CodeFailed {
		t.Fatalf("switch to what did not boot: %v", err)
	}
	if c, err := w.switchTo(otherReference, bad, deploy.SwitchOptions{Retry: true}); err != nil || c.Action != deploy.ActionStaged {
		t.Errorf("with retry: %+v, %v", c, err)
	}
}

// TestDownloadOnly: what was only downloaded waits over shutdowns and power cuts
// until a command lets it go.
func TestDownloadOnly(t *testing.T) {
	t.Parallel()
	r2 := release(t, "2")
	for name, release := range map[string]func(w *world) (*deploy.Change, error){
		"from downloaded": func(w *world) (*deploy.Change, error) {
			w.tag = nil // no network
			return w.upgradeWith(deploy.UpgradeOptions{FromDownloaded: true})
		},
		"plain":     func(w *world) (*deploy.Change, error) { return w.upgrade(r2) },
		"and apply": func(w *world) (*deploy.Change, error) { return w.upgradeWith(deploy.UpgradeOptions{Apply: true}) },
		"switch":    func(w *world) (*deploy.Change, error) { return w.switchTo(otherReference, r2, deploy.SwitchOptions{}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := w.releases(testRelease1(t))[0]
			w.tag = r2
			c, err := w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})
			must(t, err)
			two := c.Deployment
			if c.Action != deploy.ActionStaged || !c.DownloadOnly || len(w.systemd.calls) > 0 {
				t.Errorf("download: %+v, systemctl %q", c, w.systemd.calls)
			}
			if c, err = w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true}); !errors.Is(err, deploy.ErrNothingToDo) || !c.DownloadOnly {
				t.Errorf("download twice: %+v, %v", c, err)
			}
			if c, err = w.finalize(); !errors.Is(err, deploy.ErrNothingToDo) || c.Deployment != one || len(c.Warnings) != 1 {
				t.Errorf("finalize: %+v, %v", c, err)
			}
			w = w.powerCut(1)
			if got := w.boot(); got != one {
				t.Fatalf("booted %s", got)
			}
			if s := w.status(); s.Status.Staged == nil || !s.Status.Staged.DownloadOnly || s.Status.Booted.DownloadOnly {
				t.Errorf("status.staged %+v", s.Status.Staged)
			}
			c, err = release(w)
			must(t, err)
			if c.Action != deploy.ActionStaged || c.DownloadOnly || c.Deployment != two || !slices.Contains(w.systemd.calls, "start cfsboot-finalize.service") {
				t.Errorf("%+v, systemctl %q", c, w.systemd.calls)
			}
			must(t, settled(w.finalize()))
			if got := w.boot(); got != two {
				t.Errorf("booted %s in the end", got)
			}
			checkQuiet(t, w)
		})
	}
	w := newWorld(t)
	w.releases(testRelease1(t))
	var refused *deploy.RefusedError
	if _, err := w.upgradeWith(deploy.UpgradeOptions{FromDownloaded: true}); !errors.As(err, &refused) || refused.Code != deploy.CodeNotStaged {
		t.Errorf("from-downloaded without anything staged: %v", err)
	}
	// The other way round: what is staged can be held back.
	must(t, settled(w.upgrade(r2)))
	if c, err := w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true}); err != nil || !c.DownloadOnly {
		t.Errorf("hold back: %+v, %v", c, err)
	}
	if _, err := w.finalize(); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("finalize: %v", err)
	}
}

func testRelease1(t *testing.T) *ocitest.Image { return release(t, "1") }

// TestDownloadOnlyKeepsDefault: it never changes what boots next.
func TestDownloadOnlyKeepsDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r2 := release(t, "2")
	ids := w.releases(release(t, "1"), r2)
	must(t, settled(w.rollback("")))
	w.tag = r2
	c, err := w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})
	if !errors.Is(err, deploy.ErrNothingToDo) || w.state().Newest().Deployment != ids[0] {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestApplyDownloadOnly: what is only downloaded is not what a reboot starts.
func TestApplyDownloadOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r2 := release(t, "2")
	w.releases(release(t, "1"))
	w.tag = r2
	for range 2 { // the second time it is there already
		c, err := w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true, Apply: true})
		if err != nil && !errors.Is(err, deploy.ErrNothingToDo) || !c.DownloadOnly || c.Reboot || len(w.systemd.calls) > 0 {
			t.Errorf("upgrade: %+v, %v, systemctl %q", c, err, w.systemd.calls)
		}
	}
	c, err := w.switchTo(otherReference, r2, deploy.SwitchOptions{DownloadOnly: true, Apply: true})
	if err != nil || !c.DownloadOnly || c.Reboot || len(w.systemd.calls) > 0 {
		t.Errorf("switch: %+v, %v, systemctl %q", c, err, w.systemd.calls)
	}
}

// TestApply reboots when that starts something else, also what an earlier command
// had staged (the peers' D11), and says clearly why it does not.
func TestApply(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r1, r2 := release(t, "1"), release(t, "2")
	w.releases(r1)
	w.tag = r1
	c, err := w.upgradeWith(deploy.UpgradeOptions{Apply: true})
	if !errors.Is(err, deploy.ErrNothingToDo) || c.Reboot || len(w.systemd.calls) > 0 {
		t.Errorf("nothing new: %+v, %v, systemctl %q", c, err, w.systemd.calls)
	}
	must(t, settled(w.upgrade(r2)))
	w.systemd.calls = nil
	c, err = w.upgradeWith(deploy.UpgradeOptions{Apply: true})
	if want := []string{"start cfsboot-finalize.service", "reboot"}; err != nil || !c.Reboot || !slices.Equal(w.systemd.calls, want) {
		t.Errorf("staged before: %+v, %v, systemctl %q, want %q", c, err, w.systemd.calls, want)
	}
	w.systemd.fail = map[string]error{"reboot": errors.New("Access denied")}
	var soft *deploy.RebootError
	if c, err = w.upgradeWith(deploy.UpgradeOptions{Apply: true}); !errors.As(err, &soft) || c == nil || c.Reboot || !strings.Contains(err.Error(), "Access denied") {
		t.Errorf("reboot denied: %+v, %v", c, err)
	}
	w.systemd.fail, w.systemd.calls = map[string]error{"start cfsboot-finalize.service": errors.New("no such unit")}, nil
	if c, err = w.upgradeWith(deploy.UpgradeOptions{Apply: true}); !errors.As(err, &soft) || slices.Contains(w.systemd.calls, "reboot") || w.state().Staged == nil {
		t.Errorf("no unit: %+v, %v, systemctl %q", c, err, w.systemd.calls)
	}
	w.systemd.fail = nil
	must(t, settled(w.finalize()))
	// The default does not run yet.
	if c, err = w.upgradeWith(deploy.UpgradeOptions{Apply: true}); err != nil || !c.Reboot || c.Action != deploy.ActionNone {
		t.Errorf("armed before: %+v, %v", c, err)
	}
}

// TestNoRegistry: a machine that was installed from a directory has nothing to
// follow until it is told what.
func TestNoRegistry(t *testing.T) {
	t.Parallel()
	for _, origin := range []string{"oci:/tmp/layout:1", "oci-archive:/tmp/os.tar"} {
		w := newWorld(t)
		w.tag = release(t, "1")
		_, err := deploy.Install(t.Context(), w.root.Path(), deploy.InstallOptions{
			Options: w.options(), PullOptions: w.pull(), Image: reference, TargetImage: origin, AllowMissingVerity: true, RootUUID: "x",
		})
		must(t, err)
		one := w.boot()
		asked := false
		o := deploy.UpgradeOptions{Options: w.options(), PullOptions: deploy.PullOptions{OpenSource: func(context.Context, string) (oci.Source, error) {
			asked = true
			return nil, errors.New("asked")
		}}}
		var refused *deploy.RefusedError
		if _, err = deploy.Upgrade(t.Context(), o); !errors.As(err, &refused) || refused.Code != deploy.CodeNoRegistry || !strings.Contains(err.Error(), origin) || asked {
			t.Errorf("upgrade: %v", err)
		}
		if _, err := deploy.Check(t.Context(), deploy.CheckOptions{Options: w.options(), PullOptions: o.PullOptions}); !errors.As(err, &refused) || refused.Code != deploy.CodeNoRegistry || asked {
			t.Errorf("check: %v", err)
		}
		if c, err := w.switchTo(reference, nil, deploy.SwitchOptions{}); err != nil || c.Action != deploy.ActionReference || w.follows(one) != reference {
			t.Errorf("switch: %+v, %v", c, err)
		}
		must(t, settled(w.upgrade(release(t, "2"))))
	}
}

// tags lists the names of images in the repository.
func (w *world) tags() (names []string) {
	w.t.Helper()
	list, err := os.ReadDir(filepath.Join(w.root.Path(), "composefs/streams/refs/oci"))
	must(w.t, err)
	for _, x := range list {
		names = append(names, oci.DecodeTag(x.Name()))
	}
	return names
}

// TestSwitchTakesTheTagAway: when a deployment follows another reference its image
// has that name, and the old one only if another deployment has it. So nothing of
// it is left when it is gone.
func TestSwitchTakesTheTagAway(t *testing.T) {
	r1, r2 := release(t, "1"), release(t, "2")
	other, old := strings.TrimPrefix(otherReference, "docker://"), strings.TrimPrefix(reference, "docker://")
	for name, img := range map[string]*ocitest.Image{"same manifest": r1, "same files": relabelled(t, "1")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 0\n")
			one := w.releases(r1)[0]
			must(t, settled(w.switchTo(otherReference, img, deploy.SwitchOptions{})))
			if got := w.tags(); !slices.Equal(got, []string{other}) {
				t.Errorf("tags %v after the switch", got)
			}
			checkRepository(t, w)
			for _, v := range []string{"3", "4"} {
				must(t, settled(w.switchTo(otherReference, release(t, v), deploy.SwitchOptions{})))
				must(t, settled(w.finalize()))
				w.boot()
				w.bless()
			}
			must(t, removed(w.gc(0)))
			w.gone(one, "1")
			if got := w.tags(); !slices.Equal(got, []string{other}) {
				t.Errorf("tags %v in the end", got)
			}
			checkRepository(t, w)
		})
	}
	t.Run("staged again under another reference", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.configure("keep = 9\n")
		one := w.releases(r1)[0]
		for _, img := range []*ocitest.Image{r2, r1} {
			must(t, settled(w.switchTo(otherReference, img, deploy.SwitchOptions{})))
			must(t, settled(w.finalize()))
			w.boot()
			w.bless()
		}
		must(t, settled(w.switchTo(otherReference, r1, deploy.SwitchOptions{})))
		if w.booted() != one || w.follows(one) != otherReference {
			t.Errorf("booted %s, follows %s", short(w.booted()), w.follows(one))
		}
		if got := w.tags(); !slices.Equal(got, []string{other}) {
			t.Errorf("tags %v", got)
		}
		checkRepository(t, w)
	})
	t.Run("another follows the old one", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.releases(r1, r2)
		must(t, settled(w.switchTo(otherReference, r2, deploy.SwitchOptions{})))
		if got := w.tags(); !slices.Equal(got, []string{old, other}) && !slices.Equal(got, []string{other, old}) {
			t.Errorf("tags %v", got)
		}
		if got, want := w.tagged(), string(r1.Descriptor.Digest); got != want {
			t.Errorf("the old tag stands for %s, want %s", got, want)
		}
		checkRepository(t, w)
	})
}
