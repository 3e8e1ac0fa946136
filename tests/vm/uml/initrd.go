package uml

import (
	"bytes"
	"fmt"
	"os"

	"github.com/cfsboot/cfsboot/tests/vm/cpio"
)

// writeInitrd makes an initial RAM disk of the one program init and
// what it has to do.
func writeInitrd(path, init string, spec []byte) error {
	prog, err := os.ReadFile(init)
	if err != nil {
		return fmt.Errorf("read init program: %w", err)
	}
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, d := range []string{"dev", "proc", "h"} {
		w.Dir(d, 0o755)
	}
	w.CharDevice("dev/console", 0o600, 5, 1)
	w.File("init", 0o755, prog)
	w.File(SpecFile[1:], 0o600, spec)
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o600)
}
