package setuproot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

const kmsg = `6,1,100,-;Linux version
3,2,200,-;cfsboot-setup-root[12]: CFS-B04: an older line
3,3,300,-;cfsboot-setup-root[13]: CFS-B05: kernel parameter composefs.digest=v1: image differs
 SUBSYSTEM=test
4,4,400,-;cfsboot-setup-root[13]:   a note
`

// failedRun runs BootFailed with everything recorded.
func failedRun(t *testing.T, o setuproot.FailedOptions) (log string, action setuproot.Action, waited time.Duration, err error) {
	t.Helper()
	var b bytes.Buffer
	o.Logger = slog.New(&setuproot.KernelLog{Name: "x", Console: &b})
	o.KmsgLog = func() ([]byte, error) { return []byte(kmsg), nil }
	o.End = func(a setuproot.Action) error { action = a; return nil }
	o.Wait = func(_ context.Context, d time.Duration) error { waited = d; return nil }
	if o.Sysroot == "" {
		o.Sysroot = t.TempDir()
	}
	if o.Vars == nil {
		o.Vars = fakeVars{}
	}
	err = setuproot.BootFailed(t.Context(), o)
	return b.String(), action, waited, err
}

func TestBootFailed(t *testing.T) {
	policy := setuproot.DefaultPolicy()
	shell, off, sealed := policy, policy, policy
	shell.Failure, off.Failure, sealed.Sealed = setuproot.ActionShell, setuproot.ActionPowerOff, true
	for _, c := range []struct {
		name    string
		policy  setuproot.Policy
		cmdline string
		want    setuproot.Action
		err     error
	}{
		{"default", policy, "quiet", setuproot.ActionReboot, nil},
		{"power off", off, "", setuproot.ActionPowerOff, nil},
		{"shell by policy", shell, "", "", setuproot.ErrShell},
		{"shell by a person", policy, "rd.shell", "", setuproot.ErrShell},
		{"no shell by a person", policy, "rd.shell=0", setuproot.ActionReboot, nil},
		{"shell where the policy is unreadable", setuproot.FallbackPolicy(), "rd.shell", setuproot.ActionReboot, nil},
		{"shell on a sealed machine", sealed, "rd.shell rd.break", setuproot.ActionReboot, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, action, waited, err := failedRun(t, setuproot.FailedOptions{Policy: c.policy, Cmdline: c.cmdline})
			if !errors.Is(err, c.err) || action != c.want {
				t.Errorf("action %q, %v; want %q, %v", action, err, c.want, c.err)
			}
			if action != "" && waited != 15*time.Second {
				t.Errorf("waited %v, want 15s", waited)
			}
			if !strings.Contains(log, "this boot failed: CFS-B05: kernel parameter composefs.digest=v1: image differs\n") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// bootIDs makes boot IDs.
const bootIDs = "01234567-89ab-4cde-8f01-2345678900%02d"

// TestRootBootFailedKeepsLogs: logs are kept on the physical root, the oldest of more than 20 goes.
func TestRootBootFailedKeepsLogs(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	dir := m.path("state/boot-failures")
	for i := range 25 {
		log, _, _, err := failedRun(t, setuproot.FailedOptions{Sysroot: m.sysroot, BootID: fmt.Sprintf(bootIDs, i), Policy: setuproot.DefaultPolicy()})
		must(t, err)
		if !strings.Contains(log, "is kept in state/boot-failures/01234567-") {
			t.Fatalf("log: %s", log)
		}
		stamp := time.Unix(1700000000+int64(i), 0)
		must(t, os.Chtimes(filepath.Join(dir, fmt.Sprintf(bootIDs+".log", i)), stamp, stamp))
		must(t, os.Chtimes(filepath.Join(dir, fmt.Sprintf(bootIDs+".json", i)), stamp, stamp))
	}
	records, err := filepath.Glob(dir + "/*.json")
	must(t, err)
	logs, err := filepath.Glob(dir + "/*.log")
	must(t, err)
	if len(records) != 20 || len(logs) != 20 || filepath.Base(logs[0]) != fmt.Sprintf(bootIDs+".log", 5) || readFile(t, logs[0]) != kmsg {
		t.Errorf("%d logs, first %q", len(logs), logs[0])
	}
	m.unmount()
	log, action, _, err := failedRun(t, setuproot.FailedOptions{Sysroot: m.sysroot, BootID: "x", Policy: setuproot.DefaultPolicy()})
	if err != nil || action != setuproot.ActionReboot || !strings.Contains(log, "nothing is mounted there") {
		t.Errorf("without a physical root: %q, %v, log %s", action, err, log)
	}
	if entries, err := os.ReadDir(m.sysroot); err != nil || len(entries) != 0 {
		t.Errorf("the mount point holds %v, %v", entries, err)
	}
	m.mount("ro")
	if _, action, _, err := failedRun(t, setuproot.FailedOptions{Sysroot: m.sysroot, BootID: "y", Policy: setuproot.DefaultPolicy()}); err != nil || action != setuproot.ActionReboot {
		t.Errorf("read-only physical root: %q, %v", action, err)
	}
}

func TestKernelLog(t *testing.T) {
	var kernel, console bytes.Buffer
	log := slog.New(&setuproot.KernelLog{Name: "prog", PID: 7, Kmsg: &kernel, Console: &console}).With("boot", 1)
	log.Debug("not shown")
	log.Info("hello", "n", 2)
	log.Warn("two\nlines")
	log.Error(strings.Repeat("ä", 1000))
	lines := strings.Split(kernel.String(), "\n")
	if lines[0] != "<6>prog[7]: hello boot=1 n=2" || lines[1] != "<4>prog[7]: two" || !strings.HasPrefix(lines[3], "<3>prog[7]: ää") {
		t.Errorf("kernel log:\n%s", kernel.String())
	}
	for _, l := range lines {
		if len(l) > 976 || !strings.HasPrefix(l+"<", "<") {
			t.Errorf("line of %d bytes: %.80s", len(l), l)
		}
	}
	if got := strings.Split(console.String(), "\n")[0]; got != "prog: hello boot=1 n=2" {
		t.Errorf("console: %q", got)
	}
}

func TestLogFailure(t *testing.T) {
	var b bytes.Buffer
	setuproot.LogFailure(slog.New(&setuproot.KernelLog{Name: "p", Console: &b}), &setuproot.Failure{
		Code: setuproot.CodeDigest, Param: "composefs.digest=x", Path: "/sysroot/composefs/images/x", Want: "sha512:a", Got: "sha512:b",
		Err: unix.EIO, Notes: []string{"one", "two"},
	})
	want := "p: CFS-B05: kernel parameter composefs.digest=x: /sysroot/composefs/images/x: fs-verity digest expected sha512:a, found sha512:b: input/output error\np:   one\np:   two\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// TestAsFailure: what went wrong while cleaning up is a note of the failure, and only that is.
func TestAsFailure(t *testing.T) {
	want := &setuproot.Failure{Code: setuproot.CodeDigest, Err: unix.EIO}
	for _, c := range []struct {
		name  string
		err   error
		notes string
	}{
		{"alone", want, ""},
		{"cleaned up", errors.Join(want, nil), ""},
		{"twice", errors.Join(errors.Join(want, nil), nil), ""},
		{"not cleaned up", errors.Join(want, errors.Join(unix.EBUSY, unix.EPERM)), "while cleaning up: device or resource busy; operation not permitted"},
	} {
		want.Notes = nil
		var got *setuproot.Failure
		if !errors.As(setuproot.AsFailure(c.err), &got) || got != want || strings.Join(want.Notes, "|") != c.notes {
			t.Errorf("%s: got %v, notes %q, want notes %q", c.name, got, want.Notes, c.notes)
		}
	}
	var f *setuproot.Failure
	if got := setuproot.AsFailure(unix.EIO); !errors.As(got, &f) || f.Code != setuproot.CodePlace {
		t.Errorf("another error: %v", got)
	}
}

// TestCodes: what the kernel says decides about the code. The codes that a disk can cause have TestRoot… tests.
func TestCodes(t *testing.T) {
	refused := func(errno error) error { return &mnt.Error{Op: "mount", Err: errno} }
	noType := &mnt.FeatureError{Feature: "file system type erofs", Err: refused(unix.ENODEV)}
	noFile := &mnt.FeatureError{Feature: "EROFS on a regular file", Err: refused(unix.ENOTBLK)}
	for _, c := range []struct{ got, want setuproot.Code }{
		{setuproot.MountCode(noType), setuproot.CodeNoModule},
		{setuproot.MountCode(noFile), setuproot.CodeMount},
		{setuproot.MountCode(refused(unix.EINVAL)), setuproot.CodeMount},
		{setuproot.MountCode(refused(unix.EIO)), setuproot.CodeDigest},
		{setuproot.StateCode(refused(unix.EROFS)), setuproot.CodeReadOnly},
		{setuproot.StateCode(&os.PathError{Op: "mkdir", Err: unix.ENOSPC}), setuproot.CodeReadOnly},
		{setuproot.StateCode(unix.EDQUOT), setuproot.CodeReadOnly},
		{setuproot.StateCode(refused(unix.EBUSY)), setuproot.CodeBusy},
		{setuproot.StateCode(refused(unix.EINVAL)), setuproot.CodeMount},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestHasFilesystem(t *testing.T) {
	text := "nodev\tsysfs\nnodev\toverlay\n\text4\n\terofs\n"
	for name, want := range map[string]bool{"overlay": true, "erofs": true, "ext4": true, "ext": false, "nodev": false, "btrfs": false} {
		if got := setuproot.HasFilesystem(text, name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// TestNotRootNotInitramfs: the program refuses to touch the mounts of a running machine.
func TestNotInInitramfs(t *testing.T) {
	var st unix.Statfs_t
	must(t, unix.Statfs("/", &st))
	if st.Type == unix.RAMFS_MAGIC || st.Type == unix.TMPFS_MAGIC {
		t.Skip("the root of this machine is in memory")
	}
	_, err := setuproot.Run(t.Context(), setuproot.Options{Cmdline: "quiet", Policy: setuproot.DefaultPolicy(), RunDir: t.TempDir()})
	var f *setuproot.Failure
	if !errors.As(err, &f) || f.Code != setuproot.CodePlace {
		t.Errorf("got %v, want %s", err, setuproot.CodePlace)
	}
}

// TestGuardWithoutRecord: the guard refuses where nothing was assembled, and passes where a policy said that there is
// nothing to assemble.
func TestGuardWithoutRecord(t *testing.T) {
	o := setuproot.Options{Sysroot: t.TempDir(), RunDir: t.TempDir()}
	var f *setuproot.Failure
	if err := setuproot.Guard(o); !errors.As(err, &f) || f.Code != setuproot.CodeSysroot {
		t.Errorf("empty run directory: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(o.RunDir, "booted.json"), []byte("{}"), 0o644))
	must(t, os.WriteFile(filepath.Join(o.RunDir, setuproot.NotComposefs), nil, 0o644))
	if err := setuproot.Guard(o); !errors.As(err, &f) || f.Code != setuproot.CodePlace {
		t.Errorf("broken record: %v", err)
	}
	must(t, os.Remove(filepath.Join(o.RunDir, "booted.json")))
	if err := setuproot.Guard(o); err != nil {
		t.Errorf("not a composefs machine: %v", err)
	}
}
