package deploy

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/selinux/go-selinux"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/selabel"
	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/internal/durable"
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

// labelEtc gives a merged /etc the labels that the system which will run with it has
// for it: those of the policy in it, which is the new image's with what is local, for
// example the rules of semanage fcontext. If that one cannot be used, the image's own
// counts. An image without a policy has no labels in /etc either.
func (m *machine) labelEtc(next *tree.Node, res *etcmerge.Result) error {
	name, err := bootimage.SELinuxType(next, m.repo)
	if err != nil || name == "" {
		return refuseImage(errors.Join(err, bootimage.LabelTree(res.Root, "/etc", nil)))
	}
	root := tree.NewDir(tree.Meta{})
	root.Set("etc", res.Root)
	policy, err := bootimage.SELinuxPolicy(root, res.Objects(m.repo))
	if err == nil && policy != nil {
		if err = bootimage.LabelTree(res.Root, "/etc", policy); err == nil {
			return nil
		}
	}
	m.Logger.Warn("the policy in /etc gives no labels: /etc is labelled by that of the image", "error", err)
	if policy, err = bootimage.SELinuxPolicy(next, m.repo); err == nil {
		err = bootimage.LabelTree(res.Root, "/etc", policy)
	}
	return refuseImage(err)
}

// labelNew labels what an installation adds to an image: name, below dir, which is at
// path on the machine. Without a policy (nil) nothing has a label.
func labelNew(policy *selabel.Policy, dir *durable.Dir, name, path string, k tree.Kind) error {
	if policy == nil {
		return nil
	}
	label, err := bootimage.LabelAt(policy, path, k)
	if err != nil || label == "" {
		return err
	}
	return dir.Setxattr(name, "security.selinux", []byte(label))
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
