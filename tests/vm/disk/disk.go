// Package disk makes disks with an installed system, from inside User Mode
// Linux, because the build host's kernel need not have fs-verity.
package disk

import (
	"context"
	_ "embed" // the script that runs in the guest
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

//go:embed install.sh
var script string

// Options describe an installation. All but Log are required.
type Options struct {
	Kernel, Init string   // see uml.Config
	Program      string   // the cfsboot program that installs
	Layout       string   // OCI layout directory with the tag "image"
	Target       string   // reference that the machine updates from
	Kargs        []string // kernel arguments beside those of cfsboot
	Size         int64    // bytes; the file is sparse
	ESPSize      int64    // bytes
	Log          io.Writer
}

// Install makes the disk file path and installs a system on it.
func Install(ctx context.Context, path string, o Options) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = f.Truncate(o.Size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "cfsboot-install-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	mnt, sh := filepath.Join(work, "mnt"), filepath.Join(work, "install.sh")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(sh, []byte(script), 0o755); err != nil {
		return err
	}
	status, err := uml.Run(ctx, uml.Config{
		Kernel: o.Kernel, Init: o.Init, Disks: []string{path}, Dir: "/", Limit: 5 * time.Minute, Output: o.Log,
		Env: []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", "MNT=" + mnt, "PROGRAM=" + o.Program, "LAYOUT=" + o.Layout,
			"TARGET=" + o.Target, "KARGS=" + strings.Join(o.Kargs, " "), "ESP_MIB=" + strconv.FormatInt(o.ESPSize>>20, 10),
		},
		Args: []string{"/bin/sh", sh},
	})
	if err == nil && status != 0 {
		err = fmt.Errorf("install in User Mode Linux: exit status %d", status)
	}
	return err
}

// Guest runs a shell script as root in User Mode Linux with the disk's root file
// system mounted at the directory $MNT and the ESP at $MNT/boot: to look at a
// disk between two boots and to tamper with it.
func Guest(ctx context.Context, kernel, init, path, commands string, log io.Writer) error {
	work, err := os.MkdirTemp("", "cfsboot-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	mnt := filepath.Join(work, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		return err
	}
	const around = "set -eu\nmount /dev/ubda2 \"$MNT\"\nmount /dev/ubda1 \"$MNT/boot\"\n%s\nsync\numount \"$MNT/boot\" \"$MNT\"\n"
	status, err := uml.Run(ctx, uml.Config{
		Kernel: kernel, Init: init, Disks: []string{path}, Dir: "/", Limit: 2 * time.Minute, Output: log,
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "MNT=" + mnt},
		Args: []string{"/bin/sh", "-c", fmt.Sprintf(around, commands)},
	})
	if err == nil && status != 0 {
		err = fmt.Errorf("commands in User Mode Linux: exit status %d", status)
	}
	return err
}
