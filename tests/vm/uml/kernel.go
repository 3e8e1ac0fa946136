package uml

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// ErrNoKernel is returned while "lab setup" has not built the kernel.
var ErrNoKernel = errors.New("no User Mode Linux kernel in the cache")

// KernelName is the cache entry of the kernel made from one version of
// Debian's kernel source package with Fragment and Patch. The machine's C library is
// linked into it, so its version belongs to the key.
func KernelName(sourceVersion, libcVersion string) string {
	return "uml-" + cache.Key(Fragment, Patch, sourceVersion, libcVersion, runtime.GOARCH) + "/linux"
}

// FindKernel returns the kernel that "lab setup" chose last.
func FindKernel() (string, error) {
	p, err := cache.Path("uml")
	if err != nil {
		return "", err
	}
	target, err := os.ReadFile(p)
	if errors.Is(err, os.ErrNotExist) {
		return "", ErrNoKernel
	}
	if err != nil {
		return "", err
	}
	k := filepath.Join(filepath.Dir(p), strings.TrimSpace(string(target)))
	if _, err := os.Stat(k); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoKernel, err)
	}
	return k, nil
}
