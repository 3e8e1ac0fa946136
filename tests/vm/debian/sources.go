// Package debian takes from Debian what the lab needs: packages for the build
// host, packages of newer suites, the kernel source, the base of OS images.
//
// The archive is the one that this machine's apt already uses. Packages of
// other suites are fetched by apt itself with a configuration of its own in the
// cache folder, so that apt checks signatures and checksums and the machine's
// own lists stay as they are.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Suite names used by the lab.
const (
	Stable  = "trixie" // base of the OS images, source of the kernels
	Testing = "forky"  // has C mkcomposefs, and a newer boot loader
)

// Sources are archive addresses without a slash at the end.
type Sources struct {
	Main     string
	Security string // "" if this machine uses none
}

// FindSources asks apt for the archives of this machine's own release.
func FindSources(ctx context.Context) (Sources, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return Sources{}, err
	}
	codename := osReleaseValue(string(release), "VERSION_CODENAME")
	out, err := run(ctx, nil, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
	if err != nil {
		return Sources{}, err
	}
	s := parseTargets(out, codename)
	if s.Main == "" {
		return Sources{}, fmt.Errorf("apt knows no archive of %q (os-release: VERSION_CODENAME)", codename)
	}
	return s, nil
}

func parseTargets(out, codename string) Sources {
	var s Sources
	for line := range strings.Lines(out) {
		uri, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		// apt may print a slash at the end; some servers refuse doubled ones.
		uri = strings.TrimRight(uri, "/")
		switch {
		case name == codename && s.Main == "":
			s.Main = uri
		case name == codename+"-security" && s.Security == "":
			s.Security = uri
		}
	}
	return s
}

func osReleaseValue(text, key string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// Lines returns sources.list lines of a suite with its updates.
func (s Sources) Lines(suite string) []string {
	const opt = "deb [signed-by=" + keyring + "]"
	lines := []string{fmt.Sprintf("%s %s %s main", opt, s.Main, suite)}
	if suite == Stable {
		lines = append(lines, fmt.Sprintf("%s %s %s-updates main", opt, s.Main, suite))
		if s.Security != "" {
			lines = append(lines, fmt.Sprintf("%s %s %s-security main", opt, s.Security, suite))
		}
	}
	return lines
}

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// run returns a program's output; its errors name the program and carry the end
// of what it wrote.
func run(ctx context.Context, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", fmt.Errorf("%s is not installed: %w", name, err)
		}
		text := stderr.String()
		if text == "" {
			text = stdout.String()
		}
		if len(text) > 2000 {
			text = "…" + text[len(text)-2000:]
		}
		return "", fmt.Errorf("%s: %w\n%s", name, err, text)
	}
	return stdout.String(), nil
}
