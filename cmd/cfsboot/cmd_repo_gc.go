package main

import (
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// collected is what a garbage collection of the repository removed and kept.
type collected struct {
	DryRun             bool     `json:"dry_run"`
	ObjectsRemoved     int      `json:"objects_removed"`
	FreedBytes         int64    `json:"freed_bytes"` // on the medium
	ImagesPruned       int      `json:"images_pruned"`
	StreamsPruned      int      `json:"streams_pruned"`
	TemporariesRemoved int      `json:"temporaries_removed"`
	DanglingRefs       []string `json:"dangling_refs"` // that were dropped; never null
	ObjectsKept        int      `json:"objects_kept"`
	ImagesKept         int      `json:"images_kept"`
	StreamsKept        int      `json:"streams_kept"`
}

func newCollected(c *repo.Collected, dryRun bool) collected {
	out := collected{
		DryRun: dryRun, ObjectsRemoved: c.Objects, FreedBytes: c.Bytes, ImagesPruned: c.Images, StreamsPruned: c.Streams, TemporariesRemoved: c.Temporaries,
		DanglingRefs: []string{}, ObjectsKept: c.KeptObjects, ImagesKept: c.KeptImages, StreamsKept: c.KeptStreams,
	}
	for _, ref := range c.Dangling {
		out.DanglingRefs = append(out.DanglingRefs, ref.Name)
	}
	return out
}

func (r collected) lines(p *page) {
	removed := "removed"
	if r.DryRun {
		removed = "would remove"
	}
	p.line("%s: %s, %s, and the names of %s and %s", removed, progress.Count(r.ObjectsRemoved, "object"), progress.FormatSize(r.FreedBytes, 1),
		progress.Count(r.ImagesPruned, "image"), progress.Count(r.StreamsPruned, "stream"))
	if r.TemporariesRemoved > 0 {
		p.line("%s: %s of programs that were killed", removed, progress.Count(r.TemporariesRemoved, "file"))
	}
	for _, name := range r.DanglingRefs {
		p.line("%s: %s, which leads to nothing", removed, name)
	}
	p.line("kept: %s, %s, %s", progress.Count(r.ObjectsKept, "object"), progress.Count(r.ImagesKept, "image"), progress.Count(r.StreamsKept, "stream"))
}

// repoGCResult is what `repo gc` prints.
type repoGCResult struct {
	Schema string `json:"schema"` // cfsboot.repo-gc/1
	Path   string `json:"path"`
	collected
}

func (r repoGCResult) table(p *page) { r.lines(p) }

func newRepoGCCommand(e *env) *cobra.Command {
	var o repo.CollectOptions
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove objects that no tag, ref, mount or deployment needs",
		Long: `Remove objects that no tag, ref, mount or deployment needs, and names that lead to them. If what is in
use cannot be followed to its end nothing is removed. Interrupted at any point, the command can be repeated.
On a running machine "cfsboot gc" removes old deployments first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.withRepo(cmd.Context(), func(r *repo.Repository) error {
				top, err := durable.OpenDir(filepath.Join(r.Path(), ".."))
				if err != nil {
					return err
				}
				defer top.Close() //nolint:errcheck // read only
				o.Images = func() ([]string, error) { return deploy.HeldImages(r, top, "/") }
				o.LockWait = lockWait
				c, err := r.Collect(cmd.Context(), o)
				if err != nil {
					return err
				}
				if !o.DryRun {
					// Without a record the next pull compares a layer once more: no reason to fail.
					if err := oci.Forget(cmd.Context(), r); err != nil {
						e.logger.Warn("forget what is known about layers", "error", err)
					}
				}
				return e.render(repoGCResult{"cfsboot.repo-gc/1", r.Path(), newCollected(c, o.DryRun)})
			})
		},
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "say what would be removed and write nothing")
	cmd.Flags().BoolVar(&o.DropDangling, "drop-dangling", false, "remove refs that lead to nothing instead of refusing because of them")
	return cmd
}
