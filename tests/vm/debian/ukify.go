package debian

import (
	"context"
	"os"
	"path/filepath"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// ukifyProgram runs ukify, a Python program, with the interpreter beside it.
const ukifyProgram = `#!/bin/sh
dir=$(dirname -- "$(readlink -f -- "$0")")
exec "$dir/python3" -B "$dir/../root/usr/bin/ukify" "$@"
`

// Ukify makes the cache entry ukify and returns its path: bin/ukify is the program,
// root/usr/lib/systemd/boot/efi has the stub.
func Ukify(ctx context.Context, s Sources) (string, error) {
	return cache.Make("ukify", func(tmp string) error {
		if _, err := extract(ctx, s, tmp, []string{"systemd-ukify", "systemd-boot-efi"}); err != nil {
			return err
		}
		if err := wrap(tmp, wrapped{programs: []string{"python3"}, env: `PYTHONHOME="$root/usr"`}); err != nil {
			return err
		}
		program := filepath.Join(tmp, "bin", "ukify")
		if err := os.WriteFile(program, []byte(ukifyProgram), 0o755); err != nil {
			return err
		}
		_, err := run(ctx, nil, program, "--version")
		return err
	})
}
