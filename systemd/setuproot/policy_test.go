package setuproot_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

func TestParsePolicy(t *testing.T) {
	def := setuproot.DefaultPolicy()
	with := func(change func(*setuproot.Policy)) setuproot.Policy {
		p := def
		change(&p)
		return p
	}
	for _, c := range []struct {
		name        string
		compat, own string // "-": no file
		want        setuproot.Policy
		err         string
	}{
		{"no files", "-", "-", def, ""},
		{"empty files", "", "", def, ""},
		{"sealed", "-", "[policy]\nsealed = true\n", with(func(p *setuproot.Policy) { p.Sealed = true }), ""},
		{"relaxed", "-", "[policy]\nrequire-karg = false\nfailure = \"shell\"\nfailure-timeout = \"1m\"\n", with(func(p *setuproot.Policy) {
			p.RequireKarg, p.Failure, p.FailureTimeout = false, setuproot.ActionShell, time.Minute
		}), ""},
		{"modes", "-", "[etc]\nmount = \"overlay\"\n[var]\nmount = \"none\"\n[root]\ntransient = true\n[sysroot]\nread-only = false\n", with(func(p *setuproot.Policy) {
			p.Etc, p.Var, p.VarConfigured, p.TransientRoot, p.SysrootRO = setuproot.MountOverlay, setuproot.MountNone, true, true, false
		}), ""},
		{"peers' file", "[etc]\nmount = \"volatile\"\nunknown = 1\n[root]\ntransient = true\n[more]\nx = 1\n", "-", with(func(p *setuproot.Policy) {
			p.Etc, p.TransientRoot = setuproot.MountTransient, true
		}), ""},
		{"peers' alias root", "[etc]\nmount = \"root\"\n", "-", with(func(p *setuproot.Policy) { p.Etc = setuproot.MountNone }), ""},
		{"transient without mount", "[etc]\ntransient = true\n[var]\ntransient = true\nmount = \"bind\"\n", "-", with(func(p *setuproot.Policy) {
			p.Etc, p.VarConfigured = setuproot.MountTransient, true
		}), ""},
		{"own wins", "[etc]\nmount = \"overlay\"\n[root]\ntransient = true\n", "[etc]\nmount = \"bind\"\n[root]\ntransient = false\n", def, ""},
		{"own keeps what it does not name", "[etc]\nmount = \"overlay\"\n", "[policy]\nsealed = true\n", with(func(p *setuproot.Policy) {
			p.Etc, p.Sealed = setuproot.MountOverlay, true
		}), ""},
		{"unknown key", "-", "[policy]\nseeled = true\n", def, "policy.seeled"},
		{"unknown table", "-", "[polcy]\nsealed = true\n", def, "polcy"},
		{"unknown mode", "-", "[etc]\nmount = \"bnd\"\n", def, `"bnd"`},
		{"unknown mode of the peers' file", "[var]\nmount = \"bnd\"\n", "-", def, "setup-root-conf.toml"},
		{"not TOML", "-", "[policy\n", def, "initramfs.toml"},
		{"wrong type", "-", "[policy]\nsealed = \"yes\"\n", def, "sealed"},
		{"unknown action", "-", "[policy]\nfailure = \"halt\"\n", def, `"halt"`},
		{"bad time", "-", "[policy]\nfailure-timeout = \"15\"\n", def, `"15"`},
		{"negative time", "-", "[policy]\nfailure-timeout = \"-1s\"\n", def, `"-1s"`},
		{"sealed with a shell", "-", "[policy]\nsealed = true\nfailure = \"shell\"\n", def, "shell"},
		{"sealed without the parameter", "-", "[policy]\nsealed = true\nrequire-karg = false\n", def, "require-karg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var compat, own []byte
			if c.compat != "-" {
				compat = append([]byte{}, c.compat...)
			}
			if c.own != "-" {
				own = append([]byte{}, c.own...)
			}
			got, err := setuproot.ParsePolicy(compat, own)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("got %v, want an error with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSealedRefuses: parameters that give a shell or start other code.
func TestSealedRefuses(t *testing.T) {
	for _, token := range []string{
		"rd.break", "rd.break=pre-mount", "rd.shell=1", "SYSTEMD_SULOGIN_FORCE=1", "systemd.unit=rescue.target", "rd.systemd.unit=emergency.target",
		"init=/bin/sh", "systemd.debug_shell", "systemd.debug-shell=1", `"init=/bin/sh"`, "rd.emergency", "emergency", "single", "S", "1", "-b",
		"rd.systemd.debug_shell", "rd.systemd.mask=x.service", "rd.systemd.break=pre-mount", "systemd.setenv=LD_PRELOAD=/x",
		"systemd.set_credential=systemd.extra-unit.x.service:x", "rd.systemd.mount-extra=x:/usr",
		// systemd takes quotes away wherever they stand, single ones too; all of these start rescue.target.
		`systemd.un"it"=rescue.target`, `"systemd.unit"=rescue.target`, `systemd."unit=rescue target"`, "'systemd.unit=rescue.target'", "systemd.un'it'=rescue.target",
		// One token for us, three for systemd; a white space for the kernel only; not text.
		`x=a'b"c' systemd.unit=rescue.target y="`, "x\vinit=/bin/sh", "x\u00a0init=/bin/sh", "x\xa0init=/bin/sh",
	} {
		if got, found := setuproot.Denied(true, "quiet "+token+" rw"); !found || got != token {
			t.Errorf("%s: got %q, %v", token, got, found)
		}
		if _, found := setuproot.Denied(false, "quiet "+token+" rw"); found {
			t.Errorf("%s is refused although the initramfs is not sealed", token)
		}
	}
	for _, line := range []string{"", "root=UUID=1 rw quiet splash console=ttyS0 panic=30", "rd.emergency=reboot", "initrd=\\x", "systemd.unitx=1", "rd.timeout=180", `dyndbg="file x.c +p"`, "rd.systemd.unitx=1", "x=systemd.unit=1"} {
		if got, found := setuproot.Denied(true, line); found {
			t.Errorf("%q: refused %q", line, got)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("[etc]\nmount = \"bind\"\n"), []byte("[policy]\nsealed = true\n"))
	f.Fuzz(func(t *testing.T, compat, own []byte) {
		p, err := setuproot.ParsePolicy(compat, own)
		if err == nil && p.Sealed && (p.Failure == setuproot.ActionShell || !p.RequireKarg) {
			t.Errorf("sealed policy with a way out: %+v", p)
		}
	})
}
