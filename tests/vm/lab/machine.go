package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// Limits. Everything takes a tenth of it on an idle machine with two cores.
const (
	BootLimit    = 4 * time.Minute
	CommandLimit = 2 * time.Minute
)

// Machine is a computer with one disk and its firmware's variables, running or not.
type Machine struct {
	*qemu.Machine
	Disk string
	// SSHPort is a port on the host's loopback that leads to the machine's SSH server, from the next
	// start on. 0: none.
	SSHPort int

	lab  *Lab
	vars string
	log  *os.File
	name string
	boot int

	firmware bool // the running boot goes through firmware and loader
	cycled   bool // it was switched off and on because it said nothing: not a second time
}

// NewMachine makes a machine with a copy of a disk.
func (l *Lab) NewMachine(ctx context.Context, name, diskFile string) (*Machine, error) {
	base := filepath.Join(l.work, fmt.Sprintf("%s-%d", name, l.count.Add(1)))
	m := &Machine{lab: l, name: name, Disk: base + ".disk", vars: base + ".vars"}
	if err := l.qemu.NewVars(m.vars); err != nil {
		return nil, err
	}
	return m, qemu.CopyDisk(ctx, m.Disk, diskFile)
}

// fatal are lines after which a boot is lost; kernel or systemd say them.
var fatal = []string{`Kernel panic - not syncing`, `Oops: `, `You are in emergency mode`, `CFS-B\d+`, `BdsDxe: failed to load`}

// Start switches the machine on: firmware, boot loader, whatever it chooses.
func (m *Machine) Start(ctx context.Context) error {
	return m.start(ctx, qemu.Config{Vars: m.vars})
}

// StartKernel boots a kernel directly, without firmware and boot loader.
func (m *Machine) StartKernel(ctx context.Context, kernel, initrd, cmdline string) error {
	return m.start(ctx, qemu.Config{Kernel: kernel, Initrd: initrd, Append: cmdline})
}

func (m *Machine) start(ctx context.Context, c qemu.Config) error {
	m.boot++
	m.firmware = c.Vars != ""
	var err error
	if m.log, err = m.lab.Log(fmt.Sprintf("%s-boot-%d", m.name, m.boot)); err != nil {
		return err
	}
	c.Accel, c.Disks, c.Net, c.SSH, c.Log = m.lab.Accel, []string{m.Disk}, true, m.SSHPort, m.log
	m.Machine, err = m.lab.qemu.Start(ctx, c)
	return err
}

// Login waits until one can log in and does so. It fails at once when the boot
// is lost.
func (m *Machine) Login(ctx context.Context) (*qemu.Shell, error) {
	m.Console.Forbid(fatal...)
	if m.firmware {
		if err := m.menu(ctx); err != nil {
			return nil, err
		}
	}
	sh, err := m.Machine.Login(ctx, BootLimit, osimage.RootPassword)
	if m.firmware && mute(err) && !m.cycled {
		m.cycled = true
		fmt.Fprintf(os.Stderr, "lab: %s, boot %d: not a word between boot menu and login in %v; switched off and on, once\n", m.name, m.boot, BootLimit)
		m.Off()
		return m.Boot(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, boot %d: %w", m.name, m.boot, err)
	}
	// From here on programs may tell what happened in other boots.
	m.Console.Allow()
	m.Console.Forbid(`(?m)^\[ *\d+\.\d+\] Kernel panic - not syncing`)
	return sh, nil
}

// mute tells a machine that stopped before its kernel said anything: nothing but the
// boot menu's screen, which has no lines, is on the console. The emulation did so once
// in about a hundred boots. A kernel that fails, and systemd when it waits, print lines.
func mute(err error) bool {
	var ee *qemu.ExpectError
	return errors.As(err, &ee) && ee.Bad == "" && !errors.Is(err, qemu.ErrEnded) && !strings.Contains(strings.TrimSpace(ee.Last), "\n")
}

// menu waits for the boot menu. No key is pressed: any key ends its countdown, and one
// that is not understood would leave it waiting for ever.
// (257 says "Boot in 3 s.", 262 "Boot in 3s.")
func (m *Machine) menu(ctx context.Context) error {
	if _, _, err := m.Console.Expect(ctx, BootLimit, `Boot in \d+ ?s`); err != nil {
		return fmt.Errorf("%s, boot %d: %w", m.name, m.boot, err)
	}
	return nil
}

// Boot is Start and Login.
func (m *Machine) Boot(ctx context.Context) (*qemu.Shell, error) {
	if err := m.Start(ctx); err != nil {
		return nil, err
	}
	return m.Login(ctx)
}

// Reboot asks the running system for a reboot and logs in again: the machine's
// firmware, loader and disk are the same, QEMU keeps running.
func (m *Machine) Reboot(ctx context.Context, sh *qemu.Shell) (*qemu.Shell, error) {
	if err := sh.Start("systemctl reboot"); err != nil {
		return nil, err
	}
	return m.Rebooted(ctx)
}

// Rebooted logs in to a machine that is going to reboot by itself.
func (m *Machine) Rebooted(ctx context.Context) (*qemu.Shell, error) {
	m.boot++
	return m.Login(ctx)
}

// FallBack reboots into a release that fails: each of its tries has to print the
// pattern and to come back to the boot loader by itself. Then it logs in to what the
// loader chooses after the last try.
func (m *Machine) FallBack(ctx context.Context, sh *qemu.Shell, tries int, pattern string) (*qemu.Shell, error) {
	if err := sh.Start("systemctl reboot"); err != nil {
		return nil, err
	}
	for try := range tries {
		m.boot++
		m.Console.Allow()
		if err := m.menu(ctx); err != nil {
			return nil, err
		}
		if _, _, err := m.Console.Expect(ctx, BootLimit, pattern); err != nil {
			return nil, fmt.Errorf("%s, try %d of %d of a release that fails: %w", m.name, try+1, tries, err)
		}
	}
	m.boot++
	return m.Login(ctx)
}

// PowerOff shuts the system down and waits until the machine is off.
func (m *Machine) PowerOff(_ context.Context, sh *qemu.Shell) error {
	if err := sh.Start("systemctl poweroff"); err != nil {
		return err
	}
	return m.Wait(CommandLimit)
}

// Off kills the machine if it runs.
func (m *Machine) Off() {
	if m.Machine != nil {
		m.Kill()
		_ = m.log.Close() // for people; nothing depends on it
	}
}
