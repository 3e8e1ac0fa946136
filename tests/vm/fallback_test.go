package vm_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// tries is how often a new release is started before the loader gives it up.
const tries = 3

// failing is a release that does not work.
type failing struct {
	name    string
	recipe  osimage.Recipe
	spoil   func(t *testing.T, sh *qemu.Shell, id string) // done to the machine once it is armed, or nil
	console string                                        // what each try prints before it is over
	reason  string                                        // what status says about it
	tries   int                                           // that are left; 0: all. The others count as done
}

// hang is a release that a machine without patience gives up.
var hang = failing{name: "the boot hangs", recipe: osimage.Hangs, console: `this boot of deployment [0-9a-f]{12} failed: .*lab-hang\.service`, reason: `lab-hang\.service`, tries: 1}

// TestVMFallback is one machine that is offered one bad release after the other,
// each of which fails in its own way. Each time it has to be back on release 1
// without anybody's help, to know why, and not to fall for the same release again.
// The last release is a good one, which stays until its disk is damaged.
func TestVMFallback(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	follow := l.NewChannel("fallback")
	m := installed(t, l, "fallback", follow, lab.Setup{})
	sh := boot(t, m)
	for _, f := range []failing{
		{name: "the kernel panics", recipe: osimage.Panics, console: `Kernel panic - not syncing: sysrq triggered crash`, reason: `Kernel panic - not syncing: sysrq triggered crash`},
		{name: "the root image is missing", recipe: osimage.Rootless, spoil: removeImage, console: `this boot failed: CFS-B04`, reason: `CFS-B04`},
		{name: "a health check fails", recipe: osimage.Unhealthy, console: `this boot of deployment [0-9a-f]{12} failed: .*lab-health\.service`, reason: `lab-health\.service`},
	} {
		sh = fallsBack(t, l, m, sh, follow, first(l), f)
	}

	good := made(t, l, osimage.Next(1, 0))
	if err := follow.Offer(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	must(t, sh, upgrade)
	var err error
	if sh, err = m.Reboot(t.Context(), sh); err != nil {
		t.Fatal(err)
	}
	blessed(t, sh, good)

	t.Log("a release that was good is damaged")
	removeImage(t, sh, look(t, sh).ID)
	if sh, err = m.FallBack(t.Context(), sh, 1, `this boot failed: CFS-B04`); err != nil {
		t.Fatal(err)
	}
	if s := look(t, sh); s.Version != osimage.Version1 {
		t.Errorf("after it %s runs, want %s", s.Version, osimage.Version1)
	}
}

// first is release 1.
func first(l *lab.Lab) osimage.Release {
	return osimage.Release{Version: osimage.Version1, Repository: osimage.Repository, Digest: l.Images.Digest1}
}

// fallsBack offers the machine one bad release and follows it back to the one that runs.
func fallsBack(t *testing.T, l *lab.Lab, m *lab.Machine, sh *qemu.Shell, follow *lab.Channel, running osimage.Release, f failing) *qemu.Shell {
	t.Helper()
	t.Log(f.name)
	r := made(t, l, f.recipe)
	var err error
	if err := follow.Offer(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	must(t, sh, upgrade)
	left := tries
	if f.spoil != nil || f.tries != 0 {
		must(t, sh, "cfsboot finalize")
		d := look(t, sh).Status.Of(r.Digest)
		if d == nil || len(d.Entries) != 1 || d.Entries[0].TriesLeft != tries {
			t.Fatalf("%s: after finalize status says %+v about %s", f.name, d, r.Digest)
		}
		if f.spoil != nil {
			f.spoil(t, sh, d.ID)
		}
		if f.tries != 0 {
			left = f.tries
			file := d.Entries[0].File
			must(t, sh, fmt.Sprintf("cd $(bootctl --print-boot-path)/loader/entries && mv %s %s && sync", file, strings.Replace(file, "+3-0", fmt.Sprintf("+%d-%d", left, tries-left), 1)))
		}
	}
	if sh, err = m.FallBack(t.Context(), sh, left, f.console); err != nil {
		t.Fatalf("%s: %v", f.name, err)
	}
	// The reasons of boots that left no record are searched for in the background.
	must(t, sh, "until [ $(systemctl show -P ExecMainExitTimestampMonotonic cfsboot-boot-review.service) -gt 0 ]; do sleep 1; done")
	s := look(t, sh)
	if s.Version != running.Version || s.Status.Status.Booted.Image.Digest != running.Digest {
		t.Fatalf("%s: after it %s runs, want %s", f.name, s.Version, running.Version)
	}
	d := s.Status.Of(r.Digest)
	switch {
	case d == nil:
		t.Errorf("%s: status does not know it any more", f.name)
	case d.State != "failed" || !regexp.MustCompile(f.reason).MatchString(d.Failure):
		t.Errorf("%s: status says %s, %q, want failed, %q", f.name, d.State, d.Failure, f.reason)
	}
	if again := run(t, sh, upgrade); again.Status != 3 || !strings.Contains(again.Output, "did not boot") {
		t.Errorf("%s: the same release is offered again: status %d, %q, want a refusal (3)", f.name, again.Status, again.Output)
	}
	return sh
}

// removeImage deletes the image of an armed deployment and the object behind it.
func removeImage(t *testing.T, sh *qemu.Shell, id string) {
	t.Helper()
	must(t, sh, fmt.Sprintf(`set -e; mount -o remount,bind,rw /sysroot; cd /sysroot/composefs/images
rm "$(readlink -f %[1]s)" %[1]s; cd /; sync; mount -o remount,bind,ro /sysroot`, id))
}

// blessed checks that a release runs and that the counter is taken away from its
// entry. It waits for that and starts nothing: systemd-bless-boot.service would bless
// the entry for whoever starts it, and a boot that never blesses itself would be missed.
func blessed(t *testing.T, sh *qemu.Shell, r osimage.Release) {
	t.Helper()
	s := look(t, sh)
	d := s.Status.Of(r.Digest)
	if s.Version == r.Version && d != nil && len(d.Entries) > 0 && d.Entries[len(d.Entries)-1].Counted {
		must(t, sh, fmt.Sprintf(`timeout 110 sh -c 'cd "$(bootctl --print-boot-path)/loader/entries" && while [ -e %s ]; do sleep 1; done' ||
{ systemctl --no-pager status boot-complete.target systemd-bless-boot.service; systemctl --no-pager list-jobs; false; }`, d.Entries[len(d.Entries)-1].File))
		s = look(t, sh)
		d = s.Status.Of(r.Digest)
	}
	switch {
	case s.Version != r.Version || s.Status.Status.Booted == nil || s.Status.Status.Booted.Image.Digest != r.Digest:
		t.Errorf("%s runs (%+v), want %s (%s)", s.Version, s.Status.Status.Booted, r.Version, r.Digest)
	case d == nil || d.State != "good" || len(d.Entries) == 0 || d.Entries[len(d.Entries)-1].Counted:
		t.Errorf("release %s: %+v, want it blessed", r.Version, d)
	}
}
