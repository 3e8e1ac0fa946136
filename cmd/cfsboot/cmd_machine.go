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
	e.room = roomOfMachine
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
				if err := checkID(cmd, args[0]); err != nil {
					return err
				}
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
