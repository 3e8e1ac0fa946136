package systemd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/systemd"
)

type fakeRunner struct {
	calls []string
	err   error
}

func (f *fakeRunner) Systemctl(_ context.Context, args ...string) error {
	f.calls = append(f.calls, strings.Join(args, " "))
	return f.err
}

func TestStartFinalize(t *testing.T) {
	r := &fakeRunner{}
	if err := systemd.StartFinalize(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if len(r.calls) != 1 || r.calls[0] != "start cfsboot-finalize.service" {
		t.Errorf("calls %q", r.calls)
	}
	cause := errors.New("no bus")
	r.err = cause
	if err := systemd.StartFinalize(t.Context(), r); !errors.Is(err, systemd.ErrNoFinalize) || !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// hostFile reads a file that the Containerfile copies into an image.
func hostFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("host", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestHostFiles: the work is done when the unit stops, after all services that
// write to /etc, and only on a machine that cfsboot has booted.
func TestHostFiles(t *testing.T) {
	unit := hostFile(t, systemd.FinalizeUnit)
	for _, want := range []string{
		"\nExecStop=/usr/bin/cfsboot finalize\n", "\nRemainAfterExit=yes\n", "\nBefore=basic.target shutdown.target\n",
		"\nConflicts=shutdown.target\n", "\nDefaultDependencies=no\n", "\nConditionPathExists=/run/cfsboot/booted.json\n",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("%s has no line %q", systemd.FinalizeUnit, strings.TrimSpace(want))
		}
	}
	if preset := hostFile(t, "80-cfsboot.preset"); !strings.Contains(preset, "disable systemd-boot-update.service") {
		t.Errorf("preset %q", preset)
	}
}

// TestBootCompleteFiles: a boot that does not become complete in time, or lacks what it requires, ends in our unit, and
// that ends in a reboot, also where the program fails and in emergency mode.
func TestBootCompleteFiles(t *testing.T) {
	for file, lines := range map[string][]string{
		"boot-complete.target.d/10-cfsboot.conf": {"[Unit]", "After=multi-user.target", "JobTimeoutSec=15min", "OnFailure=" + systemd.BootIncompleteUnit},
		systemd.BootIncompleteUnit: {
			"DefaultDependencies=no", "FailureAction=reboot-force", "ExecStart=/usr/bin/cfsboot record-failure", "TimeoutStartSec=2min",
			"ConditionPathExists=/run/cfsboot/booted.json", "Type=oneshot",
		},
		"cfsboot-boot-review.service": {"ExecStart=-/usr/bin/cfsboot review-boots", "WantedBy=multi-user.target", "ConditionPathExists=/run/cfsboot/booted.json", "Type=simple"},
		"80-cfsboot.preset":           {"enable cfsboot-boot-review.service"},
	} {
		text := "\n" + hostFile(t, file)
		for _, line := range lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s has no line %q", file, line)
			}
		}
	}
	if strings.Contains(hostFile(t, systemd.BootIncompleteUnit), "\nConflicts=") {
		t.Error("the reboot that the unit asks for would end it")
	}
	files, err := systemd.InitramfsFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Path, "watchdog.conf") {
			if f.Path != "/usr/lib/systemd/system.conf.d/10-cfsboot-watchdog.conf" || !strings.Contains(string(f.Data), "\n[Manager]\nRuntimeWatchdogSec=1min\n") {
				t.Errorf("watchdog in the initramfs: %s\n%s", f.Path, f.Data)
			}
			return
		}
	}
	t.Error("no watchdog in the initramfs")
}

func TestOracleHostUnits(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip("systemd-analyze is not installed")
	}
	dir := t.TempDir()
	paths := []string{filepath.Join(dir, "boot-complete.target")}
	files := map[string]string{"boot-complete.target": "[Unit]\nDescription=stand-in\nRequires=sysinit.target\nAfter=sysinit.target\n" + hostFile(t, "boot-complete.target.d/10-cfsboot.conf")}
	list, err := os.ReadDir("host")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range list {
		if strings.HasSuffix(x.Name(), ".service") {
			// verify wants the program to exist
			files[x.Name()] = strings.NewReplacer("/usr/bin/cfsboot", "/bin/true", "/usr/lib/cfsboot/grow-root", "/bin/true").Replace(hostFile(t, x.Name()))
			paths = append(paths, filepath.Join(dir, x.Name()))
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), tool, append([]string{"verify", "--man=no"}, paths...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "cfsboot") || strings.Contains(string(out), "boot-complete") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
