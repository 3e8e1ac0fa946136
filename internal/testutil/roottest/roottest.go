// Package roottest helps tests that need root and the kernel of the lab (`lab umltest`).
package roottest

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// NeedKernel skips unless the test runs as root on a kernel with fs-verity, as
// `lab umltest` arranges it. It also makes "/" shared, as systemd does in an
// initramfs: several traps of the mount calls show only then.
func NeedKernel(t testing.TB) {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root, mounts and fs-verity: CFSBOOT_ROOT_TESTS is not 1")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		t.Fatalf("make / shared: %v", err)
	}
}

// LoopDevice attaches a file to a free loop device until the end of the test, or
// until nothing uses it any more, and returns its path.
func LoopDevice(t testing.TB, file string) string {
	t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		t.Fatal(err)
	}
	device := fmt.Sprintf("/dev/loop%d", n)
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = loop.Close() })
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{
		Fd: uint32(back.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
	}); err != nil {
		t.Fatal(err)
	}
	return device
}
