package setuproot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// FailedOptions are the environment of BootFailed.
type FailedOptions struct {
	Sysroot string // physical root, where the log is kept; default "/sysroot"
	BootID  string // name of the log; default from /proc
	Cmdline string // the kernel's command line
	Policy  Policy
	Logger  *slog.Logger                               // nil: discard
	KmsgLog func() ([]byte, error)                     // the kernel log; default /dev/kmsg
	End     func(Action) error                         // reboots or powers off; default reboot(2)
	Wait    func(context.Context, time.Duration) error // default: sleep
}

// ErrShell is returned by BootFailed when an emergency shell is to follow.
var ErrShell = errors.New("boot failed: emergency shell")

const (
	failureDir   = "state/boot-failures"
	keepFailures = 20
	maxFailure   = 64 << 10 // bytes of the kernel log that are kept
)

// BootFailed is what happens instead of the switch to the new root: it repeats the reason on the console, keeps the
// end of the kernel log on the physical root if that is writable, waits, and reboots, so that boot counting comes to
// another entry. It returns ErrShell if policy or an unsealed command line ask for a shell, and otherwise only if the
// machine does not go down.
func BootFailed(ctx context.Context, o FailedOptions) error {
	if o.Sysroot == "" {
		o.Sysroot = "/sysroot"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
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
	text, err := o.KmsgLog()
	if err != nil {
		o.Logger.Warn("read the kernel log: " + err.Error())
	}
	if reason := lastFailure(text); reason != "" {
		o.Logger.Error("this boot failed: " + reason)
	} else {
		o.Logger.Error("this boot failed: the initramfs did not reach a root file system; the reason is in the messages above")
	}
	if name, err := keepLog(o, text); err != nil {
		o.Logger.Warn("keep the log of this boot: " + err.Error())
	} else {
		o.Logger.Info("the log of this boot is kept in " + name)
	}
	action := o.Policy.Failure
	if !o.Policy.Sealed && wantsShell(bls.ParseCmdline(o.Cmdline)) {
		action = ActionShell
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

// keepLog writes the end of the kernel log below the physical root and removes all but the newest logs. It does so
// only on a file system that holds our state.
func keepLog(o FailedOptions, text []byte) (string, error) {
	sysroot, err := durable.OpenDir(o.Sysroot)
	if err != nil {
		return "", err
	}
	defer sysroot.Close() //nolint:errcheck // a directory descriptor
	f, err := os.Open(o.Sysroot)
	if err != nil {
		return "", err
	}
	mounted, err := mnt.IsRoot(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if !mounted {
		return "", fmt.Errorf("%s: nothing is mounted there", o.Sysroot)
	}
	state, err := sysroot.Sub("state")
	if err != nil {
		return "", err
	}
	defer state.Close() //nolint:errcheck // a directory descriptor
	dir, err := state.MkdirAll("boot-failures", 0o755)
	if err != nil {
		return "", err
	}
	defer dir.Close() //nolint:errcheck // a directory descriptor
	if o.BootID == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return "", err
		}
		o.BootID = strings.TrimSpace(string(id))
	}
	if err := forgetOld(dir); err != nil {
		return "", err
	}
	if len(text) > maxFailure {
		text = text[len(text)-maxFailure:]
	}
	name := o.BootID + ".log"
	return failureDir + "/" + name, dir.WriteFile(name, text, 0o600)
}

// forgetOld makes room for one log more.
func forgetOld(dir *durable.Dir) error {
	entries, err := dir.ReadDir()
	if err != nil {
		return err
	}
	type old struct {
		name string
		sec  int64
		nsec int64
	}
	var logs []old
	for _, e := range entries {
		if !e.IsRegular() || !strings.HasSuffix(e.Name, ".log") {
			continue
		}
		st, err := dir.Lstat(e.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		logs = append(logs, old{e.Name, st.Mtim.Sec, st.Mtim.Nsec})
	}
	slices.SortFunc(logs, func(a, b old) int {
		if a.sec != b.sec {
			return int(max(-1, min(1, a.sec-b.sec)))
		}
		return int(max(-1, min(1, a.nsec-b.nsec)))
	})
	for len(logs) >= keepFailures {
		if err := dir.Remove(logs[0].name); err != nil {
			return err
		}
		logs = logs[1:]
	}
	return nil
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
