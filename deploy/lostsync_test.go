package deploy_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// What a killed run did may be in memory only when the next command looks. These
// tests kill at each call, let another command finish the work, and then cut the
// power: what the second one said has to be true.

// everyKill calls f with a killer for each call of an operation, until one is not reached.
func everyKill(t *testing.T, f func(k *killer) bool) {
	t.Helper()
	for at := 0; ; at++ {
		if !f(&killer{at: at}) {
			if at == 0 {
				t.Fatal("the operation makes no call that changes anything")
			}
			return
		}
	}
}

// sharedKernel is a release whose payload is that of all others of its kind: nothing
// on the boot partition but its entry goes with it.
func sharedKernel(t *testing.T, version string) *ocitest.Image {
	t.Helper()
	tree := osTree(version)
	tree["usr/lib/modules/6.12/vmlinuz"], tree["usr/lib/modules/6.12/initramfs.img"] = "kernel", "initrd"
	return buildImage(t, tree)
}

// TestRemovedEntryStaysAway: the entry of a removed deployment does not come back.
func TestRemovedEntryStaysAway(t *testing.T) {
	t.Parallel()
	for name, finish := range map[string]func(w *world, id string) error{
		"delete again": func(w *world, id string) error {
			_, err := deploy.Delete(w.t.Context(), deploy.DeleteOptions{Options: w.options(), ID: id})
			return err
		},
		"resume": func(w *world, _ string) error {
			_, err := deploy.Resume(w.t.Context(), w.options())
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := newWorld(t)
			ids := start.releases(sharedKernel(t, "1"), sharedKernel(t, "2"))
			must(t, settled(start.rollback("")))
			everyKill(t, func(k *killer) bool {
				w := start.copy()
				w.killer = k
				_, _ = deploy.Delete(t.Context(), deploy.DeleteOptions{Options: w.options(), ID: ids[0]})
				w.killer = nil
				if !k.fired {
					return false
				}
				err := finish(w, ids[0])
				w = w.copy() // without what was not synced
				if w.state().LatestOf(ids[0]) != nil {
					return true // not begun, and not said to be done
				}
				for _, e := range entriesOf(t, w) {
					if e.ImageID() == ids[0] {
						t.Errorf("killed at %d (%s), then %s (%v), then a power cut: %s starts the deployment that is gone", k.at, k.op, name, err, e.File)
					}
				}
				return true
			})
		})
	}
}

// TestArmedIsOnTheMedium: a default that resume reports is the default after a power cut.
func TestArmedIsOnTheMedium(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"finalize", "rollback"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			start := newWorld(t)
			start.releases(release(t, "1"), release(t, "2"))
			if how == "finalize" {
				must(t, settled(start.upgrade(release(t, "3"))))
			}
			everyKill(t, func(k *killer) bool {
				w := start.copy()
				w.killer = k
				if how == "finalize" {
					_, _ = w.finalize()
				} else {
					_, _ = w.rollback("")
				}
				w.killer = nil
				if !k.fired {
					return false
				}
				r, err := deploy.Resume(t.Context(), w.options())
				if r == nil {
					if !errors.Is(err, deploy.ErrNothingToDo) {
						t.Errorf("killed at %d (%s): resume: %v", k.at, k.op, err)
					}
					return true
				}
				w = w.copy()
				if id := w.boot(); id != r.Default {
					t.Errorf("killed at %d (%s): resume said that %.12s is the default; after a power cut %.12s boots", k.at, k.op, r.Default, id)
				}
				return true
			})
		})
	}
}

// TestDefaultBrokenTagBack: the default cannot boot any more, and the reference stands
// for what runs: that has to become the default again.
func TestDefaultBrokenTagBack(t *testing.T) {
	t.Parallel()
	for what, spoil := range map[string]func(state string) error{
		"state":  os.RemoveAll,
		"var":    func(state string) error { return os.Remove(filepath.Join(state, "var")) },
		"record": func(state string) error { return os.Remove(filepath.Join(state, record.DeploymentName)) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			one := release(t, "1")
			ids := w.releases(one)
			must(t, settled(w.upgrade(release(t, "2"))))
			c, err := w.finalize()
			must(t, settled(c, err))
			must(t, spoil(filepath.Join(w.root.Path(), "state/deploy", c.Deployment)))
			w.changed()
			c, err = w.upgrade(one)
			must(t, settled(c, err))
			if c.Deployment != ids[0] || c.Entry == 0 {
				t.Errorf("the upgrade to what runs: %+v, want a new entry for %.12s", c, ids[0])
			}
			if id, err := w.tryBoot(); err != nil || id != ids[0] {
				t.Errorf("then boots %.12s, %v, want %.12s", id, err, ids[0])
			}
		})
	}
}
