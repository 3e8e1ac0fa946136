package main

import (
	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
)

// bootFailureResult is what `record-failure` prints.
type bootFailureResult struct {
	Schema string `json:"schema"` // cfsboot.boot-failure/1
	*deploy.BootFailureReport
}

func (r bootFailureResult) warnings() []string { return r.Warnings }

func (r bootFailureResult) table(p *page) {
	p.line("this boot of deployment %s failed: %s", short(r.Deployment), r.Reason)
	if r.Action == deploy.AfterReboot {
		p.line("rebooting: %s", r.Why)
	} else {
		p.line("not rebooting: %s", r.Why)
	}
}

// newRecordFailureCommand is called by cfsboot-boot-incomplete.service, not by people.
func newRecordFailureCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "record-failure",
		Short:  "Write down why this boot does not become complete, and reboot (run by a unit)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := deploy.RecordFailure(cmd.Context(), e.machine())
			if r != nil {
				_ = e.render(bootFailureResult{"cfsboot.boot-failure/1", r}) // a console that is gone must not decide about a reboot
			}
			return err
		},
	}
}

// bootReviewResult is what `review-boots` prints.
type bootReviewResult struct {
	Schema string `json:"schema"` // cfsboot.boot-review/1
	*deploy.BootReview
}

func (r bootReviewResult) warnings() []string { return r.Warnings }

func (r bootReviewResult) table(p *page) {
	for _, text := range r.Findings {
		p.line("%s", text)
	}
	if len(r.Findings) == 0 {
		p.line("no failed boots that were not known")
	}
}

// newReviewBootsCommand is called by cfsboot-boot-review.service, not by people.
func newReviewBootsCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "review-boots",
		Short:  "Find out which boots failed before this one (run by a unit)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := deploy.ReviewBoots(cmd.Context(), e.machine())
			if err != nil {
				return err
			}
			return e.render(bootReviewResult{"cfsboot.boot-review/1", r})
		},
	}
}
