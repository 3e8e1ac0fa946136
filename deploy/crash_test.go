package deploy_test

import (
	"errors"
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

// TestMain: thousands of machines are made and thrown away, each with a few MiB.
func TestMain(m *testing.M) {
	debug.SetGCPercent(400)
	m.Run()
}

// crashCase is one command on one machine. Each mutating call of it fails once with
// each of the errors, and is once the last one of a killed process; after each a
// power cut leaves some mixture of what was not synced.
type crashCase struct {
	name string
	// prepare brings an empty machine to where the command starts.
	prepare func(t *testing.T, w *world)
	run     func(w *world) error
	// done looks at a machine on which the command has reported success.
	done func(t *testing.T, w *world)
	// check looks at the machine after the power cut, runs the command again and
	// wants it to end as if nothing had happened.
	check func(t *testing.T, w *world)
}

// settled takes "nothing to do" for success.
func settled(_ *deploy.Change, err error) error {
	if errors.Is(err, deploy.ErrNothingToDo) {
		return nil
	}
	return err
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// secret is what a file of /etc holds that only root may read.
const secret = "for root only"

func crashCases(t *testing.T) []crashCase {
	r1, r2, r3, r4 := release(t, "1"), release(t, "2"), release(t, "3"), release(t, "4")
	install := func(t *testing.T, w *world) {
		t.Helper()
		_, err := w.install(r1)
		must(t, err)
		w.boot()
		w.edit("hostname", "mine\n")
		w.edit("secret", secret)
		w.hide("secret")
	}
	staged := func(t *testing.T, w *world) {
		t.Helper()
		install(t, w)
		_, err := w.upgrade(r2)
		must(t, err)
	}
	second := func(t *testing.T, w *world) {
		t.Helper()
		staged(t, w)
		_, err := w.finalize()
		must(t, err)
		w.boot()
		w.bless()
	}
	const one, two = "welcome to 1\n", "welcome to 2\n"
	// running tells by its /etc what the machine boots into.
	running := func(t *testing.T, w *world) string {
		t.Helper()
		id := w.boot()
		if got := w.etc(id, "hostname"); got != "mine\n" {
			t.Fatalf("hostname of the booted deployment: %q", got)
		}
		return w.etc(id, "motd")
	}
	boots := func(want string) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			t.Helper()
			if got := running(t, w.copy()); got != want {
				t.Fatalf("success was reported, and it boots %q", got)
			}
		}
	}
	isStaged := func(t *testing.T, w *world) {
		t.Helper()
		if w.state().Staged == nil {
			t.Fatal("success was reported, and nothing is staged")
		}
	}
	// goesBack takes a rollback to its end, and the machine on to the second release.
	// Where it was not rolled back what was staged is to be there still.
	goesBack := func(staged bool) func(*testing.T, *world) {
		return func(t *testing.T, w *world) {
			t.Helper()
			if running(t, w) == two {
				if staged && w.state().Staged == nil {
					t.Fatal("it is not rolled back, and the staged one is given up")
				}
				w.bless()
				must(t, settled(w.rollback("")))
				if got := running(t, w); got != one {
					t.Fatalf("booted %q in the end", got)
				}
			}
			must(t, settled(w.upgrade(r2)))
			checkQuiet(t, w)
		}
	}
	return []crashCase{
		{
			"install", func(*testing.T, *world) {},
			func(w *world) error { return settled(w.install(r1)) },
			func(t *testing.T, w *world) { w.copy().boot() },
			func(t *testing.T, w *world) {
				_, err := w.install(r1)
				var refused *deploy.RefusedError
				if errors.As(err, &refused) && refused.Code == deploy.CodeInstalled {
					err = nil
				}
				must(t, err)
				w.boot()
				must(t, settled(w.upgrade(r1)))
				checkQuiet(t, w)
			},
		},
		{
			"upgrade", install,
			func(w *world) error { return settled(w.upgrade(r2)) },
			isStaged,
			func(t *testing.T, w *world) {
				if got := running(t, w); got != one {
					t.Fatalf("booted %q before finalize", got)
				}
				must(t, settled(w.upgrade(r2)))
				checkQuiet(t, w)
				must(t, settled(w.finalize()))
				if got := running(t, w); got != two {
					t.Fatalf("booted %q in the end", got)
				}
			},
		},
		{
			"finalize", staged,
			func(w *world) error { return settled(w.finalize()) },
			boots(two),
			func(t *testing.T, w *world) {
				if running(t, w) == one {
					must(t, settled(w.finalize()))
					if got := running(t, w); got != two {
						t.Fatalf("booted %q in the end", got)
					}
				}
				must(t, settled(w.upgrade(r2)))
				checkQuiet(t, w)
			},
		},
		{
			"finalize with a new merge", func(t *testing.T, w *world) {
				staged(t, w)
				w.edit("conf.d/app.conf", "level=2\n")
				w.siteKargs("10.toml", `kargs = ["mine=2"]`)
			},
			func(w *world) error { return settled(w.finalize()) },
			boots(two),
			func(t *testing.T, w *world) {
				if running(t, w) == one {
					must(t, settled(w.finalize()))
					running(t, w)
				}
				if got := w.etc(w.booted(), "conf.d/app.conf"); got != "level=2\n" {
					t.Fatalf("the last change is lost: %q", got)
				}
				if got := entriesOf(t, w)[0].Entry.Options(); !got.Has("mine") {
					t.Fatalf("the last kernel argument of the site is lost: %q", got)
				}
				must(t, settled(w.upgrade(r2)))
				checkQuiet(t, w)
			},
		},
		{
			"rollback", second,
			func(w *world) error { return settled(w.rollback("")) },
			boots(one),
			goesBack(false),
		},
		{
			"rollback over a staged one", func(t *testing.T, w *world) {
				second(t, w)
				_, err := w.upgrade(r3)
				must(t, err)
			},
			func(w *world) error { return settled(w.rollback("")) },
			func(t *testing.T, w *world) {
				boots(one)(t, w)
				if w.state().Staged != nil {
					t.Fatal("success was reported, and the staged one is not given up")
				}
			},
			goesBack(true),
		},
		{
			"upgrade that makes room", func(t *testing.T, w *world) {
				second(t, w)
				_, err := w.upgrade(r3)
				must(t, err)
				_, err = w.finalize()
				must(t, err)
				w.boot()
				w.bless()
				// Free is 8192 bytes less than a payload (three clusters), an entry
				// and the growth of three directories need beside the reserve.
				w.limit = (used(w.fat.Path()) + 7*cluster - 2*cluster) * 8 / 7
			},
			func(w *world) error { return settled(w.upgrade(r4)) },
			func(t *testing.T, w *world) {
				t.Helper()
				isStaged(t, w)
				if n := len(w.state().Deployments()); n != 3 {
					t.Fatalf("%d deployments, want 3: the oldest makes room", n)
				}
			},
			func(t *testing.T, w *world) {
				if got := running(t, w); got != "welcome to 3\n" {
					t.Fatalf("booted %q before finalize", got)
				}
				w.bless()
				if w.state().Rollback(w.booted()) == nil {
					t.Fatal("nothing is left to go back to")
				}
				must(t, settled(w.upgrade(r4)))
				checkQuiet(t, w)
				if n := len(w.state().Deployments()); n != 3 {
					t.Fatalf("%d deployments in the end, want 3", n)
				}
				must(t, settled(w.finalize()))
				if got := running(t, w); got != "welcome to 4\n" {
					t.Fatalf("booted %q in the end", got)
				}
			},
		},
		{
			"upgrade to what is there", func(t *testing.T, w *world) {
				second(t, w)
				_, err := w.rollback("")
				must(t, err)
				w.boot()
				_, err = w.upgrade(r2)
				must(t, err)
			},
			func(w *world) error { return settled(w.finalize()) },
			boots(two),
			func(t *testing.T, w *world) {
				if running(t, w) == one {
					must(t, settled(w.finalize()))
					if got := running(t, w); got != two {
						t.Fatalf("booted %q in the end", got)
					}
				}
				must(t, settled(w.upgrade(r2)))
				checkQuiet(t, w)
			},
		},
	}
}

// TestSurvivesEveryFault takes every stride-th call of a long command, or every
// one if CFSBOOT_CRASH_ALL=1.
func TestSurvivesEveryFault(t *testing.T) {
	for _, tc := range crashCases(t) {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			base := newWorld(t)
			tc.prepare(t, base)
			calls := countCalls(t, tc, base)
			stride := sampled(calls, 12)
			if calls < 30 {
				stride = 1
			}
			for n := 0; n < calls; n += stride {
				for mode, f := range faults {
					crashOnce(t, tc, base, f.at(n), uint64(n*len(faults)+mode))
				}
			}
		})
	}
}

func countCalls(t *testing.T, tc crashCase, base *world) int {
	t.Helper()
	w := base.copy()
	w.killer = &killer{at: -1}
	must(t, tc.run(w))
	n := w.killer.n
	w.killer = nil
	if w.checkPrivate(secret) == 0 && tc.name != "install" {
		t.Fatal("the secret of /etc is nowhere")
	}
	// A power cut right after success must find everything (V8).
	cut := w.with(model(w.root).PowerLoss(), model(w.fat).PowerLoss())
	tc.done(t, cut)
	tc.check(t, cut)
	return n
}

func crashOnce(t *testing.T, tc crashCase, base *world, k *killer, seed uint64) {
	t.Helper()
	w := base.copy()
	w.killer = k
	err := tc.run(w)
	if !k.fired {
		return // fewer calls this time
	}
	w.checkPrivate(secret)
	if err != nil && k.err != nil {
		w.checkDefault()
	}
	t.Run(fmt.Sprintf("%s %d error %v seed %d", k.op, k.at, k.err, seed), func(t *testing.T) {
		after := w.powerCut(seed)
		after.t = t
		if err == nil { // only the cleaning up was hit
			tc.done(t, after)
		}
		tc.check(t, after)
	})
}
