package systemd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// FinalizeUnit is the unit whose stop, at shutdown, arms a staged deployment.
const FinalizeUnit = "cfsboot-finalize.service"

// Runner runs systemctl on the machine that is managed.
type Runner interface {
	// Systemctl runs systemctl with arguments and waits for it.
	Systemctl(ctx context.Context, args ...string) error
}

// Exec is the Runner of the running machine.
type Exec struct{}

// Systemctl runs the program of that name from PATH. The error of a failed run
// holds what it printed.
func (Exec) Systemctl(ctx context.Context, args ...string) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err == nil {
		return nil
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	if text == "" {
		return fmt.Errorf("systemctl %s: %w", strings.Join(args, " "), err)
	}
	return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, text)
}

// Reboot starts an orderly reboot, which stops the finalize unit on its way. It
// returns before the machine goes down.
func Reboot(ctx context.Context, r Runner) error { return r.Systemctl(ctx, "reboot") }

// ErrNoFinalize wraps the reason why the finalize unit does not run. A staged
// deployment then stays staged until `finalize` is called by hand.
var ErrNoFinalize = errors.New("the shutdown unit " + FinalizeUnit + " cannot be started")

// StartFinalize makes sure that the finalize unit runs, so that it is stopped,
// and does its work, at the next shutdown. It is idempotent.
func StartFinalize(ctx context.Context, r Runner) error {
	if err := r.Systemctl(ctx, "start", FinalizeUnit); err != nil {
		return fmt.Errorf("%w: %w", ErrNoFinalize, err)
	}
	return nil
}
