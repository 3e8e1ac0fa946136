package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
)

// changeResult is what every command prints that changes the machine.
type changeResult struct {
	Schema string `json:"schema"` // cfsboot.change/1
	*deploy.Change
}

func (r changeResult) table(w io.Writer) {
	what := fmt.Sprintf("%s (%s)", r.Title, short(r.Deployment))
	switch r.Action {
	case deploy.ActionStaged:
		fmt.Fprintf(w, "staged %s: the next shutdown makes it the default, the next boot starts it\n", what)
	case deploy.ActionArmed:
		fmt.Fprintf(w, "%s is the default of the next boot\n", what)
	case deploy.ActionDropped:
		fmt.Fprintf(w, "gave up the staged deployment %s; the default stays %s\n", short(r.Dropped), what)
	default:
		fmt.Fprintf(w, "nothing to do: %s is there already\n", what)
	}
	if r.Dropped != "" && r.Action != deploy.ActionDropped {
		fmt.Fprintf(w, "gave up the staged deployment %s\n", short(r.Dropped))
	}
	if r.Booted != "" {
		fmt.Fprintf(w, "running and kept: %s\n", short(r.Booted))
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
}

// changed renders a change. Having nothing to do is no failure: the machine is as the command wants it.
func (e *env) changed(c *deploy.Change, err error) error {
	if err != nil && !errors.Is(err, deploy.ErrNothingToDo) {
		return err
	}
	if c == nil {
		return err
	}
	return e.render(changeResult{"cfsboot.change/1", c})
}

// machine are the options of the running machine.
func (e *env) machine() deploy.Options {
	return deploy.Options{LockWait: lockWait, Progress: e.reporter(), Logger: e.logger}
}

func newUpgradeCommand(e *env) *cobra.Command {
	var retry bool
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Pull the image that this machine follows and stage what is new",
		Long: `Pull the image that this machine follows and stage what is new. The running system stays as it is;
the staged deployment becomes the default at the next orderly shutdown. Files that are already in the
repository are not written again. Interrupted at any point, the command can be repeated.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.changed(deploy.Upgrade(cmd.Context(), deploy.UpgradeOptions{
				Options: e.machine(), PullOptions: deploy.PullOptions{OpenSource: src.open(e)}, Retry: retry,
			}))
		},
	}
	cmd.Flags().BoolVar(&retry, "retry", false, "stage a deployment again that failed to boot before")
	src.bind(cmd)
	return cmd
}

func newRollbackCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "rollback [ID]",
		Short: "Make the previous deployment, or the one named ID, the default of the next boot",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := deploy.RollbackOptions{Options: e.machine()}
			if len(args) == 1 {
				o.ID = args[0]
			}
			return e.changed(deploy.Rollback(cmd.Context(), o))
		},
	}
}

func newFinalizeCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "finalize",
		Short: "Make the staged deployment the default of the next boot (run at shutdown)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.changed(deploy.Finalize(cmd.Context(), e.machine()))
		},
	}
}

func newInstallToFilesystemCommand(e *env) *cobra.Command {
	var o deploy.InstallOptions
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "to-filesystem DIR",
		Short: "Install an image on the mounted file system DIR, which becomes the root file system",
		Long: `Install an image on the mounted file system DIR. It must be empty and have fs-verity
(mkfs.ext4 -O verity -b 4096), and the EFI system partition must be mounted below it. The boot loader,
systemd-boot, comes from the image. An interrupted installation is finished by running it again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.Image == "" {
				return usageErrorf(cmd, "--image is required: what is to be installed")
			}
			o.Options, o.OpenSource = e.machine(), src.open(e)
			return e.changed(deploy.Install(cmd.Context(), args[0], o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Image, "image", "", "`SOURCE` to install: docker://HOST/NAME:TAG or oci:DIR[:TAG]")
	f.StringVar(&o.TargetImage, "target-image", "", "`REFERENCE` that the installed machine follows (default: that of --image)")
	f.StringArrayVar(&o.Kargs, "karg", nil, "kernel `ARGUMENT` of the installed machine; may be repeated")
	f.StringVar(&o.ESPPath, "esp", "", "where the EFI system partition is mounted (default: boot/efi, efi or boot below DIR)")
	f.StringVar(&o.RootUUID, "root-uuid", "", "`UUID` of the file system for root= (default: read from it)")
	f.BoolVar(&o.AllowMissingVerity, "allow-missing-verity", false, "install where the kernel or the file system has no fs-verity: changed files go unnoticed")
	src.bind(cmd)
	return cmd
}
