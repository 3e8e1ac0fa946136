package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/install"
)

// installFlags are the flags of every command that installs an image.
type installFlags struct {
	src     sourceFlags
	o       deploy.InstallOptions
	keyFile string
}

func (i *installFlags) bind(cmd *cobra.Command) {
	i.src.bind(cmd)
	f := cmd.Flags()
	f.StringVar(&i.o.Image, "image", "", "`SOURCE` to install: docker://HOST/NAME:TAG or oci:DIR[:TAG]")
	f.StringVar(&i.o.TargetImage, "target-image", "", "`REFERENCE` that the installed machine follows (default: that of --image)")
	f.StringArrayVar(&i.o.Kargs, "karg", nil, "kernel `ARGUMENT` of the installed machine; may be repeated")
	f.BoolVar(&i.o.AllowMissingVerity, "allow-missing-verity", false, "install where the kernel or the file system has no fs-verity: changed files go unnoticed")
	f.StringVar(&i.keyFile, "root-ssh-key", "", "`FILE` of public keys (authorized_keys) that root of the machine can be logged in to with")
	f.StringVar(&i.o.Hostname, "hostname", "", "`NAME` of the machine (default: the image decides)")
}

// options checks the flags and returns what they say.
func (i *installFlags) options(cmd *cobra.Command, e *env) (o deploy.InstallOptions, err error) {
	o = i.o
	if err := checkReferences(cmd, o); err != nil {
		return o, err
	}
	if o.PullOptions, err = i.src.options(cmd, e); err != nil {
		return o, err
	}
	o.Options = e.machine()
	e.room = roomOfInstall
	o.RootSSHKeys, err = i.readKeys()
	return o, err
}

func (i *installFlags) readKeys() ([]byte, error) {
	if i.keyFile == "" {
		return nil, nil
	}
	f, err := os.Open(i.keyFile)
	if err != nil {
		return nil, fmt.Errorf("--root-ssh-key: %w", err)
	}
	defer f.Close()
	keys, err := io.ReadAll(io.LimitReader(f, install.MaxKeys+1))
	if err != nil {
		return nil, fmt.Errorf("--root-ssh-key: %w", err)
	}
	return keys, nil
}

func newInstallToFilesystemCommand(e *env) *cobra.Command {
	var flags installFlags
	var espPath, rootUUID string
	cmd := &cobra.Command{
		Use:   "to-filesystem DIR",
		Short: "Install an image on the mounted file system DIR, which becomes the root file system",
		Long: `Install an image on the mounted file system DIR. It must be empty and have fs-verity
(mkfs.ext4 -O verity -b 4096), and the EFI system partition must be mounted below it. The boot loader,
systemd-boot, comes from the image. An interrupted installation is finished by running it again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := flags.options(cmd, e)
			if err != nil {
				return err
			}
			o.ESPPath, o.RootUUID = espPath, rootUUID
			return e.changed(deploy.Install(cmd.Context(), args[0], o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&espPath, "esp", "", "where the EFI system partition is mounted (default: boot/efi, efi or boot below DIR)")
	f.StringVar(&rootUUID, "root-uuid", "", "`UUID` of the file system for root= (default: read from it)")
	flags.bind(cmd)
	return cmd
}
