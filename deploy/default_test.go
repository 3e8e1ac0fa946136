package deploy_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
)

// damages are what may become of the file of a boot entry.
var damages = map[string]func(path string) error{
	"removed": os.Remove,
	"garbage": func(path string) error { return os.WriteFile(path, []byte("\x00garbage"), 0o600) },
	"empty":   func(path string) error { return os.WriteFile(path, nil, 0o600) },
}

// damage spoils the entry that stands first in the menu.
func (w *world) damage(spoil func(path string) error) {
	w.t.Helper()
	must(w.t, spoil(filepath.Join(w.fat.Path(), esp.EntryDir, entriesOf(w.t, w)[0].File)))
	w.changed()
}

// TestDefaultEntryDamaged: the entry of a default that does not run yet is
// damaged. Then that is not the default, and the command that made it makes it
// again.
func TestDefaultEntryDamaged(t *testing.T) {
	t.Parallel()
	r1, r2 := release(t, "1"), release(t, "2")
	commands := map[string]func(w *world) error{
		"upgrade":  func(w *world) error { return settled(w.upgrade(r2)) },
		"switch":   func(w *world) error { return settled(w.switchTo(otherReference, r2, deploy.SwitchOptions{})) },
		"rollback": func(w *world) error { return settled(w.rollback("")) },
		"rollback ID": func(w *world) error {
			for _, id := range w.state().Deployments() {
				if id != w.booted() {
					return settled(w.rollback(id))
				}
			}
			return errors.New("no other deployment")
		},
	}
	for how, spoil := range damages {
		for name, run := range commands {
			t.Run(name+" "+how, func(t *testing.T) {
				w := newWorld(t)
				w.releases(r1)
				if name == "rollback" || name == "rollback ID" {
					w.releases(r1, r2)
				}
				running := w.booted()
				again := func() {
					t.Helper()
					must(t, run(w))
					must(t, settled(w.finalize()))
				}
				again()
				want := w.copy().boot()
				if want == running {
					t.Fatalf("%s does nothing", name)
				}
				w.damage(spoil)
				r, err := w.resume()
				if !errors.Is(err, deploy.ErrNothingToDo) || r.Default != running {
					t.Errorf("resume: default %s, %v, want %s", r.Default, err, running)
				}
				if got := *w.status().Cfsboot.NextBoot; got != running {
					t.Errorf("status: next boot %s, want %s", got, running)
				}
				again()
				if got := w.copy().boot(); got != want {
					t.Errorf("booted %s after the second %s, want %s", got, name, want)
				}
				if got := w.told(deploy.ProblemEntry); (len(got) == 0) != (how == "removed") {
					t.Errorf("status: %q", got)
				}
				n := len(entriesOf(t, w))
				again()
				if got := len(entriesOf(t, w)); got != n {
					t.Errorf("%d entries after the third %s, want %d", got, name, n)
				}
				must(t, removed(w.gc(0)))
				w.boot()
				w.bless()
				checkQuiet(t, w)
			})
		}
	}
}

// TestRunningEntryDamaged: the only entry of the only deployment is damaged, so
// the next boot would find nothing. `upgrade` without anything newer makes another.
func TestRunningEntryDamaged(t *testing.T) {
	t.Parallel()
	r1 := release(t, "1")
	for how, spoil := range damages {
		w := newWorld(t)
		one := w.releases(r1)[0]
		w.damage(spoil)
		c, err := w.upgrade(r1)
		if err != nil || c.Action != deploy.ActionArmed {
			t.Errorf("%s: upgrade: %+v, %v", how, c, err)
		}
		if got := w.boot(); got != one {
			t.Errorf("%s: booted %s", how, got)
		}
		checkQuiet(t, w)
	}
}

// TestLastTryIsTheDefault: a release that is on its last try is the default, so
// that an upgrade that runs meanwhile gives it no more tries.
func TestLastTryIsTheDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r2 := release(t, "2")
	one := w.releases(release(t, "1"))[0]
	must(t, settled(w.upgrade(r2)))
	must(t, settled(w.finalize()))
	for range 3 {
		w.boot()
		if c, err := w.upgrade(r2); !errors.Is(err, deploy.ErrNothingToDo) || c.Deployment != w.booted() {
			t.Errorf("upgrade: %+v, %v", c, err)
		}
	}
	if got := w.boot(); got != one {
		t.Errorf("booted %s after three tries", got)
	}
}

// setKey gives a key of the entry that starts a deployment another value, "": none.
func (w *world) setKey(id, key, value string) (file string) {
	w.t.Helper()
	for _, e := range entriesOf(w.t, w) {
		if e.ImageID() != id {
			continue
		}
		if e.Entry.Set(key); value != "" {
			e.Entry.Set(key, value)
		}
		data, err := e.Entry.Format()
		must(w.t, err)
		must(w.t, os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, e.File), data, 0o600))
		w.changed()
		return e.File
	}
	w.t.Fatalf("no entry of %s", id)
	return ""
}

// TestEditedOrder: an entry was changed so that it stands before every new one.
// Nothing can become the default, so that is said, before and after.
func TestEditedOrder(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	for _, x := range []struct {
		key, value string
		first      bool // it stands before what is newer
	}{
		{"version", "9999999999.9", true}, {"version", "x", false}, {"sort-key", "aaa", true},
		{"sort-key", "zzz", false}, {"sort-key", "", false}, {"version", "0", false}, {"machine-id", "0123", false},
	} {
		for name, run := range verbs(r3, r3) {
			t.Run(name+" "+x.key+" "+x.value, func(t *testing.T) {
				w := newWorld(t)
				ids := w.releases(release(t, "1"), release(t, "2"))
				if name == "finalize" {
					must(t, settled(w.upgrade(r3)))
				}
				version := entriesOf(t, w)[0].Entry.Get(x.key)
				file := w.setKey(ids[1], x.key, x.value)
				if got := w.told(deploy.ProblemEntry); len(got) != 1 || !strings.Contains(got[0], file) {
					t.Errorf("status: %q", got)
				}
				err := run(w)
				oneLine(t, err)
				var conflict *deploy.ConflictError
				if errors.As(err, &conflict) != x.first || x.first && !slices.Equal(conflict.Paths, []string{esp.EntryDir + "/" + file}) {
					t.Errorf("%v", err)
				}
				if x.first && name == "finalize" && len(w.told(deploy.ProblemFinalize)) != 1 {
					t.Error("status does not say that finalize failed")
				}
				if w.state().Transaction != nil {
					t.Error("a transaction is open")
				}
				if got := w.copy().boot(); x.first && got != ids[1] {
					t.Errorf("booted %s", got)
				}
				w.setKey(ids[1], x.key, version)
				must(t, run(w))
				must(t, settled(w.finalize()))
				if got := w.boot(); got == ids[1] {
					t.Errorf("booted %s after the entry was put right", got)
				}
			})
		}
	}
}

// TestEditedOrderAfterwards: an older entry is put before the new default.
func TestEditedOrderAfterwards(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r2 := release(t, "2")
	one := w.releases(release(t, "1"))[0]
	must(t, settled(w.upgrade(r2)))
	c, err := w.finalize()
	must(t, err)
	file := w.setKey(one, "version", "9999999999")
	if got := w.told(deploy.ProblemEntry); len(got) != 1 || !strings.Contains(got[0], file) || *w.status().Cfsboot.NextBoot != one {
		t.Errorf("status: %q", got)
	}
	var conflict *deploy.ConflictError
	if _, err := w.upgrade(r2); !errors.As(err, &conflict) || !slices.Contains(conflict.Paths, esp.EntryDir+"/"+file) {
		t.Errorf("upgrade: %v", err)
	}
	if _, err := w.rollback(c.Deployment); !errors.As(err, &conflict) {
		t.Errorf("rollback: %v", err)
	}
	if _, err := w.rollback(one); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("rollback to what is first: %v", err)
	}
}

// meddler changes the machine as soon as it is asked for the time.
type meddler struct {
	deploy.Clock
	meddle func()
}

func (m *meddler) Now() time.Time {
	m.meddle()
	return m.Clock.Now()
}

// TestEditedMeanwhile: an entry is put before the new one while that is made.
func TestEditedMeanwhile(t *testing.T) {
	t.Parallel()
	r2 := release(t, "2")
	for name, run := range map[string]func(w *world, o deploy.Options) (*deploy.Change, error){
		"finalize": func(w *world, o deploy.Options) (*deploy.Change, error) { return deploy.Finalize(t.Context(), o) },
		"rollback": func(w *world, o deploy.Options) (*deploy.Change, error) {
			return deploy.Rollback(t.Context(), deploy.RollbackOptions{Options: o})
		},
	} {
		w := newWorld(t)
		running := w.releases(release(t, "1"))[0]
		if name == "finalize" {
			must(t, settled(w.upgrade(r2)))
		} else {
			running = w.releases(release(t, "1"), r2)[1]
		}
		o := w.options()
		o.Clock = &meddler{o.Clock, func() { w.setKey(running, "sort-key", "aaa") }}
		_, err := run(w, o)
		var conflict *deploy.ConflictError
		if !errors.As(err, &conflict) || len(conflict.Paths) != 1 {
			t.Errorf("%s: %v", name, err)
		}
		oneLine(t, err)
		if got := *w.status().Cfsboot.NextBoot; got != running {
			t.Errorf("%s: the next boot is of %s", name, got)
		}
	}
}
