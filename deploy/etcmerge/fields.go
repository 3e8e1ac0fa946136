package etcmerge

import (
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// permission is the mode together with the access ACL: the kernel keeps the
// group bits and the ACL's mask equal, so they must come from one side.
type permission struct {
	mode uint16
	acl  attribute
}

// attribute is the value of an extended attribute, or its absence.
type attribute struct {
	value   string
	present bool
}

func permissionOf(n *tree.Node) permission {
	if n.Kind == tree.Symlink {
		return permission{mode: 0o777} // has none
	}
	return permission{n.Mode, attributeOf(n, aclAccess)}
}

func attributeOf(n *tree.Node, name string) attribute {
	value, ok := n.Xattr(name)
	return attribute{value, ok}
}

// attributeNames lists the attributes to compare on any of the nodes (nil
// allowed), sorted; the access ACL is part of the permission.
func attributeNames(nodes ...*tree.Node) []string {
	var names []string
	for _, n := range nodes {
		if n == nil {
			continue
		}
		for _, x := range n.Xattrs {
			if !ignored(x.Name) && x.Name != aclAccess {
				names = append(names, x.Name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// pick is the three-way decision for one field. Without a pristine side both
// values are new.
func pick[T comparable](p, c, n T, hasP bool) (value T, conflict bool) {
	switch {
	case hasP && c == p, c == n:
		return n, false
	case hasP && n == p:
		return c, false
	}
	return c, true
}

// mergeMeta merges the metadata of two nodes of one type; p may be nil. bodyOf is
// the side, c or n, that the contents come from: it supplies what belongs to
// them; sameBody tells that both have the same. conflicts are the names of fields
// that both sides changed.
func mergeMeta(p, c, n, bodyOf *tree.Node, sameBody bool) (meta tree.Meta, conflicts []string) {
	hasP := p != nil
	if !hasP {
		p = &tree.Node{}
	}
	note := func(field string, conflict bool) {
		if conflict {
			conflicts = append(conflicts, field)
		}
	}
	perm, conflict := pick(permissionOf(p), permissionOf(c), permissionOf(n), hasP)
	note("mode", conflict)
	meta.Mode = perm.mode
	meta.UID, conflict = pick(p.UID, c.UID, n.UID, hasP)
	note("uid", conflict)
	meta.GID, conflict = pick(p.GID, c.GID, n.GID, hasP)
	note("gid", conflict)

	set := func(name string, a attribute) {
		if a.present {
			meta.Xattrs = append(meta.Xattrs, tree.Xattr{Name: name, Value: a.value})
		}
	}
	set(aclAccess, perm.acl)
	set(ima, attributeOf(bodyOf, ima))
	set(selinux, attributeOf(n, selinux))
	for _, name := range attributeNames(p, c, n) {
		a, conflict := pick(attributeOf(p, name), attributeOf(c, name), attributeOf(n, name), hasP)
		note("xattr "+name, conflict)
		set(name, a)
	}
	slices.SortFunc(meta.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })

	// The time goes with the contents. Where those are the same, as for all
	// directories, it is a field like others.
	source := bodyOf
	if sameBody {
		source = c
		if hasP && c.CompareMtime(&p.Meta) == 0 {
			source = n
		}
	}
	meta.MtimeSec, meta.MtimeNsec = source.MtimeSec, source.MtimeNsec
	return meta, conflicts
}

// keepMeta is the metadata of a node that is carried over as a whole.
func keepMeta(n *tree.Node) tree.Meta {
	meta := n.Meta
	if slices.ContainsFunc(meta.Xattrs, func(x tree.Xattr) bool { return dropped(x.Name) }) {
		meta.Xattrs = slices.DeleteFunc(slices.Clone(meta.Xattrs), func(x tree.Xattr) bool { return dropped(x.Name) })
	}
	return meta
}
