package vm_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// The payload of this machine's releases is padded so that two of them fit on its
// boot partition beside that of release 1, and three do not.
const (
	smallESP    = 128 << 20
	payloadSize = 45 << 20
)

// TestVMLifecycle is one machine with a small boot partition that is kept up to date
// for a long time: five upgrades, to another image and back, and cleaned up.
func TestVMLifecycle(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	follow := l.NewChannel("lifecycle")
	if err := follow.Offer(t.Context(), first(l)); err != nil {
		t.Fatal(err)
	}
	m := installed(t, l, "lifecycle", follow, lab.Setup{ESPSize: smallESP})
	sh := boot(t, m)
	exits(t, sh, 77, "cfsboot upgrade --check")
	var err error

	pad := payloadSize - payload(t, sh)
	if pad < 0 {
		t.Fatalf("the payload of release 1 is %d bytes larger than %d", -pad, payloadSize)
	}
	previous := l.Images.Digest1
	for n := 1; n <= 5; n++ {
		r := made(t, l, osimage.Next(n, pad))
		if err := follow.Offer(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			sh = downloadThenApply(t, m, sh, follow, r)
		} else {
			must(t, sh, upgrade)
			if sh, err = m.Reboot(t.Context(), sh); err != nil {
				t.Fatal(err)
			}
		}
		blessed(t, sh, r)
		s := look(t, sh)
		check(t, s.Check(r.Version, r.Digest))
		if rb := s.Status.Status.Rollback; rb == nil || rb.Image.Digest != previous {
			t.Errorf("upgrade %d: rollback is %+v, want %s", n, rb, previous)
		}
		tidy(t, sh, s)
		previous = r.Digest
	}

	t.Log("to another image and back")
	other, err := l.Make(t.Context(), osimage.Other)
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Offer(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	must(t, sh, "cfsboot switch "+follow.In(osimage.OtherRepository))
	if sh, err = m.Reboot(t.Context(), sh); err != nil {
		t.Fatal(err)
	}
	blessed(t, sh, other)
	if got := look(t, sh).Status.Status.Booted.Image.Image.Image; got != follow.In(osimage.OtherRepository) {
		t.Errorf("after the switch the machine follows %s, want %s", got, follow.In(osimage.OtherRepository))
	}
	exits(t, sh, 77, "cfsboot upgrade --check")
	must(t, sh, "cfsboot switch "+follow.Reference())
	if sh, err = m.Reboot(t.Context(), sh); err != nil {
		t.Fatal(err)
	}
	s := look(t, sh)
	if s.Status.Status.Booted.Image.Digest != previous || s.Status.Status.Booted.Image.Image.Image != follow.Reference() {
		t.Errorf("back again %+v runs, want %s of %s", s.Status.Status.Booted, previous, follow.Reference())
	}

	deleteAndCollect(t, sh, other)
	if err := m.PowerOff(t.Context(), sh); err != nil {
		t.Error(err)
	}
}

// payload returns how many bytes the running release has on the boot partition.
func payload(t *testing.T, sh *qemu.Shell) int {
	t.Helper()
	size := 0
	out := must(t, sh, "stat -c %s /usr/lib/modules/*/vmlinuz /usr/lib/modules/*/initramfs.img")
	for line := range strings.Lines(out) {
		var file int
		if _, err := fmt.Sscan(line, &file); err != nil {
			t.Fatalf("sizes of the payload: %q", out)
		}
		size += file
	}
	return size
}

// exits runs a command that has to end with the given status and returns its output.
func exits(t *testing.T, sh *qemu.Shell, status int, command string) string {
	t.Helper()
	r := run(t, sh, command)
	if r.Status != status {
		t.Errorf("%s: exit status %d, want %d\n%s", command, r.Status, status, r.Output)
	}
	return r.Output
}

// downloadThenApply takes a release in two steps: the second one needs no layer
// from the registry, and reboots.
func downloadThenApply(t *testing.T, m *lab.Machine, sh *qemu.Shell, follow *lab.Channel, r osimage.Release) *qemu.Shell {
	t.Helper()
	exits(t, sh, 0, "cfsboot upgrade --check")
	if st := look(t, sh).Status.Status.Staged; st != nil {
		t.Errorf("after --check %+v is staged", st)
	}
	must(t, sh, upgrade+" --download-only")
	before := follow.Relay.Sent()
	if err := sh.Start("cfsboot upgrade --apply"); err != nil {
		t.Fatal(err)
	}
	sh, err := m.Rebooted(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if sent := follow.Relay.Sent() - before; sent > 256<<10 {
		t.Errorf("--apply after --download-only fetched %d bytes", sent)
	}
	return sh
}

// tidy compares what lies on the boot partition and in the repository with what
// the deployments need: nothing is missing, nothing is left over.
func tidy(t *testing.T, sh *qemu.Shell, s lab.State) {
	t.Helper()
	var payloads, images []string
	for _, d := range s.Status.Cfsboot.Deployments {
		payloads, images = append(payloads, d.Boot), append(images, d.ID)
	}
	list := func(command string) []string {
		return slices.Sorted(slices.Values(strings.Fields(must(t, sh, command))))
	}
	unique := func(in []string) []string { return slices.Compact(slices.Sorted(slices.Values(in))) }
	if got, want := list("ls $(bootctl --print-boot-path)/cfsboot"), unique(payloads); !slices.Equal(got, want) {
		t.Errorf("payloads on the boot partition %q, want %q", got, want)
	}
	if got, want := list("ls /sysroot/state/deploy"), unique(images); !slices.Equal(got, want) {
		t.Errorf("deployments on the disk %q, want %q", got, want)
	}
	if got := list("cd /sysroot/state/cfsboot; find trash staged -mindepth 1 2>/dev/null || true"); len(got) > 0 {
		t.Errorf("left over in the state: %q", got)
	}
	if got, want := list("ls $(bootctl --print-boot-path)/loader/entries"), entries(s); !slices.Equal(got, want) {
		t.Errorf("boot entries %q, want %q", got, want)
	}
}

// entries are the files that the status knows.
func entries(s lab.State) []string {
	var out []string
	for _, d := range s.Status.Cfsboot.Deployments {
		for _, e := range d.Entries {
			if e.File != "" {
				out = append(out, e.File)
			}
		}
	}
	return slices.Sorted(slices.Values(out))
}

// objects counts what is in the repository.
func objects(t *testing.T, sh *qemu.Shell) int {
	t.Helper()
	out := must(t, sh, "find /sysroot/composefs/objects -type f | wc -l")
	n, err := strconv.Atoi(strings.TrimSpace(out))
	if err != nil {
		t.Fatalf("number of objects: %q", out)
	}
	return n
}

// deleteAndCollect removes a deployment by hand, and what it alone needed.
func deleteAndCollect(t *testing.T, sh *qemu.Shell, old osimage.Release) {
	t.Helper()
	t.Log("delete and gc")
	s := look(t, sh)
	d := s.Status.Of(old.Digest)
	if d == nil {
		t.Fatalf("status does not know %s", old.Version)
	}
	exits(t, sh, 3, "cfsboot delete "+s.ID) // it runs
	image := strings.TrimSpace(must(t, sh, "readlink -f /sysroot/composefs/images/"+d.ID))
	before := objects(t, sh)
	must(t, sh, "cfsboot delete "+d.ID[:12])
	s = look(t, sh)
	if gone := s.Status.Of(old.Digest); gone != nil {
		t.Errorf("after delete the status still knows %+v", gone)
	}
	tidy(t, sh, s)
	must(t, sh, fmt.Sprintf("! test -e %s && ! test -L /sysroot/composefs/images/%s", image, d.ID))
	after := objects(t, sh)
	if after >= before {
		t.Errorf("delete left %d objects where %d were", after, before)
	}
	must(t, sh, "cfsboot gc")
	if n := objects(t, sh); n != after {
		t.Errorf("gc left %d objects, delete had left %d: nothing was there to collect", n, after)
	}
	s = look(t, sh)
	check(t, s.Check(s.Version, s.Status.Status.Booted.Image.Digest, alone(s)...))
	must(t, sh, "find /usr/bin /usr/lib/systemd -xdev -type f -exec cat {} + >/dev/null") // nothing of the root is gone
}
