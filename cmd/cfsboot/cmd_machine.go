package main

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
)

// changeResult is what every command prints that changes the machine.
type changeResult struct {
	Schema string `json:"schema"` // cfsboot.change/1
	*deploy.Change
}

func (r changeResult) warnings() []string { return r.Warnings }

func (r changeResult) table(p *page) {
	what := fmt.Sprintf("%s (%s)", cmp.Or(r.Title, "deployment"), short(r.Deployment))
	switch r.Action {
	case deploy.ActionStaged:
		if r.DownloadOnly {
			p.line("downloaded %s: it waits for `cfsboot upgrade --from-downloaded`, whatever is shut down", what)
			break
		}
		p.line("staged %s: the next shutdown makes it the default, the next boot starts it", what)
	case deploy.ActionArmed:
		p.line("%s is the default of the next boot", what)
	case deploy.ActionDropped:
		p.line("gave up the staged deployment %s; the default stays %s", short(r.Dropped), what)
	case deploy.ActionReference:
		p.line("%s is the image of %s, which is followed from now on", what, r.Reference)
	default:
		p.line("nothing to do: %s is there already", what)
	}
	if r.Dropped != "" && r.Action != deploy.ActionDropped {
		p.line("gave up the staged deployment %s", short(r.Dropped))
	}
	if r.Booted != "" {
		p.line("running and kept: %s", short(r.Booted))
	}
	if r.Reboot {
		p.line("rebooting")
	}
}

// changed renders a change. Having nothing to do is no failure: the machine is as the command wants it. A reboot that does not
// come is one, but what was done before stands.
func (e *env) changed(c *deploy.Change, err error) error {
	if errors.Is(err, deploy.ErrNothingToDo) {
		err = nil
	}
	if c == nil || err != nil && !is[*deploy.RebootError](err) {
		return err
	}
	return errors.Join(e.render(changeResult{"cfsboot.change/1", c}), err)
}

// machine are the options of the running machine.
func (e *env) machine() deploy.Options {
	return deploy.Options{LockWait: lockWait, Progress: e.reporter(), Logger: e.logger}
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
	var id identityFlags
	cmd := &cobra.Command{
		Use:   "to-filesystem DIR",
		Short: "Install an image on the mounted file system DIR, which becomes the root file system",
		Long: `Install an image on the mounted file system DIR. It must be empty and have fs-verity
(mkfs.ext4 -O verity -b 4096), and the EFI system partition must be mounted below it. The boot loader,
systemd-boot, comes from the image. An interrupted installation is finished by running it again.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.Image == "" {
				return usageErrorf(cmd, "--image is required: what is to be installed")
			}
			if o.PullOptions, err = src.options(cmd, e); err != nil {
				return err
			}
			if err := id.apply(&o); err != nil {
				return err
			}
			o.Options = e.machine()
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
	id.bind(cmd)
	src.bind(cmd)
	return cmd
}
