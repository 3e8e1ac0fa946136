package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// verbs are the commands of a machine that change what boots, by name.
func verbs(next, other *ocitest.Image) map[string]func(w *world) error {
	return map[string]func(w *world) error{
		"upgrade":  func(w *world) error { return settled(w.upgrade(next)) },
		"switch":   func(w *world) error { return settled(w.switchTo(otherReference, other, deploy.SwitchOptions{})) },
		"rollback": func(w *world) error { return settled(w.rollback("")) },
		"finalize": func(w *world) error { return settled(w.finalize()) },
	}
}

// told returns the messages of a kind of problem in the status.
func (w *world) told(code string) (out []string) {
	w.t.Helper()
	for _, p := range w.status().Cfsboot.Problems {
		if p.Code == code {
			out = append(out, p.Message)
		}
	}
	return out
}

// oneLine fails the test for an error that is not one clear line.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if text := fmt.Sprint(err); strings.Contains(text, "\n") || len(text) > 600 {
		t.Errorf("not one clear line: %q", text)
	}
}

// TestClockIn1970: a machine without a clock upgrades, falls back and rolls back,
// and says what is wrong.
func TestClockIn1970(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r2 := release(t, "2")
	one := w.releases(release(t, "1"))[0]
	if got := w.told(deploy.ProblemClock); got != nil {
		t.Errorf("a good clock: %q", got)
	}
	w.clock = &clock{time.Unix(0, 0)}
	if got := w.told(deploy.ProblemClock); len(got) != 1 || !strings.Contains(got[0], "1970-01-01") || !strings.Contains(got[0], "2026-11-25") {
		t.Errorf("status: %q", got)
	}
	must(t, settled(w.upgrade(r2)))
	must(t, settled(w.finalize()))
	two := w.boot()
	w.bless()
	must(t, settled(w.switchTo(otherReference, release(t, "3"), deploy.SwitchOptions{})))
	must(t, settled(w.rollback("")))
	if got := w.boot(); got != one || two == one {
		t.Errorf("booted %s", got)
	}
	// A failure that is written down has a date, and holds all the same.
	w.failed(release(t, "bad"))
	_, err := w.upgradeWith(deploy.UpgradeOptions{})
	var refused *deploy.RefusedError
	if !errors.As(err, &refused) || refused.Code != deploy.CodeFailed || !strings.Contains(err.Error(), "1970-01-01") {
		t.Errorf("upgrade to what failed: %v", err)
	}
}

// jumpTo makes the journal reserve numbers from next on.
func (w *world) jumpTo(next uint64) {
	w.t.Helper()
	names := w.records()
	last := names[len(names)-1]
	path := filepath.Join(w.root.Path(), record.JournalDir)
	data, err := os.ReadFile(filepath.Join(path, last))
	must(w.t, err)
	seq, _ := record.ParseRecordName(last)
	r, err := record.ParseRecord(seq, data)
	must(w.t, err)
	r.Seq, r.State.NextEntry = seq+1, next
	data, err = r.Encode()
	must(w.t, err)
	must(w.t, os.WriteFile(filepath.Join(path, r.Name()), data, 0o644))
	w.changed()
}

// TestSequenceUsedUp: the last numbers are not given away, and what boots still
// boots.
func TestSequenceUsedUp(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	for name, run := range verbs(r3, r3) {
		w := newWorld(t)
		ids := w.releases(release(t, "1"), release(t, "2"))
		if name == "finalize" {
			must(t, settled(w.upgrade(r3)))
		}
		w.jumpTo(record.MaxEntrySeq - 3)
		err := run(w)
		var refused *deploy.RefusedError
		if !errors.As(err, &refused) || refused.Code != deploy.CodeSequence {
			t.Errorf("%s: %v", name, err)
		}
		oneLine(t, err)
		w.status()
		if got := w.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, got)
		}
		checkQuiet(t, w)
	}
	// Far ahead, but with room: nothing to complain about.
	w := newWorld(t)
	w.releases(release(t, "1"))
	w.jumpTo(9_000_000_000)
	must(t, settled(w.upgrade(r3)))
	c, err := w.finalize()
	must(t, err)
	if c.Entry != 9_000_000_000 || w.boot() != c.Deployment {
		t.Errorf("%+v", c)
	}
}

// forge copies the newest entry under another number, as a person may.
func (w *world) forge(seq uint64) string {
	w.t.Helper()
	e := entriesOf(w.t, w)[0]
	n := e.Name
	n.Seq = seq
	dir := filepath.Join(w.fat.Path(), esp.EntryDir)
	data, err := os.ReadFile(filepath.Join(dir, e.File))
	must(w.t, err)
	data = []byte(strings.ReplaceAll(string(data), fmt.Sprintf("%010d.", e.Name.Seq), fmt.Sprintf("%010d.", seq)))
	must(w.t, os.WriteFile(filepath.Join(dir, n.String()), data, 0o600))
	w.changed()
	return n.String()
}

// TestForgedEntry: an entry of ours that the journal does not know stands before
// every new one. If it is a little ahead, new numbers jump over it; if it is far
// ahead, nothing could ever become the default, so that is said.
func TestForgedEntry(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	for name, run := range verbs(r3, r3) {
		w := newWorld(t)
		ids := w.releases(release(t, "1"), release(t, "2"))
		if name == "finalize" {
			must(t, settled(w.upgrade(r3)))
		}
		file := w.forge(record.MaxEntrySeq)
		if got := w.told(deploy.ProblemUnknown); len(got) != 1 || !strings.Contains(got[0], file) {
			t.Errorf("status: %q", got)
		}
		err := run(w)
		var conflict *deploy.ConflictError
		if !errors.As(err, &conflict) || !slices.Equal(conflict.Paths, []string{esp.EntryDir + "/" + file}) {
			t.Errorf("%s: %v", name, err)
		}
		oneLine(t, err)
		if got := w.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, got)
		}
		must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, file)))
		w.changed()
		must(t, run(w))
	}
	w := newWorld(t)
	w.releases(release(t, "1"))
	w.forge(w.state().NextEntry + 3)
	must(t, settled(w.upgrade(r3)))
	c, err := w.finalize()
	must(t, err)
	if got := w.boot(); got != c.Deployment {
		t.Errorf("booted %s, want %s: the forged entry is still first", got, c.Deployment)
	}
}

// TestForgedRecord: a file with the highest number of a record keeps every later
// one from being written. That is said, and nothing else happens.
func TestForgedRecord(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	for name, run := range verbs(r3, r3) {
		if name == "finalize" {
			continue // has nothing to write down
		}
		w := newWorld(t)
		ids := w.releases(release(t, "1"), release(t, "2"))
		must(t, os.WriteFile(filepath.Join(w.root.Path(), record.JournalDir, record.FileName(record.MaxEntrySeq)), nil, 0o644))
		w.changed()
		err := run(w)
		if err == nil || !strings.Contains(err.Error(), "seq") {
			t.Errorf("%s: %v", name, err)
		}
		oneLine(t, err)
		if got := w.told(deploy.ProblemTornRecord); len(got) != 1 {
			t.Errorf("status: %q", got)
		}
		if got := w.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, got)
		}
	}
}

// TestEditedEntries: whatever a person did to boot entries, the next upgrade makes
// a machine that boots, and rollback goes where it is sent.
func TestEditedEntries(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	edits := map[string]struct {
		edit    func(text string) string // "": the file is removed
		problem string
	}{
		"argument added": {func(s string) string { return strings.Replace(s, "options ", "options debug ", 1) }, ""},
		"garbage":        {func(string) string { return "\x00\xff no entry\n" }, deploy.ProblemEntry},
		"empty":          {func(string) string { return "\n" }, deploy.ProblemEntry},
		"no kernel":      {func(s string) string { return strings.Replace(s, "linux ", "#linux ", 1) }, deploy.ProblemEntry},
		"another image":  {func(s string) string { return strings.ReplaceAll(s, s[len(s)-9:len(s)-1], "00000000") }, ""},
		"removed":        {func(string) string { return "" }, deploy.ProblemEntry},
	}
	for name, x := range edits {
		for which := range 2 { // 0: of the running deployment, 1: of the other
			t.Run(fmt.Sprint(name, which), func(t *testing.T) {
				w := newWorld(t)
				ids := w.releases(release(t, "1"), release(t, "2"))
				e := entriesOf(t, w)[which]
				path := filepath.Join(w.fat.Path(), esp.EntryDir, e.File)
				data, err := os.ReadFile(path)
				must(t, err)
				if text := x.edit(string(data)); text != "" {
					must(t, os.WriteFile(path, []byte(text), 0o600))
				} else {
					must(t, os.Remove(path))
				}
				w.changed()
				if got := w.told(deploy.ProblemEntry); (len(got) > 0) != (x.problem != "") && name != "another image" {
					t.Errorf("status: %q", got)
				}
				back := w.copy()
				must(t, settled(w.upgrade(r3)))
				c, err := w.finalize()
				must(t, err)
				if got := w.boot(); got != c.Deployment {
					t.Errorf("booted %s after the upgrade, want %s", got, c.Deployment)
				}
				for _, e := range entriesOf(t, w) {
					if e.Name.Seq == c.Entry && (!strings.Contains(e.Entry.Options().String(), "root=UUID=") ||
						strings.Contains(e.Entry.Options().String(), "debug") != (name == "argument added" && which == 0)) {
						t.Errorf("options %q", e.Entry.Options())
					}
				}
				must(t, settled(back.rollback("")))
				if got := back.boot(); got != ids[0] {
					t.Errorf("booted %s after the rollback, want %s", got, ids[0])
				}
			})
		}
	}
}

// TestStateDeleted: somebody has deleted the state of a deployment. What needs it
// says so, and what does not goes on.
func TestStateDeleted(t *testing.T) {
	t.Parallel()
	r1, r2, r3 := release(t, "1"), release(t, "2"), release(t, "3")
	remove := func(w *world, name string) {
		t.Helper()
		must(t, os.RemoveAll(filepath.Join(w.root.Path(), name)))
		w.changed()
	}
	code := func(err error) string {
		t.Helper()
		oneLine(t, err)
		var refused *deploy.RefusedError
		if !errors.As(err, &refused) {
			return fmt.Sprint(err)
		}
		return refused.Code
	}
	t.Run("of the one to go back to", func(t *testing.T) {
		for _, part := range []string{"", "/deployment.json", "/etc"} {
			w := newWorld(t)
			ids := w.releases(r1, r2)
			remove(w, "state/deploy/"+ids[0]+part)
			if got := code(settled(w.rollback(""))); got != deploy.CodeNoState {
				t.Errorf("%q: rollback: %s", part, got)
			}
			if got := w.told(deploy.ProblemState); len(got) != 1 && part == "" {
				t.Errorf("status: %q", got)
			}
			w.boot()
			must(t, settled(w.upgrade(r3)))
			must(t, settled(w.finalize()))
			w.boot()
		}
	})
	t.Run("of the running one", func(t *testing.T) {
		for name, want := range map[string]string{"upgrade": deploy.CodeNoRecord, "switch": deploy.CodeNoState, "rollback": "<nil>", "finalize": "<nil>"} {
			w := newWorld(t)
			ids := w.releases(r1, r2)
			remove(w, "state/deploy/"+ids[1])
			if got := code(verbs(r3, r3)[name](w)); got != want {
				t.Errorf("%s: %s, want %s", name, got, want)
			}
			if got := w.told(deploy.ProblemState); len(got) != 1 || !strings.Contains(got[0], ids[1][:12]) {
				t.Errorf("status: %q", got)
			}
			must(t, settled(w.rollback("")))
			if got := w.boot(); got != ids[0] {
				t.Errorf("booted %s", got)
			}
		}
	})
	t.Run("the record of the running one", func(t *testing.T) {
		w := newWorld(t)
		ids := w.releases(r1)
		remove(w, "state/deploy/"+ids[0]+"/deployment.json")
		w.tag = r2
		if got := code(settled(w.upgrade(r2))); got != deploy.CodeNoRecord {
			t.Errorf("upgrade: %s", got)
		}
		must(t, settled(w.switchTo(otherReference, r2, deploy.SwitchOptions{}))) // which tells what the machine follows
		must(t, settled(w.finalize()))
		w.boot()
	})
	t.Run("of the staged one", func(t *testing.T) {
		for name, want := range map[string]string{"upgrade": r3.Descriptor.Digest.String(), "same": r2.Descriptor.Digest.String(), "finalize": ""} {
			for _, part := range []string{"", "/deployment.json"} {
				w := newWorld(t)
				w.releases(r1)
				c, err := w.upgrade(r2)
				must(t, err)
				remove(w, "state/cfsboot/staged/"+c.Deployment+part)
				if part == "" && len(w.told(deploy.ProblemDeployment)) != 1 {
					t.Errorf("status: %+v", w.status().Cfsboot.Problems)
				}
				if want == "" {
					c, err := w.finalize()
					if part == "" && (!errors.Is(err, deploy.ErrNothingToDo) || len(c.Repaired) != 1 || c.Repaired[0].Outcome != deploy.OutcomeUndone) {
						t.Errorf("finalize: %+v, %v", c, err)
					}
					oneLine(t, err)
					w.boot()
					must(t, settled(w.upgrade(r2)))
				} else {
					c, err = w.upgrade(map[string]*ocitest.Image{"upgrade": r3, "same": r2}[name])
					must(t, err)
					if c.ManifestDigest != want {
						t.Errorf("%s: %+v", name, c)
					}
				}
				must(t, settled(w.finalize()))
				w.boot()
				checkQuiet(t, w)
			}
		}
	})
	t.Run("of the default that does not run yet", func(t *testing.T) {
		w := newWorld(t)
		w.releases(r1)
		must(t, settled(w.upgrade(r2)))
		c, err := w.finalize()
		must(t, err)
		remove(w, "state/deploy/"+c.Deployment)
		must(t, settled(w.upgrade(r2)))
		must(t, settled(w.finalize()))
		if got := w.boot(); got != c.Deployment {
			t.Errorf("booted %s", got)
		}
	})
}

// TestPayloadOfAnotherType: something of another type is where a payload or one of
// its files belongs. Commands that need it name it as a conflict, and the machine
// boots what it booted; without it they go on.
func TestPayloadOfAnotherType(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	for name, put := range map[string]func(payload string) error{
		"cfsboot/PAYLOAD":         func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) },
		"cfsboot/PAYLOAD/vmlinuz": func(p string) error { return os.MkdirAll(p+"/vmlinuz/x", 0o700) },
		"cfsboot/PAYLOAD/initrd":  func(p string) error { return os.MkdirAll(p+"/initrd", 0o700) },
	} {
		conflict := func(when, digest string, err error) {
			t.Helper()
			var c *deploy.ConflictError
			if want := strings.Replace(name, "PAYLOAD", digest, 1); !errors.As(err, &c) || !slices.Equal(c.Paths, []string{want}) {
				t.Errorf("%s: %s: got %v, want a conflict that names %s", name, when, err, want)
			}
			oneLine(t, err)
		}
		w := newWorld(t)
		ids := w.releases(release(t, "1"), release(t, "2"))
		ready := w.copy()
		must(t, settled(ready.upgrade(r3)))
		digest := ready.state().Staged.BootDigest
		path := filepath.Join(w.fat.Path(), esp.PayloadDir, digest)
		must(t, put(path))
		w.changed()
		conflict("upgrade", digest, settled(w.upgrade(r3)))
		if got := w.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, short(got))
		}
		must(t, settled(w.rollback("")))
		if got := w.boot(); got != ids[0] {
			t.Errorf("%s: booted %s after the rollback", name, short(got))
		}
		must(t, os.RemoveAll(path))
		w.changed()
		must(t, settled(w.upgrade(r3)))
		must(t, settled(w.finalize()))
		w.boot()

		// Between staging and shutdown.
		path = filepath.Join(ready.fat.Path(), esp.PayloadDir, digest)
		must(t, os.RemoveAll(filepath.Join(ready.fat.Path(), strings.Replace(name, "PAYLOAD", digest, 1))))
		must(t, put(path))
		ready.changed()
		conflict("finalize", digest, settled(ready.finalize()))
		if got := ready.told(deploy.ProblemFinalize); len(got) != 1 || !strings.Contains(got[0], "in the way") {
			t.Errorf("%s: status %q", name, got)
		}
		if got := ready.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, short(got))
		}
		// Of the one to go back to.
		digest = ready.state().LatestOf(ids[0]).BootDigest
		path = filepath.Join(ready.fat.Path(), esp.PayloadDir, digest)
		must(t, os.RemoveAll(filepath.Join(ready.fat.Path(), strings.Replace(name, "PAYLOAD", digest, 1))))
		must(t, put(path))
		ready.changed()
		conflict("rollback", digest, settled(ready.rollback("")))
		if got := ready.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", name, short(got))
		}
	}
}

// TestPartsGone: a part of the machine without which nothing can be changed is gone.
// Every command says which; the rest of the machine is left as it is.
func TestPartsGone(t *testing.T) {
	t.Parallel()
	away := func(name string) func(w *world) {
		return func(w *world) {
			must(t, os.Rename(filepath.Join(w.root.Path(), name), filepath.Join(w.root.Path(), "away")))
			w.changed()
		}
	}
	for name, x := range map[string]struct {
		damage                 func(w *world)
		code, text, problem    string
		unmounted, checksStill bool
	}{
		"journal": {damage: away(record.JournalDir), code: deploy.CodeNoJournal, text: "journal", problem: deploy.ProblemJournal},
		"a file as journal": {damage: func(w *world) {
			away(record.JournalDir)(w)
			must(t, os.WriteFile(filepath.Join(w.root.Path(), record.JournalDir), nil, 0o644))
			w.changed()
		}, code: deploy.CodeNoJournal, text: "journal", problem: deploy.ProblemJournal},
		"own state":  {damage: away("state/cfsboot"), code: deploy.CodeNoJournal, text: "journal", problem: deploy.ProblemJournal},
		"all state":  {damage: away("state"), code: deploy.CodeNotManaged, text: "not installed by cfsboot", problem: deploy.ProblemJournal},
		"repository": {damage: away("composefs"), code: deploy.CodeNoRepository, text: "the repository of this machine, which holds its images, is gone", problem: deploy.ProblemRepository, checksStill: true},
		"a file as repository": {damage: func(w *world) {
			away("composefs")(w)
			must(t, os.WriteFile(filepath.Join(w.root.Path(), "composefs"), nil, 0o644))
			w.changed()
		}, code: deploy.CodeNoRepository, text: "is gone", problem: deploy.ProblemRepository, checksStill: true},
		"root file system":             {damage: func(*world) {}, unmounted: true, code: deploy.CodeNoSysroot, text: "(device 254:2) is not mounted at", problem: deploy.ProblemSysroot},
		"mount point of the root, too": {damage: func(w *world) { must(t, os.RemoveAll(filepath.Join(w.running, "sysroot"))) }, unmounted: true, code: deploy.CodeNoSysroot, text: "is not mounted at", problem: deploy.ProblemSysroot},
	} {
		w := newWorld(t)
		ids := w.releases(release(t, "1"), release(t, "2"))
		must(t, settled(w.upgrade(release(t, "3"))))
		must(t, os.MkdirAll(filepath.Join(w.running, "sysroot"), 0o755))
		x.damage(w)
		w.unmounted = x.unmounted
		all := opening(w)
		if !x.checksStill {
			all["check"] = func() error {
				_, err := deploy.Check(t.Context(), deploy.CheckOptions{Options: w.options(), PullOptions: w.pull()})
				return err
			}
		}
		for command, run := range all {
			err := run()
			var refused *deploy.RefusedError
			if !errors.As(err, &refused) || refused.Code != x.code || !strings.Contains(err.Error(), x.text) {
				t.Errorf("%s: %s: got %v, want refusal %s: %s", name, command, err, x.code, x.text)
			}
			if command != "review" { // which tries something before
				oneLine(t, err)
			}
		}
		if got := w.told(x.problem); len(got) != 1 {
			t.Errorf("%s: status %q", name, got)
		}
		if first := entriesOf(t, w)[0].ImageID(); first != ids[1] {
			t.Errorf("%s: the menu begins with %s", name, short(first))
		}
	}
}
