package deploy_test

import (
	"bytes"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
)

func (w *world) resume() (*deploy.Resumed, error) {
	w.t.Helper()
	return deploy.Resume(w.t.Context(), w.options())
}

// TestResume kills each command at about ten of its calls (at every one: see
// converge) and lets resume put it right: what was begun is finished or undone and said, nothing is
// left over, the machine boots, and a second resume finds nothing.
func TestResume(t *testing.T) {
	for _, c := range convergences(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			base := newWorld(t)
			c.prepare(t, base)
			whole := base.copy()
			whole.killer = &killer{at: -1}
			must(t, c.run(whole))
			calls := whole.killer.n
			said := 0
			for n := 0; n < calls; n += max(1, calls/10) {
				w := base.copy()
				w.killer = &killer{at: n}
				err := c.run(w)
				op := w.killer.op
				w = w.restarted(t)
				w.killer, w.tag, w.other = nil, nil, nil // no network
				before, menu := w.state(), entriesOf(t, w)
				r, rerr := w.resume()
				if rerr != nil && !errors.Is(rerr, deploy.ErrNothingToDo) {
					t.Fatalf("killed at %d (%s, %v): resume: %v", n, op, err, rerr)
				}
				after := w.state()
				interrupted := before.Transaction != nil || before.Staged != nil && len(menu) > 0 && menu[0].Ours && menu[0].Name.Seq == before.Staged.Entry
				if interrupted != (len(r.Repaired) > 0) || interrupted == errors.Is(rerr, deploy.ErrNothingToDo) {
					t.Errorf("killed at %d (%s): repaired %+v, transaction before %+v", n, op, r.Repaired, before.Transaction)
				}
				for _, x := range r.Repaired {
					said++
					finished := len(after.Entries) > len(before.Entries)
					if x.Operation == "" || x.Message == "" || strings.Contains(x.Message, "\n") || (x.Outcome == deploy.OutcomeFinished) != finished {
						t.Errorf("killed at %d (%s): %+v", n, op, x)
					}
				}
				checkQuiet(t, w)
				if r, rerr = w.resume(); !errors.Is(rerr, deploy.ErrNothingToDo) || len(r.Repaired) > 0 || r.Repaired == nil {
					t.Errorf("killed at %d (%s): resumed twice: %+v, %v", n, op, r, rerr)
				}
				w.boot()
			}
			if said == 0 && whole.state().NextEntry > base.state().NextEntry { // it had a transaction
				t.Error("nothing was ever interrupted")
			}
		})
	}
}

// TestEveryCommandSays what it has put right: once, as a warning and in its result.
func TestEveryCommandSays(t *testing.T) {
	t.Parallel()
	r2 := release(t, "2")
	for name, run := range map[string]func(w *world, o deploy.Options) ([]deploy.Repaired, error){
		"upgrade": func(w *world, o deploy.Options) ([]deploy.Repaired, error) {
			c, err := deploy.Upgrade(w.t.Context(), deploy.UpgradeOptions{Options: o, PullOptions: w.pull()})
			return repairedBy(c, err)
		},
		"switch": func(w *world, o deploy.Options) ([]deploy.Repaired, error) {
			c, err := deploy.Switch(w.t.Context(), deploy.SwitchOptions{Options: o, PullOptions: w.pull(), Image: otherReference})
			return repairedBy(c, err)
		},
		"finalize": func(w *world, o deploy.Options) ([]deploy.Repaired, error) {
			return repairedBy(deploy.Finalize(w.t.Context(), o))
		},
		"rollback": func(w *world, o deploy.Options) ([]deploy.Repaired, error) {
			return repairedBy(deploy.Rollback(w.t.Context(), deploy.RollbackOptions{Options: o}))
		},
		"resume": func(w *world, o deploy.Options) ([]deploy.Repaired, error) {
			r, err := deploy.Resume(w.t.Context(), o)
			if err != nil {
				return nil, err
			}
			return r.Repaired, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.releases(release(t, "1"), r2)
			w.other = r2
			w.note(record.Event{Kind: record.EventBegin, Transaction: "t", Op: record.OpSwitch, Reference: otherReference})
			var log bytes.Buffer
			o := w.options()
			o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			got, err := run(w, o)
			must(t, err)
			if len(got) != 1 || got[0].Operation != "switch" || got[0].Outcome != deploy.OutcomeUndone || !strings.Contains(got[0].Message, otherReference) {
				t.Errorf("repaired %+v", got)
			}
			if n := strings.Count(log.String(), "interrupted switch"); n != 1 {
				t.Errorf("said %d times: %s", n, &log)
			}
		})
	}
}

func repairedBy(c *deploy.Change, err error) ([]deploy.Repaired, error) {
	if err := settled(c, err); err != nil {
		return nil, err
	}
	return slices.Clone(c.Repaired), nil
}
