package tree

import (
	"fmt"
	"slices"
	"strings"
)

// XattrMode says which extended attributes of an OCI image survive. The choice
// is part of the image ID.
type XattrMode uint8

const (
	// AllowlistOnly keeps security.capability and nothing else. It is the default
	// everywhere.
	AllowlistOnly XattrMode = iota
	// KeepUserXattrs keeps all user.* too.
	KeepUserXattrs
)

// RequiredError says that a directory that an image must have is missing or is
// something else.
type RequiredError struct {
	Path string // for example "/usr"
	Got  Kind   // what is there, 0 if nothing
}

func (e *RequiredError) Error() string {
	if e.Got == 0 {
		return fmt.Sprintf("the image has no directory %s", e.Path)
	}
	return fmt.Sprintf("%s of the image is a %s, want a directory", e.Path, e.Got)
}

// RequireDir returns the directory entered as name in root. The error is a
// *RequiredError.
func RequireDir(root *Node, name string) (*Node, error) {
	d := root.Lookup(name)
	if d == nil {
		return nil, &RequiredError{Path: "/" + name}
	}
	if !d.IsDir() {
		return nil, &RequiredError{Path: "/" + name, Got: d.Kind}
	}
	return d, nil
}

// TransformOCI applies what follows the last layer of an OCI image, in place:
// the root gets the metadata of /usr; /run, if there is one, is emptied and gets
// the modification time of /usr; extended attributes are filtered on every node.
// Images without a directory /usr, or with a /run that is not a directory, give
// a *RequiredError, and then nothing changed.
//
// Source: composefs-rs transform_for_oci; docs/design/erofs.md, "OCI transform".
func TransformOCI(root *Node, mode XattrMode) error {
	usr, err := RequireDir(root, "usr")
	if err != nil {
		return err
	}
	if run := root.Lookup("run"); run != nil {
		if !run.IsDir() {
			return &RequiredError{Path: "/run", Got: run.Kind}
		}
		run.Clear()
		run.MtimeSec, run.MtimeNsec = usr.MtimeSec, usr.MtimeNsec
	}
	root.Meta = usr.Meta
	f := xattrFilter{keepUser: mode == KeepUserXattrs}
	f.apply(root)
	stack := []*Node{root}
	for len(stack) > 0 {
		dir := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, child := range dir.All() {
			f.apply(child)
			if child.IsDir() {
				stack = append(stack, child)
			}
		}
	}
	return nil
}

type xattrFilter struct{ keepUser bool }

func (f xattrFilter) keep(x Xattr) bool {
	return x.Name == "security.capability" || f.keepUser && strings.HasPrefix(x.Name, "user.")
}

func (f xattrFilter) apply(n *Node) {
	if !slices.ContainsFunc(n.Xattrs, func(x Xattr) bool { return !f.keep(x) }) {
		return
	}
	var kept []Xattr // a new slice: the old one may be shared
	for _, x := range n.Xattrs {
		if f.keep(x) {
			kept = append(kept, x)
		}
	}
	n.Xattrs = kept
}
