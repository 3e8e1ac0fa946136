package deploy_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
