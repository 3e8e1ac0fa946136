package deploy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

func (w *world) delete(id string) (*deploy.Removal, error) {
	return deploy.Delete(w.t.Context(), deploy.DeleteOptions{Options: w.options(), ID: id})
}

func (w *world) gc(keep int) (*deploy.Removal, error) {
	return deploy.GC(w.t.Context(), deploy.GCOptions{Options: w.options(), Keep: keep})
}

// configure writes the configuration of the running system.
func (w *world) configure(text string) { w.writeRunning("etc/cfsboot/cfsboot.toml", text) }

// TestDeleteNamesDefault: what delete says of the default is what the menu shows, not
// what the journal has armed last: the entry of the newest deployment is gone.
func TestDeleteNamesDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 3)...)
	must(t, settled(w.rollback(ids[0])))
	w.boot()
	for _, e := range entriesOf(t, w) {
		if id := e.ImageID(); id == ids[0] && e.File == entriesOf(t, w)[0].File || id == ids[2] {
			must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, e.File)))
		}
	}
	w.changed()
	named := func(list []string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, "was the default") })
	}
	r, err := w.delete(ids[2])
	if err != nil || named(r.Warnings) || r.Default != ids[1] {
		t.Errorf("one whose entry is gone: %+v, %v", r, err)
	}
	r, err = w.delete(ids[1])
	want := fmt.Sprintf("deployment %s was the default of the next boot; now it is %s", short(ids[1]), short(ids[0]))
	if err != nil || !slices.Contains(r.Warnings, want) || r.Default != ids[0] {
		t.Errorf("the default: %+v, %v, want %q", r, err, want)
	}
}

func releasesOf(t *testing.T, n int) (list []*ocitest.Image) {
	t.Helper()
	for i := range n {
		list = append(list, release(t, fmt.Sprint(i+1)))
	}
	return list
}

// gone fails if anything is left of a deployment, or of the objects that only it
// needed: a file that only its release has.
func (w *world) gone(id, release string) {
	w.t.Helper()
	for _, name := range []string{"state/deploy/" + id, "state/cfsboot/staged/" + id, "composefs/images/" + id, "composefs/images/refs/cfsboot/" + id, "composefs/streams/refs/cfsboot/" + id} {
		if _, err := os.Lstat(filepath.Join(w.root.Path(), name)); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s is left: %v", name, err)
		}
	}
	for _, e := range entriesOf(w.t, w) {
		if e.ImageID() == id {
			w.t.Errorf("entry %s is left", e.File)
		}
	}
	if slices.Contains(w.state().Deployments(), id) {
		w.t.Errorf("the journal knows %s", short(id))
	}
	d := sumOf(strings.Repeat(release, 400))
	if _, err := os.Lstat(filepath.Join(w.root.Path(), "composefs/objects", d)); !errors.Is(err, os.ErrNotExist) {
		w.t.Errorf("an object of release %s is left: %v", release, err)
	}
}

// whys says why each deployment stays, by its number in ids.
func whys(kept []deploy.Kept, ids []string) []string {
	var out []string
	for _, k := range kept {
		out = append(out, fmt.Sprintf("%d %s", slices.Index(ids, k.Deployment)+1, k.Why))
	}
	return out
}

func TestGC(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 5\n")
	ids := w.releases(releasesOf(t, 5)...)
	if n := len(w.state().Deployments()); n != 5 {
		t.Fatalf("%d deployments with keep = 5", n)
	}
	dry, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), Keep: 1, DryRun: true})
	must(t, err)
	got, err := w.gc(1)
	must(t, err)
	if d := cmp.Diff([]string{"5 booted", "4 rollback", "3 keep"}, whys(got.Kept, ids)); d != "" {
		t.Errorf("kept, mismatch (-want +got):\n%s", d)
	}
	if len(got.Removed) != 2 || got.Removed[0].Deployment != ids[0] || got.Removed[1].Version != "2" || got.Default != ids[4] {
		t.Errorf("got %+v", got)
	}
	if d := cmp.Diff(got.Removed, dry.Removed); d != "" || !dry.DryRun || dry.Repository.Objects != got.Repository.Objects || dry.Repository.Bytes != got.Repository.Bytes {
		t.Errorf("the dry run said %+v %+v, then %+v", dry, dry.Repository, got.Repository)
	}
	if got.Repository.Objects < 10 || got.Repository.Bytes == 0 {
		t.Errorf("got %+v", got.Repository)
	}
	w.gone(ids[0], "1")
	w.gone(ids[1], "2")
	checkQuiet(t, w)
	checkRepository(t, w)
	again, err := w.gc(1)
	if err != nil || len(again.Removed) != 0 || again.Repository.Objects != 0 {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := w.rollback(ids[2]); err != nil {
		t.Errorf("roll back to what was kept: %v", err)
	}
	if got := w.boot(); got != ids[2] {
		t.Errorf("booted %s", got)
	}
	w.bless()
	// The configuration counts, and a drop-in of it.
	w.writeRunning("usr/lib/cfsboot/cfsboot.toml.d/10-keep.toml", "keep = 0\n")
	if got, err := w.gc(-1); err != nil || len(got.Removed) != 1 || got.Removed[0].Deployment != ids[3] {
		t.Errorf("keep = 0: %+v, %v", got, err)
	}
	w.gone(ids[3], "4")
	w.configure("keep = -1\n")
	if _, err := w.gc(-1); err == nil || !strings.Contains(err.Error(), "keep = -1, want 0 to") {
		t.Errorf("got %v", err)
	}
}

// checkRepository looks for what fsck would find, with our eyes and those of the
// peer where it is installed.
func checkRepository(t *testing.T, w *world) {
	t.Helper()
	path := filepath.Join(w.root.Path(), "composefs")
	dir, err := durable.OpenDir(path)
	must(t, err)
	defer dir.Close()
	r, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	rep, err := r.Check(t.Context())
	must(t, errors.Join(err, r.Close()))
	for _, p := range append(rep.Problems, rep.Unused...) {
		t.Errorf("repository: %v", p)
	}
	tool := cfsctl.Lookup(t)
	if tool == "" {
		t.Log("cfsctl is not there: the repository was checked with our own eyes only")
		return
	}
	for _, args := range [][]string{{"fsck"}, {"oci", "fsck"}} {
		out, err := exec.CommandContext(t.Context(), tool, append([]string{"--insecure", "--repo", path}, args...)...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "ok") {
			t.Errorf("cfsctl %v: %v\n%s", args, err, out)
		}
	}
}

// TestDryRunWritesNothing: not even what a killed run, the loader and the bless
// service did since goes into the journal.
func TestDryRunWritesNothing(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	w.releases(releasesOf(t, 3)...)
	_, err := w.upgrade(release(t, "4"))
	must(t, err)
	_, err = w.finalize()
	must(t, err)
	w.boot()
	w.bless() // the journal does not know it yet
	w.note(record.Event{Kind: record.EventBegin, Transaction: "killed", Op: record.OpUpgrade, Reference: reference})
	before, records := w.fingerprint(), w.records()
	w.killer = &killer{at: -1}
	got, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), DryRun: true})
	must(t, err)
	if w.killer.n != 0 {
		t.Errorf("%d mutating calls", w.killer.n)
	}
	w.killer = nil
	if d := cmp.Diff(before, w.fingerprint()); d != "" || !slices.Equal(records, w.records()) {
		t.Errorf("something was written (-before +after):\n%s", d)
	}
	if len(got.Removed) != 2 || len(got.Kept) != 2 {
		t.Errorf("got %+v", got)
	}
}

// TestDryRunFinishes: what the run would finish of an interrupted removal is in the
// numbers of the dry run.
func TestDryRunFinishes(t *testing.T) {
	for name, entry := range map[string]int64{"announced": cluster, "without its entry": 0} {
		t.Run(name, func(t *testing.T) { dryRunFinishes(t, entry) })
	}
}

// dryRunFinishes has an interrupted removal whose boot entry still takes so many bytes.
func dryRunFinishes(t *testing.T, entry int64) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 3)...)
	payload := used(filepath.Join(w.fat.Path(), esp.PayloadDir, w.state().LatestOf(ids[0]).BootDigest))
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	if entry == 0 {
		for _, file := range w.filesOf(ids[0]) {
			must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, file)))
		}
		w.changed()
	}
	w.limit = used(w.fat.Path()) + 1<<20
	dry, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), Keep: 9, DryRun: true})
	must(t, err)
	got, err := w.gc(9)
	must(t, err)
	if dry.Repository.Objects != got.Repository.Objects || dry.Repository.Bytes != got.Repository.Bytes || got.Repository.Objects == 0 {
		t.Errorf("the dry run said %+v, then %+v", dry.Repository, got.Repository)
	}
	// The plan counts the directory of the payload, the model of the partition its entry.
	if dry.BootFreedBytes != payload+cluster || got.BootFreedBytes != payload+entry {
		t.Errorf("the dry run said %d bytes on the boot partition, then %d; the payload takes %d", dry.BootFreedBytes, got.BootFreedBytes, payload)
	}
	if len(dry.Removed) != 0 || len(got.Removed) != 0 {
		t.Errorf("the dry run said %+v, then %+v", dry.Removed, got.Removed)
	}
	w.gone(ids[0], "1")
}

// TestRemovalTellsRepairs: what an interrupted command had left is in the result.
func TestRemovalTellsRepairs(t *testing.T) {
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(releasesOf(t, 4)...)
	base.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	base.note(record.Event{Kind: record.EventBegin, Transaction: "killed", Op: record.OpUpgrade, Reference: reference})
	for name, run := range map[string]func(w *world) (*deploy.Removal, error){
		"delete": func(w *world) (*deploy.Removal, error) { return w.delete(ids[1]) },
		"gc":     func(w *world) (*deploy.Removal, error) { return w.gc(9) },
	} {
		w := base.copy()
		w.configure("keep = 9\n")
		got, err := run(w)
		must(t, err)
		var what []string
		for _, x := range got.Repaired {
			what = append(what, x.Operation+" "+x.Outcome+" "+short(x.Deployment))
		}
		if d := cmp.Diff([]string{"upgrade undone ", "retire finished " + short(ids[0])}, what); d != "" {
			t.Errorf("%s: repaired, mismatch (-want +got):\n%s", name, d)
		}
		if got, err := w.gc(9); err != nil || got.Repaired == nil || len(got.Repaired) != 0 {
			t.Errorf("%s, then gc: repaired %+v, %v", name, got.Repaired, err)
		}
	}
}

func TestDelete(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(t *testing.T, w *world, ids []string)
		id      int    // which of three, from 0
		warn    string // "%0" is a deployment, by its number; "": none
		next    int    // default afterwards
	}{
		{"old one", nil, 0, "", 2},
		{"what rollback goes to", nil, 1, "deployment %1 was what `cfsboot rollback` goes to; now it is %0", 2},
		{"all that rollback could go to", func(t *testing.T, w *world, ids []string) {
			t.Helper()
			_, err := w.delete(ids[0])
			must(t, err)
		}, 1, "deployment %1 was what `cfsboot rollback` goes to; nothing is left to go back to", 2},
		{"the default, not booted", func(t *testing.T, w *world, ids []string) {
			t.Helper()
			_, err := w.rollback(ids[0])
			must(t, err)
		}, 0, "deployment %0 was the default of the next boot; now it is %2\ndeployment %0 was what `cfsboot rollback` goes to; now it is %1", 2},
		{"one that failed", func(t *testing.T, w *world, ids []string) {
			t.Helper()
			_, err := w.rollback(ids[1])
			must(t, err)
			w.boot()
			for _, a := range w.state().Entries {
				if a.Deployment == ids[2] {
					w.note(record.Event{Kind: record.EventFailed, Entry: a.Seq, Reason: "test"})
				}
			}
		}, 2, "", 1},
		{"half removed", func(_ *testing.T, w *world, ids []string) {
			w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
		}, 0, "", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(releasesOf(t, 3)...)
			if tc.prepare != nil {
				tc.prepare(t, w, ids)
			}
			got, err := w.delete(ids[tc.id][:12])
			must(t, err)
			want := tc.warn
			for i, id := range ids {
				want = strings.ReplaceAll(want, fmt.Sprintf("%%%d", i), short(id))
			}
			if warned := strings.Join(got.Warnings, "\n"); warned != want {
				t.Errorf("warnings %q, want %q", warned, want)
			}
			if len(got.Removed) != 1 || got.Removed[0].Deployment != ids[tc.id] || got.Default != ids[tc.next] || got.Repository == nil || got.Repository.Objects == 0 {
				t.Errorf("got %+v", got)
			}
			w.gone(ids[tc.id], fmt.Sprint(tc.id+1))
			checkRepository(t, w)
			checkQuiet(t, w)
			if got := w.boot(); got != ids[tc.next] {
				t.Errorf("booted %s", short(got))
			}
		})
	}
}

func TestDeleteRefusals(t *testing.T) {
	w := newWorld(t)
	one := release(t, "1")
	_, err := w.install(one)
	must(t, err)
	first := w.boot()
	w.bless()
	two, err := w.upgrade(release(t, "2"))
	must(t, err)
	refused := func(id, code, text string) {
		t.Helper()
		before := w.fingerprint()
		_, err := w.delete(id)
		var r *deploy.RefusedError
		if !errors.As(err, &r) || r.Code != code || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("delete %q: got %v, want %s with %q", id, err, code, text)
		}
		if d := cmp.Diff(before, w.fingerprint()); d != "" {
			t.Errorf("refused, and something changed (-before +after):\n%s", d)
		}
	}
	refused(first, deploy.CodeBooted, "is running")
	refused(two.Deployment, deploy.CodeStaged, "`cfsboot rollback "+short(first)+"`")
	refused(first[:3], deploy.CodeUnknown, "at least 4")
	refused(strings.Repeat("0", 128), deploy.CodeUnknown, "there is no deployment")
	refused("zzzz", deploy.CodeUnknown, "there is no deployment")
	_, err = w.finalize()
	must(t, err)
	w.boot() // a trial: the second is not known to be good yet
	refused(first, deploy.CodeLast, "only one that is known to boot")
	w.bless()

	// An entry that a person has made starts it: that one is not ours to remove.
	var old esp.Entry
	for _, e := range entriesOf(t, w) {
		if e.ImageID() == first {
			old = e
		}
	}
	dir := filepath.Join(w.fat.Path(), esp.EntryDir)
	data, err := os.ReadFile(filepath.Join(dir, old.File))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "rescue.conf"), data, 0o600))
	w.changed()
	var conflict *deploy.ConflictError
	if _, err := w.delete(first); !errors.As(err, &conflict) || !slices.Equal(conflict.Paths, []string{"rescue.conf"}) {
		t.Errorf("got %v, want a ConflictError about rescue.conf", err)
	}
	if got, err := w.gc(0); err != nil || len(got.Removed) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	must(t, os.Remove(filepath.Join(dir, "rescue.conf")))
	w.changed()
	if _, err := w.delete(first); err != nil {
		t.Error(err)
	}
	w.gone(first, "1")
}

// TestOnlySuccessRetires: a command that is refused, fails or has nothing to do
// removes what was left over, and no deployment because fewer are to be kept now.
func TestOnlySuccessRetires(t *testing.T) {
	images := releasesOf(t, 4)
	noKernel := osTree("5")
	delete(noKernel, "usr/lib/modules/6.12/vmlinuz")
	bad := buildImage(t, noKernel)
	fails := func(err error) error {
		if err == nil {
			return errors.New("no error")
		}
		return nil
	}
	nothing := func(err error) error {
		if errors.Is(err, deploy.ErrNothingToDo) {
			return nil
		}
		return fmt.Errorf("got %w, want nothing to do", err)
	}
	for _, tc := range []struct {
		name string
		run  func(w *world) error
		left int // deployments
	}{
		{"delete of nothing", func(w *world) error { _, err := w.delete("ffffffff"); return fails(err) }, 4},
		{"delete of what runs", func(w *world) error { _, err := w.delete(w.booted()); return fails(err) }, 4},
		{"upgrade to an image without kernel", func(w *world) error { _, err := w.upgrade(bad); return fails(err) }, 4},
		{"rollback to what is the default", func(w *world) error { _, err := w.rollback(w.booted()); return nothing(err) }, 4},
		{"rollback to nothing", func(w *world) error { _, err := w.rollback("ffffffff"); return fails(err) }, 4},
		{"finalize without anything staged", func(w *world) error { _, err := w.finalize(); return nothing(err) }, 4},
		{"resume", func(w *world) error { _, err := w.resume(); return nothing(err) }, 4},
		{"upgrade to what is there", func(w *world) error { _, err := w.upgrade(images[3]); return nothing(err) }, 2},
		{"rollback", func(w *world) error { return settled(w.rollback("")) }, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			w.releases(images...)
			must(t, settled(w.upgrade(images[3])))
			w.configure("keep = 0\n")
			stray := filepath.Join(w.root.Path(), "state/cfsboot/trash/state")
			must(t, os.MkdirAll(stray, 0o700))
			w.changed()
			must(t, tc.run(w))
			if n := len(w.state().Deployments()); n != tc.left {
				t.Errorf("%d deployments are left, want %d", n, tc.left)
			}
			if _, err := os.Lstat(stray); err == nil && tc.name != "rollback to nothing" {
				t.Error("what was left over is not removed")
			}
		})
	}
}

// TestGCRefusesALostMenu: entries that the journal knows and the partition does
// not show are no reason to remove what they start (lifecycle.md 6.3 G4).
func TestGCRefusesALostMenu(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 4)...)
	must(t, settled(w.upgrade(release(t, "4"))))
	for _, e := range entriesOf(t, w) {
		if e.ImageID() == ids[0] || e.ImageID() == ids[1] {
			must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, e.File)))
		}
	}
	w.changed()
	before := w.fingerprint()
	var refused *deploy.RefusedError
	if _, err := w.gc(0); !errors.As(err, &refused) || refused.Code != deploy.CodeEntries || !strings.Contains(err.Error(), short(ids[1])) {
		t.Errorf("got %v", err)
	}
	w.configure("keep = 0\n")
	if _, err := w.upgrade(release(t, "4")); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff(before, w.fingerprint()); d != "" {
		t.Errorf("something changed (-before +after):\n%s", d)
	}
	for _, id := range []string{ids[0], ids[1]} { // the way out
		if _, err := w.delete(id); err != nil {
			t.Error(err)
		}
	}
	if got, err := w.gc(0); err != nil || len(got.Kept) != 2 {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestGCKeepsWhatRuns: a repository without the running image, or with a damaged
// one, is not one to remove anything from.
func TestGCKeepsWhatRuns(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 3)...)
	must(t, settled(w.upgrade(release(t, "3"))))
	must(t, os.Remove(filepath.Join(w.root.Path(), "composefs/images", ids[2])))
	w.changed()
	before := w.fingerprint()
	var refused *deploy.RefusedError
	if _, err := w.gc(0); !errors.As(err, &refused) || refused.Code != deploy.CodeRoots {
		t.Errorf("got %v", err)
	}
	if d := cmp.Diff(before, w.fingerprint()); d != "" {
		t.Errorf("something changed (-before +after):\n%s", d)
	}
}

// TestGCRefusesDamage: as long as something in use cannot be followed, no
// deployment goes by rule; refs to nothing may be dropped.
func TestGCRefusesDamage(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	w.releases(releasesOf(t, 4)...)
	must(t, settled(w.upgrade(release(t, "4"))))
	must(t, os.Symlink("../../gone", filepath.Join(w.root.Path(), "composefs/streams/refs/oci/gone")))
	w.changed()
	before := w.fingerprint()
	var roots *repo.RootsError
	if _, err := w.gc(0); !errors.As(err, &roots) {
		t.Errorf("got %v, want a RootsError", err)
	}
	if d := cmp.Diff(before, w.fingerprint()); d != "" {
		t.Errorf("something changed (-before +after):\n%s", d)
	}
	got, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), DropDangling: true})
	if err != nil || len(got.Removed) != 2 || len(got.Repository.Dangling) != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	checkRepository(t, w)
}

// TestRemovalOnAFullDisk: where not even a record can be written, garbage goes first.
func TestRemovalOnAFullDisk(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(w *world, id string) error
	}{
		{"gc", func(w *world, _ string) error { return removed(w.gc(0)) }},
		{"delete", func(w *world, id string) error { return removed(w.delete(id)) }},
		{"delete what is half removed", func(w *world, id string) error {
			w.note(record.Event{Kind: record.EventRetire, Deployment: id})
			return removed(w.delete(id))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			onAFullDisk(t, c.run)
		})
	}
}

func onAFullDisk(t *testing.T, run func(w *world, id string) error) {
	images := releasesOf(t, 3)
	base := newWorld(t)
	ids := base.releases(images...)
	must(t, settled(base.upgrade(images[2])))
	count := base.copy()
	count.killer = &killer{at: -1}
	must(t, run(count, ids[0]))
	hit := 0
	for n := range count.killer.n {
		w := base.copy()
		w.killer = &killer{at: n, err: unix.ENOSPC}
		err := run(w, ids[0])
		if !strings.Contains(w.killer.op, "journal") || w.killer.n < n {
			continue
		}
		hit++
		if err != nil {
			t.Errorf("%s: %v", w.killer.op, err)
			continue
		}
		w.killer = nil
		w.gone(ids[0], "1")
		checkQuiet(t, w)
	}
	if hit == 0 {
		t.Error("no call for the journal was hit")
	}
}

// TestFullDisk: on a root file system where nothing can be written, and with the
// blessing of the running release still to be recorded, what frees space works: old
// records go first, else garbage.
func TestFullDisk(t *testing.T) {
	images := releasesOf(t, 3)
	for _, full := range []string{"journal", "composefs", "trash"} {
		base := newWorld(t)
		base.configure("keep = 9\n")
		ids := base.releases(images...)
		switch full {
		case "composefs":
			object := filepath.Join(base.root.Path(), "composefs/objects", sumOf("garbage"))
			must(t, os.MkdirAll(filepath.Dir(object), 0o755))
			must(t, os.WriteFile(object, []byte("garbage"), 0o600))
			base.changed()
		case "trash":
			must(t, os.MkdirAll(filepath.Join(base.root.Path(), "state/cfsboot/trash/state"), 0o755))
			must(t, os.WriteFile(filepath.Join(base.root.Path(), "state/cfsboot/trash/state/x"), nil, 0o600))
			base.changed()
		}
		for name, run := range map[string]func(w *world) error{
			"gc":     func(w *world) error { return removed(w.gc(0)) },
			"delete": func(w *world) error { return removed(w.delete(ids[0])) },
			"resume": func(w *world) error { _, err := w.resume(); return settled(nil, err) },
		} {
			w := base.copy()
			w.killer = &killer{at: -1, full: full}
			if err := run(w); err != nil || !w.killer.fired {
				t.Errorf("%s: %s: %v, %v", full, name, err, w.killer.fired)
				continue
			}
			w.killer = nil
			if name != "resume" {
				w.gone(ids[0], "1")
			}
			checkQuiet(t, w)
			if s := w.state(); !s.LatestOf(ids[2]).Blessed {
				t.Errorf("%s: %s: the blessing is not recorded", full, name)
			}
			if got := w.boot(); got != ids[2] {
				t.Errorf("%s: %s: booted %s", full, name, short(got))
			}
		}
		// Nothing that may go without a record: one clear line.
		w := base.copy()
		w.killer = &killer{at: -1, full: "nowhere"}
		var space *durable.SpaceError
		for name, err := range map[string]error{"gc": removed(w.gc(0)), "delete": removed(w.delete(ids[0])), "upgrade": settled(w.upgrade(images[1]))} {
			if !errors.As(err, &space) {
				t.Errorf("%s: got %v", name, err)
			}
			oneLine(t, err)
		}
		w.killer = nil
		if got := w.boot(); got != ids[2] {
			t.Errorf("booted %s", short(got))
		}
	}
}

// TestRemovalWithoutPartition: without a boot partition nothing is removed.
func TestRemovalWithoutPartition(t *testing.T) {
	w := newWorld(t)
	ids := w.releases(releasesOf(t, 3)...)
	o := w.options()
	o.ESP = nil
	for name, run := range map[string]func() (*deploy.Removal, error){
		"gc": func() (*deploy.Removal, error) { return deploy.GC(t.Context(), deploy.GCOptions{Options: o}) },
		"delete": func() (*deploy.Removal, error) {
			return deploy.Delete(t.Context(), deploy.DeleteOptions{Options: o, ID: ids[0]})
		},
	} {
		var refused *deploy.RefusedError
		if _, err := run(); !errors.As(err, &refused) || refused.Code != deploy.CodeNoESP || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if n := len(w.state().Deployments()); n != 3 {
		t.Errorf("%d deployments are left", n)
	}
}

// TestGCWithoutRefs: what the journal knows stays without a ref too, and so does
// what runs.
func TestGCWithoutRefs(t *testing.T) {
	w := newWorld(t)
	ids := w.releases(releasesOf(t, 2)...)
	for _, id := range ids {
		must(t, os.RemoveAll(filepath.Join(w.root.Path(), "composefs/images/refs/cfsboot", id)))
		must(t, os.RemoveAll(filepath.Join(w.root.Path(), "composefs/streams/refs/cfsboot", id)))
	}
	must(t, os.RemoveAll(filepath.Join(w.root.Path(), "composefs/streams/refs/oci")))
	w.changed()
	if _, err := w.gc(0); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		if _, err := w.rollback(id); err != nil && !errors.Is(err, deploy.ErrNothingToDo) {
			t.Errorf("%s: %v", short(id), err)
		}
		if got := w.boot(); got != id {
			t.Errorf("booted %s, want %s", short(got), short(id))
		}
		w.bless()
	}
}

// TestGCLocked: while somebody else uses the repository its objects stay, and the
// next command takes them.
func TestGCLocked(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 3)...)
	dir, err := durable.OpenDir(filepath.Join(w.root.Path(), "composefs"))
	must(t, err)
	defer dir.Close()
	other, err := repo.Open(t.Context(), dir, repo.Options{})
	must(t, err)
	got, err := w.delete(ids[0])
	if err != nil || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0], "until the next garbage collection") {
		t.Errorf("got %+v, %v", got, err)
	}
	var locked *repo.LockedError
	if _, err := w.gc(9); !errors.As(err, &locked) {
		t.Errorf("got %v, want a LockedError", err)
	}
	must(t, other.Close())
	if _, err := w.upgrade(release(t, "3")); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Error(err)
	}
	w.gone(ids[0], "1")
}

// TestTagFollows: the tag of a reference stands for a deployment that is there.
func TestTagFollows(t *testing.T) {
	w := newWorld(t)
	images := releasesOf(t, 3)
	w.releases(images...)
	_, err := w.upgrade(release(t, "4"))
	must(t, err)
	if _, err := w.upgrade(images[2]); err != nil { // gives the fourth up
		t.Fatal(err)
	}
	if got, want := w.tagged(), string(images[2].Descriptor.Digest); got != want {
		t.Errorf("the tag stands for %s, want %s", got, want)
	}
	checkRepository(t, w)
	if _, err := os.Lstat(filepath.Join(w.root.Path(), "composefs/objects", sumOf(strings.Repeat("4", 400)))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an object of what was given up is left: %v", err)
	}
}

// TestSharedPayload: releases with the same kernel and initrd share a folder on
// the boot partition; it goes with the last of them.
func TestSharedPayload(t *testing.T) {
	like := func(release, kernel string) *ocitest.Image {
		files := osTree(release)
		for _, name := range []string{"usr/lib/modules/6.12/vmlinuz", "usr/lib/modules/6.12/initramfs.img"} {
			files[name] = osTree(kernel)[name]
		}
		return buildImage(t, files)
	}
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(like("1", "a"), like("2", "a"), like("3", "b"), like("4", "a"))
	folders := func() int {
		t.Helper()
		list, err := os.ReadDir(filepath.Join(w.fat.Path(), esp.PayloadDir))
		must(t, err)
		return len(list)
	}
	if n := folders(); n != 2 {
		t.Errorf("%d folders for two kernels", n)
	}
	got, err := w.delete(ids[0])
	if err != nil || folders() != 2 {
		t.Errorf("got %+v, %v, %d folders", got, err, folders())
	}
	_, err = w.delete(ids[2])
	if err != nil || folders() != 1 {
		t.Errorf("%v, %d folders", err, folders())
	}
	_, err = w.rollback(ids[1])
	must(t, err)
	if got := w.boot(); got != ids[1] {
		t.Errorf("booted %s", short(got))
	}
}

// TestFiveUpgradesOnASmallDisk: disk and boot partition hold two releases with
// their kernels, and not three.
func TestFiveUpgradesOnASmallDisk(t *testing.T) {
	for name, shrink := range map[string]func(w *world, one, kernel int64){
		"boot partition": func(w *world, _, kernel int64) { w.limit = (used(w.fat.Path()) + kernel + 8*cluster) * 8 / 7 },
		// A pull wants 16 MiB beside the layers.
		"disk": func(w *world, one, _ int64) { w.disk = (used(w.root.Path()) + 16<<20 + one + one/4) * 8 / 7 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			images := []*ocitest.Image{}
			for i := range 6 {
				files := osTree(fmt.Sprint(i))
				files["usr/lib/own"] = noise(i, 3<<20)
				files["usr/lib/modules/6.12/vmlinuz"] = strings.Repeat(fmt.Sprintf("kernel %d ", i), 10_000)
				images = append(images, buildImage(t, files))
			}
			ids := w.releases(images[0])
			list, err := os.ReadDir(filepath.Join(w.fat.Path(), esp.PayloadDir))
			must(t, err)
			shrink(w, used(filepath.Join(w.root.Path(), "composefs")), used(filepath.Join(w.fat.Path(), esp.PayloadDir, list[0].Name())))
			for _, img := range images[1:] {
				w.tag = img
				_, err := w.upgrade(img)
				must(t, err)
				_, err = w.finalize()
				must(t, err)
				ids = append(ids, w.boot())
				w.bless()
				checkQuiet(t, w)
			}
			left := w.state().Deployments()
			if len(left) != 2 || left[0] != ids[5] || left[1] != ids[4] {
				t.Errorf("%d deployments are left", len(left))
			}
			checkRepository(t, w)
			_, err = w.rollback("")
			must(t, err)
			if got := w.boot(); got != ids[4] {
				t.Errorf("booted %s", short(got))
			}
		})
	}
}

// noise is text that does not get shorter.
func noise(seed, n int) string {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// layers is an operating system with n more layers of one file each.
func layers(t *testing.T, name string, n int) *ocitest.Image {
	t.Helper()
	spec := ocitest.Spec{Layers: []ocitest.Layer{{Tar: tarOf(t, osTree(name))}}}
	for i := range n {
		spec.Layers = append(spec.Layers, ocitest.Layer{Tar: tarOf(t, map[string]string{fmt.Sprintf("usr/file%d", i): fmt.Sprint(name, i)})})
	}
	img, err := ocitest.Build(spec)
	must(t, err)
	return img
}

// messages collects what is said.
type messages []string

func (m *messages) Event(e progress.Event) {
	if e, ok := e.(progress.Message); ok {
		*m = append(*m, e.Text)
	}
}

// TestRoomForFiles: where inodes are short as many deployments go as hold the files
// that are missing, at once; none goes if all of them do not hold as many.
func TestRoomForFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		layers  int
		objects int64 // more than there are when the upgrade begins
		gone    int
	}{
		"three":   {30, 16, 3}, // of 8 objects each
		"too few": {200, 16, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(releasesOf(t, 5)...)
			w.inodes = (w.objects() + tc.objects) * 8 / 7
			var said messages
			w.tag = layers(t, "6", tc.layers)
			o := deploy.UpgradeOptions{Options: w.options(), PullOptions: w.pull()}
			o.Progress = &said
			_, err := deploy.Upgrade(t.Context(), o)
			t.Log(err, said)
			var space *durable.SpaceError
			if tc.gone == 0 && (!errors.As(err, &space) || !space.Inodes || space.NeedFiles <= space.HaveFiles || !strings.Contains(err.Error(), "files that are missing")) {
				t.Errorf("got %v, want a SpaceError", err)
			}
			if tc.gone > 0 {
				must(t, err)
			}
			rounds := 0
			for _, text := range said {
				if strings.HasPrefix(text, "making room for ") {
					rounds++
					if !strings.HasSuffix(text, " files in the repository") {
						t.Errorf("said %q", text)
					}
				}
			}
			if rounds != min(tc.gone, 1) {
				t.Errorf("made room %d times", rounds)
			}
			left := w.state().Deployments()
			for i, id := range ids {
				if slices.Contains(left, id) != (i >= tc.gone) {
					t.Errorf("release %d: deployments %v", i+1, left)
				}
			}
		})
	}
}

// TestTooSmall: what cannot fit whatever goes is refused with the numbers, and
// nothing goes for it.
func TestTooSmall(t *testing.T) {
	huge := osTree("9")
	huge["usr/lib/own"] = strings.Repeat("0123456789", 300_000)
	huge["usr/lib/modules/6.12/initramfs.img"] = strings.Repeat("initrd", 100_000)
	for name, shrink := range map[string]func(w *world){
		"boot partition": func(w *world) { w.limit = used(w.fat.Path())*8/7 + 40*cluster },
		"disk":           func(w *world) { w.disk = used(w.root.Path())*8/7 + 100*cluster },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			w.releases(releasesOf(t, 3)...)
			must(t, settled(w.upgrade(release(t, "3"))))
			shrink(w)
			before := w.state()
			_, err := w.upgrade(buildImage(t, huge))
			var space *durable.SpaceError
			if !errors.As(err, &space) || space.Need <= space.Have || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v, want a SpaceError", err)
			}
			t.Log(err)
			after := w.state()
			if d := cmp.Diff(before.Entries, after.Entries); d != "" || after.Staged != nil || after.Transaction != nil {
				t.Errorf("something went (-before +after):\n%s", d)
			}
			checkQuiet(t, w)
			w.boot()
			if space.Where == w.fat.Path() { // refused before anything of it was made
				if _, err := os.Lstat(filepath.Join(w.root.Path(), "state/cfsboot/staged")); err == nil && !empty(filepath.Join(w.root.Path(), "state/cfsboot/staged")) {
					t.Error("state is left")
				}
			}
		})
	}
}

// TestBadPartition: what may be wrong with a boot partition gives one line, and
// the machine boots what it booted before; files of others stay.
func TestBadPartition(t *testing.T) {
	digestOf := func(w *world) string { return entriesOf(w.t, w)[0].Payload() }
	conflict := func(err error) bool { var c *deploy.ConflictError; return errors.As(err, &c) }
	nothing := func(err error) bool { return err == nil }
	for _, tc := range []struct {
		name    string
		damage  func(w *world) error
		upgrade func(error) bool
		gc      func(error) bool
		boots   bool
	}{
		{"200 foreign entries", func(w *world) error {
			var errs []error
			for i := range 200 {
				errs = append(errs, os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, fmt.Sprintf("other-%d.conf", i)), fmt.Appendf(nil, "title Other %d\nlinux /other/%d/vmlinuz\n", i, i), 0o600))
			}
			return errors.Join(errs...)
		}, nothing, nothing, true},
		{"torn foreign entries", func(w *world) error {
			return errors.Join(
				os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, "torn.conf"), nil, 0o600),
				os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, "zeros.conf"), make([]byte, 4096), 0o600),
				os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, "noise.conf"), []byte("\xff\xfe\x00linux"), 0o600))
		}, nothing, nothing, true},
		{"foreign payloads", func(w *world) error {
			dir := filepath.Join(w.fat.Path(), esp.PayloadDir)
			return errors.Join(os.MkdirAll(filepath.Join(dir, "mine"), 0o700), os.WriteFile(filepath.Join(dir, "mine/x"), nil, 0o600), os.WriteFile(filepath.Join(dir, "note"), nil, 0o600),
				os.MkdirAll(filepath.Join(dir, strings.Repeat("ab", 32), "vmlinuz"), 0o700), os.WriteFile(filepath.Join(dir, strings.Repeat("ab", 32), "x"), nil, 0o600))
		}, nothing, nothing, true},
		{"a directory with the name of the next entry", func(w *world) error {
			s := w.state()
			n := record.EntryName{Token: s.Token, Seq: s.NextEntry, Counter: bls.Counter{Present: true, Left: record.DefaultTries}}
			return os.MkdirAll(filepath.Join(w.fat.Path(), esp.EntryDir, n.String()), 0o700)
		}, nothing, nothing, true},
		{"a file with the name of the payloads' directory", func(w *world) error {
			return errors.Join(os.Rename(filepath.Join(w.fat.Path(), esp.PayloadDir), filepath.Join(w.fat.Path(), "moved")), os.WriteFile(filepath.Join(w.fat.Path(), esp.PayloadDir), nil, 0o600))
		}, conflict, conflict, false},
		{"a file with the name of the entries' directory", func(w *world) error {
			return errors.Join(os.Rename(filepath.Join(w.fat.Path(), esp.EntryDir), filepath.Join(w.fat.Path(), "moved")), os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir), nil, 0o600))
		}, conflict, conflict, false},
		{"a torn entry of ours", func(w *world) error {
			s := w.state()
			n := record.EntryName{Token: s.Token, Seq: s.NextEntry}
			return os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, n.String()), []byte("title T\noptions composefs="+digestOf(w)[:40]), 0o600)
		}, nothing, nothing, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(releasesOf(t, 3)...)
			must(t, tc.damage(w))
			w.changed()
			foreign := foreignFiles(t, w)
			oneLine := func(what string, err error, want func(error) bool) {
				t.Helper()
				if !want(err) || err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: got %v", what, err)
				}
				if err != nil {
					t.Log(what, err)
				}
			}
			_, err := w.gc(0)
			oneLine("gc", err, tc.gc)
			if err == nil {
				w.gone(ids[0], "1")
			}
			err = settled(w.upgrade(release(t, "4")))
			oneLine("upgrade", err, tc.upgrade)
			if err == nil {
				oneLine("finalize", settled(w.finalize()), nothing)
			}
			_, err = w.delete(ids[1])
			oneLine("delete", err, tc.gc)
			if tc.boots {
				w.boot()
			}
			if d := cmp.Diff(foreign, foreignFiles(t, w)); d != "" {
				t.Errorf("files of others (-before +after):\n%s", d)
			}
		})
	}
}

// foreignFiles lists what on the boot partition is not cfsboot's.
func foreignFiles(t *testing.T, w *world) []string {
	t.Helper()
	var out []string
	must(t, filepath.WalkDir(w.fat.Path(), func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(w.fat.Path(), path)
		base := filepath.Base(name)
		if strings.HasPrefix(base, "cfsboot_") && !e.IsDir() || !e.IsDir() && (base == "vmlinuz" || base == "initrd") || e.IsDir() && len(base) == 64 && base != strings.Repeat("ab", 32) {
			return err
		}
		out = append(out, name)
		return err
	}))
	return out
}

// deleted takes a deployment that is gone already for a success of delete.
func deleted(_ *deploy.Removal, err error) error {
	var refused *deploy.RefusedError
	if errors.As(err, &refused) && refused.Code == deploy.CodeUnknown {
		return nil
	}
	return err
}

func removed(_ *deploy.Removal, err error) error { return err }

// TestRemovalConverges: see converge.
func TestRemovalConverges(t *testing.T) {
	images := releasesOf(t, 4)
	var ids []string
	three := func(t *testing.T, w *world) {
		t.Helper()
		ids = w.releases(images[:3]...)
		must(t, settled(w.upgrade(images[2])))
	}
	three(t, newWorld(t))
	shared := func(t *testing.T, w *world) {
		t.Helper()
		files := osTree("5")
		for _, name := range []string{"usr/lib/modules/6.12/vmlinuz", "usr/lib/modules/6.12/initramfs.img"} {
			files[name] = osTree("1")[name]
		}
		w.releases(images[0], buildImage(t, files), images[2])
	}
	for _, c := range []convergence{
		{"delete", three, func(w *world) error { return deleted(w.delete(ids[0])) }},
		{"delete the rollback target", three, func(w *world) error { return deleted(w.delete(ids[1])) }},
		{"delete the default", func(t *testing.T, w *world) {
			three(t, w)
			_, err := w.rollback(ids[0])
			must(t, err)
		}, func(w *world) error { return deleted(w.delete(ids[0])) }},
		{"delete with a shared kernel", shared, func(w *world) error { return deleted(w.delete(ids[0])) }},
		{"gc", three, func(w *world) error { return removed(w.gc(0)) }},
		{"gc with leftovers", func(t *testing.T, w *world) {
			three(t, w)
			w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
			must(t, os.MkdirAll(filepath.Join(w.fat.Path(), esp.PayloadDir, strings.Repeat("cd", 32)), 0o700))
			must(t, os.WriteFile(filepath.Join(w.fat.Path(), esp.PayloadDir, strings.Repeat("cd", 32), "vmlinuz"), []byte("left"), 0o600))
			w.changed()
		}, func(w *world) error { return removed(w.gc(0)) }},
		{"upgrade that retires", three, func(w *world) error { return settled(w.upgrade(images[3])) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			converge(t, c)
		})
	}
}

// TestRemovalSurvivesEveryFault: a power cut anywhere in delete or gc leaves a
// machine that boots what it booted, and everything that stays can be gone back to.
func TestRemovalSurvivesEveryFault(t *testing.T) {
	images := releasesOf(t, 3)
	var ids []string
	for _, tc := range []struct {
		name string
		run  func(w *world) error
	}{
		{"delete", func(w *world) error { return deleted(w.delete(ids[0])) }},
		{"gc", func(w *world) error { return removed(w.gc(0)) }},
	} {
		base := newWorld(t)
		ids = base.releases(images...)
		must(t, settled(base.upgrade(images[2])))
		count := base.copy()
		count.killer = &killer{at: -1}
		must(t, tc.run(count))
		for n := 0; n < count.killer.n; n += sampled(count.killer.n, 16) {
			for mode, f := range faults {
				k := f.at(n)
				w := base.copy()
				w.killer = k
				err := tc.run(w)
				if !k.fired {
					continue
				}
				t.Run(fmt.Sprintf("%s %d mode %d %s", tc.name, n, mode, k.op), func(t *testing.T) {
					after := w.powerCut(uint64(n*len(faults) + mode))
					after.t = t
					if got := after.boot(); got != ids[2] {
						t.Fatalf("booted %s", short(got))
					}
					if err == nil && mode < 2 {
						after.gone(ids[0], "1")
					}
					must(t, tc.run(after))
					after.gone(ids[0], "1")
					checkQuiet(t, after)
					if _, err := after.rollback(""); err != nil {
						t.Fatal(err)
					}
					if got := after.boot(); got != ids[1] {
						t.Fatalf("rolled back to %s", short(got))
					}
				})
			}
		}
	}
}
