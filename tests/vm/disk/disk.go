// Package disk makes disks with an installed system, from inside User Mode
// Linux, because the build host's kernel need not have fs-verity.
package disk

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

// Options describe an installation. Kernel, Init, Program, Layout, Target and Size
// are required.
type Options struct {
	Kernel, Init string   // see uml.Config
	Program      string   // the cfsboot program that installs
	Layout       string   // OCI layout directory with the tag "image"
	Target       string   // reference that the machine updates from
	Kargs        []string // kernel arguments beside those of cfsboot
	RootSSHKey   string   // file with public keys for root; "": none
	Hostname     string   // "": that of the image
	Size         int64    // bytes; the file is sparse
	ESPSize      int64    // bytes; 0: what cfsboot chooses
	// File installs to the file itself, by way of loop devices of the guest, and
	// lets cfsboot make it. Otherwise it is the guest's block device.
	File bool
	Log  io.Writer // nil discards it
}

// args is the command line of cfsboot.
func (o Options) args(disk string) []string {
	args := []string{o.Program, "--progress", "plain", "install", "to-disk", disk, "--image", "oci:" + o.Layout + ":image", "--target-image", o.Target}
	for _, k := range o.Kargs {
		args = append(args, "--karg", k)
	}
	for _, x := range []struct{ flag, value string }{{"--root-ssh-key", o.RootSSHKey}, {"--hostname", o.Hostname}} {
		if x.value != "" {
			args = append(args, x.flag, x.value)
		}
	}
	if o.ESPSize > 0 {
		args = append(args, "--esp-size", strconv.FormatInt(o.ESPSize, 10))
	}
	if o.File {
		args = append(args, "--size", strconv.FormatInt(o.Size, 10))
	}
	return args
}

// Install makes the disk file path and installs a system on it with "cfsboot
// install to-disk".
func Install(ctx context.Context, path string, o Options) error {
	disk, disks := path, []string(nil)
	if !o.File {
		disk, disks = "/dev/ubda", []string{path}
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
	}
	status, err := uml.Run(ctx, uml.Config{
		Kernel: o.Kernel, Init: o.Init, Disks: disks, Dir: "/", Limit: 5 * time.Minute, Output: o.Log,
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root"},
		Args: o.args(disk),
	})
	if err == nil && status != 0 {
		err = fmt.Errorf("install in User Mode Linux: exit status %d", status)
	}
	return err
}

// Guest runs a shell script as root in User Mode Linux with the disk's root file
// system mounted at the directory $MNT and the ESP at $ESP: to look at a
// disk between two boots and to tamper with it.
func Guest(ctx context.Context, kernel, init, path, commands string, log io.Writer) error {
	work, err := os.MkdirTemp("", "cfsboot-disk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	mnt, esp := filepath.Join(work, "mnt"), filepath.Join(work, "esp")
	for _, d := range []string{mnt, esp} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	const around = "set -eu\nmount /dev/ubda2 \"$MNT\"\nmount /dev/ubda1 \"$ESP\"\n%s\nsync\numount \"$ESP\" \"$MNT\"\n"
	status, err := uml.Run(ctx, uml.Config{
		Kernel: kernel, Init: init, Disks: []string{path}, Dir: "/", Limit: 2 * time.Minute, Output: log,
		Env:  []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "MNT=" + mnt, "ESP=" + esp},
		Args: []string{"/bin/sh", "-c", fmt.Sprintf(around, commands)},
	})
	if err == nil && status != 0 {
		err = fmt.Errorf("commands in User Mode Linux: exit status %d", status)
	}
	return err
}
