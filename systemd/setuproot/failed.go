package setuproot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// FailedOptions are the environment of BootFailed.
type FailedOptions struct {
	Sysroot string // physical root, where the log is kept; default "/sysroot"
	BootID  string // name of the log; default from /proc
	Cmdline string // the kernel's command line
	Policy  Policy
	Logger  *slog.Logger                               // nil: discard
	Vars    Vars                                       // the boot loader's; default those of efivarfs
	Now     func() time.Time                           // written into the record; default the clock
	KmsgLog func() ([]byte, error)                     // the kernel log; default /dev/kmsg
	End     func(Action) error                         // reboots or powers off; default reboot(2)
	Wait    func(context.Context, time.Duration) error // default: sleep
}

// ErrShell is returned by BootFailed when an emergency shell is to follow.
var ErrShell = errors.New("boot failed: emergency shell")

// setDefaults fills in what the options leave out.
func (o *FailedOptions) setDefaults() {
	if o.Sysroot == "" {
		o.Sysroot = "/sysroot"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Vars == nil {
		o.Vars = loaderVars()
	}
	if o.Now == nil {
		o.Now = now
	}
	if o.KmsgLog == nil {
		o.KmsgLog = readKmsg
	}
	if o.End == nil {
		o.End = endBoot
	}
	if o.Wait == nil {
		o.Wait = sleep
	}
	if o.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			o.Logger.Warn("read the boot ID: " + err.Error())
		}
		o.BootID = strings.TrimSpace(string(id))
	}
}

// BootFailed is what happens instead of the switch to the new root: it repeats the reason on the console, keeps a record
// and the end of the kernel log on the physical root if that is writable, tells the loader what to start instead if the
// loader would start the same entry for ever, waits, and reboots. It returns ErrShell if policy or an unsealed command
// line ask for a shell, and otherwise only if the machine does not go down. Formats and rules: docs/design/boot-failure.md.
func BootFailed(ctx context.Context, o FailedOptions) error {
	o.setDefaults()
	text, err := o.KmsgLog()
	if err != nil {
		o.Logger.Warn("read the kernel log: " + err.Error())
	}
	f := failureRecord(o, text)
	o.Logger.Error("this boot failed: " + f.Reason)
	action := o.Policy.Failure
	if !o.Policy.Sealed && wantsShell(bls.ParseCmdline(o.Cmdline)) {
		action = ActionShell
	}
	if root, err := openPlace(o.Sysroot); err != nil {
		o.Logger.Warn("keep the log of this boot: " + err.Error())
	} else {
		f, err = remember(root, o, f, text, action)
		_ = root.Close() // every file was synced
		if err != nil {
			o.Logger.Warn("keep the log of this boot: " + strings.ReplaceAll(err.Error(), "\n", "; "))
		} else {
			o.Logger.Info("the log of this boot is kept in " + record.BootFailureDir + "/" + f.Name() + ".log")
		}
		if action == ActionReboot && f.Action == string(ActionPowerOff) {
			o.Logger.Error(fmt.Sprintf("deployment %.12s failed more than %d times in a row", f.Deployment, maxStreak))
			action = ActionPowerOff
		}
	}
	if action == ActionShell {
		return ErrShell
	}
	o.Logger.Error(fmt.Sprintf("%s in %s", action, o.Policy.FailureTimeout))
	if err := o.Wait(ctx, o.Policy.FailureTimeout); err != nil {
		return err
	}
	return o.End(action)
}

// wantsShell recognises the parameters with which a person asks for a shell in an initramfs that is not sealed.
func wantsShell(c bls.Cmdline) bool {
	for _, key := range []string{"rd.shell", "rd.break"} {
		if v, ok := c.Lookup(key); ok && v != "0" && v != "no" {
			return true
		}
	}
	return false
}

// lastFailure finds the newest line of Run in records of /dev/kmsg.
func lastFailure(text []byte) string {
	last := ""
	for line := range strings.Lines(string(text)) {
		_, msg, ok := strings.Cut(line, ";")
		if i := strings.Index(msg, ": CFS-B"); ok && i >= 0 && !strings.Contains(msg, "this boot failed") {
			last = strings.TrimSpace(msg[i+2:])
		}
	}
	return last
}

// readKmsg returns all records of the kernel log, as /dev/kmsg gives them.
func readKmsg() ([]byte, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/dev/kmsg", Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // read only
	var out bytes.Buffer
	buf := make([]byte, 8192)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN), err == nil && n == 0:
			return out.Bytes(), nil
		case err != nil:
			return out.Bytes(), &os.PathError{Op: "read", Path: "/dev/kmsg", Err: err}
		default:
			out.Write(buf[:n])
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// endBoot writes everything back and leaves. No other program is needed for it: an initramfs may lack them.
func endBoot(a Action) error {
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_RESTART
	if a == ActionPowerOff {
		cmd = unix.LINUX_REBOOT_CMD_POWER_OFF
	}
	if err := unix.Reboot(cmd); err != nil {
		return fmt.Errorf("%s: %w", a, err)
	}
	return nil
}
