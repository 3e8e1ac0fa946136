package uml_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

// guest returns a configuration that lacks only the program.
func guest(t *testing.T) uml.Config {
	t.Helper()
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("starts User Mode Linux: CFSBOOT_VM_TESTS is not 1")
	}
	kernel, err := uml.FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	initProgram := filepath.Join(t.TempDir(), "init")
	if err := uml.BuildInit(t.Context(), initProgram); err != nil {
		t.Fatal(err)
	}
	return uml.Config{Kernel: kernel, Init: initProgram, Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Limit: time.Minute}
}

func TestVMUserModeLinuxStatus(t *testing.T) {
	c := guest(t)
	for script, want := range map[string]int{
		"exit 0":                    0,
		"exit 7":                    7,
		"kill -9 $$":                137,
		"setsid sleep 100 & exit 3": 3, // what it left behind does not keep the guest
	} {
		c.Args = []string{"/bin/sh", "-c", script}
		got, err := uml.Run(t.Context(), c)
		if err != nil || got != want {
			t.Errorf("%q: status %d, error %v, want %d", script, got, err, want)
		}
	}
}

func TestVMUserModeLinuxOutputAndDisk(t *testing.T) {
	c := guest(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := uml.MakeExt4(t.Context(), disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c.Output, c.Disks = &out, []string{disk}
	mnt := t.TempDir()
	c.Mounts = []uml.Mount{{Source: "/dev/ubda", Target: mnt, Type: "ext4"}}
	c.Args = []string{"/bin/sh", "-c", "echo written > " + mnt + "/f; echo first; echo second >&2; uname -m; exit 0"}
	if got, err := uml.Run(t.Context(), c); err != nil || got != 0 {
		t.Fatalf("status %d, error %v\n%s", got, err, out.String())
	}
	if !strings.Contains(out.String(), "first\nsecond\n") {
		t.Errorf("output is %q, want both lines without carriage returns", out.String())
	}
	out.Reset()
	c.Args = []string{"/bin/cat", mnt + "/f"}
	if got, err := uml.Run(t.Context(), c); err != nil || got != 0 || !strings.Contains(out.String(), "written\n") {
		t.Errorf("second guest: status %d, error %v, output %q, want the first one's file", got, err, out.String())
	}
}

func TestVMUserModeLinuxTimeLimit(t *testing.T) {
	c := guest(t)
	c.Args, c.Limit = []string{"/bin/sleep", "1000"}, 2*time.Second
	start := time.Now()
	if _, err := uml.Run(t.Context(), c); !errors.Is(err, uml.ErrTimeLimit) {
		t.Errorf("error %v, want %v", err, uml.ErrTimeLimit)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("ended after %v", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Limit = time.Minute
	if _, err := uml.Run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}
