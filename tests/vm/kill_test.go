package vm_test

import (
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

const upgrade = "cfsboot upgrade --progress plain"

// TestVMKilled is one machine with bad luck: QEMU is killed during the pull,
// while the new deployment is staged, and while it is finalized. Each time the
// machine boots and the command can be repeated, until it runs release 2.
func TestVMKilled(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	if err := l.Testing.Publish(t.Context(), l.Images.Digest2); err != nil {
		t.Fatal(err)
	}
	m := newMachine(t, l, "killed")
	sh := boot(t, m)
	must(t, sh, "echo kept > /etc/local.conf; sync")

	t.Log("killed during the pull")
	relay := l.Testing.Relay
	before := relay.Sent()
	relay.SetRate(1 << 20)
	start(t, sh, upgrade)
	eventually(t, "2 MB of the layer were sent", lab.CommandLimit, func() bool { return relay.Sent()-before > 2<<20 })
	m.Off()
	relay.SetRate(0)
	sh = boot(t, m)
	s := look(t, sh)
	check(t, s.Check(osimage.Version1, l.Images.Digest1, "unfinished"))
	if s.Status.Status.Staged != nil {
		t.Errorf("after a kill during the pull something is staged: %+v", s.Status.Status.Staged)
	}

	t.Log("killed while the deployment is staged")
	start(t, sh, upgrade)
	if _, _, err := m.Console.Expect(t.Context(), lab.CommandLimit, `staging deployment`); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	m.Off()
	sh = boot(t, m)
	s = look(t, sh)
	if s.Status.Status.Staged == nil {
		check(t, s.Check(osimage.Version1, l.Images.Digest1, "unfinished"))
	} else { // a fast machine was done
		check(t, s.Check(osimage.Version1, l.Images.Digest1))
	}
	stage(t, l, sh)

	t.Log("killed at finalize")
	finalizing(t, m, sh)
	time.Sleep(500 * time.Millisecond)
	m.Off()
	sh = boot(t, m)
	s = look(t, sh)
	if s.Version == osimage.Version1 { // else finalize had come to the commit point
		check(t, s.Check(osimage.Version1, l.Images.Digest1))
		stage(t, l, sh)
		var err error
		if sh, err = m.Reboot(t.Context(), sh); err != nil {
			t.Fatal(err)
		}
		s = look(t, sh)
	}
	check(t, s.Check(osimage.Version2, l.Images.Digest2))
	if rb := s.Status.Status.Rollback; rb == nil || rb.Image.Digest != l.Images.Digest1 {
		t.Errorf("rollback is %+v, want release 1", rb)
	}
	if got := must(t, sh, "cat /etc/local.conf /etc/cfsboot-demo.conf"); got != "kept\nrelease 13.2\n" {
		t.Errorf("/etc after all that: %q", got)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func start(t *testing.T, sh *qemu.Shell, command string) {
	t.Helper()
	if err := sh.Start(command); err != nil {
		t.Fatal(err)
	}
}

// stage repeats the upgrade and checks that release 2 is staged.
func stage(t *testing.T, l *lab.Lab, sh *qemu.Shell) {
	t.Helper()
	must(t, sh, upgrade)
	if st := look(t, sh).Status.Status.Staged; st == nil || st.Image.Digest != l.Images.Digest2 {
		t.Fatalf("after the repeated upgrade staged is %+v, want release 2", st)
	}
}

// finalizing reboots the machine and returns when the finalize unit is being
// stopped, which is when it works.
func finalizing(t *testing.T, m *lab.Machine, sh *qemu.Shell) {
	t.Helper()
	// SIGRTMIN+20: systemd shows on the console what it does.
	start(t, sh, "kill -54 1; systemctl reboot")
	if _, _, err := m.Console.Expect(t.Context(), lab.CommandLimit, `Stopping cfsboot-finalize`); err != nil {
		t.Fatal(err)
	}
}
