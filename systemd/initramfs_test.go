package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/systemd"
)

// unitFile returns the assignments of a unit or drop-in of the initramfs, as "Key=value" by section.
func unitFile(t *testing.T, path string) map[string][]string {
	t.Helper()
	files, err := systemd.InitramfsFiles()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Path != "/usr/lib/systemd/system/"+path {
			continue
		}
		out := map[string][]string{}
		section := ""
		for line := range strings.Lines(string(f.Data)) {
			line = strings.TrimSpace(line)
			switch {
			case line == "" || line[0] == '#':
			case line[0] == '[':
				section = strings.Trim(line, "[]")
			default:
				out[section] = append(out[section], line)
			}
		}
		return out
	}
	t.Fatalf("no file %s", path)
	return nil
}

// TestP3NoCondition: the unit does not depend on how the parameter is spelled. A skipped unit would end in the bare
// physical root, so it has no condition at all: the program decides.
func TestP3NoCondition(t *testing.T) {
	u := unitFile(t, systemd.SetupRootUnit)
	for _, section := range u {
		for _, line := range section {
			if strings.HasPrefix(line, "Condition") {
				t.Errorf("%s: a unit whose condition fails is skipped, which is no failure", line)
			}
		}
	}
	if !slices.Contains(u["Service"], "ExecStart="+systemd.SetupRootProgram) {
		t.Errorf("[Service] %q", u["Service"])
	}
}

// TestP10Required: initrd-root-fs.target requires the unit, its failure leads to a reboot, and the switch to the new
// root asks once more.
func TestP10Required(t *testing.T) {
	u := unitFile(t, systemd.SetupRootUnit)
	for section, want := range map[string][]string{
		"Install": {"RequiredBy=initrd-root-fs.target"},
		"Unit": {
			"Requires=sysroot.mount", "OnFailure=cfsboot-boot-failed.service emergency.target", "OnFailureJobMode=replace-irreversibly",
			"Before=initrd-root-fs.target initrd-parse-etc.service initrd-switch-root.target", "AssertPathExists=/etc/initrd-release", "DefaultDependencies=no",
		},
		"Service": {"Type=oneshot", "RemainAfterExit=yes"},
	} {
		for _, line := range want {
			if !slices.Contains(u[section], line) {
				t.Errorf("[%s] lacks %s", section, line)
			}
		}
	}
	for file, line := range map[string]string{
		"initrd-switch-root.service.d/10-cfsboot.conf": "ExecStartPre=" + systemd.SetupRootProgram + " --guard",
		"initrd-root-fs.target.d/10-cfsboot.conf":      "OnFailure=cfsboot-boot-failed.service",
		"emergency.target.d/10-cfsboot.conf":           "Wants=cfsboot-boot-failed.service",
		"emergency.service.d/10-cfsboot.conf":          "After=cfsboot-boot-failed.service",
	} {
		found := false
		for _, section := range unitFile(t, file) {
			found = found || slices.Contains(section, line)
		}
		if !found {
			t.Errorf("%s lacks %s", file, line)
		}
	}
	wantLink(t, "initrd-root-fs.target.requires/cfsboot-setup-root.service", "../cfsboot-setup-root.service")
}

func wantLink(t *testing.T, path, target string) {
	t.Helper()
	files, err := systemd.InitramfsFiles()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(files, func(f systemd.InitramfsFile) bool {
		return f.Path == "/usr/lib/systemd/system/"+path && f.Link == target
	}) {
		t.Errorf("the link %s to %s is missing", path, target)
	}
}

// TestMaskedUnit: systemd drops initrd-root-fs.target and all that requires it if the unit that it requires is masked. A
// unit that hangs on none of them asks whether a root was assembled, and its failure ends the boot.
func TestMaskedUnit(t *testing.T) {
	wantLink(t, "initrd.target.wants/cfsboot-boot-check.service", "../cfsboot-boot-check.service")
	u := unitFile(t, "cfsboot-boot-check.service")
	for section, want := range map[string][]string{
		"Unit": {
			"DefaultDependencies=no", "After=initrd-root-fs.target cfsboot-setup-root.service", "Before=initrd.target",
			"OnFailure=cfsboot-boot-failed.service emergency.target", "OnFailureJobMode=replace-irreversibly",
			"Conflicts=cfsboot-boot-failed.service emergency.target shutdown.target",
		},
		"Service": {"Type=oneshot", "ExecStart=" + systemd.SetupRootProgram + " --guard"},
	} {
		for _, line := range want {
			if !slices.Contains(u[section], line) {
				t.Errorf("[%s] lacks %s", section, line)
			}
		}
	}
	for _, section := range u {
		for _, line := range section {
			if key, value, _ := strings.Cut(line, "="); strings.HasPrefix(key, "Condition") ||
				slices.Contains([]string{"Requires", "Requisite", "BindsTo", "PartOf"}, key) {
				t.Errorf("%s=%s: the check would be dropped together with what it checks", key, value)
			}
		}
	}
}

// TestFailedReboots: if the program that reboots fails, systemd does it, and no shell is reached.
func TestFailedReboots(t *testing.T) {
	u := unitFile(t, "cfsboot-boot-failed.service")
	for _, line := range []string{"FailureAction=reboot-immediate", "Before=emergency.service"} {
		if !slices.Contains(u["Unit"], line) {
			t.Errorf("[Unit] lacks %s", line)
		}
	}
	if !slices.Contains(u["Service"], "ExecStart="+systemd.SetupRootProgram+" --failed") {
		t.Errorf("[Service] %q", u["Service"])
	}
}

// dracutStub stands for the functions of dracut that the module calls. Files of the image come from the folder that the
// Containerfile copies them from.
const dracutStub = `
set -eu
initdir=$1 systemdsystemunitdir=/usr/lib/systemd/system
inst_simple() {
    mkdir -p "$initdir${2:-$1}" && rmdir "$initdir${2:-$1}"
    case $1 in
    /usr/lib/cfsboot/initramfs/*) cp "initramfs/${1##*/}" "$initdir${2:-$1}" ;;
    *) echo program > "$initdir${2:-$1}" ;;
    esac
}
inst_multiple() { :; }
. dracut/37cfsboot/module-setup.sh
install
`

// TestDracutModule runs the module: it installs every unit, drop-in and link that `cfsboot initramfs` adds.
func TestDracutModule(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("bash", "-c", dracutStub, "bash", dir).CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	files, err := systemd.InitramfsFiles()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{systemd.SetupRootProgram: "program\n"}
	for _, f := range files {
		want[f.Path] = string(f.Data) + f.Link
	}
	got := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var text []byte
		link, err := os.Readlink(path)
		if err != nil {
			text, err = os.ReadFile(path)
		}
		got[strings.TrimPrefix(path, dir)] = string(text) + link
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

// TestOracleUnits lets systemd itself read the units.
func TestOracleUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	root := t.TempDir()
	files, err := systemd.InitramfsFiles()
	if err != nil {
		t.Fatal(err)
	}
	write := func(path, text string, perm os.FileMode) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), perm); err != nil {
			t.Fatal(err)
		}
	}
	var units []string
	for _, f := range files {
		if f.Link == "" {
			write(f.Path, string(f.Data), 0o644)
		}
		if strings.HasSuffix(f.Path, ".service") && f.Link == "" {
			units = append(units, filepath.Base(f.Path))
		}
	}
	write(systemd.SetupRootProgram, "#!/bin/true\n", 0o755)
	for _, name := range []string{"sysroot.mount", "initrd-root-fs.target", "initrd-switch-root.target", "initrd.target", "emergency.target", "shutdown.target", "sysinit.target", "basic.target", "umount.target"} {
		text := "[Unit]\nDescription=stand-in\nDefaultDependencies=no\n"
		if strings.HasSuffix(name, ".mount") {
			text += "[Mount]\nWhat=/dev/null\nWhere=/sysroot\n"
		}
		write("/usr/lib/systemd/system/"+name, text, 0o644)
	}
	for _, name := range []string{"emergency.service", "initrd-switch-root.service", "initrd-parse-etc.service", "ostree-prepare-root.service", "systemd-repart.service"} {
		write("/usr/lib/systemd/system/"+name, "[Unit]\nDescription=stand-in\nDefaultDependencies=no\n[Service]\nType=oneshot\nExecStart="+systemd.SetupRootProgram+"\n", 0o644)
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no", "--recursive-errors=yes", "--root=" + root}, units...)...).CombinedOutput()
	if err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}
