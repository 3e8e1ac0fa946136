package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// bootInto starts the newest entry of a deployment, as a person does who picks it in the menu.
func (w *world) bootInto(id string) {
	w.t.Helper()
	for _, e := range entriesOf(w.t, w) {
		if e.ImageID() == id {
			must(w.t, w.setupRoot(id, e.Entry.Options()))
			return
		}
	}
	w.t.Fatalf("no entry starts %s", short(id))
}

// filesOf lists the boot entries of a deployment.
func (w *world) filesOf(id string) (files []string) {
	w.t.Helper()
	for _, e := range entriesOf(w.t, w) {
		if e.ImageID() == id {
			files = append(files, e.File)
		}
	}
	return files
}

// checkWhole: a deployment that was being removed and runs is one like any other.
// files are its boot entries.
func checkWhole(t *testing.T, w *world, id string, files []string) {
	t.Helper()
	if got := w.filesOf(id); !slices.Equal(got, files) {
		t.Errorf("entries %v, want %v", got, files)
	}
	var armed int
	for _, a := range w.state().Entries {
		if a.Deployment != id {
			continue
		}
		armed++
		if a.Retiring {
			t.Errorf("entry %d of what runs is being removed", a.Seq)
		}
		if _, err := os.Stat(filepath.Join(w.fat.Path(), esp.PayloadDir, a.BootDigest, "vmlinuz")); err != nil {
			t.Errorf("its kernel: %v", err)
		}
	}
	if armed != len(files) {
		t.Errorf("the journal has %d entries of it, want %d", armed, len(files))
	}
	for _, d := range w.status().Cfsboot.Deployments {
		if d.ID == id && d.State == deploy.StateRetiring {
			t.Errorf("status says %q", d.State)
		}
	}
	for _, p := range w.status().Cfsboot.Problems {
		if p.Code == deploy.ProblemEntry {
			t.Errorf("status has a problem: %s", p.Message)
		}
	}
}

// TestRetiringRuns: a removal that was cut short after it was announced is taken
// back if its deployment is what starts next: nothing of what runs goes.
func TestRetiringRuns(t *testing.T) {
	images := releasesOf(t, 3)
	for _, tc := range []struct {
		name string
		run  func(w *world) error // the first command in the release
	}{
		{"shutdown", func(w *world) error { return settled(w.finalize()) }},
		{"resume", func(w *world) error { _, err := w.resume(); return err }},
		{"upgrade", func(w *world) error { return settled(w.upgrade(images[2])) }},
		{"gc", func(w *world) error { return removed(w.gc(9)) }},
		{"delete another", func(w *world) error {
			_, err := w.delete(w.state().Deployments()[1])
			return err
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(images...)
			w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
			files := w.filesOf(ids[0])
			w.bootInto(ids[0])
			must(t, tc.run(w))
			checkWhole(t, w, ids[0], files)
			must(t, removed(w.gc(9)))
			checkWhole(t, w, ids[0], files)
			checkRepository(t, w)
			checkQuiet(t, w)
			must(t, settled(w.rollback(ids[2])))
			w.bootInto(ids[2])
			must(t, settled(w.rollback(ids[0]))) // it can be gone back to
			if got := w.boot(); got != ids[0] {
				t.Errorf("booted %s", short(got))
			}
		})
	}
}

// TestRetiringRunsIsTold: what was taken back is in the result of the command.
func TestRetiringRunsIsTold(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 2)...)
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	w.bootInto(ids[0])
	got, err := w.resume()
	must(t, err)
	if len(got.Repaired) != 1 || got.Repaired[0].Operation != "retire" || got.Repaired[0].Outcome != deploy.OutcomeUndone || got.Repaired[0].Deployment != ids[0] {
		t.Errorf("repaired %+v", got.Repaired)
	}
	if _, err := w.resume(); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("again: %v", err)
	}
}

// TestRetiringRunsWithoutEntry: if an entry of what runs is gone all the same,
// nothing more is removed of it, and status names the entry.
func TestRetiringRunsWithoutEntry(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(releasesOf(t, 3)...)
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	w.bootInto(ids[0])
	for _, file := range w.filesOf(ids[0]) {
		must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, file)))
	}
	w.changed()
	must(t, settled(w.finalize()))
	if _, err := w.resume(); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Error(err)
	}
	a := w.state().LatestOf(ids[0])
	if a == nil || a.Retiring {
		t.Fatalf("got %+v", a)
	}
	if _, err := os.Stat(filepath.Join(w.fat.Path(), esp.PayloadDir, a.BootDigest, "initrd")); err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(w.status().Cfsboot.Problems, func(p deploy.Problem) bool {
		return p.Code == deploy.ProblemEntry && strings.Contains(p.Message, short(ids[0]))
	}) {
		t.Errorf("problems %+v", w.status().Cfsboot.Problems)
	}
	must(t, settled(w.rollback(ids[0])))
	if got := w.boot(); got != ids[0] {
		t.Errorf("booted %s", short(got))
	}
}

// TestDeleteCutThenBooted: `delete` of the default is killed at each call, by a
// power cut, and the loader starts whatever is there. If it is what was to go, it
// is whole again, whatever runs at the next shutdown, and can be deleted later.
func TestDeleteCutThenBooted(t *testing.T) {
	images := releasesOf(t, 3)
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(images...)
	must(t, settled(base.rollback(ids[0])))
	count := base.copy()
	count.killer = &killer{at: -1}
	must(t, deleted(count.delete(ids[0])))
	var ran int
	for n := range count.killer.n {
		for mode, k := range []*killer{{at: n}, {at: n, after: true}} {
			w := base.copy()
			w.killer = k
			err := deleted(w.delete(ids[0]))
			if !k.fired || err == nil {
				continue
			}
			t.Run(fmt.Sprintf("%s %d mode %d", k.op, n, mode), func(t *testing.T) {
				after := w.powerCut(uint64(n*2 + mode))
				after.t = t
				after.configure("keep = 9\n")
				id := after.boot()
				files := after.filesOf(id)
				must(t, settled(after.finalize()))
				checkWhole(t, after, id, files)
				if id == ids[0] {
					ran++
					var refused *deploy.RefusedError
					if _, err := after.delete(id); !errors.As(err, &refused) || refused.Code != deploy.CodeBooted {
						t.Fatalf("delete of what runs: %v", err)
					}
					must(t, removed(after.gc(9)))
					checkWhole(t, after, id, files)
					must(t, settled(after.rollback(ids[2])))
					if got := after.boot(); got != ids[2] {
						t.Fatalf("booted %s", short(got))
					}
				}
				must(t, deleted(after.delete(ids[0])))
				after.gone(ids[0], "1")
				checkQuiet(t, after)
				checkRepository(t, after)
			})
		}
	}
	if ran == 0 {
		t.Error("what was to be deleted never ran")
	}
}
