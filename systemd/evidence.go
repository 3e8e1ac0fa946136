package systemd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// BootIncompleteUnit runs when a boot does not become complete in time, or a unit
// that it requires has failed.
const BootIncompleteUnit = "cfsboot-boot-incomplete.service"

// Units are names of units in the order in which systemd lists them.
type Units struct {
	Failed   []string // in the state "failed"
	Waiting  []string // whose job to start runs at this moment
	Required []string // by boot-complete.target itself
}

// Boot is one boot that the system's log knows.
type Boot struct {
	Offset int    // 0 is this one, -1 the one before it
	ID     string // 32 lower-case hex digits
}

// maxOutput bounds what is read of a program, in bytes.
const maxOutput = 8 << 20

// output runs a program and returns what it wrote to its standard output, of which
// the first maxOutput bytes count.
func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var message bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = &message
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	text, err := io.ReadAll(io.LimitReader(out, maxOutput))
	cut := len(text) == maxOutput
	if cut {
		cancel()
	}
	if werr := cmd.Wait(); err == nil && !cut {
		err = werr
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.Join(strings.Fields(message.String()), " "))
	}
	return string(text), nil
}

// Units asks which units have failed, which ones systemd is starting, and which ones
// a complete boot needs.
func (Exec) Units(ctx context.Context) (Units, error) {
	failed, err := output(ctx, "systemctl", "list-units", "--state=failed", "--plain", "--no-legend", "--no-pager", "--full", "--quiet")
	if err != nil {
		return Units{}, err
	}
	jobs, err := output(ctx, "systemctl", "list-jobs", "--plain", "--no-legend", "--no-pager", "--full", "--quiet")
	if err != nil {
		return Units{}, err
	}
	required, err := output(ctx, "systemctl", "show", "--property=Requires", "--value", "--no-pager", "boot-complete.target")
	if err != nil {
		return Units{}, err
	}
	return Units{Failed: ParseUnits(failed), Waiting: ParseJobs(jobs), Required: strings.Fields(required)}, nil
}

// ParseUnits reads the first column of `systemctl list-units --plain --no-legend`.
// Lines without the name of a unit are left out.
func ParseUnits(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] == "●" {
			f = f[1:]
		}
		if len(f) > 0 && isUnit(f[0]) {
			out = append(out, f[0])
		}
	}
	return out
}

// ParseJobs reads the units whose start runs from `systemctl list-jobs --plain
// --no-legend`: number, unit, type, state. A job that waits for others is not the
// one that is late.
func ParseJobs(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 4 && isUnit(f[1]) && f[2] == "start" && f[3] == "running" && f[1] != BootIncompleteUnit {
			out = append(out, f[1])
		}
	}
	return out
}

// isUnit tells whether s can be the name of a unit, which has at most 255 bytes.
func isUnit(s string) bool {
	dot := strings.LastIndexByte(s, '.')
	return dot > 0 && dot < len(s)-1 && len(s) <= 255
}

// Boots lists the boots that the system's log knows, oldest first. Without a log
// that outlives a boot that is this one only.
func (Exec) Boots(ctx context.Context) ([]Boot, error) {
	text, err := output(ctx, "journalctl", "--list-boots", "--no-pager", "--quiet")
	if err != nil {
		return nil, err
	}
	return ParseBoots(text), nil
}

// ParseBoots reads `journalctl --list-boots`: offset and boot ID stand first in a
// line. Lines of another form, such as the header of newer versions, are left out.
func ParseBoots(text string) []Boot {
	var out []Boot
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || len(f[1]) != 32 || strings.Trim(f[1], "0123456789abcdef") != "" {
			continue
		}
		if n, err := strconv.Atoi(f[0]); err == nil {
			out = append(out, Boot{n, f[1]})
		}
	}
	return out
}

// KernelLog returns the kernel's messages of one boot as the system's log has
// them, oldest first.
func (Exec) KernelLog(ctx context.Context, bootID string) ([]string, error) {
	text, err := output(ctx, "journalctl", "--boot="+bootID, "--dmesg", "--output=short-monotonic", "--no-hostname", "--no-pager", "--quiet")
	if err != nil {
		return nil, err
	}
	return lines(text), nil
}

// LastLog returns the last n messages of one boot, of the kernel and of services.
func (Exec) LastLog(ctx context.Context, bootID string, n int) ([]string, error) {
	text, err := output(ctx, "journalctl", "--boot="+bootID, "--lines="+strconv.Itoa(n), "--output=short-monotonic", "--no-hostname", "--no-pager", "--quiet")
	if err != nil {
		return nil, err
	}
	return lines(text), nil
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		out = append(out, strings.TrimRight(line, "\r\n"))
	}
	return out
}
