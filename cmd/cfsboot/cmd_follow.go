package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/progress"
)

// exitNothing is the status of a check that finds nothing new.
const exitNothing = 77

// upgradeFlags are those of upgrade.
type upgradeFlags struct {
	check, apply, downloadOnly, fromDownloaded, retry bool
}

// conflicts refuses flags that contradict each other.
func (f upgradeFlags) conflicts(cmd *cobra.Command) error {
	if f.fromDownloaded && f.retry {
		return usageErrorf(cmd, "--from-downloaded and --retry contradict each other: nothing is pulled that could have failed to boot")
	}
	flags := []struct {
		name string
		set  bool
	}{{"--check", f.check}, {"--download-only", f.downloadOnly}, {"--from-downloaded", f.fromDownloaded}, {"--apply", f.apply}}
	for i, a := range flags {
		for _, b := range flags[i+1:] {
			if a.set && b.set && (a.name != "--from-downloaded" || b.name != "--apply") {
				return usageErrorf(cmd, "%s and %s contradict each other", a.name, b.name)
			}
		}
	}
	return nil
}

func newUpgradeCommand(e *env) *cobra.Command {
	var flags upgradeFlags
	var src sourceFlags
	cmd := &cobra.Command{
		Use:     "upgrade",
		Aliases: []string{"update"},
		Short:   "Pull the image that this machine follows and stage what is new",
		Long: `Pull the image that this machine follows and stage what is new. The running system stays as it is;
the staged deployment becomes the default at the next orderly shutdown. Files that are already in the
repository are not written again. Interrupted at any point, the command can be repeated.

With --check it only asks what the image is now, and ends with status 77 if there is nothing new.
With --download-only a shutdown leaves what is staged alone, until the command comes again without it,
or with --from-downloaded, which needs no network. With --apply the machine reboots at once if that
starts another deployment.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := flags.conflicts(cmd); err != nil {
				return err
			}
			pull, err := src.options(cmd, e)
			if err != nil {
				return err
			}
			if flags.check {
				return e.checked(deploy.Check(cmd.Context(), deploy.CheckOptions{Options: e.machine(), PullOptions: pull, Retry: flags.retry}))
			}
			return e.changed(deploy.Upgrade(cmd.Context(), deploy.UpgradeOptions{
				Options: e.machine(), PullOptions: pull, Retry: flags.retry,
				DownloadOnly: flags.downloadOnly, FromDownloaded: flags.fromDownloaded, Apply: flags.apply,
			}))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&flags.check, "check", false, "only ask whether there is something new: status 0 if so, 77 if not")
	f.BoolVar(&flags.downloadOnly, "download-only", false, "stage what is new, but leave it alone at shutdown")
	f.BoolVar(&flags.fromDownloaded, "from-downloaded", false, "let the next shutdown take what was downloaded; pull nothing")
	f.BoolVar(&flags.apply, "apply", false, "reboot when it is staged")
	f.BoolVar(&flags.retry, "retry", false, "stage a deployment again that failed to boot before")
	src.bind(cmd)
	return cmd
}

func newSwitchCommand(e *env) *cobra.Command {
	var o deploy.SwitchOptions
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "switch IMAGE",
		Short: "Follow another image, and stage it",
		Long: `Follow IMAGE (docker://HOST/NAME:TAG, or a bare HOST/NAME:TAG) from now on, and stage what it is now as upgrade
does: /etc is merged, /var stays. The reference belongs to the deployment: what runs now follows the one it has, and
a rollback goes back to that. If the switch fails, nothing has changed. oci:DIR[:TAG] is taken once; an upgrade
then has nothing to follow.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.DownloadOnly && o.Apply {
				return usageErrorf(cmd, "--download-only and --apply contradict each other")
			}
			if err := checkReference(cmd, "IMAGE", args[0]); err != nil {
				return err
			}
			if o.PullOptions, err = src.options(cmd, e); err != nil {
				return err
			}
			o.Options, o.Image = e.machine(), args[0]
			return e.changed(deploy.Switch(cmd.Context(), o))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.DownloadOnly, "download-only", false, "stage it, but leave it alone at shutdown")
	f.BoolVar(&o.Apply, "apply", false, "reboot when it is staged")
	f.BoolVar(&o.Retry, "retry", false, "stage a deployment again that failed to boot before")
	f.BoolVar(&o.AllowNoSELinux, "allow-no-selinux", false, "accept an image without SELinux policy although SELinux is enforcing here")
	src.bind(cmd)
	return cmd
}

// checkResult is what `upgrade --check` prints.
type checkResult struct {
	Schema string `json:"schema"` // cfsboot.check/1
	*deploy.Checked
}

func (r checkResult) table(p *page) {
	version := ""
	if r.Version != "" {
		version = ", version " + r.Version
	}
	what := r.Reference + " (" + short(r.ManifestDigest) + version + ")"
	switch r.Action {
	case "stage":
		p.line("new: %s, %s of %s; those that are here already are not fetched again", what, progress.Count(r.Layers, "layer"), progress.FormatSize(r.SizeBytes, 1))
	case "keep":
		p.line("nothing new: %s is staged", what)
	case "drop":
		p.line("back: %s is the default already; an upgrade gives up the staged deployment %s", what, short(r.Staged))
	case "rearm":
		p.line("back: %s runs; an upgrade makes it the default again", what)
	default:
		p.line("nothing new: %s is there already", what)
	}
}

// checked renders what a check has found. That there is nothing new is a status and no failure.
func (e *env) checked(c *deploy.Checked, err error) error {
	nothing := errors.Is(err, deploy.ErrNothingToDo)
	if err != nil && !nothing {
		return err
	}
	if err := e.render(checkResult{"cfsboot.check/1", c}); err != nil {
		return err
	}
	if nothing {
		return statusOnly(exitNothing)
	}
	return nil
}

// resumeResult is what `resume` prints.
type resumeResult struct {
	Schema string `json:"schema"` // cfsboot.resume/1
	*deploy.Resumed
}

func (r resumeResult) table(p *page) {
	for _, x := range r.Repaired {
		p.line("%s", x.Message)
	}
	if len(r.Repaired) == 0 {
		p.line("nothing to do: no command was interrupted")
	}
	if r.Staged != "" {
		p.line("staged: %s", short(r.Staged))
	}
	p.line("default of the next boot: %s", short(r.Default))
}

func newResumeCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "Finish or undo what an interrupted command has left",
		Long: `Finish or undo what an interrupted command has left, and remove what is left over. It needs no network.
Every command that changes the machine does the same before its own work, and says so.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := deploy.Resume(cmd.Context(), e.machine())
			if err != nil && !errors.Is(err, deploy.ErrNothingToDo) {
				return err
			}
			return e.render(resumeResult{"cfsboot.resume/1", r})
		},
	}
}
