package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// Apt downloads packages of Stable and Testing without touching the machine's
// own package lists.
type Apt struct {
	options []string
	dir     string
}

// NewApt prepares the private configuration; Update fetches the lists.
func NewApt(s Sources) (*Apt, error) {
	dir, err := cache.Path("apt", "x")
	if err != nil {
		return nil, err
	}
	dir = filepath.Dir(dir)
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	list := strings.Join(append(s.Lines(Stable), s.Lines(Testing)...), "\n") + "\n"
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), []byte(list), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	a := &Apt{dir: dir}
	for _, o := range []string{
		"Dir::Etc::sourcelist=" + dir + "/sources.list", "Dir::Etc::sourceparts=/dev/null", "Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null",
		"Dir::State::lists=" + dir + "/lists", "Dir::State::status=" + dir + "/status",
		"Dir::Cache=" + dir, "Dir::Cache::archives=" + dir + "/archives",
		"APT::Sandbox::User=root", "Acquire::Languages=none", "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
	} {
		a.options = append(a.options, "-o", o)
	}
	return a, nil
}

// Update fetches the package lists and checks their signatures.
func (a *Apt) Update(ctx context.Context) error {
	_, err := run(ctx, nil, "apt-get", append(a.options, "-q", "--error-on=any", "update")...)
	return err
}

// Download puts the newest package of a suite into dir and returns the file's
// path. The version is part of its name.
func (a *Apt) Download(ctx context.Context, name, suite, dir string) (string, error) {
	tmp, err := os.MkdirTemp(dir, "download-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	// apt-get download writes into the working directory.
	script := `cd "$1" && shift && exec apt-get "$@"`
	args := append([]string{"-c", script, "sh", tmp}, a.options...)
	if _, err := run(ctx, nil, "sh", append(args, "-q", "download", name+"/"+suite)...); err != nil {
		return "", fmt.Errorf("download package %s of %s: %w", name, suite, err)
	}
	files, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return "", err
	}
	if len(files) != 1 {
		return "", fmt.Errorf("download package %s of %s: %d files, want 1", name, suite, len(files))
	}
	final := filepath.Join(dir, filepath.Base(files[0]))
	return final, os.Rename(files[0], final)
}

// HostPackages are what the lab needs on the build host.
var HostPackages = []string{
	"ca-certificates", "debian-archive-keyring", "mmdebstrap", // base images
	"buildah", "docker-registry", "apache2-utils", // OS images and the registry (htpasswd)
	"e2fsprogs", "dosfstools", "fdisk", "mtools", "openssh-client", // machines' disks, and a way in
	"gcc", "libc6-dev", "make", "flex", "bison", "bc", "libssl-dev", "patch", "xz-utils", // User Mode Linux
	"erofs-utils", "fsverity", "openssl", "libselinux1-dev", // oracles of the unit tests
}

// MissingHostPackages returns those of HostPackages that are not installed.
func MissingHostPackages(ctx context.Context) ([]string, error) {
	if _, err := os.Stat("/etc/debian_version"); err != nil {
		return nil, fmt.Errorf("the lab's set-up needs Debian: %w", err)
	}
	// The status is 1 as soon as one package is unknown; the output counts.
	out, err := run(ctx, nil, "sh", append([]string{"-c", `dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true`, "sh"}, HostPackages...)...)
	if err != nil {
		return nil, err
	}
	installed := map[string]bool{}
	for line := range strings.Lines(out) {
		if name, ok := strings.CutSuffix(strings.TrimSpace(line), " installed"); ok {
			installed[name] = true
		}
	}
	var missing []string
	for _, p := range HostPackages {
		if !installed[p] {
			missing = append(missing, p)
		}
	}
	return missing, nil
}

// ErrNotRoot is returned by InstallHost for other users.
var ErrNotRoot = errors.New("installing packages needs root")

// InstallHost installs packages of this machine's own release.
func InstallHost(ctx context.Context, packages []string) error {
	if len(packages) == 0 {
		return nil
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("%w: %s", ErrNotRoot, strings.Join(packages, " "))
	}
	if _, err := run(ctx, nil, "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"); err != nil {
		return err
	}
	// policy-rc.d keeps the registry's service from starting; ours has a port and a key of its own.
	args := []string{"-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", "install"}
	_, err := run(ctx, []string{"RUNLEVEL=1"}, "apt-get", append(args, packages...)...)
	return err
}
