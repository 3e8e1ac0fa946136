package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/internal/testutil/peloader"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/systemd"
)

// fakeEvidence is systemd and its log.
type fakeEvidence struct {
	units  systemd.Units
	boots  []systemd.Boot
	kernel map[string][]string
	last   map[string][]string
	err    error
}

func (f *fakeEvidence) Units(context.Context) (systemd.Units, error)  { return f.units, f.err }
func (f *fakeEvidence) Boots(context.Context) ([]systemd.Boot, error) { return f.boots, f.err }
func (f *fakeEvidence) KernelLog(_ context.Context, id string) ([]string, error) {
	return f.kernel[id], f.err
}
func (f *fakeEvidence) LastLog(_ context.Context, id string, _ int) ([]string, error) {
	return f.last[id], f.err
}

// fakeVars are variables of the loader.
type fakeVars map[string]string

func (f fakeVars) Loader(name string) (string, error) {
	v, ok := f[name]
	if !ok {
		return "", os.ErrNotExist
	}
	return v, nil
}

const failedBootID = "01234567-89ab-4cde-8f01-23456789abcd"

func TestDescribeIncomplete(t *testing.T) {
	for _, c := range []struct {
		name  string
		units systemd.Units
		stage record.Stage
		text  string
		names string
	}{
		{
			"required", systemd.Units{Failed: []string{"a.service", "b.service", "c.service"}, Required: []string{"sysinit.target", "c.service", "b.service"}, Waiting: []string{"d.service"}},
			record.StageHealth, "failed, and boot-complete.target requires it: b.service, c.service", "b.service c.service",
		},
		{
			"late", systemd.Units{Required: []string{"sysinit.target"}, Waiting: []string{"hang.service"}},
			record.StageTimeout, "boot-complete.target was not reached in time; still starting: hang.service", "hang.service",
		},
		{
			"late, and others failed", systemd.Units{Failed: []string{"x.service"}, Waiting: []string{"hang.service"}},
			record.StageTimeout, "boot-complete.target was not reached in time; still starting: hang.service; failed: x.service", "hang.service x.service",
		},
		{"nothing known", systemd.Units{}, record.StageTimeout, "boot-complete.target was not reached", ""},
	} {
		stage, text, names := deploy.DescribeIncomplete(c.units)
		if stage != c.stage || text != c.text || strings.Join(names, " ") != c.names {
			t.Errorf("%s: got %s, %q, %q", c.name, stage, text, names)
		}
	}
}

// TestDecideIncomplete: a reboot must lead to another try or to another release; what would only start the same again
// stays up.
func TestDecideIncomplete(t *testing.T) {
	good := entryFileOf(t, 1, "", rel1)
	broken := good
	broken.Err = errors.New("unreadable")
	foreign := esp.Entry{File: "debian.conf"}
	for _, c := range []struct {
		name    string
		entries []esp.Entry
		counted bool
		unread  bool
		reboot  bool
		why     string
	}{
		{"tries left", []esp.Entry{entryFileOf(t, 2, "+1-2", rel2)}, true, false, true, "1 tries left"},
		{"last try, another release", []esp.Entry{good, entryFileOf(t, 2, "+0-3", rel2)}, true, false, true, "no tries left, next is deployment 111111111111"},
		{"last try, another release that is bad as well", []esp.Entry{entryFileOf(t, 1, "+0-3", rel1), entryFileOf(t, 2, "+0-3", rel2)}, true, false, false, "no other release"},
		{"last try, the other one cannot be read", []esp.Entry{broken, entryFileOf(t, 2, "+0-3", rel2)}, true, false, false, "no other release"},
		{"last try, only foreign ones", []esp.Entry{foreign, entryFileOf(t, 2, "+0-3", rel2)}, true, false, false, "no other release"},
		{"not counted", []esp.Entry{entryFileOf(t, 2, "", rel2), good}, false, false, false, "not counted"},
		{"counted, boot partition unreadable", nil, true, true, true, "the boot loader decides"},
		{"not counted, boot partition unreadable", nil, false, true, false, "not counted"},
		{"its entry is gone", []esp.Entry{good}, true, false, true, "next is deployment"},
	} {
		f := deploy.Facts{State: record.State{Token: "0123abcd"}, Entries: c.entries}
		reboot, why := deploy.DecideIncomplete(f, 2, c.counted, !c.unread)
		if reboot != c.reboot || !strings.Contains(why, c.why) {
			t.Errorf("%s: got %v, %q", c.name, reboot, why)
		}
	}
}

// failing takes a machine to a second release that does not become complete.
func failing(t *testing.T) (w *world, old, bad string) {
	t.Helper()
	w = newWorld(t)
	old = w.releases(release(t, "one"))[0]
	must(t, settled(w.upgrade(release(t, "two"))))
	must(t, settled(w.finalize()))
	bad = w.boot()
	if bad == old {
		t.Fatal("the new release is not the default")
	}
	return w, old, bad
}

func (w *world) recordFailure(e *fakeEvidence) (*deploy.BootFailureReport, error) {
	w.t.Helper()
	w.writeRunning("/proc/sys/kernel/random/boot_id", failedBootID+"\n")
	o := w.options()
	o.Evidence = e
	return deploy.RecordFailure(w.t.Context(), o)
}

func (w *world) review(e *fakeEvidence) (*deploy.BootReview, error) {
	w.t.Helper()
	o := w.options()
	o.Evidence = e
	return deploy.ReviewBoots(w.t.Context(), o)
}

// problemOf returns the message of the problem with this code, "" if there is none.
func problemOf(s deploy.Status, code string) string {
	for _, p := range s.Cfsboot.Problems {
		if p.Code == code {
			return p.Message
		}
	}
	return ""
}

// TestFallbackTells: a release whose health unit fails is started three times, then the old one, and status says what failed,
// when and why. The same image is refused until it is asked for.
func TestFallbackTells(t *testing.T) {
	w, old, bad := failing(t)
	e := &fakeEvidence{
		units: systemd.Units{Failed: []string{"app.service"}, Required: []string{"app.service"}},
		last:  map[string][]string{"0": {"app[7]: no database", "systemd[1]: app.service: Failed"}},
	}
	for try := 3; try >= 1; try-- {
		if try < 3 {
			if id := w.boot(); id != bad {
				t.Fatalf("%d tries left: booted %s, want the release under trial", try-1, id[:12])
			}
		}
		r, err := w.recordFailure(e)
		must(t, err)
		if r.Action != deploy.AfterReboot || r.Deployment != bad || r.Stage != "health" || r.Entry != 2 {
			t.Fatalf("try %d: %+v", try, r)
		}
		if got := w.systemd.calls; got[len(got)-1] != "--no-block reboot" {
			t.Errorf("calls %q", got)
		}
		must(t, w.checkDurable())
	}
	if id := w.boot(); id != old {
		t.Fatalf("booted %s after three tries, want the old release", id[:12])
	}
	check := func(when string) {
		t.Helper()
		s := w.status()
		message := problemOf(s, deploy.ProblemFallback)
		for _, want := range []string{bad[:12], old[:12], "2026-11-25T", "gave up after 3 tries", "app.service"} {
			if !strings.Contains(message, want) {
				t.Errorf("%s: problem %q lacks %q", when, message, want)
			}
		}
		f := s.Cfsboot.BootFailures
		if len(f) != 1 || f[0].Deployment != bad || f[0].BootID != failedBootID || !slices.Equal(f[0].Units, []string{"app.service"}) || !slices.Equal(f[0].Log, e.last["0"]) {
			t.Errorf("%s: %+v", when, f)
		}
		if log := strings.Join(s.Table().Log, "\n"); !strings.Contains(log, "no database") {
			t.Errorf("%s: table says %q", when, log)
		}
	}
	check("before the journal knows")
	review, err := w.review(e)
	must(t, err)
	if len(review.Findings) != 0 || !slices.Equal(review.Failed, []string{bad}) {
		t.Errorf("review %+v", review)
	}
	check("after")

	_, err = w.upgrade(release(t, "two"))
	var refused *deploy.RefusedError
	if !errors.As(err, &refused) || refused.Code != deploy.CodeFailed || !strings.Contains(err.Error(), "--retry") || !strings.Contains(err.Error(), "app.service") {
		t.Fatalf("upgrade to the same image: %v", err)
	}
	w.tag = release(t, "two")
	c, err := deploy.Upgrade(t.Context(), deploy.UpgradeOptions{Options: w.options(), PullOptions: w.pull(), Retry: true})
	if err != nil || c.Action != deploy.ActionStaged || c.Deployment != bad {
		t.Fatalf("retry: %+v, %v", c, err)
	}
	must(t, settled(w.finalize()))
	if id := w.boot(); id != bad {
		t.Fatalf("booted %s, want the release that is tried again", id[:12])
	}
	w.bless()
	if _, err := w.review(e); err != nil {
		t.Fatal(err)
	}
	if s := w.status(); problemOf(s, deploy.ProblemFallback) != "" || len(w.state().Failed) != 0 {
		t.Errorf("after it turned out well: %+v", s.Cfsboot.Problems)
	}
}

// checkDurable: what RecordFailure wrote outlives a power cut.
func (w *world) checkDurable() error {
	for _, name := range []string{".json", ".log"} {
		if _, err := os.Stat(filepath.Join(model(w.root).PowerLoss().Path(), record.BootFailureDir, failedBootID+name)); err != nil {
			return fmt.Errorf("after a power cut: %w", err)
		}
	}
	return nil
}

// TestRecordFailureStays: where a reboot leads nowhere the machine stays up, and says so.
func TestRecordFailureStays(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "one"))
	r, err := w.recordFailure(&fakeEvidence{err: errors.New("no bus")})
	must(t, err)
	if r.Action != deploy.AfterStay || len(w.systemd.calls) != 0 || len(r.Warnings) != 2 {
		t.Errorf("%+v, calls %q", r, w.systemd.calls)
	}
	if f := w.status().Cfsboot.BootFailures; len(f) != 1 || f[0].Action != "stay" {
		t.Errorf("failures %+v", f)
	}
	w2 := newWorld(t)
	if _, err := w2.recordFailure(&fakeEvidence{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a machine of somebody else: %v", err)
	}
}

// TestRecordFailureEntry: the entry that failed is the one that the loader says it started, whatever is newest, and the
// loader's word that it counted is enough.
func TestRecordFailureEntry(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "one"), release(t, "two"))
	o := w.options()
	token := w.state().Token
	o.Evidence, o.Vars = &fakeEvidence{}, fakeVars{"LoaderEntrySelected": "cfsboot_" + token + "-0000000001.conf", "LoaderBootCountPath": `\loader\entries\x`}
	r, err := deploy.RecordFailure(t.Context(), o)
	must(t, err)
	if r.Entry != 1 || r.Action != deploy.AfterReboot {
		t.Errorf("%+v", r)
	}
}

// TestRecordFailureUncounted: a counter in a name means nothing where the loader does not count: a reboot would start the
// same release for ever.
func TestRecordFailureUncounted(t *testing.T) {
	w, _, _ := failing(t)
	token := w.state().Token
	for name, vars := range map[string]fakeVars{
		"the loader does not say that it counted": {"LoaderEntrySelected": "cfsboot_" + token + "-0000000002.conf"},
		"the loader cannot count":                 {},
	} {
		if len(vars) == 0 {
			for _, path := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"} {
				must(t, os.WriteFile(filepath.Join(w.fat.Path(), path), peloader.SystemdBoot("239"), 0o600))
			}
			w.changed()
		}
		o := w.options()
		o.Evidence, o.Vars = &fakeEvidence{}, vars
		if r, err := deploy.RecordFailure(t.Context(), o); err != nil || r.Action != deploy.AfterStay {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

// TestRecordFailureFaults: whatever cannot be written, the machine reboots, and no half record confuses anyone.
func TestRecordFailureFaults(t *testing.T) {
	w, _, _ := failing(t)
	for n := 0; ; n++ {
		for _, errno := range []error{unix.EIO, unix.ENOSPC} {
			c := w.copy()
			c.killer = &killer{at: n, err: errno}
			r, err := c.recordFailure(&fakeEvidence{})
			fired, op := c.killer.fired, c.killer.op
			c.killer = nil
			if err != nil || r.Action != deploy.AfterReboot || !slices.Contains(c.systemd.calls, "--no-block reboot") {
				t.Errorf("%s: %+v, %v", op, r, err)
			}
			if fired && len(r.Warnings) == 0 {
				t.Errorf("%s: no warning", op)
			}
			if p := problemOf(c.status(), deploy.ProblemBootFailure); p != "" {
				t.Errorf("%s: %s", op, p)
			}
			if !fired {
				if n == 0 {
					t.Fatal("no mutating call was seen")
				}
				return
			}
		}
	}
}

// TestReviewExplains: a release that left no record is looked for in pstore and in the log of earlier boots.
func TestReviewExplains(t *testing.T) {
	const panicked = "<6>[    1.0] Command line: quiet\n<0>[    2.0] Kernel panic - not syncing: Attempted to kill init!\n"
	bootID := strings.ReplaceAll(failedBootID, "-", "")
	for _, c := range []struct {
		name  string
		setup func(w *world, e *fakeEvidence, bad string)
		stage record.Stage
		want  string
		log   bool
	}{
		{"nothing", func(*world, *fakeEvidence, string) {}, record.StageUnknown, "left no trace", false},
		{"pstore as systemd moves it", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("var/lib/systemd/pstore/1763/001/dmesg.txt", panicked, time.Hour)
		}, record.StageKernel, "Kernel panic - not syncing: Attempted to kill init!", true},
		{"pstore of the kernel", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-1763", panicked, time.Hour)
		}, record.StageKernel, "Attempted to kill init!", true},
		{"pstore of a boot of this release", func(w *world, _ *fakeEvidence, bad string) {
			w.pstore("sys/fs/pstore/dmesg-ramoops-0", strings.Replace(panicked, "quiet", "composefs.digest=v1-sha512-12:"+bad, 1), time.Hour)
			w.pstore("sys/fs/pstore/dmesg-ramoops-1", "Kernel panic - not syncing: of somebody", 2*time.Hour)
		}, record.StageKernel, "Attempted to kill init!", true},
		{"pstore of the release before", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("var/lib/systemd/pstore/1763/001/dmesg.txt", strings.Replace(panicked, "quiet", "composefs.digest=v1-sha512-12:"+w.booted(), 1), time.Hour)
			w.pstore("var/lib/systemd/pstore/1763/001/dmesg-efi_pstore-176300000001001", "Kernel panic - not syncing: of the release before", time.Hour)
		}, record.StageUnknown, "left no trace", false},
		{"pstore of a release that is gone", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-176300000002001", strings.Replace(panicked[:strings.Index(panicked, "<0>")], "quiet", "composefs.digest=v1-sha512-12:"+rel3, 1), time.Hour)
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-176300000001001", "Kernel panic - not syncing: of a release that is gone", time.Hour)
		}, record.StageUnknown, "left no trace", false},
		{"pstore of a release of format 2 that is gone", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-176300000002001", strings.Replace(panicked[:strings.Index(panicked, "<0>")], "quiet", "composefs="+rel3, 1), time.Hour)
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-176300000001001", "Kernel panic - not syncing: of a release that is gone", time.Hour)
		}, record.StageUnknown, "left no trace", false},
		{"pstore from before", func(w *world, _ *fakeEvidence, _ string) {
			w.pstore("sys/fs/pstore/dmesg-efi_pstore-1763", panicked, -time.Hour)
		}, record.StageUnknown, "left no trace", false},
		{"log with a panic", func(_ *world, e *fakeEvidence, bad string) {
			e.boots = []systemd.Boot{{Offset: -1, ID: bootID}, {Offset: 0, ID: strings.Repeat("0", 32)}}
			e.kernel = map[string][]string{bootID: {"[0.0] kernel: Command line: composefs.digest=v1-sha512-12:" + bad, "[9.0] kernel: Kernel panic - not syncing: Fatal exception"}}
		}, record.StageKernel, "Fatal exception", true},
		{"log that just ends", func(_ *world, e *fakeEvidence, bad string) {
			e.boots = []systemd.Boot{{Offset: -1, ID: bootID}, {Offset: 0, ID: strings.Repeat("0", 32)}}
			e.kernel = map[string][]string{bootID: {"[0.0] kernel: Command line: composefs.digest=v1-sha512-12:" + bad}}
			e.last = map[string][]string{bootID: {"[8.0] app[1]: password=hunter2"}}
		}, record.StageUnknown, "ends without a reason", true},
		{"log of another release", func(_ *world, e *fakeEvidence, _ string) {
			e.boots = []systemd.Boot{{Offset: -1, ID: bootID}}
			e.kernel = map[string][]string{bootID: {"[0.0] kernel: Command line: composefs.digest=v1-sha512-12:" + rel1, "Kernel panic - not syncing: x"}}
		}, record.StageUnknown, "left no trace", false},
		{"log cannot be read", func(_ *world, e *fakeEvidence, _ string) { e.err = errors.New("no journal files") }, record.StageUnknown, "left no trace", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, old, bad := failing(t)
			w.boot()
			w.boot()
			if id := w.boot(); id != old {
				t.Fatalf("booted %s, want the old release", id[:12])
			}
			e := &fakeEvidence{}
			c.setup(w, e, bad)
			for range 2 { // the second run finds nothing more to do
				r, err := w.review(e)
				must(t, err)
				if !slices.Equal(r.Failed, []string{bad}) {
					t.Errorf("review %+v", r)
				}
			}
			s := w.status()
			f := s.Cfsboot.BootFailures
			if len(f) != 1 || f[0].Stage != string(c.stage) || f[0].Entry != 2 || !strings.Contains(f[0].Reason, c.want) || len(f[0].Log) > 0 != c.log {
				t.Errorf("failures %+v", f)
			}
			if p := problemOf(s, deploy.ProblemFallback); !strings.Contains(p, c.want) {
				t.Errorf("problem %q", p)
			}
			w.checkPrivate("hunter2")
		})
	}
}

// TestReviewLeavesTheRest: an interrupted command stays to be seen, and what boots did is written down all the same.
func TestReviewLeavesTheRest(t *testing.T) {
	w, _, bad := failing(t)
	w.boot()
	w.boot()
	w.boot()
	w.note(record.Event{Kind: record.EventBegin, Transaction: "t1", Op: record.OpUpgrade, Reference: reference})
	r, err := w.review(&fakeEvidence{})
	must(t, err)
	s := w.state()
	if s.Transaction == nil || s.FailureOf(bad) == nil || !slices.Equal(r.Failed, []string{bad}) {
		t.Errorf("transaction %+v, failed %+v, review %+v", s.Transaction, s.Failed, r)
	}
	if problemOf(w.status(), deploy.ProblemUnfinished) == "" {
		t.Error("status does not tell of the interrupted command")
	}
}

// pstore leaves the message of a dead kernel in the running system, age after the machine's clock.
func (w *world) pstore(name, text string, age time.Duration) {
	w.t.Helper()
	w.writeRunning(name, text)
	at := w.clock.now.Add(age)
	must(w.t, os.Chtimes(filepath.Join(w.running, name), at, at))
}

// oneShot is a machine whose default release, which was good, cannot be mounted any more: the initramfs has told the
// loader to start the other one once.
func oneShot(t *testing.T) (w *world, old, bad string) {
	t.Helper()
	w = newWorld(t)
	ids := w.releases(release(t, "one"), release(t, "two"))
	old, bad = ids[0], ids[1]
	w.leaveFailure(record.BootFailure{
		BootID: failedBootID, Time: w.clock.Now(), Stage: record.StageInitramfs, Deployment: bad, Entry: 2, Code: "CFS-B04",
		Reason: "image missing", Action: "reboot", OneShot: 1,
	})
	must(t, os.WriteFile(filepath.Join(w.root.Path(), record.BootFailureDir, record.StreakName), []byte("{}"), 0o600))
	w.changed()
	var options bls.Cmdline
	for _, e := range entriesOf(t, w) {
		if e.ImageID() == old {
			options = e.Entry.Options()
		}
	}
	must(t, w.setupRoot(old, options))
	return w, old, bad
}

func (w *world) leaveFailure(f record.BootFailure) {
	w.t.Helper()
	data, err := f.Encode()
	must(w.t, err)
	dir := filepath.Join(w.root.Path(), record.BootFailureDir)
	must(w.t, os.MkdirAll(dir, 0o755))
	must(w.t, os.WriteFile(filepath.Join(dir, f.Name()+".json"), data, 0o644))
	w.changed()
}

// TestOneShotSettles: the release that ran in the place of the broken one becomes the default, with every fault in
// between, and only where the machine came that way.
func TestOneShotSettles(t *testing.T) {
	w, old, bad := oneShot(t)
	check := func(w *world, when string) {
		t.Helper()
		if got := w.copy().boot(); got != old {
			t.Errorf("%s: the next boot starts %s, want the release that runs", when, got[:12])
		}
		if f := w.state().FailureOf(bad); f == nil || !strings.Contains(f.Reason, "CFS-B04") {
			t.Errorf("%s: failure %+v", when, f)
		}
		if p := problemOf(w.status(), deploy.ProblemFallback); !strings.Contains(p, "CFS-B04: image missing") || !strings.Contains(p, bad[:12]) {
			t.Errorf("%s: problem %q", when, p)
		}
		if _, err := os.Stat(filepath.Join(w.root.Path(), record.BootFailureDir, record.StreakName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the streak: %v", when, err)
		}
	}
	c := w.copy()
	r, err := c.review(&fakeEvidence{})
	must(t, err)
	if r.Armed != 3 {
		t.Errorf("armed %d, want entry 3", r.Armed)
	}
	check(c, "at once")
	for n := 0; ; n++ {
		fired := false
		for _, k := range []*killer{{at: n, err: unix.EIO}, {at: n, err: unix.ENOSPC}, {at: n}, {at: n, after: true}} {
			c := w.copy()
			c.killer = k
			_, err := c.review(&fakeEvidence{})
			fired = fired || k.fired
			c.killer = nil
			if !k.fired {
				must(t, err)
				break
			}
			c.changed()
			if _, err := c.review(&fakeEvidence{}); err != nil {
				t.Fatalf("%s: the second run: %v", k.op, err)
			}
			check(c, k.op)
		}
		if !fired {
			break
		}
	}

	other := w.copy()
	must(t, other.setupRoot(bad, entriesOf(t, other)[0].Entry.Options()))
	if r, err := other.review(&fakeEvidence{}); err != nil || r.Armed != 0 {
		t.Errorf("the broken release runs after all: %+v, %v", r, err)
	}
}

// TestReviewEndsStreak: a boot that comes up ends the count of failed boots in a row, whatever else cannot be done.
func TestReviewEndsStreak(t *testing.T) {
	streakOf := func(w *world) bool {
		_, err := os.Stat(filepath.Join(model(w.root).PowerLoss().Path(), record.BootFailureDir, record.StreakName))
		return !errors.Is(err, os.ErrNotExist)
	}
	for name, spoil := range map[string]func(w *world, o *deploy.Options){
		"the entries are no directory": func(w *world, o *deploy.Options) {
			dir := filepath.Join(w.fat.Path(), "loader/entries")
			must(t, os.RemoveAll(dir))
			must(t, os.WriteFile(dir, nil, 0o644))
			w.changed()
			*o = w.options()
		},
		"no boot partition": func(_ *world, o *deploy.Options) { o.ESP = nil },
		"another cfsboot has the lock": func(w *world, _ *deploy.Options) {
			dir, err := durable.OpenDir(filepath.Join(w.root.Path(), "state/cfsboot"))
			must(t, err)
			t.Cleanup(func() { _ = dir.Close() })
			must(t, repo.Lock(t.Context(), dir, true, 0))
		},
		"the journal is damaged": func(w *world, o *deploy.Options) {
			for _, name := range w.records() {
				must(t, os.WriteFile(filepath.Join(w.root.Path(), record.JournalDir, name), nil, 0o644))
			}
			w.changed()
			*o = w.options()
		},
		"the disk is full": func(w *world, o *deploy.Options) {
			root, err := o.Sysroot.WithHook(noWrites{model(w.root)})
			must(t, err)
			t.Cleanup(func() { _ = root.Close() })
			o.Sysroot = root
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, _, _ := oneShot(t)
			o := w.options()
			spoil(w, &o)
			o.Evidence = &fakeEvidence{}
			if r, err := deploy.ReviewBoots(t.Context(), o); err == nil {
				t.Errorf("review %+v, want an error", r)
			} else if strings.Contains(err.Error(), "count of failed boots") {
				t.Errorf("the count: %v", err)
			}
			if streakOf(w) {
				t.Error("the failed boots before this one are still counted")
			}
		})
	}
	t.Run("the count cannot be removed", func(t *testing.T) {
		w, old, _ := oneShot(t)
		w.killer = &killer{err: unix.EIO}
		r, err := w.review(&fakeEvidence{})
		must(t, err)
		if !strings.Contains(w.killer.op, record.StreakName) || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "count of failed boots") || r.Booted != old || r.Armed != 3 {
			t.Errorf("fault at %s: review %+v", w.killer.op, r)
		}
	})
	t.Run("nothing can be done", func(t *testing.T) {
		w, _, _ := oneShot(t)
		w.killer = &killer{err: unix.EIO}
		o := w.options()
		o.Evidence, o.ESP = &fakeEvidence{}, nil
		if _, err := deploy.ReviewBoots(t.Context(), o); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "count of failed boots") || !strings.Contains(err.Error(), "no EFI system partition") {
			t.Errorf("error %v", err)
		}
	})
}

// noWrites is a file system without space.
type noWrites struct{ *durabletest.FS }

func (n noWrites) Before(op durable.Op) error {
	if op.Kind == durable.OpWrite || op.Kind == durable.OpCreate || op.Kind == durable.OpTemp || op.Kind == durable.OpMkdir {
		return unix.ENOSPC
	}
	return n.FS.Before(op)
}

// TestStatusDamagedFailure: a record that cannot be read is a problem, not a failure of status.
func TestStatusDamagedFailure(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "one"))
	dir := filepath.Join(w.root.Path(), record.BootFailureDir)
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "x.json"), []byte(`{"format":7}`), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "foreign"), nil, 0o644))
	if p := problemOf(w.status(), deploy.ProblemBootFailure); !strings.Contains(p, "x.json") {
		t.Errorf("problem %q", p)
	}
}
