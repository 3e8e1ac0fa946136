package archtest

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMakeInstall: `make install DESTDIR=…` puts in place what an image needs, with usable modes, and no unit, drop-in or
// initramfs file is left out. Shells take the completions.
func TestMakeInstall(t *testing.T) {
	if testing.Short() {
		t.Skip("builds both programs")
	}
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("make is not installed")
	}
	dest := filepath.Join(t.TempDir(), "a directory")
	const root = "../.."
	// A strict mask closes nothing, and the target of a cross build does not break it.
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `umask 077; exec make -s -C "$1" install DESTDIR="$2" BIN="$3"`, "sh", root, dest, t.TempDir())
	cmd.Env = append(os.Environ(), "GOARCH=arm64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := []string{
		"usr/bin/cfsboot", "usr/lib/cfsboot/cfsboot-setup-root", "usr/lib/cfsboot/grow-root", "usr/lib/cfsboot/repart.d/50-root.conf",
		"usr/lib/systemd/system-preset/80-cfsboot.preset", "usr/lib/systemd/system.conf.d/10-cfsboot-watchdog.conf", "usr/lib/dracut/modules.d/37cfsboot/module-setup.sh",
		"usr/share/bash-completion/completions/cfsboot", "usr/share/fish/vendor_completions.d/cfsboot.fish", "usr/share/zsh/vendor-completions/_cfsboot",
	}
	for from, to := range map[string]string{"systemd/host": "usr/lib/systemd/system", "systemd/initramfs": "usr/lib/cfsboot/initramfs"} {
		for _, name := range filesBelow(t, filepath.Join(root, from)) {
			if filepath.Ext(name) != ".preset" {
				want = append(want, to+"/"+name)
			}
		}
	}
	slices.Sort(want)
	got := filesBelow(t, dest)
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s is not installed", name)
		}
	}
	for _, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("%s is installed, and nobody expects it", name)
		}
		info, err := os.Lstat(filepath.Join(dest, name))
		if err != nil {
			t.Fatal(err)
		}
		mode := fs.FileMode(0o644)
		if strings.HasPrefix(name, "usr/bin/") || strings.HasSuffix(name, "/cfsboot-setup-root") || strings.HasSuffix(name, "/grow-root") {
			mode = 0o755
		}
		if info.Mode() != mode || info.Size() == 0 {
			t.Errorf("%s: mode %v, %d bytes, want %v", name, info.Mode(), info.Size(), mode)
		}
	}
	if info, err := os.Stat(filepath.Join(dest, "usr/lib/cfsboot")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory usr/lib/cfsboot: %v, %v, want mode 0755", info.Mode(), err)
	}
	for shell, script := range map[string]string{
		"bash": "usr/share/bash-completion/completions/cfsboot", "zsh": "usr/share/zsh/vendor-completions/_cfsboot", "fish": "usr/share/fish/vendor_completions.d/cfsboot.fish",
	} {
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not installed: its completions are not tried", shell)
			continue
		}
		if out, err := exec.CommandContext(t.Context(), path, "-n", filepath.Join(dest, script)).CombinedOutput(); err != nil {
			t.Errorf("%s -n %s: %v\n%s", shell, script, err, out)
		}
	}
}

// filesBelow lists the files below a directory by their path in it.
func filesBelow(t *testing.T, top string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(top, path)
		out = append(out, name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
