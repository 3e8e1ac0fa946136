package debian

import (
	"context"
	"os"
	"path/filepath"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// Mkcomposefs makes the cache entry mkcomposefs and returns its path; its folder
// bin holds mkcomposefs and composefs-info.
func Mkcomposefs(ctx context.Context, apt func() (*Apt, error)) (string, error) {
	return cache.Make("mkcomposefs", func(tmp string) error {
		a, err := apt()
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(tmp, "root"), 0o755); err != nil {
			return err
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
		if err := wrap(tmp, wrapped{programs: []string{"mkcomposefs", "composefs-info"}}); err != nil {
			return err
		}
		_, err = run(ctx, nil, filepath.Join(tmp, "bin", "composefs-info"), "measure-file", filepath.Join(tmp, "bin", "mkcomposefs"))
		return err
	})
}
