// Command probe is the only program of a guest that finds out whether an
// accelerator works: it says that it runs and powers off.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

func main() {
	fmt.Println(qemu.ProbeMessage)
	_ = os.Stdout.Sync()                             // the console cannot be synced, the text is out
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // nothing is left to do if it fails
}
