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
	"github.com/cfsboot/cfsboot/internal/durable"
)

// The tests here are the peers' defects that no other test shows absent; docs/peers.md has the whole table.

// TestD2StagedSurvivesPowerCut: a staged deployment is on the disk, not in /run. After a power cut it is still staged, with what it
// was pulled for, and finalize makes it the default without network.
func TestD2StagedSurvivesPowerCut(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	c, err := w.upgrade(release(t, "2"))
	must(t, err)
	for seed := range uint64(8) {
		after := w.powerCut(seed)
		after.boot()
		if s := after.status(); s.Status.Staged == nil || s.Status.Staged.Composefs.Verity != c.Deployment {
			t.Fatalf("seed %d: staged %+v", seed, s.Status.Staged)
		}
		must(t, settled(after.finalize()))
		if got := after.boot(); got != c.Deployment {
			t.Errorf("seed %d: booted %s, want %s", seed, got, c.Deployment)
		}
	}
}

// TestD3NoExchangeOnESP: no command renames, exchanges or writes over anything on the boot partition, and each entry and payload is
// on the medium before the command reports success.
func TestD3NoExchangeOnESP(t *testing.T) {
	w := newWorld(t)
	seen := 0
	step := func(name string, run func() error) {
		t.Helper()
		must(t, run())
		fat := model(w.fat)
		for n := range fat.Count() {
			op := fat.Op(n)
			for _, word := range []string{"rename", "exchange", "truncate", "symlink", "link "} {
				if strings.HasPrefix(op, word) {
					t.Errorf("%s: call %d on the boot partition: %s", name, n, op)
				}
			}
			seen++
		}
		w.copy().boot() // only what was synced
	}
	step("install", func() error { return settled(w.install(release(t, "1"))) })
	w.boot()
	step("upgrade", func() error { return settled(w.upgrade(release(t, "2"))) })
	step("finalize", func() error { return settled(w.finalize()) })
	w.boot()
	w.bless()
	step("rollback", func() error { return settled(w.rollback("")) })
	if seen < 20 {
		t.Errorf("only %d calls were seen", seen)
	}
}

// TestD4OrderIsThatOfTheCommands: the default is the last one that was asked for, whatever VERSION_ID says: also after a downgrade
// and a rollback over versions. It is first by the rules of systemd-boot and, for a loader that compares file names, by name.
func TestD4OrderIsThatOfTheCommands(t *testing.T) {
	w := newWorld(t)
	check := func(when, want string) {
		t.Helper()
		list := entriesOf(t, w)
		if got := list[0].ImageID(); got != want {
			t.Errorf("%s: the menu begins with %s, want %s", when, got, want)
		}
		if last := slices.MaxFunc(list, func(a, b esp.Entry) int { return strings.Compare(a.File, b.File) }); last.ImageID() != want {
			t.Errorf("%s: the last file is %s", when, last.File)
		}
	}
	high := w.releases(release(t, "41.9"))[0]
	check("installed", high)
	w.next(release(t, "9.10"))
	low := w.booted()
	check("downgraded", low)
	must(t, settled(w.rollback(high)))
	check("rolled back", high)
	w.boot()
	w.next(release(t, "41.10"))
	check("upgraded", w.booted())
}

// TestD5RollbackQueued: status says that the next boot goes back exactly while it does.
func TestD5RollbackQueued(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"), release(t, "2"))[0]
	queued := func(when string, want bool) {
		t.Helper()
		s := w.status()
		if s.Status.RollbackQueued != want || (s.Spec.BootOrder == "rollback") != want {
			t.Errorf("%s: rollbackQueued %v, bootOrder %s", when, s.Status.RollbackQueued, s.Spec.BootOrder)
		}
		if want && (s.Status.Rollback == nil || s.Status.Rollback.Composefs.Verity != one || *s.Cfsboot.NextBoot != one) {
			t.Errorf("%s: rollback %+v, next boot %v", when, s.Status.Rollback, s.Cfsboot.NextBoot)
		}
	}
	queued("before", false)
	must(t, settled(w.rollback("")))
	queued("after rollback", true)
	w.boot()
	queued("after the boot", false)
}

// TestD6AnyNumberOfEntries: no command expects two boot entries.
func TestD6AnyNumberOfEntries(t *testing.T) {
	for n := range 5 {
		w := newWorld(t)
		for i := range 4 {
			img := release(t, fmt.Sprint(i+1))
			if i == 0 {
				w.releases(img)
			} else {
				w.next(img)
			}
		}
		list := entriesOf(t, w)
		for _, e := range list[min(n, len(list)):] { // the older ones are gone, or all of them
			must(t, os.Remove(filepath.Join(w.fat.Path(), "loader/entries", e.File)))
		}
		w.changed()
		w.status()
		if _, err := w.rollback(""); err != nil {
			var refused *deploy.RefusedError
			if !errors.As(err, &refused) && !errors.Is(err, deploy.ErrNothingToDo) {
				t.Errorf("%d entries: rollback: %v", n, err)
			}
		}
		if err := settled(w.upgrade(release(t, "9"))); err != nil {
			t.Errorf("%d entries: upgrade: %v", n, err)
			continue
		}
		must(t, settled(w.finalize()))
		w.boot()
	}
}

// TestD8HalfPayload: a kernel without its initrd, or half of one, as a crash or a full partition leaves it, is in nobody's way.
func TestD8HalfPayload(t *testing.T) {
	other := newWorld(t)
	other.releases(release(t, "1"), release(t, "2"))
	payload := filepath.Join("cfsboot", entriesOf(t, other)[0].Payload())
	for name, half := range map[string]neighbours{
		"no initrd": {payload + "/vmlinuz": "kernel of 2"},
		"half":      {payload + "/vmlinuz": "kern", payload + "/initrd": ""},
		"empty":     {payload + "/": ""},
		"another":   {"cfsboot/" + strings.Repeat("ab", 32) + "/vmlinuz": "of an upgrade that was given up"},
	} {
		w := newWorld(t)
		w.releases(release(t, "1"))
		half.put(t, w.fat.Path())
		w.changed()
		if err := settled(w.upgrade(release(t, "2"))); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		must(t, settled(w.finalize()))
		w.boot()
		if _, err := os.Stat(filepath.Join(w.fat.Path(), "cfsboot", strings.Repeat("ab", 32))); err == nil {
			t.Errorf("%s: the leftover is still there", name)
		}
	}
}

// TestD9UpgradesWithoutReboot: any number of upgrades in a row leaves one new entry, that of the last.
func TestD9UpgradesWithoutReboot(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	var last *deploy.Change
	for n := range 3 {
		c, err := w.upgrade(release(t, fmt.Sprint(n+2)))
		must(t, err)
		if last != nil && c.Dropped != last.Deployment {
			t.Errorf("upgrade %d drops %q, want %q", n, c.Dropped, last.Deployment)
		}
		last = c
	}
	must(t, settled(w.finalize()))
	list := entriesOf(t, w)
	if len(list) != 2 || list[0].ImageID() != last.Deployment || list[1].ImageID() != one {
		t.Errorf("%d entries: %v", len(list), list)
	}
	if got := w.boot(); got != last.Deployment {
		t.Errorf("booted %s, want %s", got, last.Deployment)
	}
	checkQuiet(t, w)
}

// TestD10BootedIsWhatRuns: if a person has chosen the second entry of the menu, that deployment counts as the booted one: its /etc
// goes on, and it is what one can go back to.
func TestD10BootedIsWhatRuns(t *testing.T) {
	w := newWorld(t)
	ids := w.releases(release(t, "1"), release(t, "2"))
	second := entriesOf(t, w)[1]
	must(t, w.setupRoot(ids[0], second.Entry.Options()))
	w.edit("hostname", "of the first\n")
	if s := w.status(); s.Status.Booted.Composefs.Verity != ids[0] {
		t.Errorf("booted %s", s.Status.Booted.Composefs.Verity)
	}
	c, err := w.upgrade(release(t, "3"))
	must(t, err)
	if c.Booted != ids[0] {
		t.Errorf("the upgrade takes %s for booted", c.Booted)
	}
	must(t, settled(w.finalize()))
	three := w.boot()
	if got := w.etc(three, "hostname"); got != "of the first\n" {
		t.Errorf("/etc/hostname of the next deployment: %q", got)
	}
	must(t, settled(w.rollback(ids[0])))
	if got := w.boot(); got != ids[0] {
		t.Errorf("booted %s", got)
	}
}

// TestD18SpaceFirst: too little room on the boot partition is found before a byte is written there, and leaves nothing that is in the
// way once there is room.
func TestD18SpaceFirst(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	before := filesOf(t, w.fat.Path())
	w.limit = used(w.fat.Path()) + 2*cluster
	for range 2 {
		var space *durable.SpaceError
		if _, err := w.upgrade(release(t, "2")); !errors.As(err, &space) || space.Need <= space.Have {
			t.Fatalf("got %v, want what is needed and what is there", err)
		}
		if got := filesOf(t, w.fat.Path()); !slices.Equal(got, before) {
			t.Errorf("on the boot partition: %v, before %v", got, before)
		}
		checkQuiet(t, w)
	}
	if got := w.boot(); got != one {
		t.Errorf("booted %s", got)
	}
	w.limit = 0
	must(t, settled(w.upgrade(release(t, "2"))))
	must(t, settled(w.finalize()))
	w.boot()
}

// filesOf lists what is below a directory, with sizes.
func filesOf(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	must(t, filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			out = append(out, fmt.Sprintf("%s %d", strings.TrimPrefix(path, root), info.Size()))
		}
		return err
	}))
	return out
}

// TestD29OneSortKey: all entries of a machine sort as one group, whatever the images call themselves.
func TestD29OneSortKey(t *testing.T) {
	w := newWorld(t)
	files := osTree("2")
	files["usr/lib/os-release"] = strings.ReplaceAll(files["usr/lib/os-release"], "ID=toy", "ID=aardvark")
	w.releases(release(t, "1"), buildImage(t, files))
	must(t, settled(w.rollback("")))
	keys := map[string]bool{}
	for _, e := range entriesOf(t, w) {
		keys[e.Entry.Get("sort-key")] = true
	}
	if len(keys) != 1 {
		t.Errorf("sort keys %v", keys)
	}
}

// TestFileAgainstDirectory: a local file where the new image has a directory is a conflict that is named; the machine goes on
// booting, and the upgrade works once the file is out of the way.
func TestFileAgainstDirectory(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	w.edit("app", "a local file\n")
	next := releaseWith(t, "2", map[string]string{"etc/app/app.conf": "x\n"})
	var conflict *deploy.ConflictError
	if _, err := w.upgrade(next); !errors.As(err, &conflict) || !slices.Equal(conflict.Paths, []string{"/etc/app"}) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %v, want a conflict of /etc/app", err)
	}
	checkQuiet(t, w)
	if got := w.boot(); got != one || w.etc(one, "app") != "a local file\n" {
		t.Errorf("booted %s, /etc/app %q", got, w.etc(one, "app"))
	}
	must(t, os.Remove(filepath.Join(w.root.Path(), "state/deploy", one, "etc/app")))
	w.changed()
	w.next(next)
	if got := w.etc(w.booted(), "app/app.conf"); got != "x\n" {
		t.Errorf("/etc/app/app.conf %q", got)
	}
}
