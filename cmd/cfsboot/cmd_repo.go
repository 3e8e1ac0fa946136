package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// repoInitResult is what `repo init` prints.
type repoInitResult struct {
	Schema    string   `json:"schema"` // cfsboot.repo-init/1
	Path      string   `json:"path"`
	Algorithm string   `json:"algorithm"`
	Format    int      `json:"erofs_version"`
	Secure    bool     `json:"secure"`
	Warnings  []string `json:"warnings"` // never null
}

func (r repoInitResult) warnings() []string { return r.Warnings }

// formatWarnings tell what it costs to have chosen a format.
func formatWarnings(v erofs.Version) []string {
	if v != erofs.V0 {
		return []string{}
	}
	return []string{"composefs-rs cannot pull OCI images into a repository of EROFS format 0; format 1 is the one to share with other programs"}
}

func (r repoInitResult) table(p *page) {
	mode := "secure: every object has fs-verity"
	if !r.Secure {
		mode = "insecure: objects without fs-verity are accepted"
	}
	p.line("repository %s: %s, EROFS format %d, %s", r.Path, r.Algorithm, r.Format, mode)
}

func newRepoInitCommand(e *env) *cobra.Command {
	var algorithm string
	var insecure bool
	var format uint8
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create a repository; on an existing one with the same configuration nothing happens",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := fsverity.ParseAlgorithm(algorithm)
			if err != nil {
				return usageErrorf(cmd, "--algorithm: %v", err)
			}
			if format > uint8(erofs.V2) {
				return usageErrorf(cmd, "--erofs-version: got %d, want 0, 1 or 2", format)
			}
			path, err := e.repoPath()
			if err != nil {
				return err
			}
			dir, err := repo.Create(cmd.Context(), path, repo.InitOptions{
				Algorithm: a, Formats: &repo.Formats{Default: erofs.Version(format)}, Insecure: insecure,
			})
			if errors.Is(err, errors.ErrUnsupported) && !insecure {
				return fmt.Errorf("%w; --insecure does without fs-verity", err)
			}
			if err != nil {
				return err
			}
			defer dir.Close() //nolint:errcheck // Create has synced it
			// Not what was asked for: one that was there may be stricter.
			r, err := repo.Open(cmd.Context(), dir, repo.Options{Logger: e.logger, LockWait: lockWait})
			if err != nil {
				return err
			}
			v := r.Formats()[0]
			res := repoInitResult{"cfsboot.repo-init/1", path, r.Algorithm().String(), int(v), r.Secure(), formatWarnings(v)}
			if err := r.Close(); err != nil {
				return err
			}
			return e.render(res)
		},
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", "fsverity-sha512-12", "digest `ALGORITHM` of objects and images: fsverity-sha512-12 or fsverity-sha256-12")
	cmd.Flags().Uint8Var(&format, "erofs-version", uint8(erofs.V1), "`FORMAT` of the images: 1; 2 is the older one of composefs-rs, whose images composefs=DIGEST names on a kernel command line; 0 that of C mkcomposefs")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "accept a file system without fs-verity: nothing protects objects from being changed")
	return cmd
}
