package setuproot_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

var (
	rel1 = strings.Repeat("11", 64)
	rel2 = strings.Repeat("22", 64)
	rel3 = strings.Repeat("33", 64)
	pay  = strings.Repeat("ab", 32)

	failTime = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
)

const (
	failBoot = "01234567-89ab-4cde-8f01-23456789abcd"
	first    = "cfsboot_0123abcd-0000000001.conf"
	second   = "cfsboot_0123abcd-0000000002.conf"
)

// fakeVars are the variables of a boot loader.
type fakeVars map[string]string

func (f fakeVars) Loader(name string) (string, error) {
	if v, ok := f[name]; ok {
		return v, nil
	}
	return "", fs.ErrNotExist
}

func (f fakeVars) SetLoader(name, text string) error {
	if f["broken"] != "" {
		return unix.EROFS
	}
	f[name] = text
	return nil
}

// entries makes the state of a machine with these deployments, all found good, entries 1, 2, …
func entries(ids ...string) record.State {
	s := record.State{Token: "0123abcd", NextEntry: uint64(len(ids)) + 1}
	for i, id := range ids {
		s.Entries = append(s.Entries, record.ArmedEntry{Seq: uint64(i) + 1, Deployment: id, BootDigest: pay, Armed: failTime, Blessed: true})
	}
	return s
}

func streak(counts map[string]int) record.Streak {
	var s record.Streak
	for id, n := range counts {
		for range n {
			s = s.Add(id)
		}
	}
	return s
}

func TestDecideFailed(t *testing.T) {
	change := func(s record.State, f func(s *record.State)) record.State { f(&s); return s }
	two := entries(rel1, rel2)
	for _, c := range []struct {
		name     string
		boot     setuproot.FailedBoot
		powerOff bool
		oneShot  uint64
	}{
		{"blessed, another one", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 1})}, false, 1},
		{"the older one fails, the newer one is good", setuproot.FailedBoot{Selected: first, Deployment: rel1, State: two, Streak: streak(map[string]int{rel1: 1})}, false, 2},
		{"the newest of several", setuproot.FailedBoot{Selected: "cfsboot_0123abcd-0000000003.conf", Deployment: rel3, State: entries(rel1, rel2, rel3), Streak: streak(map[string]int{rel3: 1})}, false, 2},
		{"the newest of several fails as well", setuproot.FailedBoot{Selected: "cfsboot_0123abcd-0000000003.conf", Deployment: rel3, State: entries(rel1, rel2, rel3), Streak: streak(map[string]int{rel3: 2, rel2: 1})}, false, 1},
		{"counted", setuproot.FailedBoot{Selected: second, Counted: true, Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 1})}, false, 0},
		{"the loader does not tell", setuproot.FailedBoot{Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 1})}, false, 0},
		{"an entry of another installation", setuproot.FailedBoot{Selected: "cfsboot_ffff-0000000002.conf", Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 1})}, false, 0},
		{"no journal", setuproot.FailedBoot{Selected: second, Deployment: rel2, Streak: streak(map[string]int{rel2: 1})}, false, 0},
		{"no image on the command line", setuproot.FailedBoot{Selected: second, State: two}, false, 0},
		{"both fail", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 2, rel1: 1})}, false, 0},
		{"the other one was never good", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: change(entries(rel1, rel2), func(s *record.State) { s.Entries[0].Blessed = false })}, false, 0},
		{"the other one has failed", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: change(entries(rel1, rel2), func(s *record.State) { s.Entries[0].Failed = true })}, false, 0},
		{"the other one is being retired", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: change(entries(rel1, rel2), func(s *record.State) { s.Entries[0].Retiring = true })}, false, 0},
		{"another entry of the same one", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: entries(rel2, rel2)}, false, 0},
		{"ten times", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: entries(rel2), Streak: streak(map[string]int{rel2: 10})}, false, 0},
		{"eleven times", setuproot.FailedBoot{Selected: second, Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 11})}, true, 0},
		{"eleven times, counted", setuproot.FailedBoot{Selected: second, Counted: true, Deployment: rel2, State: two, Streak: streak(map[string]int{rel2: 11})}, true, 0},
	} {
		if powerOff, oneShot := setuproot.DecideFailed(c.boot); powerOff != c.powerOff || oneShot != c.oneShot {
			t.Errorf("%s: got %v, %d, want %v, %d", c.name, powerOff, oneShot, c.powerOff, c.oneShot)
		}
	}
}

// place is a physical root with the journal of a machine that has two good deployments.
func place(t *testing.T) *durabletest.FS {
	t.Helper()
	fsys := durabletest.New(t)
	dir := filepath.Join(fsys.Path(), record.JournalDir)
	must(t, os.MkdirAll(dir, 0o755))
	r := record.Record{Format: record.JournalFormat, Seq: 1, Time: failTime, Event: record.Event{Kind: record.EventBlessed, Entry: 2}, State: entries(rel1, rel2)}
	r.State.Failed, r.State.Orphans = []record.Failure{}, []string{}
	data, err := r.Encode()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, r.Name()), data, 0o644))
	return durabletest.Over(t, fsys.Path())
}

func failOptions(vars fakeVars) setuproot.FailedOptions {
	return setuproot.FailedOptions{
		BootID: failBoot, Cmdline: "quiet composefs.digest=v1-sha512-12:" + rel2, Vars: vars,
		Now: func() time.Time { return failTime }, KmsgLog: func() ([]byte, error) { return []byte(kmsg), nil },
	}
}

func readFailure(t *testing.T, root string) record.BootFailure {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, record.BootFailureDir, failBoot+".json"))
	must(t, err)
	f, err := record.ParseBootFailure(data)
	must(t, err)
	return f
}

// TestRemember: what a failed boot of a blessed entry leaves, also after a power cut, and what the loader is told.
func TestRemember(t *testing.T) {
	fsys := place(t)
	vars := fakeVars{"LoaderEntrySelected": second}
	got, err := setuproot.Remember(fsys.Open(), failOptions(vars), []byte(kmsg), setuproot.ActionReboot)
	must(t, err)
	want := record.BootFailure{
		Format: 1, BootID: failBoot, Time: failTime, Stage: record.StageInitramfs, Deployment: rel2, Entry: 2, Code: "CFS-B05",
		Reason: "CFS-B05: kernel parameter composefs.digest=v1: image differs", Units: []string{}, Action: "reboot", OneShot: 1,
	}
	if got.OneShot != 1 || vars["LoaderEntryOneShot"] != first {
		t.Errorf("one-shot %d, variable %q", got.OneShot, vars["LoaderEntryOneShot"])
	}
	root := fsys.PowerLoss().Path()
	if diff := cmp.Diff(want, readFailure(t, root)); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if log := readFile(t, filepath.Join(root, record.BootFailureDir, failBoot+".log")); log != kmsg {
		t.Errorf("log %q", log)
	}

	// The other one fails too: nobody is left, and at last the machine is switched off.
	delete(vars, "LoaderEntryOneShot")
	vars["LoaderEntrySelected"] = first
	o := failOptions(vars)
	o.Cmdline = "composefs.digest=v1-sha512-12:" + rel1
	for n := 1; n <= 11; n++ {
		f, err := setuproot.Remember(fsys.Open(), o, []byte(kmsg), setuproot.ActionReboot)
		must(t, err)
		wantAction := "reboot"
		if n == 11 {
			wantAction = "poweroff"
		}
		if f.Action != wantAction || f.OneShot != 0 || vars["LoaderEntryOneShot"] != "" {
			t.Errorf("failure %d: %+v, variable %q", n, f, vars["LoaderEntryOneShot"])
		}
	}
}

// TestRememberQuiet: where the loader counts, where a person or the policy wants something else, and where the variable
// cannot be written, nothing is told to the loader.
func TestRememberQuiet(t *testing.T) {
	for _, c := range []struct {
		name    string
		vars    fakeVars
		action  setuproot.Action
		wantErr bool
	}{
		{"counted", fakeVars{"LoaderEntrySelected": second, "LoaderBootCountPath": `\loader\entries\x`}, setuproot.ActionReboot, false},
		{"shell", fakeVars{"LoaderEntrySelected": second}, setuproot.ActionShell, false},
		{"power-off", fakeVars{"LoaderEntrySelected": second}, setuproot.ActionPowerOff, false},
		{"no variables", fakeVars{}, setuproot.ActionReboot, false},
		{"variables read-only", fakeVars{"LoaderEntrySelected": second, "broken": "1"}, setuproot.ActionReboot, true},
	} {
		fsys := place(t)
		f, err := setuproot.Remember(fsys.Open(), failOptions(c.vars), []byte(kmsg), c.action)
		if (err != nil) != c.wantErr || f.OneShot != 0 || c.vars["LoaderEntryOneShot"] != "" || f.Action != string(c.action) {
			t.Errorf("%s: %+v, %v", c.name, f, err)
		}
		if got := readFailure(t, fsys.Path()); got.OneShot != 0 || got.Deployment != rel2 {
			t.Errorf("%s: record %+v", c.name, got)
		}
	}
	fsys := durabletest.New(t)
	if _, err := setuproot.Remember(fsys.Open(), failOptions(fakeVars{}), nil, setuproot.ActionReboot); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file system without our state: %v", err)
	}
}

// TestRememberFaults: the loader is told only if the count of failures outlives a power cut, whatever fails.
func TestRememberFaults(t *testing.T) {
	for n := 0; ; n++ {
		for _, errno := range []error{unix.EIO, unix.ENOSPC} {
			fsys := place(t)
			fsys.FailAt(n, errno)
			vars := fakeVars{"LoaderEntrySelected": second}
			_, err := setuproot.Remember(fsys.Open(), failOptions(vars), []byte(kmsg), setuproot.ActionReboot)
			if !fsys.Triggered() {
				if n < 3 {
					t.Fatalf("only %d mutating calls were seen", n)
				}
				return
			}
			after := fsys.PowerLoss().Path()
			if err == nil { // then room was made for the count, and everything is there
				for _, name := range []string{record.StreakName, failBoot + ".json", failBoot + ".log"} {
					if _, serr := os.Stat(filepath.Join(after, record.BootFailureDir, name)); serr != nil || errno != unix.ENOSPC || vars["LoaderEntryOneShot"] == "" {
						t.Errorf("fault %d (%s) was swallowed: %v", n, fsys.Op(n), serr)
					}
				}
			}
			data, rerr := os.ReadFile(filepath.Join(after, record.BootFailureDir, record.StreakName))
			if vars["LoaderEntryOneShot"] != "" {
				if s, perr := record.ParseStreak(data); rerr != nil || perr != nil || s.Count(rel2) != 1 {
					t.Errorf("fault %d (%s): the loader was told, but the count is lost: %q, %v", n, fsys.Op(n), data, rerr)
				}
			}
			if data, err := os.ReadFile(filepath.Join(after, record.BootFailureDir, failBoot+".json")); err == nil {
				if _, err := record.ParseBootFailure(data); err != nil {
					t.Errorf("fault %d (%s): half a record: %v", n, fsys.Op(n), err)
				}
			}
		}
	}
}

// fullDisk refuses to write once files have this many bytes together, or more.
type fullDisk struct {
	*durabletest.FS
	size int64
}

func (d fullDisk) Before(op durable.Op) error {
	if op.Kind == durable.OpWrite {
		var used int64
		err := filepath.WalkDir(filepath.Join(d.Path(), record.BootFailureDir), func(_ string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			st, err := e.Info()
			if err == nil {
				used += st.Size()
			}
			return err
		})
		if err != nil {
			return err
		}
		if used >= d.size {
			return unix.ENOSPC
		}
	}
	return d.FS.Before(op)
}

// TestRememberFull: where the messages take the last space, the count of failures is on the disk all the same, and
// the loader is told; also when the next boot finds no space at all. In the end the machine is switched off.
func TestRememberFull(t *testing.T) {
	fsys := place(t)
	plain, err := durable.OpenDir(fsys.Path())
	must(t, err)
	defer plain.Close()
	root, err := plain.WithHook(fullDisk{fsys, 32 << 10})
	must(t, err)
	defer root.Close()
	messages := []byte(strings.Repeat("6,1,100,-;a long line of the kernel log\n", 4000))
	remember := func(selected, id string) setuproot.Action {
		t.Helper()
		vars := fakeVars{"LoaderEntrySelected": selected}
		o := failOptions(vars)
		o.Cmdline = "composefs.digest=v1-sha512-12:" + id
		f, err := setuproot.Remember(root, o, messages, setuproot.ActionReboot)
		must(t, err)
		if got := readFailure(t, fsys.PowerLoss().Path()); got.Deployment != id || got.OneShot != f.OneShot {
			t.Errorf("%s failed: record %+v", selected, got)
		}
		if got := vars["LoaderEntryOneShot"]; (got == first) != (selected == second && f.OneShot == 1) {
			t.Errorf("%s failed: one-shot %d, variable %q", selected, f.OneShot, got)
		}
		return setuproot.Action(f.Action)
	}
	count := func(id string) int {
		t.Helper()
		s, err := record.ParseStreak([]byte(readFile(t, filepath.Join(fsys.PowerLoss().Path(), record.BootFailureDir, record.StreakName))))
		must(t, err)
		return s.Count(id)
	}
	remember(second, rel2)
	if n := count(rel2); n != 1 {
		t.Errorf("%d failures of the release are counted, want 1", n)
	}
	for n := 1; n <= 11; n++ {
		action := remember(first, rel1)
		if got := count(rel1); got != n || (action == setuproot.ActionPowerOff) != (n == 11) {
			t.Errorf("failure %d of the other one: %d are counted, %s follows", n, got, action)
		}
	}
}

// TestRememberFutureEvent: a newer program wrote the last record, of an event that the
// initramfs of an older release does not know. It says what to start all the same.
func TestRememberFutureEvent(t *testing.T) {
	fsys := place(t)
	r := record.Record{Format: record.JournalFormat, Seq: 2, Time: failTime, State: entries(rel1, rel3, rel2)}
	r.Event.Kind = "of-a-newer-program"
	r.State.Failed, r.State.Orphans = []record.Failure{}, []string{}
	data, err := r.Encode()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(fsys.Path(), record.JournalDir, r.Name()), data, 0o644))
	fsys = durabletest.Over(t, fsys.Path())
	vars := fakeVars{"LoaderEntrySelected": "cfsboot_0123abcd-0000000003.conf"}
	got, err := setuproot.Remember(fsys.Open(), failOptions(vars), []byte(kmsg), setuproot.ActionReboot)
	if err != nil || got.OneShot != 2 || vars["LoaderEntryOneShot"] != second {
		t.Errorf("got %+v, %v, one-shot %q, want entry 2", got, err, vars["LoaderEntryOneShot"])
	}
}

// TestRememberDamaged: a streak that is no streak, and a journal of another format, stop nothing.
func TestRememberDamaged(t *testing.T) {
	fsys := place(t)
	root, err := durable.OpenDir(fsys.Path())
	must(t, err)
	defer root.Close()
	dir := filepath.Join(fsys.Path(), record.BootFailureDir)
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.WriteFile(filepath.Join(dir, record.StreakName), []byte("torn"), 0o600))
	vars := fakeVars{"LoaderEntrySelected": second}
	if f, err := setuproot.Remember(root, failOptions(vars), nil, setuproot.ActionReboot); err != nil || f.OneShot != 1 || f.Code != "" {
		t.Errorf("damaged streak: %+v, %v", f, err)
	}
	must(t, os.WriteFile(filepath.Join(fsys.Path(), record.JournalDir, "0000000009.json"), []byte("{"), 0o644))
	must(t, os.Remove(filepath.Join(fsys.Path(), record.JournalDir, "0000000001.json")))
	if f, err := setuproot.Remember(root, failOptions(vars), nil, setuproot.ActionReboot); err == nil || f.OneShot != 0 || f.Action != "reboot" {
		t.Errorf("damaged journal: %+v, %v", f, err)
	}
}
