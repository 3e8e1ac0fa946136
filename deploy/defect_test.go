package deploy_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/repo"
)

// payloadDir is where kernel and initrd of a deployment lie.
func (w *world) payloadDir(id string) string {
	w.t.Helper()
	for _, e := range entriesOf(w.t, w) {
		if e.ImageID() == id {
			return filepath.Join(w.fat.Path(), esp.PayloadDir, e.Payload())
		}
	}
	w.t.Fatalf("no entry of %s", id)
	return ""
}

// harmless are the defects with which a deployment boots all the same.
var harmless = []string{"record", "bad record", "image"}

// defects are what may be taken from a deployment that it needs to boot, or to be
// gone back to, by name: the code of the problem in the status, and how.
var defects = map[string]struct {
	code string
	take func(w *world, id string) error
}{
	"state":  {deploy.ProblemState, func(w *world, id string) error { return os.RemoveAll(w.stateDir(id)) }},
	"etc":    {deploy.ProblemState, func(w *world, id string) error { return os.RemoveAll(w.stateDir(id) + "/etc") }},
	"var":    {deploy.ProblemState, func(w *world, id string) error { return os.Remove(w.stateDir(id) + "/var") }},
	"record": {deploy.ProblemDeployment, func(w *world, id string) error { return os.Remove(w.stateDir(id) + "/deployment.json") }},
	"bad record": {deploy.ProblemDeployment, func(w *world, id string) error {
		return os.WriteFile(w.stateDir(id)+"/deployment.json", []byte("{"), 0o644)
	}},
	"link of var": {deploy.ProblemState, func(w *world, id string) error {
		return errors.Join(os.Remove(w.stateDir(id)+"/var"), os.Symlink("/tmp", w.stateDir(id)+"/var"))
	}},
	"empty etc": {deploy.ProblemState, func(w *world, id string) error {
		return errors.Join(os.RemoveAll(w.stateDir(id)+"/etc"), os.Mkdir(w.stateDir(id)+"/etc", 0o755))
	}},
	"payload":   {deploy.ProblemPayload, func(w *world, id string) error { return os.RemoveAll(w.payloadDir(id)) }},
	"kernel":    {deploy.ProblemPayload, func(w *world, id string) error { return os.Remove(w.payloadDir(id) + "/vmlinuz") }},
	"no initrd": {deploy.ProblemPayload, func(w *world, id string) error { return os.Truncate(w.payloadDir(id)+"/initrd", 0) }},
	"cut initrd": {deploy.ProblemPayload, func(w *world, id string) error {
		return os.Truncate(w.payloadDir(id)+"/initrd", 100)
	}},
	"image": {deploy.ProblemImage, func(w *world, id string) error {
		return os.Remove(filepath.Join(w.root.Path(), "composefs/images", id))
	}},
	"object": {deploy.ProblemImage, func(w *world, id string) error {
		name := filepath.Join(w.root.Path(), "composefs/images", id)
		object, err := filepath.EvalSymlinks(name)
		return errors.Join(err, os.Remove(name), os.Remove(object))
	}},
	"object behind its name": {deploy.ProblemImage, func(w *world, id string) error {
		object, err := filepath.EvalSymlinks(filepath.Join(w.root.Path(), "composefs/images", id))
		return errors.Join(err, os.Remove(object))
	}},
}

func (w *world) stateDir(id string) string {
	return filepath.Join(w.root.Path(), "state/deploy", id)
}

func (w *world) take(what, id string) {
	w.t.Helper()
	must(w.t, defects[what].take(w, id))
	w.changed()
}

// TestStatusNamesDefects: whatever a deployment lacks that it needs to boot, status
// says so, of whichever deployment.
func TestStatusNamesDefects(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(releasesOf(t, 3)...)
	codes := []string{deploy.ProblemState, deploy.ProblemDeployment, deploy.ProblemPayload, deploy.ProblemImage}
	told := func(w *world) (out []deploy.Problem) {
		for _, p := range w.status().Cfsboot.Problems {
			if slices.Contains(codes, p.Code) {
				out = append(out, p)
			}
		}
		return out
	}
	if got := told(base); got != nil {
		t.Errorf("nothing is missing: %+v", got)
	}
	for what, x := range defects {
		for _, id := range ids {
			w := base.copy()
			w.take(what, id)
			got := told(w)
			if len(got) != 1 || got[0].Code != x.code || !strings.Contains(got[0].Message, id[:12]) {
				t.Errorf("%s of %s: %+v", what, id[:12], got)
			} else if x.code != deploy.ProblemDeployment && strings.Contains(got[0].Message, "cannot boot") == slices.Contains(harmless, what) {
				t.Errorf("%s of %s: %+v", what, id[:12], got)
			}
		}
	}
}

// TestLastBootable: the running release is not known to be good, the one before it
// cannot boot. Then the one before that is what rollback goes to, and nothing
// removes it.
func TestLastBootable(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(releasesOf(t, 2)...)
	must(t, settled(base.upgrade(release(t, "3"))))
	must(t, settled(base.finalize()))
	base.boot()
	for what := range defects {
		t.Run(what, func(t *testing.T) {
			w := base.copy()
			w.t = t
			w.take(what, ids[1])
			var refused *deploy.RefusedError
			if _, err := w.delete(ids[0]); !errors.As(err, &refused) || refused.Code != deploy.CodeLast {
				t.Errorf("delete: %v", err)
			}
			if r := w.status().Status.Rollback; r == nil || r.Composefs.Verity != ids[0] {
				t.Errorf("status: rollback %+v", r)
			}
			_, err := w.gc(0)
			var roots *repo.RootsError
			if err != nil && !(defects[what].code == deploy.ProblemImage && errors.As(err, &roots)) { // a ref of it leads nowhere
				t.Fatal(err)
			}
			if !slices.Contains(w.state().Deployments(), ids[0]) {
				t.Fatal("gc removed the last one that boots")
			}
			c, err := w.rollback("")
			if err != nil || c.Deployment != ids[0] {
				t.Fatalf("rollback: %+v, %v", c, err)
			}
			if got := w.boot(); got != ids[0] {
				t.Errorf("booted %s", got)
			}
		})
	}
}

// TestDeleteLastProved: the running release is not known to be good, and the only one
// that was lacks something. It stays all the same, and boots if the initramfs does not
// need what is missing. Once the running one is good it may go.
func TestDeleteLastProved(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	one := base.releases(release(t, "1"))[0]
	must(t, settled(base.upgrade(release(t, "2"))))
	must(t, settled(base.finalize()))
	two := base.boot()
	for what := range defects {
		t.Run(what, func(t *testing.T) {
			w := base.copy()
			w.t = t
			w.take(what, one)
			_, err := w.delete(one)
			if !refusedFor(deploy.CodeLast)(err) {
				t.Fatalf("delete: %v", err)
			}
			oneLine(t, err)
			later := w.copy()
			later.t = t
			boots := func() bool {
				for range 4 {
					if id, err := w.tryBoot(); err != nil || id == one {
						return err == nil
					}
				}
				return false
			}()
			if want := slices.Contains(harmless, what); boots != want {
				t.Errorf("it boots: %v, want %v", boots, want)
			}
			later.bless()
			if _, err := later.delete(one); err != nil {
				t.Errorf("delete beside a good one: %v", err)
			}
			if got := later.boot(); got != two {
				t.Errorf("booted %s", short(got))
			}
		})
	}
}

// TestDeleteLesser: of two that were good, neither of which is the running one, the
// one that lacks something may go, and the other may not.
func TestDeleteLesser(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(releasesOf(t, 2)...)
	must(t, settled(base.upgrade(release(t, "3"))))
	must(t, settled(base.finalize()))
	base.boot()
	for what := range defects {
		w := base.copy()
		w.take(what, ids[0])
		if _, err := w.delete(ids[1]); !refusedFor(deploy.CodeLast)(err) {
			t.Errorf("%s: delete the whole one: %v", what, err)
		}
		if _, err := w.delete(ids[0]); err != nil {
			t.Errorf("%s: delete the other one: %v", what, err)
		}
	}
}

// TestRollbackToDefective: a rollback to what cannot boot is refused, and the
// default stays.
func TestRollbackToDefective(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	ids := base.releases(releasesOf(t, 2)...)
	for what := range defects {
		for _, id := range []string{"", ids[0]} {
			w := base.copy()
			w.take(what, ids[0])
			if _, err := w.rollback(id); err == nil {
				t.Errorf("%s: rolled back", what)
			} else {
				oneLine(t, err)
			}
			if got := w.boot(); got != ids[1] {
				t.Errorf("%s: booted %s", what, got)
			}
		}
	}
}

// TestDefectiveDefault: the default that does not run yet cannot boot. It is staged
// anew where that helps, and never taken for what the next boot starts.
func TestDefectiveDefault(t *testing.T) {
	t.Parallel()
	r2 := release(t, "2")
	base := newWorld(t)
	one := base.releases(release(t, "1"))[0]
	must(t, settled(base.upgrade(r2)))
	c, err := base.finalize()
	must(t, err)
	for what := range defects {
		w := base.copy()
		w.take(what, c.Deployment)
		_, err := w.upgrade(r2)
		if what == "no initrd" || what == "cut initrd" { // a file that an entry names is not changed
			var bad *esp.VerifyError
			if !errors.As(err, &bad) {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		must(t, settled(w.finalize()))
		if got := w.boot(); got != c.Deployment || got == one {
			t.Errorf("%s: booted %s", what, got)
		}
		checkQuiet(t, w)
	}
}
