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

func TestUnitVerifies(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip("systemd-analyze is not installed")
	}
	path := filepath.Join(t.TempDir(), systemd.FinalizeUnit)
	// verify wants the program to exist
	text := strings.ReplaceAll(hostFile(t, systemd.FinalizeUnit), "/usr/bin/cfsboot", "/bin/true")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), tool, "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), systemd.FinalizeUnit) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
