package deploy

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/efivar"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/systemd"
)

// Clock tells the time that is written into records.
type Clock interface{ Now() time.Time }

type systemClock struct{}

func (systemClock) Now() time.Time { return time.Now() }

// Options say what the machine is and who is told what happens. The zero value
// is the running machine; tests put directories in its place.
type Options struct {
	// Root is the root of the running system: /etc, /proc, /run, /sys and /dev
	// are looked up below it. "" means "/".
	Root string
	// Sysroot is the top of the physical root file system, writable. nil: a
	// private writable copy of the mount at /sysroot. It stays the caller's.
	Sysroot *durable.Dir
	// ESP is the root of the boot partition, writable. nil: it is searched for
	// and mounted privately. It stays the caller's.
	ESP *durable.Dir
	// Vars are the firmware's variables. nil: those of this machine.
	Vars esp.Vars
	// Systemd starts the shutdown unit. nil: systemctl.
	Systemd systemd.Runner
	// Evidence tells what systemd and its log know about boots. nil: this machine's.
	Evidence Evidence
	// SELinux tells whether SELinux is enforced. nil: the running kernel.
	SELinux SELinux
	// Clock is the time in records. nil: the system's.
	Clock Clock
	// LockWait is how long to wait for another cfsboot; 0: not at all.
	LockWait time.Duration
	Progress progress.Reporter // may be nil
	Logger   *slog.Logger      // nil: discard

	space     func(*esp.ESP) (esp.Space, error) // replaced by tests
	repoSpace func() (durable.Space, error)     // of the repository, set by tests; nil: ask
}

// OpenSource opens an image reference ("docker://…", "oci:DIR:TAG") for pulling.
type OpenSource func(ctx context.Context, reference string) (oci.Source, error)

// PullOptions say where images come from and which are accepted.
type PullOptions struct {
	OpenSource OpenSource     // required; it has to choose by the same platform
	Policy     keyring.Policy // nil: keyring.Computed
	Platform   v1.Platform    // that the image must be for; zero: that of this program
	Parallel   int            // layers at a time; 0: as repo/pull decides
}

func (o Options) withDefaults() Options {
	if o.Root == "" {
		o.Root = "/"
	}
	if o.Vars == nil {
		o.Vars = efivar.Dir{}
	}
	if o.Systemd == nil {
		o.Systemd = systemd.Exec{}
	}
	if o.Evidence == nil {
		o.Evidence = systemd.Exec{}
	}
	if o.SELinux == nil {
		o.SELinux = kernelSELinux{}
	}
	if o.Clock == nil {
		o.Clock = systemClock{}
	}
	if o.space == nil {
		o.space = (*esp.ESP).Space
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// path returns where an absolute path of the running system is.
func (o Options) path(name string) string { return filepath.Join(o.Root, name) }

// bootID names this boot of the kernel, "" if it cannot be read.
func (o Options) bootID() string {
	data, err := os.ReadFile(o.path("/proc/sys/kernel/random/boot_id"))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}
