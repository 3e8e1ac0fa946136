package osimage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/cpio"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
)

// File is what a recipe adds to the image: a file, or a symbolic link.
type File struct {
	Name string // absolute
	Data string
	Mode int64  // 0644 if 0
	Link string // target; then Data and Mode mean nothing
}

// Recipe is a release made of release 1 and one thin layer.
type Recipe struct {
	Version    string // VERSION_ID and label
	Repository string // "" is Repository
	Files      []File
	// Pad is how many zero bytes stand behind the initrd, for which the kernel does not care: with another
	// number the release has a payload of its own on the boot partition. 0: it has that of release 1.
	Pad int
	// Overlay are files over those of the initrd, in an archive of its own behind it.
	Overlay []File
}

// Release is an image in the registry.
type Release struct {
	Version    string
	Repository string
	Digest     string // of the manifest
}

// OtherRepository holds images that a machine can switch to.
const OtherRepository = "cfsboot/other"

// Releases that do not work, each in its own way, and good ones.
var (
	// Panics: the kernel panics in the running system, as soon as it could tell the firmware why.
	Panics = Recipe{Version: "13.3", Pad: 512, Files: wanted("sysinit.target.wants", "lab-panic.service", `[Unit]
DefaultDependencies=no
Wants=modprobe@efi_pstore.service
After=modprobe@efi_pstore.service
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo c >/proc/sysrq-trigger'
`)}
	// PanicsEarly: the kernel panics because the init of its initrd ends.
	PanicsEarly = Recipe{Version: "13.7", Overlay: []File{{Name: "/init", Data: "#!/bin/sh\nexit 1\n", Mode: 0o755}}}
	// Unhealthy: a service that boot-complete.target requires fails.
	Unhealthy = Recipe{Version: "13.4", Files: wanted("boot-complete.target.requires", "lab-health.service", `[Unit]
Description=A health check of the lab that fails
Before=boot-complete.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo the lab does not feel well; exit 3'
`)}
	// Hangs: a service that multi-user.target, and so boot-complete.target, waits for never ends. The time
	// limit of the boot is that of somebody who cannot wait.
	Hangs = Recipe{Version: "13.5", Files: append(wanted("multi-user.target.wants", "lab-hang.service", `[Unit]
Description=A service of the lab that never ends
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sleep infinity
`), File{Name: "/usr/lib/systemd/system/boot-complete.target.d/50-lab.conf", Data: "[Unit]\nJobTimeoutSec=60\n"})}
	// Rootless is a good release whose image the scenario removes from the disk.
	Rootless = Recipe{Version: "13.6"}
	// Other is another image.
	Other = Recipe{Version: "7.1", Repository: OtherRepository, Files: []File{{Name: "/usr/share/lab-other", Data: "another image\n"}}}
)

// Next is the n-th of a row of good releases. Every second one has the payload of the one before.
func Next(n, pad int) Recipe {
	return Recipe{
		Version: fmt.Sprintf("14.%d", n), Pad: pad + 512*(1+n/2),
		Files: []File{{Name: "/usr/share/lab-next", Data: fmt.Sprintf("number %d\n", n)}},
	}
}

// wanted is a unit file and the link that starts it.
func wanted(by, unit, text string) []File {
	const dir = "/usr/lib/systemd/system/"
	return []File{{Name: dir + unit, Data: text}, {Name: dir + by + "/" + unit, Link: "../" + unit}}
}

// Make builds and pushes the release of a recipe. It may be called again.
func (i *Images) Make(ctx context.Context, reg *registry.Registry, r Recipe) (Release, error) {
	to := r.Repository
	if to == "" {
		to = Repository
	}
	base, err := i.baseFiles(ctx)
	if err != nil {
		return Release{}, err
	}
	files := append([]File{{Name: "/usr/lib/os-release", Data: withVersion(base.osRelease, r.Version)}}, r.Files...)
	if r.Pad > 0 || len(r.Overlay) > 0 {
		data, err := r.initrd(base.initrd)
		if err != nil {
			return Release{}, err
		}
		files = append(files, File{Name: base.initrdName, Data: data})
	}
	layer, err := tarOf(files)
	if err != nil {
		return Release{}, err
	}
	digest, err := reg.Append(ctx, Repository, i.Digest1, to, layer, map[string]string{"org.opencontainers.image.version": r.Version})
	return Release{r.Version, to, digest}, err
}

// initrd is the release's initrd, made of the one in the file name.
func (r Recipe) initrd(name string) (string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	b := bytes.NewBuffer(append(data, make([]byte, r.Pad)...))
	if len(r.Overlay) > 0 {
		// An archive begins at a multiple of four bytes.
		b.Write(make([]byte, -b.Len()&3))
		w := cpio.NewWriter(b)
		for _, f := range r.Overlay {
			w.File(f.Name[1:], uint32(f.Mode), []byte(f.Data))
		}
		if err := w.Close(); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

var (
	versionID  = regexp.MustCompile(`(?m)^VERSION_ID=.*$`)
	prettyName = regexp.MustCompile(`(?m)^PRETTY_NAME=.*$`)
)

func withVersion(osRelease, version string) string {
	s := versionID.ReplaceAllLiteralString(osRelease, fmt.Sprintf("VERSION_ID=%q", version))
	return prettyName.ReplaceAllLiteralString(s, fmt.Sprintf("PRETTY_NAME=%q", "cfsboot lab "+version))
}

// tarOf is a layer of root's files, the same bytes for the same files.
func tarOf(files []File) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	for _, f := range files {
		// New directories only: those of the base keep their modes.
		for _, dir := range newDirs(f.Name) {
			if !made[dir] {
				made[dir] = true
				if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755, ModTime: layerTime}); err != nil {
					return nil, err
				}
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: f.Name[1:], Mode: f.Mode, Size: int64(len(f.Data)), ModTime: layerTime}
		if f.Mode == 0 {
			h.Mode = 0o644
		}
		if f.Link != "" {
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, f.Link, 0o777, 0
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if f.Link == "" {
			if _, err := w.Write([]byte(f.Data)); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

var layerTime = time.Unix(1_700_000_000, 0)

// newDirs are those directories of a file that release 1 may lack: drop-ins and
// the links of targets.
func newDirs(name string) []string {
	dir := path.Dir(name)
	switch path.Ext(dir) {
	case ".wants", ".requires", ".d":
		return []string{dir}
	}
	return nil
}

type baseFiles struct {
	osRelease          string
	initrd, initrdName string // a copy, and where it lies in the image
}

// baseFiles takes out of release 1 what the recipes change.
func (i *Images) baseFiles(ctx context.Context) (baseFiles, error) {
	const prefix = "release-files-"
	_, tag, _ := strings.Cut(i.Name1, ":")
	dir, err := cache.Make(prefix+tag, func(tmp string) error {
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		store, err := OpenStore()
		if err != nil {
			return err
		}
		return store.Extract(ctx, i.Name1, tmp, "/usr/lib/os-release", "/usr/lib/modules/*/initramfs.img")
	})
	if err != nil {
		return baseFiles{}, err
	}
	// An initrd of each state of the project would fill the cache.
	all, err := filepath.Glob(filepath.Join(filepath.Dir(dir), prefix+"*"))
	if err != nil {
		return baseFiles{}, err
	}
	for _, p := range all {
		if p != dir && !strings.Contains(p, ".tmp") {
			_ = os.RemoveAll(p) // only space is lost
		}
	}
	var b baseFiles
	text, err := os.ReadFile(filepath.Join(dir, "usr/lib/os-release"))
	if err != nil {
		return b, err
	}
	b.osRelease = string(text)
	found, err := filepath.Glob(filepath.Join(dir, "usr/lib/modules/*/initramfs.img"))
	if err != nil || len(found) != 1 {
		return b, fmt.Errorf("release 1 has %d initrds, want 1: %w", len(found), err)
	}
	b.initrd, b.initrdName = found[0], strings.TrimPrefix(found[0], dir)
	return b, nil
}
