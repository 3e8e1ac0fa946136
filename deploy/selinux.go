package deploy

import (
	"fmt"
	"os"

	"github.com/opencontainers/selinux/go-selinux"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/selabel"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// SELinux tells what the running kernel does about SELinux.
type SELinux interface{ State() SELinuxState }

// SELinuxState is what SELinux tells.
type SELinuxState struct {
	Mode  string // one of the SELinux constants
	Label string // of the first process, "" if there is none or it cannot be read
}

// Modes of SELinux.
const (
	SELinuxEnforcing  = "enforcing"
	SELinuxPermissive = "permissive"
	SELinuxDisabled   = "disabled"
)

type kernelSELinux struct{}

// State asks the kernel. What is on and cannot be asked for its mode is taken for
// enforcing.
func (kernelSELinux) State() SELinuxState {
	if !selinux.GetEnabled() {
		return SELinuxState{Mode: SELinuxDisabled}
	}
	s := SELinuxState{Mode: SELinuxEnforcing}
	if selinux.EnforceMode() == selinux.Permissive {
		s.Mode = SELinuxPermissive
	}
	s.Label, _ = selinux.PidLabel(1) // of no consequence, and not everybody may read it
	return s
}

// checkSELinux refuses to switch a machine where SELinux is enforced to an image
// without a policy, on which nothing would be. An upgrade to such an image, which
// the machine follows, is a warning.
func (m *machine) checkSELinux(img *image, f following) (warnings []string, err error) {
	if m.SELinux.State().Mode != SELinuxEnforcing {
		return nil, nil
	}
	policy, err := bootimage.SELinuxType(img.tree, m.repo)
	if err != nil {
		return nil, refuseImage(err)
	}
	if policy != "" {
		return nil, nil
	}
	const what = "SELinux is enforcing on this machine, and the image has no policy (no SELINUXTYPE in /etc/selinux/config)"
	if f.op == record.OpSwitch && !f.allowNoSELinux {
		return nil, refuse(CodeNoSELinux, what)
	}
	return []string{fmt.Sprintf("%s: deployment %s runs without it", what, short(img.id()))}, nil
}

// readSELinux reads what status tells about SELinux.
func (r *statusReader) readSELinux() {
	state := r.SELinux.State()
	r.in.SELinux = SELinuxStatus{Mode: state.Mode, Label: state.Label}
	if state.Mode == SELinuxDisabled {
		return
	}
	config, err := os.ReadFile(r.path("/etc/selinux/config"))
	if err != nil {
		return // the kernel's word counts; the name is for people
	}
	r.in.SELinux.Policy, _, _ = selabel.PolicyType(config)
}
