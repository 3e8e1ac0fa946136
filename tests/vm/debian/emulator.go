package debian

import (
	"context"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// emulatorPackages are QEMU and the firmware of its machines.
var emulatorPackages = []string{"qemu-system-x86", "ovmf"}

// Emulator makes the cache entry of QEMU and returns its path: bin holds the program, root/usr/share/OVMF
// the firmware. It is that of Stable on every build host: version 10 needs three fifths of the processor
// time that the 7.2 of the release before takes for the same boot.
func Emulator(ctx context.Context, s Sources) (string, error) {
	return cache.Make("qemu-"+cache.Key(Stable, strings.Join(emulatorPackages, " "), wrapper), func(tmp string) error {
		root, err := extract(ctx, s, tmp, emulatorPackages)
		if err != nil {
			return err
		}
		modules, err := multiarch(root, "usr/lib/*/qemu")
		if err != nil {
			return err
		}
		return wrap(tmp, wrapped{
			programs: []string{"qemu-system-x86_64"},
			env:      `QEMU_MODULE_DIR="$root/` + modules + `"`, args: `-L "$root/usr/share/qemu"`,
		})
	})
}
