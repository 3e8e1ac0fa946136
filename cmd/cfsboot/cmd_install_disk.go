package main

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/progress"
)

// installDiskResult is what `install to-disk` prints.
type installDiskResult struct {
	Schema         string               `json:"schema"` // cfsboot.install-to-disk/1
	Deployment     string               `json:"deployment"`
	Reference      string               `json:"reference"`
	ManifestDigest string               `json:"manifest_digest"`
	Title          string               `json:"title"`
	Version        string               `json:"version"`
	Kernel         string               `json:"kernel"`
	Entry          uint64               `json:"entry"`
	Warnings       []string             `json:"warnings"`
	Disk           deploy.InstalledDisk `json:"disk"`
}

func newInstallDiskResult(c *deploy.DiskChange) installDiskResult {
	return installDiskResult{
		"cfsboot.install-to-disk/1", c.Deployment, c.Reference, c.ManifestDigest, c.Title, c.Version, c.Kernel, c.Entry, c.Warnings, c.Disk,
	}
}

func (r installDiskResult) warnings() []string { return r.Warnings }

func (r installDiskResult) table(p *page) {
	d := r.Disk
	p.line("installed %s (%s) on %s", cmp.Or(r.Title, "deployment"), short(r.Deployment), d.Path)
	p.line("partition %d: EFI system partition, %s", d.ESP.Number, progress.FormatBytes(d.ESP.SizeBytes))
	p.line("partition %d: root, %s, UUID %s; grows when the disk is larger", d.Root.Number, progress.FormatBytes(d.Root.SizeBytes), d.RootUUID)
	for _, lost := range d.Destroyed {
		p.line("destroyed: %s", lost)
	}
	p.line("the machine follows %s", r.Reference)
}

// sizeFlag is a number of bytes: "4G", "512MiB", "1048576". Units are powers of 1024.
type sizeFlag struct{ bytes *int64 }

func (f sizeFlag) Type() string { return "SIZE" }

func (f sizeFlag) String() string {
	if f.bytes == nil || *f.bytes == 0 {
		return ""
	}
	return strconv.FormatInt(*f.bytes, 10)
}

// Set parses a size.
func (f sizeFlag) Set(s string) error {
	digits := strings.TrimRight(s, "KMGTiB")
	shift, ok := map[string]uint{"": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.TrimSuffix(s[len(digits):], "iB")]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n <= 0 || n > (1<<62)>>shift {
		return fmt.Errorf("want a number of bytes, or one with K, M, G or T (powers of 1024)")
	}
	*f.bytes = n << shift
	return nil
}

func newInstallToDiskCommand(e *env) *cobra.Command {
	var o deploy.DiskOptions
	var flags installFlags
	cmd := &cobra.Command{
		Use:   "to-disk DEVICE|FILE",
		Short: "Install an image on a whole disk, or on a file that is one",
		Long: `Divide a disk into an EFI system partition and a root file system (ext4 with fs-verity), and install an
image on it; the boot loader, systemd-boot, comes from the image. At the first boot of a larger disk the root grows.

A disk that holds anything is refused unless --wipe is given, and then the command says what it destroys. A disk of
which anything is mounted, swapped to or part of another device is always refused. An installation that was
interrupted leaves a disk that is recognised as incomplete: run the command again with --wipe.

FILE is a disk image; with --size it is made. That takes loop devices. Needed programs: sfdisk, wipefs,
mkfs.vfat, mkfs.ext4.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.InstallOptions, err = flags.options(cmd, e); err != nil {
				return err
			}
			c, err := deploy.InstallToDisk(cmd.Context(), args[0], o)
			if err != nil {
				return err
			}
			return e.render(newInstallDiskResult(c))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.Wipe, "wipe", false, "destroy what is on the disk")
	f.Var(sizeFlag{&o.ESPSize}, "esp-size", "`SIZE` of the EFI system partition in whole MiB (default: 1G, on small disks an eighth)")
	f.Var(sizeFlag{&o.Size}, "size", "make FILE with this `SIZE`")
	flags.bind(cmd)
	return cmd
}
