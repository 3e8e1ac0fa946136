package setuproot

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// MountMode says how /etc or /var is provided.
type MountMode string

// The mount modes.
const (
	MountNone      MountMode = "none"      // the image's directory, read-only
	MountBind      MountMode = "bind"      // the deployment's directory
	MountOverlay   MountMode = "overlay"   // the image's directory, changes in the deployment's upper/ and work/
	MountTransient MountMode = "transient" // the image's directory, changes in memory
)

// Action is what follows a failed boot.
type Action string

// The actions.
const (
	ActionReboot   Action = "reboot"
	ActionShell    Action = "shell"
	ActionPowerOff Action = "poweroff"
)

// Policy is what the initramfs decides, not the disk.
type Policy struct {
	Sealed         bool          // refuse '?', shells and other programs asked for on the command line; implies RequireKarg
	RequireKarg    bool          // a command line without a composefs parameter is a failure
	Failure        Action        // what follows a failed boot
	FailureTimeout time.Duration // how long the message stays before that
	Etc            MountMode
	Var            MountMode
	VarConfigured  bool // [var] was given: systemd.volatile= on the command line does not change it
	TransientRoot  bool // changes of / go to memory
	SysrootRO      bool // /sysroot is mounted read-only
}

// DefaultPolicy is the policy without any file.
func DefaultPolicy() Policy {
	return Policy{
		RequireKarg: true, Failure: ActionReboot, FailureTimeout: 15 * time.Second,
		Etc: MountBind, Var: MountBind, SysrootRO: true,
	}
}

// FallbackPolicy is the policy of a machine whose files cannot be read or are invalid: they may have been meant to be
// strict, so a person at the console gets no shell.
func FallbackPolicy() Policy {
	p := DefaultPolicy()
	p.Sealed = true
	return p
}

// mountTable is [etc] or [var] of either file.
type mountTable struct {
	Mount     string `toml:"mount"`
	Transient bool   `toml:"transient"`
}

// compatFile is /usr/lib/composefs/setup-root-conf.toml, which composefs-rs and bootc read as well.
type compatFile struct {
	Etc  mountTable `toml:"etc"`
	Var  mountTable `toml:"var"`
	Root struct {
		Transient bool `toml:"transient"`
	} `toml:"root"`
}

// ownFile is /usr/lib/cfsboot/initramfs.toml.
type ownFile struct {
	Policy struct {
		Sealed         bool   `toml:"sealed"`
		RequireKarg    *bool  `toml:"require-karg"`
		Failure        string `toml:"failure"`
		FailureTimeout string `toml:"failure-timeout"`
	} `toml:"policy"`
	Etc struct {
		Mount string `toml:"mount"`
	} `toml:"etc"`
	Var struct {
		Mount string `toml:"mount"`
	} `toml:"var"`
	Root struct {
		Transient *bool `toml:"transient"`
	} `toml:"root"`
	Sysroot struct {
		ReadOnly *bool `toml:"read-only"`
	} `toml:"sysroot"`
}

// ParsePolicy makes the policy from the text of setup-root-conf.toml (compat) and of initramfs.toml (own); nil stands
// for a file that does not exist. Own wins. Unknown keys are ignored in compat, as its other readers do, and an error
// in own.
func ParsePolicy(compat, own []byte) (Policy, error) {
	p := DefaultPolicy()
	if compat != nil {
		if err := p.readCompat(compat); err != nil {
			return Policy{}, fmt.Errorf("setup-root-conf.toml: %w", err)
		}
	}
	if own != nil {
		if err := p.readOwn(own); err != nil {
			return Policy{}, fmt.Errorf("initramfs.toml: %w", err)
		}
	}
	if p.Sealed && p.Failure == ActionShell {
		return Policy{}, fmt.Errorf("initramfs.toml: policy.failure is %q, but policy.sealed forbids a shell", p.Failure)
	}
	return p, nil
}

func (p *Policy) readCompat(text []byte) error {
	var c compatFile
	md, err := toml.Decode(string(text), &c)
	if err != nil {
		return err
	}
	if p.Etc, err = c.Etc.mode("etc", p.Etc); err != nil {
		return err
	}
	if p.Var, err = c.Var.mode("var", p.Var); err != nil {
		return err
	}
	p.VarConfigured = md.IsDefined("var")
	p.TransientRoot = c.Root.Transient
	return nil
}

// mode applies the rules of the peers: "mount" wins, "transient" counts without it.
func (t mountTable) mode(table string, def MountMode) (MountMode, error) {
	if t.Mount == "" && t.Transient {
		return MountTransient, nil
	}
	return parseMode(table, t.Mount, def)
}

// parseMode accepts the aliases of bootc.
func parseMode(table, value string, def MountMode) (MountMode, error) {
	switch value {
	case "":
		return def, nil
	case "root":
		return MountNone, nil
	case "volatile":
		return MountTransient, nil
	case string(MountNone), string(MountBind), string(MountOverlay), string(MountTransient):
		return MountMode(value), nil
	}
	return "", fmt.Errorf("%s.mount is %q, want none, bind, overlay or transient", table, value)
}

func (p *Policy) readOwn(text []byte) error {
	var o ownFile
	md, err := toml.Decode(string(text), &o)
	if err != nil {
		return err
	}
	if unknown := md.Undecoded(); len(unknown) > 0 {
		return fmt.Errorf("unknown key %q", unknown[0].String())
	}
	p.Sealed = o.Policy.Sealed
	if o.Policy.RequireKarg != nil {
		p.RequireKarg = *o.Policy.RequireKarg
	}
	if p.Sealed && !p.RequireKarg {
		return fmt.Errorf("policy.require-karg is false, but policy.sealed needs it")
	}
	if err := p.readFailure(o.Policy.Failure, o.Policy.FailureTimeout); err != nil {
		return err
	}
	if p.Etc, err = parseMode("etc", o.Etc.Mount, p.Etc); err != nil {
		return err
	}
	if p.Var, err = parseMode("var", o.Var.Mount, p.Var); err != nil {
		return err
	}
	p.VarConfigured = p.VarConfigured || md.IsDefined("var", "mount")
	if o.Root.Transient != nil {
		p.TransientRoot = *o.Root.Transient
	}
	if o.Sysroot.ReadOnly != nil {
		p.SysrootRO = *o.Sysroot.ReadOnly
	}
	return nil
}

func (p *Policy) readFailure(action, timeout string) error {
	switch Action(action) {
	case "":
	case ActionReboot, ActionShell, ActionPowerOff:
		p.Failure = Action(action)
	default:
		return fmt.Errorf("policy.failure is %q, want reboot, shell or poweroff", action)
	}
	if timeout == "" {
		return nil
	}
	d, err := time.ParseDuration(timeout)
	if err != nil || d < 0 || d > time.Hour {
		return fmt.Errorf("policy.failure-timeout is %q, want a duration from 0s to 1h", timeout)
	}
	p.FailureTimeout = d
	return nil
}

// deniedKeys give a shell or start other code on a machine that is otherwise sealed (boot.md 1.2). They are compared
// with '_' for '-', which the kernel and systemd take as the same, and those of systemd without the "rd." that makes
// them count in the initramfs only.
var deniedKeys = []string{
	"rd.break", "rd.shell", "rd.cmdline", "SYSTEMD_SULOGIN_FORCE", "init", "rdinit",
	"systemd.unit", "systemd.wants", "systemd.mask", "systemd.run", "systemd.break", "systemd.debug_shell", "systemd.crash_shell",
	"systemd.setenv", "systemd.set_credential", "systemd.set_credential_binary", "systemd.mount_extra",
	"emergency", "rd.emergency", "rescue", "single", "s", "S", "1", "_b", "rd.rescue",
}

// denied returns the first token that a sealed initramfs refuses.
func (p Policy) denied(cmdline bls.Cmdline) (token string, found bool) {
	if !p.Sealed {
		return "", false
	}
	for _, token := range cmdline {
		if strings.ContainsFunc(token, ambiguous) {
			return token, true
		}
		key, value, _ := strings.Cut(strings.ReplaceAll(token, `"`, ""), "=") // systemd drops quotes anywhere in a token
		if key == "rd.emergency" && (value == "reboot" || value == "poweroff" || value == "halt") {
			continue // the opposite of a shell
		}
		key = strings.ReplaceAll(key, "-", "_")
		if rest, ok := strings.CutPrefix(key, "rd."); ok && strings.HasPrefix(rest, "systemd.") {
			key = rest
		}
		if slices.Contains(deniedKeys, key) {
			return token, true
		}
	}
	return "", false
}

// ambiguous reports whether a character makes systemd, the kernel and this program cut a command line in different
// places, so that one would see a parameter where another sees a part of a value: the single quote, which only systemd
// knows, and what only some take for white space.
func ambiguous(r rune) bool {
	return r == '\'' || unicode.IsSpace(r) && r != ' ' || unicode.IsControl(r) || r == utf8.RuneError
}
