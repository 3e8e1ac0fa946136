package bootimage

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// ErrSELinux says that a tree has a SELinux policy, by which its boot image would
// have to be labelled. Labels are not implemented.
var ErrSELinux = errors.New("the image has a SELinux policy, and labelling is not supported yet")

// SELinuxError names the policy. errors.Is(err, ErrSELinux) is true.
type SELinuxError struct {
	Type string // the value of SELINUXTYPE
}

func (e *SELinuxError) Error() string {
	return fmt.Sprintf("/etc/selinux/config has SELINUXTYPE=%s: %v", e.Type, ErrSELinux)
}

// Unwrap returns ErrSELinux.
func (e *SELinuxError) Unwrap() error { return ErrSELinux }

const (
	selinuxConfig = "/etc/selinux/config"
	selinuxLabel  = "security.selinux"
	maxConfig     = 1 << 20 // bytes
)

// refusePolicy returns an error if the tree names a policy. SELINUX=disabled in
// the same file plays no role, as in composefs-rs: it is about the running system.
func refusePolicy(root *tree.Node, o ObjectOpener) error {
	n, err := lookup(root, selinuxConfig, tree.Regular)
	if n == nil || err != nil {
		return err
	}
	config, err := readFile(n, o, selinuxConfig, maxConfig)
	if err != nil {
		return err
	}
	if policy := policyType(string(config)); policy != "" {
		return &SELinuxError{Type: policy}
	}
	return nil
}

// policyType returns the value of the first SELINUXTYPE line, in any case of
// letters; "" if there is none.
func policyType(config string) string {
	for line := range strings.Lines(config) {
		key, value, ok := strings.Cut(line, "=")
		if ok && strings.EqualFold(strings.TrimSpace(key), "SELINUXTYPE") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// stripLabels removes security.selinux from every node. The lists of attributes
// may be shared, so they are replaced.
func stripLabels(root *tree.Node) {
	strip := func(n *tree.Node) {
		if _, ok := n.Xattr(selinuxLabel); ok {
			n.Xattrs = slices.DeleteFunc(slices.Clone(n.Xattrs), func(x tree.Xattr) bool { return x.Name == selinuxLabel })
		}
	}
	strip(root)
	stack := []*tree.Node{root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, n := range dir.All() {
			strip(n)
			if n.IsDir() {
				stack = append(stack, n)
			}
		}
	}
}
