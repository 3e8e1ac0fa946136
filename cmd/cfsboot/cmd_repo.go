package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// repoInitResult is what `repo init` prints.
type repoInitResult struct {
	Schema    string `json:"schema"` // cfsboot.repo-init/1
	Path      string `json:"path"`
	Algorithm string `json:"algorithm"`
	Secure    bool   `json:"secure"`
}

func (r repoInitResult) table(p *page) {
	mode := "secure: every object has fs-verity"
	if !r.Secure {
		mode = "insecure: objects without fs-verity are accepted"
	}
	p.line("repository %s: %s, %s", r.Path, r.Algorithm, mode)
}

func newRepoInitCommand(e *env) *cobra.Command {
	var algorithm string
	var insecure bool
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Create a repository; on an existing one with the same configuration nothing happens",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			a, err := fsverity.ParseAlgorithm(algorithm)
			if err != nil {
				return usageErrorf(cmd, "--algorithm: %v", err)
			}
			path, err := e.repoPath()
			if err != nil {
				return err
			}
			dir, err := repo.Create(cmd.Context(), path, repo.InitOptions{Algorithm: a, Insecure: insecure})
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
			res := repoInitResult{"cfsboot.repo-init/1", path, r.Algorithm().String(), r.Secure()}
			if err := r.Close(); err != nil {
				return err
			}
			return e.render(res)
		},
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", "fsverity-sha512-12", "digest `ALGORITHM` of objects and images: fsverity-sha512-12 or fsverity-sha256-12")
	cmd.Flags().BoolVar(&insecure, "insecure", false, "accept a file system without fs-verity: nothing protects objects from being changed")
	return cmd
}
