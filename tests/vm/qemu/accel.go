package qemu

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/cpio"
)

// ProbeMessage is what the probe's guest prints.
const ProbeMessage = "cfsboot-lab: the guest runs"

// Accelerator returns "kvm" or "tcg". CFSBOOT_VM_ACCEL decides if it is set.
// Otherwise a small guest is started with KVM: /dev/kvm exists on machines on
// which ordinary guests hang or die. The answer is kept until the next boot of
// the host. kernel is any kernel with a serial console.
func (e Emulator) Accelerator(ctx context.Context, kernel string) (string, error) {
	if a := os.Getenv("CFSBOOT_VM_ACCEL"); a != "" {
		if a != "kvm" && a != "tcg" {
			return "", fmt.Errorf("CFSBOOT_VM_ACCEL is %q, want kvm or tcg", a)
		}
		return a, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	version, err := e.Version(ctx)
	if err != nil {
		return "", err
	}
	p, err := cache.Make("accel-"+cache.Key(string(boot), version), func(tmp string) error {
		answer := "tcg"
		if err := e.probe(ctx, kernel); err == nil {
			answer = "kvm"
		} else if ctx.Err() != nil {
			return ctx.Err()
		}
		return os.WriteFile(tmp, []byte(answer), 0o644)
	})
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(p)
	return strings.TrimSpace(string(b)), err
}

// probe boots the probe's guest with KVM.
func (e Emulator) probe(ctx context.Context, kernel string) error {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_ = kvm.Close()
	work, err := os.MkdirTemp("", "cfsboot-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	program := filepath.Join(work, "probe")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "github.com/cfsboot/cfsboot/tests/vm/qemu/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w: %s", err, out)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	w.Dir("dev", 0o755)
	w.CharDevice("dev/console", 0o600, 5, 1)
	w.File("init", 0o755, data)
	if err := w.Close(); err != nil {
		return err
	}
	initrd := filepath.Join(work, "initrd")
	if err := os.WriteFile(initrd, b.Bytes(), 0o600); err != nil {
		return err
	}
	m, err := e.Start(ctx, Config{Accel: "kvm", Memory: 512, CPUs: 1, Kernel: kernel, Initrd: initrd, Append: "console=ttyS0 panic=-1 quiet"})
	if err != nil {
		return err
	}
	_, _, err = m.Console.Expect(ctx, 10*time.Second, ProbeMessage)
	m.Kill()
	return err
}
