package osimage

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/debian"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
)

// Versions of the two releases, as in os-release.
const (
	Version1 = "13.1"
	Version2 = "13.2"
)

// RootPassword logs in on the lab's machines, and only there.
const RootPassword = "lab"

// Images are the built and pushed images of one state of the project.
type Images struct {
	Repository       string // in the registry: "cfsboot/os"
	Digest1, Digest2 string // manifest digests in the registry
	Name1            string // release 1 in the store
	Program          string // the cfsboot program in the images
}

// Repository holds both releases in the registry.
const Repository = "cfsboot/os"

//go:embed access release2
var contexts embed.FS

// BuildAndPush builds both releases from the project's work tree, unless they
// exist, and pushes them under tags of their own. log gets one line per step.
func BuildAndPush(ctx context.Context, reg *registry.Registry, log func(format string, args ...any)) (*Images, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "make", "-s", "rootfs")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make rootfs: %w\n%s", err, out)
	}
	log("programs are built")
	store, err := OpenStore()
	if err != nil {
		return nil, err
	}
	sources, err := debian.FindSources(ctx)
	if err != nil {
		return nil, err
	}
	tarFile, baseKey, err := debian.Base(ctx, sources)
	if err != nil {
		return nil, err
	}
	base := "localhost/cfsboot-base:" + baseKey
	if err := store.Import(ctx, tarFile, base); err != nil {
		return nil, err
	}
	sum, err := hashSources(root)
	if err != nil {
		return nil, err
	}
	osName := "localhost/cfsboot-os:" + cache.Key(baseKey, sum)
	if err := store.Build(ctx, root, osName, "BASE="+base, "VERSION="+Version1); err != nil {
		return nil, err
	}
	log("%s is built from the Containerfile", osName)

	names, err := buildReleases(ctx, store, reg, osName)
	if err != nil {
		return nil, err
	}
	images := &Images{Repository: Repository, Program: filepath.Join(root, "bin", "cfsboot")}
	images.Name1 = names[0]
	for i, digest := range []*string{&images.Digest1, &images.Digest2} {
		if *digest, err = push(ctx, store, reg, names[i]); err != nil {
			return nil, err
		}
		log("release %d is in the registry: %s", i+1, *digest)
	}
	return images, store.Prune(ctx, "localhost/cfsboot-", append(names, base, osName)...)
}

// buildReleases makes the two images of the lab out of the generic one.
func buildReleases(ctx context.Context, store Store, reg *registry.Registry, osName string) ([]string, error) {
	work, err := os.MkdirTemp("", "cfsboot-osimage-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, contexts); err != nil {
		return nil, err
	}
	auth, err := reg.AuthFile()
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(reg.CAFile())
	if err != nil {
		return nil, err
	}
	for name, data := range map[string][]byte{"access/ca.pem": ca, "access/auth.json": auth} {
		if err := os.WriteFile(filepath.Join(work, name), data, 0o600); err != nil {
			return nil, err
		}
	}
	if err := writeData(filepath.Join(work, "release2/data")); err != nil {
		return nil, err
	}
	hash, err := exec.CommandContext(ctx, "openssl", "passwd", "-6", "-salt", "cfsbootlab", RootPassword).Output()
	if err != nil {
		return nil, fmt.Errorf("openssl passwd: %w", err)
	}
	sum, err := hashTree(os.DirFS(work), ".")
	if err != nil {
		return nil, err
	}
	key := cache.Key(osName, sum)
	names := []string{"localhost/cfsboot-release:1-" + key, "localhost/cfsboot-release:2-" + key}
	if err := store.Build(ctx, filepath.Join(work, "access"), names[0], "BASE="+osName, "PASSWORD_HASH="+strings.TrimSpace(string(hash))); err != nil {
		return nil, err
	}
	return names, store.Build(ctx, filepath.Join(work, "release2"), names[1], "BASE="+names[0], "VERSION="+Version2)
}

// writeData makes what release 2 adds: files that do not compress, enough of
// them that a pull can be interrupted, always the same.
func writeData(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r := rand.NewChaCha8([32]byte([]byte("data of the second demo release!")))
	for i := range 200 {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("part-%03d", i)))
		if err != nil {
			return err
		}
		_, err = io.CopyN(f, r, int64(20_000+i*400))
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// push copies an image to the registry under a tag with its key, if that tag
// does not exist, and returns the manifest's digest.
func push(ctx context.Context, store Store, reg *registry.Registry, name string) (string, error) {
	_, tag, _ := strings.Cut(name, ":")
	digest, err := reg.Digest(ctx, Repository, tag)
	if err != nil || digest != "" {
		return digest, err
	}
	caDir, err := os.MkdirTemp("", "cfsboot-ca-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(caDir)
	ca, err := os.ReadFile(reg.CAFile())
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(caDir, "ca.crt"), ca, 0o644); err != nil {
		return "", err
	}
	if err := store.Push(ctx, name, reg.HostReference(Repository+":"+tag), caDir, reg.Credentials()); err != nil {
		return "", err
	}
	digest, err = reg.Digest(ctx, Repository, tag)
	if err == nil && digest == "" {
		err = fmt.Errorf("the registry has no %s:%s after the push", Repository, tag)
	}
	return digest, err
}

// hashSources hashes the Containerfile and all that it copies.
func hashSources(root string) (string, error) {
	text, err := os.ReadFile(filepath.Join(root, "Containerfile"))
	if err != nil {
		return "", err
	}
	h := sha256.New()
	h.Write(text)
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "COPY" {
			continue
		}
		for _, src := range fields[1 : len(fields)-1] {
			sum, err := hashTree(os.DirFS(root), strings.TrimSuffix(src, "/"))
			if err != nil {
				return "", fmt.Errorf("containerfile: %w", err)
			}
			fmt.Fprintln(h, src, sum)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// hashTree hashes names, permissions, link targets and contents.
func hashTree(fsys fs.FS, top string) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(fsys, top, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, name, info.Mode())
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := fs.ReadLink(fsys, name)
			fmt.Fprintln(h, target)
			return err
		case info.Mode().IsRegular():
			f, err := fsys.Open(name)
			if err != nil {
				return err
			}
			defer f.Close()
			fmt.Fprintln(h, info.Size())
			_, err = io.Copy(h, f)
			return err
		}
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
