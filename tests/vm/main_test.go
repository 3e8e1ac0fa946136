package vm_test

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// shared is the lab of all scenarios, opened by the first one that needs it.
var shared struct {
	once sync.Once
	lab  *lab.Lab
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.lab != nil {
		if err := shared.lab.Close(); err != nil && code == 0 {
			println("close the lab:", err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

func openLab(t *testing.T) *lab.Lab {
	t.Helper()
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("starts virtual machines: CFSBOOT_VM_TESTS is not 1")
	}
	shared.once.Do(func() { shared.lab, shared.err = lab.Open(context.Background(), t.Logf) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.lab
}

// newMachine returns a machine on which release 1 is installed and was never booted.
func newMachine(t *testing.T, l *lab.Lab, name string) *lab.Machine {
	t.Helper()
	golden, err := l.Golden()
	if err != nil {
		t.Fatal(err)
	}
	return machine(t, l, name, golden)
}

// installed returns a machine of a disk of its own, never booted.
func installed(t *testing.T, l *lab.Lab, name string, follow *lab.Channel, s lab.Setup) *lab.Machine {
	t.Helper()
	disk, err := l.Install(t.Context(), follow, s)
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(disk)
	return machine(t, l, name, disk)
}

func machine(t *testing.T, l *lab.Lab, name, disk string) *lab.Machine {
	t.Helper()
	m, err := l.NewMachine(t.Context(), name, disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Off()
		_ = os.Remove(m.Disk) // the whole directory goes at the end
	})
	return m
}

func boot(t *testing.T, m *lab.Machine) *qemu.Shell {
	t.Helper()
	sh, err := m.Boot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return sh
}

func look(t *testing.T, sh *qemu.Shell) lab.State {
	t.Helper()
	s, err := lab.Look(t.Context(), sh)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// must runs a command that has to succeed and returns its output.
func must(t *testing.T, sh *qemu.Shell, command string) string {
	t.Helper()
	out, err := sh.Must(t.Context(), lab.CommandLimit, command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// made builds the release of a recipe.
func made(t *testing.T, l *lab.Lab, recipe osimage.Recipe) osimage.Release {
	t.Helper()
	r, err := l.Make(t.Context(), recipe)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, limit time.Duration, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}
