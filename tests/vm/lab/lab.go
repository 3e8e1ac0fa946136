// Package lab puts the parts together: the registry with both releases, disks
// with release 1 installed, machines that boot them. The scenarios and the demo
// are written with it.
package lab

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/debian"
	"github.com/cfsboot/cfsboot/tests/vm/disk"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

// Lab is everything that machines need. Several tests may share one.
type Lab struct {
	Registry *registry.Registry
	Images   *osimage.Images
	Accel    string // of QEMU
	Kernel   string // of User Mode Linux
	Init     string // for User Mode Linux guests
	Logs     string // directory for the consoles' logs, kept

	Stable  *Channel // followed by the demo's machine
	Testing *Channel // followed by the machines of Golden

	qemu     qemu.Emulator
	work     string
	count    atomic.Int32
	golden   func() (string, error)
	mu       sync.Mutex
	channels int
}

// LogDir is where logs go if CFSBOOT_VM_LOGS is not set.
func LogDir() (string, error) {
	if d := os.Getenv("CFSBOOT_VM_LOGS"); d != "" {
		return d, os.MkdirAll(d, 0o755)
	}
	p, err := cache.Path("logs", time.Now().UTC().Format("20060102-150405"))
	if err != nil {
		return "", err
	}
	return p, os.MkdirAll(p, 0o755)
}

// Open builds and starts what is missing: "lab setup" has to have run. log gets
// one line for each thing that happened.
func Open(ctx context.Context, log func(format string, args ...any)) (_ *Lab, err error) {
	l := &Lab{}
	l.golden = sync.OnceValues(func() (string, error) { return l.Install(context.WithoutCancel(ctx), l.Testing, Setup{}) })
	if l.Logs, err = LogDir(); err != nil {
		return nil, err
	}
	if l.work, err = os.MkdirTemp("", "cfsboot-vm-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = l.Close()
		}
	}()
	if l.Kernel, err = uml.FindKernel(); err != nil {
		return nil, fmt.Errorf("%w; run \"go run ./tests/vm/cmd/lab setup\"", err)
	}
	l.Init = filepath.Join(l.work, "init")
	if err = uml.BuildInit(ctx, l.Init); err != nil {
		return nil, err
	}
	if l.Registry, err = registry.Start(ctx); err != nil {
		return nil, err
	}
	log("a registry runs at %s (TLS, password)", l.Registry.HostReference(""))
	l.Stable, l.Testing = l.NewChannel("stable"), l.NewChannel("testing")
	if l.Images, err = osimage.BuildAndPush(ctx, l.Registry, log); err != nil {
		return nil, err
	}
	sources, err := debian.FindSources(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := debian.Emulator(ctx, sources)
	if err != nil {
		return nil, err
	}
	l.qemu = qemu.In(dir)
	kernel, err := baseKernel(ctx, sources)
	if err != nil {
		return nil, err
	}
	if l.Accel, err = l.qemu.Accelerator(ctx, kernel); err != nil {
		return nil, err
	}
	log("machines run with %s", map[string]string{"kvm": "KVM", "tcg": "QEMU's own processor emulation (KVM does not work here)"}[l.Accel])
	return l, nil
}

// Close ends the registry and removes disks; logs stay.
func (l *Lab) Close() error {
	var err error
	if l.Registry != nil {
		err = l.Registry.Close()
	}
	return errors.Join(err, os.RemoveAll(l.work))
}

// baseKernel returns the kernel of the base image, for the accelerator's probe.
func baseKernel(ctx context.Context, sources debian.Sources) (string, error) {
	tarFile, key, err := debian.Base(ctx, sources)
	if err != nil {
		return "", err
	}
	return cache.Make("vmlinuz-"+key, func(tmp string) error {
		f, err := os.Open(tarFile)
		if err != nil {
			return err
		}
		defer f.Close()
		for r := tar.NewReader(f); ; {
			h, err := r.Next()
			if err != nil {
				return fmt.Errorf("find vmlinuz in the base image: %w", err)
			}
			if ok, _ := path.Match("usr/lib/modules/*/vmlinuz", strings.TrimPrefix(h.Name, "./")); ok {
				out, err := os.Create(tmp)
				if err != nil {
					return err
				}
				_, err = io.Copy(out, r)
				return errors.Join(err, out.Close())
			}
		}
	})
}

// Log makes a log file and returns it with its path.
func (l *Lab) Log(name string) (*os.File, error) {
	return os.Create(filepath.Join(l.Logs, fmt.Sprintf("%02d-%s.log", l.count.Add(1), name)))
}

// Kargs are the kernel arguments of the lab's machines, beside those of cfsboot.
// The mitigations and the three serial ports that nobody uses only cost time here, and so do
// the 30 s that a panic should stay on a screen.
var Kargs = []string{
	"console=ttyS0", "quiet", "audit=0", "panic=3", "systemd.default_device_timeout_sec=180",
	"mitigations=off", "8250.nr_uarts=1",
}

// Sizes of the lab's disks; the files are sparse.
const (
	diskSize = 4 << 30
	espSize  = 192 << 20
)

// Channel is what a machine follows: a tag, seen through a relay of its own, so
// that moving the tag and slowing the relay down touch this machine only.
type Channel struct {
	Relay    *registry.Relay
	tag      string
	registry *registry.Registry
}

// NewChannel takes the next free relay for a tag. There are as many as tests
// need; one more is a bug.
func (l *Lab) NewChannel(tag string) *Channel {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Channel{tag: tag, registry: l.Registry, Relay: l.Registry.Relays[l.channels]}
	l.channels++
	return c
}

// Reference is what the machine is told to follow.
func (c *Channel) Reference() string { return c.In(osimage.Repository) }

// In is the reference of the channel's tag in a repository.
func (c *Channel) In(repository string) string {
	return c.Relay.GuestReference(repository + ":" + c.tag)
}

// Publish lets the channel offer the release with the given manifest digest.
func (c *Channel) Publish(ctx context.Context, digest string) error {
	return c.registry.Tag(ctx, osimage.Repository, digest, c.tag)
}

// Offer is Publish for a release of any repository.
func (c *Channel) Offer(ctx context.Context, r osimage.Release) error {
	return c.registry.Tag(ctx, r.Repository, r.Digest, c.tag)
}

// Make builds the release of a recipe and leaves it in the registry.
func (l *Lab) Make(ctx context.Context, r osimage.Recipe) (osimage.Release, error) {
	return l.Images.Make(ctx, l.Registry, r)
}

// Setup says how a disk differs from what most tests need.
type Setup struct {
	Digest     string // manifest; "" is release 1
	ESPSize    int64  // bytes; 0 is espSize
	RootSSHKey string // file with public keys; "": none
	Hostname   string // "": that of the image
	// ImageFile lets cfsboot make the file that is the disk, as for a machine elsewhere, instead of
	// installing on a disk of the guest. It has this many bytes; 0: not so.
	ImageFile int64
}

// Install installs an image on a new disk and returns its path. The machine
// follows the channel.
func (l *Lab) Install(ctx context.Context, follow *Channel, s Setup) (string, error) {
	if s.Digest == "" {
		s.Digest = l.Images.Digest1
	}
	if s.ESPSize == 0 {
		s.ESPSize = espSize
	}
	layout := filepath.Join(l.work, fmt.Sprintf("layout-%d", l.count.Add(1)))
	if err := l.Registry.PullLayout(ctx, osimage.Repository, s.Digest, layout, "image"); err != nil {
		return "", err
	}
	defer os.RemoveAll(layout)
	log, err := l.Log("install")
	if err != nil {
		return "", err
	}
	defer log.Close()
	p := filepath.Join(l.work, fmt.Sprintf("disk-%d", l.count.Add(1)))
	o := disk.Options{
		Kernel: l.Kernel, Init: l.Init, Program: l.Images.Program, Layout: layout, Target: follow.Reference(), Kargs: Kargs,
		RootSSHKey: s.RootSSHKey, Hostname: s.Hostname, Size: diskSize, ESPSize: s.ESPSize, Log: log,
	}
	if s.RootSSHKey != "" {
		o.Kargs = append(slices.Clone(Kargs), "systemd.wants=ssh.service") // the lab's images leave it out
	}
	if s.ImageFile != 0 {
		o.Size, o.File = s.ImageFile, true
	}
	err = disk.Install(ctx, p, o)
	if err != nil {
		return "", errors.Join(err, tailOf(log.Name()))
	}
	return p, nil
}

// Golden is a disk that Install made, the same one for all tests. It is copied,
// not used.
func (l *Lab) Golden() (string, error) { return l.golden() }

// tailOf is an error with the end of a log.
func tailOf(name string) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if len(b) > 4000 {
		b = b[len(b)-4000:]
	}
	return fmt.Errorf("end of %s:\n%s", name, b)
}

// Guest runs a script in User Mode Linux on a disk that no machine uses; see
// disk.Guest. It returns what the script printed, with the kernel's messages.
func (l *Lab) Guest(ctx context.Context, path, script string) (string, error) {
	var out strings.Builder
	err := disk.Guest(ctx, l.Kernel, l.Init, path, script, &out)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out.String())
	}
	return out.String(), err
}
