package uml

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// GoTest describes a run of one package's tests in a guest.
type GoTest struct {
	Kernel  string
	Init    string
	Package string        // as for "go test": ./fsverity
	Args    []string      // arguments of the test binary: -test.run=…, -test.v
	Scratch int64         // size of the scratch disk in bytes, 2 GiB if 0
	Disks   []string      // further disks, /dev/ubdb and on
	Env     []string      // additional variables
	Memory  string        // as in Config
	Limit   time.Duration // as in Config, without the compilation
	Output  io.Writer
}

// RunGoTest compiles the test binary of a package without cgo and runs it as
// root in the package's directory. A fresh ext4 with fs-verity and 4 KiB blocks
// is mounted for it: CFSBOOT_SCRATCH names the directory, TMPDIR one inside it.
// CFSBOOT_ROOT_TESTS=1 is set. The status is that of the test binary.
func RunGoTest(ctx context.Context, t GoTest) (int, error) {
	work, err := os.MkdirTemp("", "cfsboot-umltest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	list := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", t.Package)
	list.Stderr = t.Output
	dir, err := list.Output()
	if err != nil {
		return 0, fmt.Errorf("go list %s: %w", t.Package, err)
	}
	bin := filepath.Join(work, "test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", bin, t.Package)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stdout, build.Stderr = t.Output, t.Output
	if err := build.Run(); err != nil {
		return 0, fmt.Errorf("go test -c %s: %w", t.Package, err)
	}
	if _, err := os.Stat(bin); err != nil {
		fmt.Fprintf(t.Output, "%s has no test files\n", t.Package)
		return 0, nil
	}
	if t.Scratch == 0 {
		t.Scratch = 2 << 30
	}
	// In memory: each flush of the guest is an fsync of that file, and the tests flush all the time.
	diskDir, err := os.MkdirTemp(memoryDir(), "cfsboot-umltest-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(diskDir)
	disk, scratch := filepath.Join(diskDir, "disk"), filepath.Join(work, "scratch")
	if err := MakeExt4(ctx, disk, t.Scratch, "-m", "0"); err != nil {
		return 0, err
	}
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return 0, err
	}
	// TMPDIR has to exist before the test starts, and only the guest can make it.
	script := `mkdir -m 1777 "$TMPDIR" && exec "$@"`
	env := append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"CFSBOOT_ROOT_TESTS=1", "CFSBOOT_SCRATCH=" + scratch, "TMPDIR=" + scratch + "/tmp",
	}, t.Env...)
	return Run(ctx, Config{
		Kernel: t.Kernel, Init: t.Init, Memory: t.Memory, Limit: t.Limit, Output: t.Output,
		Disks:  append([]string{disk}, t.Disks...),
		Mounts: []Mount{{Source: "/dev/ubda", Target: scratch, Type: "ext4"}},
		Dir:    string(dir[:len(dir)-1]), Env: env,
		Args: append([]string{"/bin/sh", "-c", script, "sh", bin}, t.Args...),
	})
}

// MakeExt4 makes a sparse file with an ext4 that can hold fs-verity files. The
// block size is forced: small disks would get 1 KiB, with which fs-verity
// refuses the 4 KiB blocks of composefs.
func MakeExt4(ctx context.Context, path string, size int64, args ...string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		_ = f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mkfs.ext4", append(append([]string{"-q", "-F", "-b", "4096", "-O", "verity"}, args...), path)...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w: %s", path, err, out)
	}
	return nil
}

// BuildInit compiles the guest's process 1 to path. Run needs it as Config.Init.
func BuildInit(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "github.com/cfsboot/cfsboot/tests/vm/uml/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the guest's init: %w: %s", err, out)
	}
	return nil
}
