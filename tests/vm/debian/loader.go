package debian

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// Loader is a systemd-boot that is newer than that of the OS images.
type Loader struct {
	Version string // as the loader itself tells it, for example "262"
	Path    string
}

// LoaderPath is where Debian's packages have the loader.
const LoaderPath = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"

// loaderInfo is how a loader's file tells its version; systemd's own tools read it, too.
var loaderInfo = regexp.MustCompile(`#### LoaderInfo: systemd-boot ([0-9]+)`)

// NewLoader makes the cache entry of the loader of the newer suite.
func NewLoader(ctx context.Context, apt func() (*Apt, error)) (Loader, error) {
	dir, err := cache.Make("loader-"+Testing, func(tmp string) error {
		a, err := apt()
		if err != nil {
			return err
		}
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		deb, err := a.Download(ctx, "systemd-boot-efi", Testing, tmp)
		if err != nil {
			return err
		}
		defer os.Remove(deb)
		out, err := exec.CommandContext(ctx, "sh", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -xO ".$2"`, "sh", deb, LoaderPath).Output()
		if err != nil {
			return fmt.Errorf("take the loader out of %s: %w", filepath.Base(deb), err)
		}
		if !loaderInfo.Match(out) {
			return fmt.Errorf("the loader of %s does not tell its version", filepath.Base(deb))
		}
		return os.WriteFile(filepath.Join(tmp, "systemd-bootx64.efi"), out, 0o644)
	})
	if err != nil {
		return Loader{}, err
	}
	l := Loader{Path: filepath.Join(dir, "systemd-bootx64.efi")}
	data, err := os.ReadFile(l.Path)
	if err != nil {
		return l, err
	}
	m := loaderInfo.FindSubmatch(data)
	if m == nil {
		return l, fmt.Errorf("%s does not tell its version", l.Path)
	}
	l.Version = string(m[1])
	return l, nil
}
