package bootimage

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
	"github.com/cfsboot/cfsboot/erofs/tree"
)

// SELinuxError says that the labels of an image cannot be computed by the policy in
// it: a line that cannot be read, or more work than any real policy makes.
type SELinuxError struct {
	Path string // of the folder of the policy or of its config, absolute, in the image
	Err  error  // *selabel.FormatError or *selabel.LimitError
}

func (e *SELinuxError) Error() string {
	return fmt.Sprintf("SELinux policy %s of the image: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *SELinuxError) Unwrap() error { return e.Err }

const (
	selinuxDir    = "/etc/selinux"
	selinuxLabel  = "security.selinux"
	maxConfig     = 1 << 20 // bytes
	policyMembers = "/contexts/files/file_contexts"
)

// SELinuxType returns the name of the policy that an image has, "" if it has none.
// SELINUX=disabled plays no role, as in composefs-rs: it is about the running system.
// Errors are *FileError and *SELinuxError.
func SELinuxType(root *tree.Node, o ObjectOpener) (string, error) {
	const path = selinuxDir + "/config"
	n, err := lookup(root, path, tree.Regular)
	if n == nil || err != nil {
		return "", err
	}
	config, err := readFile(n, o, path, maxConfig)
	if err != nil {
		return "", err
	}
	name, _, err := selabel.PolicyType(config)
	if err != nil {
		return "", &SELinuxError{path, err}
	}
	return name, nil
}

// SELinuxPolicy returns the policy that labels an image, nil if it has none. Errors
// are *FileError and *SELinuxError.
func SELinuxPolicy(root *tree.Node, o ObjectOpener) (*selabel.Policy, error) {
	name, err := SELinuxType(root, o)
	if name == "" || err != nil {
		return nil, err
	}
	var files selabel.Files
	base := selinuxDir + "/" + name + policyMembers
	for _, file := range []struct {
		suffix string
		data   *[]byte
	}{{"", &files.Contexts}, {".local", &files.Local}, {".homedirs", &files.Homedirs}, {".subs", &files.Subs}, {".subs_dist", &files.SubsDist}} {
		path := base + file.suffix
		n, err := lookup(root, path, tree.Regular)
		switch {
		case err != nil:
			return nil, err
		case n == nil && file.suffix == "":
			return nil, &FileError{path, fs.ErrNotExist}
		case n == nil:
			continue
		}
		if *file.data, err = readFile(n, o, path, selabel.MaxFile); err != nil {
			return nil, err
		}
	}
	policy, err := selabel.Parse(files)
	if err != nil {
		return nil, &SELinuxError{selinuxDir + "/" + name, err}
	}
	return policy, nil
}

// typeOf is the type by which a policy tells files of kind k.
func typeOf(k tree.Kind) selabel.Type {
	return [...]selabel.Type{
		tree.Regular: selabel.Regular, tree.Directory: selabel.Directory, tree.CharDevice: selabel.CharDevice,
		tree.BlockDevice: selabel.BlockDevice, tree.Fifo: selabel.Fifo, tree.Socket: selabel.Socket, tree.Symlink: selabel.Symlink,
	}[k]
}

// LabelTree gives dir and all that is below it the labels that the policy has for
// them at path, an absolute path in the image; without a policy (nil) it takes
// labels away. Names that hard links have elsewhere play no role. The error is a
// *SELinuxError, and then nothing has changed.
func LabelTree(dir *tree.Node, path string, policy *selabel.Policy) error {
	if policy == nil {
		stripLabels(dir)
		return nil
	}
	l := &labeller{policy: policy, first: make(map[*tree.Node]string)}
	if err := l.walk(dir, aliased(policy, path)); err != nil {
		return &SELinuxError{selinuxDir, err}
	}
	applyLabels(l.changes)
	return nil
}

// LabelAt returns the label of a file of kind k at path, an absolute path, "" if it
// has none. The error is a *SELinuxError.
func LabelAt(policy *selabel.Policy, path string, k tree.Kind) (string, error) {
	label, err := policy.Lookup(aliased(policy, path), typeOf(k))
	if err != nil {
		return "", &SELinuxError{selinuxDir, err}
	}
	return label, nil
}

// aliased is the path that a walk from the root has for path.
func aliased(policy *selabel.Policy, path string) string {
	at := "/"
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part != "" {
			at = policy.Alias(strings.TrimSuffix(at, "/") + "/" + part)
		}
	}
	return at
}

// labelChange is the label that a node gets; "" takes it away. With dir, the entry
// name of dir becomes a node of its own before that.
type labelChange struct {
	node  *tree.Node
	label string
	dir   *tree.Node
	name  string
}

// labeller finds what has to change in a tree, and changes nothing.
type labeller struct {
	policy  *selabel.Policy
	empty   []*tree.Node // directories that will have no entries
	first   map[*tree.Node]string
	changes []labelChange
}

// labelChanges returns what gives the tree the labels of its policy. Directories in
// empty are taken for empty.
func labelChanges(root *tree.Node, policy *selabel.Policy, empty []*tree.Node) ([]labelChange, error) {
	l := &labeller{policy: policy, empty: empty, first: make(map[*tree.Node]string)}
	if err := l.walk(root, "/"); err != nil {
		return nil, err
	}
	return l.changes, nil
}

// walk labels dir, which the policy knows as path, and what is below it. An alias
// holds for the entry it names and for everything below that, so aliases add up.
func (l *labeller) walk(dir *tree.Node, path string) error {
	label, err := l.policy.Lookup(path, selabel.Directory)
	if err != nil {
		return err
	}
	l.change(dir, label)
	if slices.Contains(l.empty, dir) {
		return nil
	}
	prefix := path
	if !strings.HasSuffix(prefix, "/") {
		prefix += "/"
	}
	for name, n := range dir.All() {
		path := l.policy.Alias(prefix + name)
		if n.IsDir() {
			err = l.walk(n, path)
		} else {
			err = l.leaf(dir, name, n, path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leaf labels one name of a file. A hard link that gets another label than the first
// name of the file becomes a file of its own, even if a third name gets that label
// too.
func (l *labeller) leaf(dir *tree.Node, name string, n *tree.Node, path string) error {
	label, err := l.policy.Lookup(path, typeOf(n.Kind))
	if err != nil {
		return err
	}
	if n.MaybeLinked() {
		first, again := l.first[n]
		switch {
		case !again:
			l.first[n] = label
		case first == label:
			return nil
		default:
			l.changes = append(l.changes, labelChange{n, label, dir, name})
			return nil
		}
	}
	l.change(n, label)
	return nil
}

func (l *labeller) change(n *tree.Node, label string) {
	if have, ok := n.Xattr(selinuxLabel); have != label || ok && label == "" {
		l.changes = append(l.changes, labelChange{node: n, label: label})
	}
}

// applyLabels makes the changes.
func applyLabels(changes []labelChange) {
	for _, c := range changes {
		n := c.node
		if c.dir != nil {
			own := *n
			n = &own
			c.dir.Set(c.name, n)
		}
		setLabel(n, c.label)
	}
}

// setLabel gives n a label, or takes it away. The lists of attributes may be shared,
// so they are replaced.
func setLabel(n *tree.Node, label string) {
	list := make([]tree.Xattr, 0, len(n.Xattrs)+1)
	for _, x := range n.Xattrs {
		if x.Name != selinuxLabel {
			list = append(list, x)
		}
	}
	if label != "" {
		at, _ := slices.BinarySearchFunc(list, selinuxLabel, func(x tree.Xattr, name string) int { return strings.Compare(x.Name, name) })
		list = slices.Insert(list, at, tree.Xattr{Name: selinuxLabel, Value: label})
	}
	n.Xattrs = list
}

// stripLabels removes security.selinux from every node.
func stripLabels(root *tree.Node) {
	stack := []*tree.Node{root}
	for len(stack) > 0 {
		n := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := n.Xattr(selinuxLabel); ok {
			setLabel(n, "")
		}
		if n.IsDir() {
			for _, child := range n.All() {
				stack = append(stack, child)
			}
		}
	}
}
