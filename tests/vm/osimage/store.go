// Package osimage builds the OS images of the tests: release 1 from the
// project's Containerfile, release 2 from release 1 and one more layer. It uses
// Debian's buildah with storage of its own in the cache folder.
//
// Images are named by keys over everything that goes into them, so that an
// unchanged image is not built again.
package osimage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// Store is buildah's storage.
type Store struct{ dir string }

// OpenStore returns the storage in the cache folder.
func OpenStore() (Store, error) {
	p, err := cache.Path("containers", "x")
	if err != nil {
		return Store{}, err
	}
	return Store{filepath.Dir(p)}, nil
}

// buildah runs one command and returns what it printed on standard output.
func (s Store) buildah(ctx context.Context, args ...string) (string, error) {
	global := []string{"--root", s.dir + "/root", "--runroot", s.dir + "/run", "--storage-driver", "vfs"}
	cmd := exec.CommandContext(ctx, "buildah", append(global, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := stdout.String() + stderr.String()
		if len(text) > 6000 {
			text = "…" + text[len(text)-6000:]
		}
		return "", fmt.Errorf("buildah %s: %w\n%s", args[0], err, text)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Has tells whether an image exists.
func (s Store) Has(ctx context.Context, name string) bool {
	_, err := s.buildah(ctx, "inspect", "--type", "image", "--format", "{{.FromImageID}}", name)
	return err == nil
}

// Import makes an image of one layer from a tar file.
func (s Store) Import(ctx context.Context, tarFile, name string) error {
	if s.Has(ctx, name) {
		return nil
	}
	c, err := s.buildah(ctx, "from", "scratch")
	if err != nil {
		return err
	}
	defer s.buildah(context.WithoutCancel(ctx), "rm", c) // if it fails, only space is lost
	if _, err := s.buildah(ctx, "add", "-q", c, tarFile, "/"); err != nil {
		return err
	}
	_, err = s.buildah(ctx, "commit", "-q", c, name)
	return err
}

// Build runs a Containerfile with the given build arguments in a directory.
func (s Store) Build(ctx context.Context, dir, name string, args ...string) error {
	if s.Has(ctx, name) {
		return nil
	}
	command := []string{"bud", "-q", "--isolation", "chroot", "--format", "oci", "--layers=false", "--pull-never", "-t", name, "-f", filepath.Join(dir, "Containerfile")}
	for _, a := range args {
		command = append(command, "--build-arg", a)
	}
	_, err := s.buildah(ctx, append(command, dir)...)
	return err
}

// Push copies an image to a registry; caDir holds the authority's certificate as ca.crt.
func (s Store) Push(ctx context.Context, name, reference, caDir, credentials string) error {
	_, err := s.buildah(ctx, "push", "-q", "--cert-dir", caDir, "--creds", credentials, "--format", "oci", name, "docker://"+reference)
	return err
}

// Extract copies files out of an image into the directory dir, each under its
// whole name; names may be patterns (path.Match).
func (s Store) Extract(ctx context.Context, name, dir string, files ...string) error {
	c, err := s.buildah(ctx, "from", "--pull-never", name)
	if err != nil {
		return err
	}
	defer s.buildah(context.WithoutCancel(ctx), "rm", c) // if it fails, only space is lost
	top, err := s.buildah(ctx, "mount", c)
	if err != nil {
		return err
	}
	for _, pattern := range files {
		found, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return fmt.Errorf("image %s has no %s", name, pattern)
		}
		for _, f := range found {
			data, err := os.ReadFile(f)
			if err != nil {
				return err
			}
			to := filepath.Join(dir, strings.TrimPrefix(f, top))
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(to, data, 0o600); err != nil {
				return err
			}
		}
	}
	return nil
}

// Prune removes the images of the given kind other than keep: each holds a
// whole root directory.
func (s Store) Prune(ctx context.Context, prefix string, keep ...string) error {
	out, err := s.buildah(ctx, "images", "--format", "{{.Name}}:{{.Tag}}")
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, k := range keep {
		kept[k] = true
	}
	for name := range strings.FieldsSeq(out) {
		if strings.HasPrefix(name, prefix) && !kept[name] {
			if _, err := s.buildah(ctx, "rmi", name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Root is the top of the project's work tree.
func Root() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the project: %w", err)
	}
	root := strings.TrimSpace(string(out))
	if _, err := os.Stat(filepath.Join(root, "Containerfile")); err != nil {
		return "", fmt.Errorf("find the project: %w", err)
	}
	return root, nil
}
