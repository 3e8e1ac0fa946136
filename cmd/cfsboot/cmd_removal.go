package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/progress"
)

// removalResult is what `delete` and `gc` print.
type removalResult struct {
	Schema string `json:"schema"` // cfsboot.removal/1
	*deploy.Removal
	Collected *collected `json:"repository"` // null: nothing was collected
}

func newRemovalResult(r *deploy.Removal) removalResult {
	out := removalResult{Schema: "cfsboot.removal/1", Removal: r}
	if r.Repository != nil {
		c := newCollected(r.Repository, r.DryRun)
		out.Collected = &c
	}
	return out
}

func (r removalResult) warnings() []string { return r.Warnings }

func (r removalResult) table(p *page) {
	verb, freed := "removed", "freed on the boot partition"
	if r.DryRun {
		verb, freed = "would remove", "would be free on the boot partition"
	}
	for _, x := range r.Repaired {
		p.line("%s", x.Message)
	}
	for _, d := range r.Removed {
		p.line("%s deployment %s (%s)", verb, short(d.Deployment), cmp.Or(d.Title, "no record"))
	}
	p.line("%s: %s", freed, progress.FormatSize(r.BootFreedBytes, 1))
	if r.Collected != nil {
		p.line("repository")
		r.Collected.lines(p)
	}
	for _, k := range r.Kept {
		p.line("kept deployment %s (%s): %s", short(k.Deployment), cmp.Or(k.Title, "no record"), k.Why)
	}
}

func newDeleteCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID",
		Short: "Remove the deployment ID, or the one whose ID begins so",
		Long: `Remove one deployment: its boot entries, its kernel and initrd unless another one uses them, its /etc, and
its objects. The running one, the staged one, and the last one that is known to boot are refused.
Interrupted at any point, the command can be repeated.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkID(cmd, args[0]); err != nil {
				return err
			}
			r, err := deploy.Delete(cmd.Context(), deploy.DeleteOptions{Options: e.machine(), ID: args[0]})
			if err != nil {
				return err
			}
			return e.render(newRemovalResult(r))
		},
	}
}

func newGCCommand(e *env) *cobra.Command {
	o := deploy.GCOptions{}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove deployments that are not to be kept, and objects that nothing needs",
		Long: `Remove deployments that are not to be kept, and objects that nothing needs. The running deployment, the
staged one, the default and the one that rollback goes to stay, and as many others as /etc/cfsboot/cfsboot.toml
says (keep = 1). An upgrade does the same when it has succeeded. Interrupted at any point, the command can be
repeated.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("keep") && o.Keep < 0 {
				return usageErrorf(cmd, "--keep must be 0 or more, got %d", o.Keep)
			}
			o.Options = e.machine()
			r, err := deploy.GC(cmd.Context(), o)
			if err != nil {
				return fmt.Errorf("gc: %w", err)
			}
			return e.render(newRemovalResult(r))
		},
	}
	cmd.Flags().IntVar(&o.Keep, "keep", -1, "`NUMBER` of other deployments to keep (default: as configured)")
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be removed and write nothing")
	cmd.Flags().BoolVar(&o.DropDangling, "drop-dangling", false, "remove refs that lead to nothing instead of refusing because of them")
	return cmd
}
