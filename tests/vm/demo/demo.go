// Package demo runs the main job from beginning to end and writes down what
// happened in the machine: release 1 is installed and booted, upgraded to release
// 2 from the registry, and rolled back.
package demo

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/lab"
	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/qemu"
)

// run is one demonstration.
type run struct {
	lab   *lab.Lab
	out   io.Writer
	start time.Time
	m     *lab.Machine
	sh    *qemu.Shell
}

// Run writes the transcript to out and returns an error as soon as something is
// not as it should be.
func Run(ctx context.Context, l *lab.Lab, out io.Writer) error {
	r := &run{lab: l, out: out, start: time.Now()}
	defer func() {
		if r.m != nil {
			r.m.Off()
		}
	}()
	for _, part := range []struct {
		title string
		f     func(context.Context) error
	}{
		{"Release 1 is installed on an empty disk", r.install},
		{"Release 1 is booted: firmware, systemd-boot, kernel, initramfs", r.first},
		{"Upgrade to release 2, from the registry", r.upgrade},
		{"Release 2 is booted", r.second},
		{"Rollback", r.rollback},
		{"Release 1 is booted again", r.third},
	} {
		r.title(part.title)
		if err := part.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", strings.ToLower(part.title[:1])+part.title[1:], err)
		}
	}
	r.title("The machine did what it should")
	return nil
}

func (r *run) title(s string) {
	fmt.Fprintf(r.out, "\n== %s (%.0f s)\n", s, time.Since(r.start).Seconds())
}

func (r *run) say(format string, args ...any) { fmt.Fprintf(r.out, "-- "+format+"\n", args...) }

// do runs a command in the machine and shows it with its output.
func (r *run) do(ctx context.Context, command string) (string, error) {
	fmt.Fprintf(r.out, "machine# %s\n", command)
	out, err := r.sh.Must(ctx, lab.CommandLimit, command)
	for line := range strings.Lines(out) {
		fmt.Fprint(r.out, "  ", strings.TrimRight(line, " \n"), "\n")
	}
	return out, err
}

func (r *run) all(ctx context.Context, commands ...string) error {
	for _, c := range commands {
		if _, err := r.do(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) install(ctx context.Context) error {
	if err := r.lab.Stable.Publish(ctx, r.lab.Images.Digest1); err != nil {
		return err
	}
	disk, err := r.lab.Install(ctx, r.lab.Stable, lab.Setup{})
	if err != nil {
		return err
	}
	r.say("GPT, ESP, ext4 with fs-verity; image %s@%s", r.lab.Stable.Reference(), r.lab.Images.Digest1)
	r.m, err = r.lab.NewMachine(ctx, "demo", disk)
	return err
}

// look shows the root and compares the machine with what it should be.
func (r *run) look(ctx context.Context, version, manifest string) (lab.State, error) {
	for _, c := range []string{"grep VERSION_ID /usr/lib/os-release", "findmnt -o SOURCE,FSTYPE,OPTIONS /", "cat /proc/cmdline", "touch /usr/x || true", "systemd-analyze time", "cfsboot status"} {
		if _, err := r.do(ctx, c); err != nil {
			return lab.State{}, err
		}
	}
	s, err := lab.Look(ctx, r.sh)
	if err != nil {
		return s, err
	}
	if err := s.Check(version, manifest); err != nil {
		return s, err
	}
	r.say("checked: root is image %s…, fs-verity is required on every file, manifest %s", s.ID[:16], manifest)
	return s, nil
}

func (r *run) first(ctx context.Context) (err error) {
	if r.sh, err = r.m.Boot(ctx); err != nil {
		return err
	}
	s, err := r.look(ctx, osimage.Version1, r.lab.Images.Digest1)
	if err != nil {
		return err
	}
	if s.Status.Status.Rollback != nil || s.Status.Status.Staged != nil {
		return fmt.Errorf("a new machine has more than one deployment")
	}
	return r.all(ctx, "echo 'made on the machine' | tee /etc/local.conf /var/lib/local.data")
}

func (r *run) upgrade(ctx context.Context) error {
	if err := r.lab.Stable.Publish(ctx, r.lab.Images.Digest2); err != nil {
		return err
	}
	r.say("%s in the registry is release 2 now: %s", r.lab.Stable.Reference(), r.lab.Images.Digest2)
	before := r.lab.Stable.Relay.Sent()
	if err := r.all(ctx, "cfsboot upgrade --progress plain", "cfsboot status"); err != nil {
		return err
	}
	r.say("%.1f MB came over the network", float64(r.lab.Stable.Relay.Sent()-before)/1e6)
	s, err := lab.Look(ctx, r.sh)
	if err != nil {
		return err
	}
	if st := s.Status.Status.Staged; st == nil || st.Image.Digest != r.lab.Images.Digest2 {
		return fmt.Errorf("release 2 is not staged: %+v", st)
	}
	return nil
}

func (r *run) reboot(ctx context.Context) (err error) {
	fmt.Fprintln(r.out, "machine# systemctl reboot")
	r.sh, err = r.m.Reboot(ctx, r.sh)
	return err
}

func (r *run) second(ctx context.Context) error {
	if err := r.reboot(ctx); err != nil {
		return err
	}
	s, err := r.look(ctx, osimage.Version2, r.lab.Images.Digest2)
	if err != nil {
		return err
	}
	if rb := s.Status.Status.Rollback; rb == nil || rb.Image.Digest != r.lab.Images.Digest1 {
		return fmt.Errorf("release 1 is not the rollback: %+v", rb)
	}
	r.say("/etc is merged: what the release changed, and what was changed here")
	return r.all(ctx,
		"cat /etc/cfsboot-demo.conf && grep 'release 13.2' /etc/cfsboot-demo.conf", "test ! -e /etc/issue.net",
		"cat /etc/local.conf /var/lib/local.data && cmp /etc/local.conf /var/lib/local.data")
}

func (r *run) rollback(ctx context.Context) error {
	return r.all(ctx, "cfsboot rollback", "cfsboot status")
}

func (r *run) third(ctx context.Context) error {
	if err := r.reboot(ctx); err != nil {
		return err
	}
	s, err := r.look(ctx, osimage.Version1, r.lab.Images.Digest1)
	if err != nil {
		return err
	}
	if rb := s.Status.Status.Rollback; rb == nil || rb.Image.Digest != r.lab.Images.Digest2 {
		return fmt.Errorf("release 2 is not the other deployment: %+v", rb)
	}
	if err := r.all(ctx, "test ! -e /etc/cfsboot-demo.conf && test -e /etc/issue.net", "cat /etc/local.conf"); err != nil {
		return err
	}
	fmt.Fprintln(r.out, "machine# systemctl poweroff")
	return r.m.PowerOff(ctx, r.sh)
}
