// Package qemu starts virtual machines for the tests: QEMU with or without
// firmware, its serial console, and programs run through a login on that console.
//
// A machine never needs hardware virtualization. Accelerator finds out by
// booting whether KVM works; the existence of /dev/kvm says nothing.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Config describes a machine. Either Kernel or Vars is needed.
type Config struct {
	Accel  string // "kvm" or "tcg"
	Memory int    // MiB; 1024 if 0
	CPUs   int    // 1 if 0: see args
	Vars   string // UEFI variables, a file of the machine's own (see Emulator.NewVars): boots through firmware
	Kernel string // boots this kernel without firmware
	Initrd string
	Append string   // kernel command line, only with Kernel
	Disks  []string // raw files: /dev/vda, /dev/vdb, ...
	Net    bool     // user-mode network; the host's loopback is 10.0.2.2
	SSH    int      // port on the host's loopback that leads to the guest's port 22; 0: none. Needs Net
	// Sync makes the guest's flushes reach the host's disk. Without it they reach the host's
	// page cache, which is enough when QEMU is killed, not when the host crashes.
	Sync bool
	Log  io.Writer // console with times; nil discards it
}

// Machine is a started virtual machine.
type Machine struct {
	Console *Console
	cmd     *exec.Cmd
	done    chan struct{}
	err     error
}

// Emulator is QEMU: its program, and the directory of the firmware's files.
type Emulator struct{ Program, Firmware string }

// In is the emulator below a directory that debian.Emulator has made.
func In(dir string) Emulator {
	return Emulator{Program: filepath.Join(dir, "bin/qemu-system-x86_64"), Firmware: filepath.Join(dir, "root/usr/share/OVMF")}
}

// NewVars makes a machine's own copy of the empty UEFI variables.
func (e Emulator) NewVars(path string) error {
	b, err := os.ReadFile(filepath.Join(e.Firmware, "OVMF_VARS_4M.fd"))
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// Start starts a machine. It ends with ctx, by itself, or by Kill; Wait has to
// be called.
func (e Emulator) Start(ctx context.Context, c Config) (*Machine, error) {
	cmd := exec.CommandContext(ctx, e.Program, e.args(c)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		_, _ = r.Close(), w.Close()
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	_ = w.Close()
	if c.Log == nil {
		c.Log = io.Discard
	}
	m := &Machine{cmd: cmd, done: make(chan struct{}), Console: newConsole(r, stdin, c.Log)}
	go func() {
		m.err = cmd.Wait()
		close(m.done)
	}()
	return m, nil
}

func (e Emulator) args(c Config) []string {
	if c.Memory == 0 {
		c.Memory = 1024
	}
	// One CPU: with two, QEMU 7.2's emulation sometimes lets one run into the breakpoint that the
	// kernel has on the other just taken back while it patches its own code ("Oops: int3"), and
	// the two emulating threads cost a boot 40 percent more CPU time.
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	// Nehalem: with AVX, glibc and the kernel choose code that the emulation is slow at (a boot costs half as much again).
	accel, cpu := "tcg,thread=multi", "Nehalem"
	if c.Accel == "kvm" {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-M", "q35,sata=off,smbus=off", "-accel", accel, "-cpu", cpu, "-smp", fmt.Sprint(c.CPUs), "-m", fmt.Sprint(c.Memory),
		"-display", "none", "-monitor", "none", "-serial", "stdio", "-device", "virtio-rng-pci",
	}
	if c.Vars != "" {
		args = append(args, "-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+filepath.Join(e.Firmware, "OVMF_CODE_4M.fd"), "-drive", "if=pflash,format=raw,unit=1,file="+c.Vars)
	}
	if c.Kernel != "" {
		args = append(args, "-kernel", c.Kernel, "-initrd", c.Initrd, "-append", c.Append, "-no-reboot")
	}
	cache := "unsafe"
	if c.Sync {
		cache = "writeback"
	}
	for i, d := range c.Disks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=d%d,format=raw,cache=%s,file=%s", i, cache, d), "-device", fmt.Sprintf("virtio-blk-pci,drive=d%d,bootindex=%d", i, i+1))
	}
	if c.Net {
		netdev := "user,id=n"
		if c.SSH != 0 {
			netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:22", c.SSH)
		}
		args = append(args, "-netdev", netdev, "-device", "virtio-net-pci,netdev=n,romfile=")
	}
	return args
}

// Wait waits until the machine is gone, at most limit; then it is killed and an
// error returned. An error is also what QEMU itself failed with.
func (m *Machine) Wait(limit time.Duration) error {
	select {
	case <-m.done:
		return m.err
	case <-time.After(limit):
		m.Kill()
		return fmt.Errorf("the machine did not end within %v; last output:\n%s", limit, m.Console.tail())
	}
}

// Kill ends the machine as a power cut does (what the guest wrote is in the
// host's page cache) and waits for it.
func (m *Machine) Kill() {
	_ = syscall.Kill(-m.cmd.Process.Pid, syscall.SIGKILL)
	<-m.done
}

// CopyDisk copies a disk file, keeping holes.
func CopyDisk(ctx context.Context, dst, src string) error {
	out, err := exec.CommandContext(ctx, "cp", "--sparse=always", "--reflink=auto", src, dst).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy disk %s: %w: %s", filepath.Base(src), err, out)
	}
	return nil
}

// Version returns the first line of QEMU's version text.
func (e Emulator) Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, e.Program, "--version").Output()
	if err != nil {
		return "", err
	}
	for i, b := range out {
		if b == '\n' {
			return string(out[:i]), nil
		}
	}
	return "", errors.New("qemu printed no version")
}
