package main

import (
	"github.com/spf13/cobra"
)

func newRootCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cfsboot",
		Short: "Update and boot image-mode machines on composefs",
		Long: `cfsboot pulls bootable OCI images into a composefs repository, deploys them beside the running
system, and updates and rolls back. The initramfs mounts only the image
whose fs-verity digest the boot entry names.`,
		Version:           version,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(*cobra.Command, []string) error { return e.start() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageError{c.CommandPath(), err} })
	cmd.SetOut(e.stdout)
	cmd.SetErr(e.stderr)
	f := cmd.PersistentFlags()
	f.StringVar(&e.opts.repo, "repo", "", "repository `PATH` (default /sysroot/composefs, or ~/.var/lib/composefs without root)")
	f.BoolVar(&e.opts.json, "json", false, "print the result as JSON, and an error as one line of it")
	f.BoolVarP(&e.opts.quiet, "quiet", "q", false, "print neither progress nor log messages")
	f.BoolVarP(&e.opts.verbose, "verbose", "v", false, "log decisions to standard error")
	f.StringVar(&e.opts.progress, "progress", "auto", "progress on standard error: auto, tty, plain, json or none")

	cmd.AddCommand(
		newStatusCommand(e),
		newUpgradeCommand(e),
		newSwitchCommand(e),
		newRollbackCommand(e),
		newFinalizeCommand(e),
		newDeleteCommand(e),
		newGCCommand(e),
		newResumeCommand(e),
		group(e, "install", "Install an image on a disk, or on a file system that is prepared for it",
			newInstallToDiskCommand(e), newInstallToFilesystemCommand(e)),
		group(e, "oci", "Pull and look at OCI images in the repository",
			newPullCommand(e), newImagesCommand(e), newInspectCommand(e), newMountCommand(e)),
		group(e, "repo", "Manage the composefs repository", newRepoInitCommand(e), newRepoGCCommand(e)),
		newInitramfsCommand(e),
		group(e, "uki", "Build unified kernel images and look into them", newUKIBuildCommand(e), newUKIInspectCommand(e)),
		newRecordFailureCommand(e),
		newReviewBootsCommand(e),
	)
	cmd.InitDefaultCompletionCmd() // now, not when it runs: what holds for the others holds for it
	refuseUnknown(cmd)
	addCompletions(cmd, e)
	return cmd
}

// group is a command that only holds others: alone it prints its help, with an unknown name it is a usage error.
func group(e *env, use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(subs...)
	return cmd
}

// refuseUnknown gives every command that holds others a body: without a sub-command it prints help, with an unknown one it fails
// as a usage error (cobra alone would print help and succeed). Argument counts become usage errors too.
func refuseUnknown(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		refuseUnknown(c)
	}
	if args := cmd.Args; args != nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if err := args(c, a); err != nil {
				return usageError{c.CommandPath(), err}
			}
			return nil
		}
	}
	if cmd.HasSubCommands() && cmd.RunE == nil {
		cmd.Args = func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return usageErrorf(c, "unknown command %q", a[0])
			}
			return nil
		}
		cmd.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	}
}
