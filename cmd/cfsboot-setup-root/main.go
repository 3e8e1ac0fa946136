// Command cfsboot-setup-root runs in the initramfs: it assembles the composefs root that the kernel command line names
// and puts it in the place of the physical root, from where systemd switches to it.
//
//	cfsboot-setup-root            assemble the root
//	cfsboot-setup-root --guard    exit 0 only if the root was assembled (asked before the switch)
//	cfsboot-setup-root --failed   the boot failed: say why, keep the log, reboot; exit 0 if a shell is to follow
//
// Exit status: 0 done, or nothing to do; 1 failure; 2 usage. Messages go to the kernel log and to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"

	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

const (
	name       = "cfsboot-setup-root"
	ownFile    = "/usr/lib/cfsboot/initramfs.toml"
	compatFile = "/usr/lib/composefs/setup-root-conf.toml"
	usage      = "usage: " + name + " [--guard | --failed]"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) (status int) {
	handler := &setuproot.KernelLog{Name: name, PID: os.Getpid(), Console: os.Stderr}
	if kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); err == nil {
		handler.Kmsg = kmsg
		defer kmsg.Close()
	}
	log := slog.New(handler)
	defer func() {
		if r := recover(); r != nil { // the last line of defence: a trace on the console helps nobody
			log.Error(fmt.Sprintf("internal error: %v", r))
			status = 1
		}
	}()
	var step func(context.Context, *slog.Logger, setuproot.Policy, string) error
	switch {
	case len(args) == 0:
		step = assemble
	case len(args) == 1 && args[0] == "--guard":
		step = func(context.Context, *slog.Logger, setuproot.Policy, string) error {
			return setuproot.Guard(setuproot.Options{})
		}
	case len(args) == 1 && args[0] == "--failed":
		step = failed
	default:
		fmt.Fprintln(os.Stderr, usage)
		return 2
	}
	ctx := context.Background()
	policy, err := readPolicy()
	if err != nil {
		err = &setuproot.Failure{Code: setuproot.CodeConfig, Err: err}
		if len(args) == 1 && args[0] == "--failed" {
			policy, err = setuproot.FallbackPolicy(), nil // the failure to be reported may be this one
		}
	}
	if err == nil {
		var cmdline []byte
		if cmdline, err = os.ReadFile("/proc/cmdline"); err == nil {
			err = step(ctx, log, policy, string(cmdline))
		}
	}
	if err != nil {
		setuproot.LogFailure(log, err)
		return 1
	}
	return 0
}

func assemble(ctx context.Context, log *slog.Logger, policy setuproot.Policy, cmdline string) error {
	booted, err := setuproot.Run(ctx, setuproot.Options{Cmdline: cmdline, Policy: policy, Modprobe: modprobe, Logger: log})
	if errors.Is(err, setuproot.ErrNotComposefs) {
		log.Warn("nothing to do: " + err.Error())
		return nil
	}
	if err != nil {
		return err
	}
	if !booted.Secure {
		log.Warn("INSECURE: " + booted.Karg + " allows files without fs-verity; they are not checked")
	}
	log.Info(fmt.Sprintf("root is composefs image %s, fs-verity %s, /etc %s, /var %s, %d ms", booted.Digest, map[bool]string{true: "enforced", false: "off"}[booted.Secure], booted.Etc, booted.Var, booted.DurationMS))
	return nil
}

func failed(ctx context.Context, log *slog.Logger, policy setuproot.Policy, cmdline string) error {
	err := setuproot.BootFailed(ctx, setuproot.FailedOptions{Cmdline: cmdline, Policy: policy, Logger: log})
	if errors.Is(err, setuproot.ErrShell) {
		log.Error(err.Error())
		return nil // the unit's success lets the shell start, its failure reboots
	}
	return err
}

// readPolicy reads the files of the initramfs. A missing file means defaults; anything else that is wrong with one is
// an error, because it may have been meant to be stricter.
func readPolicy() (setuproot.Policy, error) {
	var text [2][]byte
	for i, path := range []string{compatFile, ownFile} {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return setuproot.Policy{}, err
		}
		text[i] = b // not nil, though it may be empty
	}
	return setuproot.ParsePolicy(text[0], text[1])
}

// modprobe loads kernel modules; it is the only program that is started.
func modprobe(ctx context.Context, names ...string) error {
	return exec.CommandContext(ctx, "modprobe", append([]string{"-qa"}, names...)...).Run()
}
