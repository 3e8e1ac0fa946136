package debian

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// mkcomposefsWrapper runs the program with the C library of its own release: that of
// the build host may be older than it needs.
const mkcomposefsWrapper = `#!/bin/sh
# C mkcomposefs of Debian's composefs package, with the libraries of its release
root=$(dirname -- "$(readlink -f -- "$0")")/../root
lib=$root/usr/lib/%[1]s
exec "$lib/%[2]s" --library-path "$lib" --argv0 "$0" "$root/usr/bin/$(basename -- "$0")" "$@"
`

// Mkcomposefs makes the cache entry mkcomposefs and returns its path; its folder
// bin holds mkcomposefs and composefs-info.
func Mkcomposefs(ctx context.Context, apt func() (*Apt, error)) (string, error) {
	return cache.Make("mkcomposefs", func(tmp string) error {
		a, err := apt()
		if err != nil {
			return err
		}
		for _, d := range []string{"root", "bin"} {
			if err := os.MkdirAll(filepath.Join(tmp, d), 0o755); err != nil {
				return err
			}
		}
		for _, p := range []string{"composefs", "libcomposefs1", "libc6", "libssl3t64", "zlib1g", "libzstd1"} {
			deb, err := a.Download(ctx, p, Testing, tmp)
			if err != nil {
				return err
			}
			if _, err := run(ctx, nil, "dpkg-deb", "-x", deb, filepath.Join(tmp, "root")); err != nil {
				return err
			}
			if err := os.Remove(deb); err != nil {
				return err
			}
		}
		loaders, err := filepath.Glob(filepath.Join(tmp, "root/usr/lib/*/ld-linux-*.so.*"))
		if err != nil {
			return err
		}
		if len(loaders) != 1 {
			return fmt.Errorf("libc6 has %d dynamic loaders, want 1: %v", len(loaders), loaders)
		}
		wrapper := fmt.Sprintf(mkcomposefsWrapper, filepath.Base(filepath.Dir(loaders[0])), filepath.Base(loaders[0]))
		for _, name := range []string{"mkcomposefs", "composefs-info"} {
			if err := os.WriteFile(filepath.Join(tmp, "bin", name), []byte(wrapper), 0o755); err != nil {
				return err
			}
		}
		_, err = run(ctx, nil, filepath.Join(tmp, "bin", "composefs-info"), "measure-file", filepath.Join(tmp, "bin", "mkcomposefs"))
		return err
	})
}
