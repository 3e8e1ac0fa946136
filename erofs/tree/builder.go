package tree

import (
	"errors"
	"fmt"
	"strings"
)

// Entry is one member of a layer. Exactly one of Node and HardLink is set, but
// for a whiteout, where both are ignored.
type Entry struct {
	Path     string // as in the archive: "./usr/bin/", "/etc/.wh.motd"
	Node     *Node  // becomes part of the tree
	HardLink string // path of an existing entry that is not a directory
}

// Reasons why Builder.Apply refuses an entry; an *EntryError wraps them.
var (
	ErrBadName         = errors.New("bad name")
	ErrNoParent        = errors.New("parent directory does not exist")
	ErrParentNotDir    = errors.New("parent is not a directory")
	ErrRootNotDir      = errors.New("the root must be a directory")
	ErrNoLinkTarget    = errors.New("target of the hard link does not exist")
	ErrLinkToDirectory = errors.New("target of the hard link is a directory")
)

// EntryError names the member of a layer that cannot be applied.
type EntryError struct {
	Path   string // as in the archive
	Detail string // what exactly: a parent, a target, a component
	Err    error  // one of the reasons above
}

func (e *EntryError) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("entry %q: %v", e.Path, e.Err)
	}
	return fmt.Sprintf("entry %q: %v: %s", e.Path, e.Err, e.Detail)
}

// Unwrap returns the reason.
func (e *EntryError) Unwrap() error { return e.Err }

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
)

// Builder stacks the layers of an image: apply the entries of all layers in
// order, from the base up. Whiteouts act on the tree as it is at that moment,
// entries of the same layer included. Nothing is followed and nothing is made
// up: a missing parent or a parent that is a symlink is an error, since invented
// metadata would give another image ID.
type Builder struct{ root *Node }

// NewBuilder returns a Builder whose root has mode 0, owner 0 and time 0.
func NewBuilder() *Builder { return &Builder{root: NewDir(Meta{})} }

// Root returns the tree. It is valid after each Apply.
func (b *Builder) Root() *Node { return b.root }

// Apply adds one entry. Every error is an *EntryError, and then nothing changed.
//
// A name that starts with ".wh." is a whiteout, whatever its type:
// ".wh..wh..opq" removes all entries of its directory, others the entry named by
// the rest; what is absent is fine. A directory over a directory replaces the
// metadata and keeps the entries; everything else replaces what was there.
func (b *Builder) Apply(e Entry) error {
	parts, err := splitPath(e.Path)
	if err != nil {
		return &EntryError{Path: e.Path, Detail: err.Error(), Err: ErrBadName}
	}
	if len(parts) == 0 {
		if e.Node == nil || !e.Node.IsDir() {
			return &EntryError{Path: e.Path, Err: ErrRootNotDir}
		}
		b.root.Meta = e.Node.Meta
		return nil
	}
	parent, err := b.parent(e.Path, parts)
	if err != nil {
		return err
	}
	name := parts[len(parts)-1]
	if hidden, ok := strings.CutPrefix(name, whiteoutPrefix); ok {
		if name == opaqueMarker {
			parent.Clear()
		} else {
			parent.Remove(hidden)
		}
		return nil
	}
	if e.Node == nil {
		target, err := b.linkTarget(e)
		if err != nil {
			return err
		}
		parent.Set(name, target)
		return nil
	}
	if e.Node.IsDir() {
		if old := parent.Lookup(name); old != nil && old.IsDir() {
			old.Meta = e.Node.Meta
			return nil
		}
	}
	parent.Set(name, e.Node)
	return nil
}

func (b *Builder) parent(path string, parts []string) (*Node, error) {
	dir := b.root
	for i, p := range parts[:len(parts)-1] {
		next := dir.Lookup(p)
		if next == nil {
			return nil, &EntryError{Path: path, Detail: "/" + strings.Join(parts[:i+1], "/"), Err: ErrNoParent}
		}
		if !next.IsDir() {
			detail := fmt.Sprintf("/%s is a %s", strings.Join(parts[:i+1], "/"), next.Kind)
			return nil, &EntryError{Path: path, Detail: detail, Err: ErrParentNotDir}
		}
		dir = next
	}
	return dir, nil
}

func (b *Builder) linkTarget(e Entry) (*Node, error) {
	if e.HardLink == "" {
		return nil, &EntryError{Path: e.Path, Detail: "the link names none", Err: ErrNoLinkTarget}
	}
	parts, err := splitPath(e.HardLink)
	if err != nil {
		return nil, &EntryError{Path: e.Path, Detail: fmt.Sprintf("link target %q: %v", e.HardLink, err), Err: ErrBadName}
	}
	n := b.root
	for _, p := range parts {
		if !n.IsDir() {
			n = nil
			break
		}
		if n = n.Lookup(p); n == nil {
			break
		}
	}
	if n == nil {
		return nil, &EntryError{Path: e.Path, Detail: fmt.Sprintf("%q", e.HardLink), Err: ErrNoLinkTarget}
	}
	if n.IsDir() {
		return nil, &EntryError{Path: e.Path, Detail: fmt.Sprintf("%q", e.HardLink), Err: ErrLinkToDirectory}
	}
	return n, nil
}

// splitPath returns the components of an archive path: leading and trailing
// slashes, empty components and "." vanish; ".." is refused.
func splitPath(path string) ([]string, error) {
	if strings.IndexByte(path, 0) >= 0 {
		return nil, errors.New("NUL byte")
	}
	parts := make([]string, 0, 1+strings.Count(path, "/"))
	for p := range strings.SplitSeq(path, "/") {
		switch {
		case p == "" || p == ".":
		case p == "..":
			return nil, errors.New("component \"..\"")
		case len(p) > MaxName:
			return nil, fmt.Errorf("component of %d bytes, limit %d", len(p), MaxName)
		default:
			parts = append(parts, p)
		}
	}
	return parts, nil
}

// MaxName is the longest name of a directory entry, in bytes.
const MaxName = 255
