package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// extract unpacks packages of Stable, with what they depend on, into the directory root of dir
// and returns its path. Nothing is configured or run.
func extract(ctx context.Context, s Sources, dir string, packages []string) (string, error) {
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	args := []string{
		"--quiet", "--mode=root", "--variant=extract", "--format=directory",
		"--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"",
		"--include=" + strings.Join(packages, ","), Stable, root,
	}
	_, err := run(ctx, []string{"TMPDIR=" + filepath.Dir(dir)}, "mmdebstrap", append(args, s.Lines(Stable)...)...)
	return root, err
}

// wrapper runs a program with the libraries of its own release: those of the build host
// may be older than it needs.
const wrapper = `#!/bin/sh
root=$(dirname -- "$(readlink -f -- "$0")")/../root
lib=$root/usr/lib/%[1]s
exec env %[3]s "$lib/%[2]s" --library-path "$lib" --argv0 "$0" "$root/usr/bin/$(basename -- "$0")" %[4]s "$@"
`

// wrapped are programs below root/usr/bin of a directory. In env (words for env) and args (words
// before the caller's own) $root stands for that root.
type wrapped struct {
	programs  []string
	env, args string
}

// wrap makes the directory bin beside root, with a program that calls each of them.
func wrap(dir string, w wrapped) error {
	loader, err := multiarch(filepath.Join(dir, "root"), "usr/lib/*/ld-linux-*.so.*")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(wrapper, filepath.Base(filepath.Dir(loader)), filepath.Base(loader), w.env, w.args)
	for _, name := range w.programs {
		if err := os.WriteFile(filepath.Join(dir, "bin", name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// multiarch returns the one path below root that matches; the name of the machine's
// architecture is in it.
func multiarch(root, pattern string) (string, error) {
	found, err := filepath.Glob(filepath.Join(root, pattern))
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files are %s, want 1: %v", len(found), pattern, found)
	}
	return filepath.Rel(root, found[0])
}
