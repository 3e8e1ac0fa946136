package deploy

import (
	"context"

	"github.com/cfsboot/cfsboot/systemd"
)

// RebootError says that the machine does not reboot, although everything that
// comes before it was done: the next reboot takes it.
type RebootError struct {
	Deployment string // that the next boot starts
	Err        error
}

func (e *RebootError) Error() string {
	return "the machine is not rebooted into deployment " + short(e.Deployment) + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *RebootError) Unwrap() error { return e.Err }

// apply reboots after a command, if that makes the machine start another
// deployment. The lock is not held, since the shutdown unit needs it.
func apply(ctx context.Context, o Options, c *Change, err error) (*Change, error) {
	if c == nil || err != nil && !isNothing(err) || c.Deployment == c.Booted {
		return c, err
	}
	if c.Action == ActionStaged && c.DownloadOnly { // the next boot does not start it
		return c, err
	}
	if c.notStarted != nil {
		// A reboot now would start what runs already.
		return c, &RebootError{c.Deployment, c.notStarted}
	}
	if err := systemd.Reboot(ctx, o.withDefaults().Systemd); err != nil {
		return c, &RebootError{c.Deployment, err}
	}
	c.Reboot = true
	return c, nil
}
