// Package cache names the places in which the lab keeps what is slow to make:
// downloads, kernels, base images, the image builder's storage.
//
// Everything lies below one folder, $XDG_CACHE_HOME/cfsboot or
// $HOME/.cache/cfsboot. An entry is made under a temporary name and renamed
// when it is complete, so that an entry that exists may be used; removing the
// whole folder is always safe. The names of entries contain a key over all that
// went into them, so that a changed recipe makes a new entry.
package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Root returns the cache folder, an absolute path. It need not exist.
func Root() (string, error) {
	if d := os.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(d) {
		return filepath.Join(d, "cfsboot"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(home, ".cache", "cfsboot"), nil
}

// Path joins elements below the cache folder and makes the parent directory.
func Path(elem ...string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	p := filepath.Join(append([]string{root}, elem...)...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		return "", err
	}
	return p, nil
}

// Key returns 16 hexadecimal digits over the parts; parts cannot run into each
// other.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Make returns the path of the entry name, calling build for an entry that does
// not exist yet. build gets a temporary path beside the final one, which it has
// to create (file or directory); it is renamed when build succeeded and removed
// otherwise.
func Make(name string, build func(tmp string) error) (string, error) {
	p, err := Path(name)
	if err != nil {
		return "", err
	}
	if _, err := os.Lstat(p); err == nil {
		return p, nil
	}
	tmp := fmt.Sprintf("%s.tmp%d", p, os.Getpid())
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := build(tmp); err != nil {
		return "", fmt.Errorf("make %s: %w", name, err)
	}
	if err := os.Rename(tmp, p); err != nil {
		return "", err
	}
	return p, nil
}
