package etcmerge

import (
	"fmt"
	"path"
	"slices"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// updatedStamp makes units with ConditionNeedsUpdate=/etc run at the next boot
// by its absence, so it is left out of every result.
const updatedStamp = ".updated"

// Conflict is a path that has no merged form: a directory on one side where the
// other has, and changed, something else.
type Conflict struct {
	Path   string // relative to /etc
	Detail string // what each side has
}

// Result is the outcome of a merge.
type Result struct {
	// Root is the merged tree. Regular files in it have their contents in the
	// live directory or in the new image; Build knows which.
	Root *tree.Node
	// Report is complete but for From, To and Transaction.
	Report Report
	// Conflicts make the result unusable: Build refuses.
	Conflicts []Conflict

	live  *Live
	local map[*tree.Node]string // files of Root whose contents are in the live directory, at this path
}

// Merge decides what /etc of the new deployment is. All three roots must be
// directories. It changes none of them and reads nothing.
func Merge(pristine *tree.Node, current *Live, newEtc *tree.Node) (*Result, error) {
	for name, n := range map[string]*tree.Node{"pristine": pristine, "current": current.Root, "new": newEtc} {
		if n == nil || !n.IsDir() {
			return nil, fmt.Errorf("merge /etc: the %s side is no directory", name)
		}
	}
	m := &merger{
		comparer: comparer{current.Algorithm},
		res:      &Result{live: current, local: map[*tree.Node]string{}},
		links:    map[*tree.Node][]string{},
	}
	m.res.Root = m.node(".", pristine, current.Root, newEtc)
	m.reportLinks()
	r := &m.res.Report
	r.Schema, r.Fingerprint, r.Counts.Reported = ReportSchema, current.Fingerprint, len(r.Items)
	return m.res, nil
}

type merger struct {
	comparer
	res   *Result
	links map[*tree.Node][]string // paths in the result that a node with several names went to
	order []*tree.Node            // keys of links, in the order of the walk
}

// node merges one path, of which at least one side has something. It returns
// nil if the result has nothing there.
func (m *merger) node(at string, p, c, n *tree.Node) *tree.Node {
	if isSpecial(c) {
		m.report(Item{Path: at, Action: Skipped, Reason: Special}, p, c, n)
		c = p // counts as not changed, so that nothing is ever taken from it
		if isSpecial(c) {
			c, p = nil, nil
		}
	}
	switch {
	case c == nil:
		return m.absentLocally(at, p, n)
	case n == nil:
		return m.absentInNew(at, p, c)
	case c.IsDir() && n.IsDir():
		return m.directories(at, p, c, n)
	case c.IsDir() || n.IsDir():
		return m.mixed(at, p, c, n)
	}
	return m.files(at, p, c, n)
}

// absentLocally: what the new image added comes, what was removed stays away.
func (m *merger) absentLocally(at string, p, n *tree.Node) *tree.Node {
	switch {
	case n == nil:
		return nil
	case p == nil:
		m.res.Report.Counts.NewAdded++
		return m.take(at, n, false)
	}
	m.res.Report.Counts.LocalRemoved++
	if !m.deep(p, n) {
		m.report(Item{Path: at, Action: Removed, Reason: RemovedLocally}, p, nil, n)
	}
	return nil
}

// absentInNew: what the administrator added or changed stays, the rest goes.
func (m *merger) absentInNew(at string, p, c *tree.Node) *tree.Node {
	switch {
	case p == nil:
		m.res.Report.Counts.LocalAdded++
		return m.take(at, c, true)
	case m.body(p, c) && !c.IsDir():
		if m.meta(p, c) {
			m.res.Report.Counts.NewRemoved++
			return nil
		}
	case p.IsDir() && c.IsDir():
		return m.droppedDirectory(at, p, c)
	}
	m.res.Report.Counts.LocalChanged++
	m.report(Item{Path: at, Action: KeptLocal, Reason: Orphan}, p, c, nil)
	return m.take(at, c, true)
}

// droppedDirectory keeps of a directory that the new image no longer has what
// is local in it, and the directory itself if that is anything.
func (m *merger) droppedDirectory(at string, p, c *tree.Node) *tree.Node {
	out := tree.NewDir(keepMeta(c))
	for _, name := range m.names(at, p, c) {
		if child := m.node(path.Join(at, name), p.Lookup(name), c.Lookup(name), nil); child != nil {
			out.Set(name, child)
		}
	}
	if out.Len() == 0 && m.meta(p, c) {
		m.res.Report.Counts.NewRemoved++
		return nil
	}
	m.report(Item{Path: at, Action: KeptLocal, Reason: Orphan}, p, c, nil)
	return out
}

// directories merges two directories and, name by name, what is in them.
func (m *merger) directories(at string, p, c, n *tree.Node) *tree.Node {
	if p != nil && !p.IsDir() {
		p = nil // both replaced it
	}
	meta, conflicts := mergeMeta(p, c, n, n, true)
	out := tree.NewDir(meta)
	m.count(p, c, n)
	if len(conflicts) > 0 {
		m.report(Item{Path: at, Action: Merged, Reason: bothReason(p), Fields: conflicts}, p, c, n)
	}
	old := p
	if old == nil {
		old = tree.NewDir(tree.Meta{})
	}
	for _, name := range m.names(at, old, c, n) {
		if child := m.node(path.Join(at, name), old.Lookup(name), c.Lookup(name), n.Lookup(name)); child != nil {
			out.Set(name, child)
		}
	}
	return out
}

// mixed decides where one of c and n is a directory and the other is not.
func (m *merger) mixed(at string, p, c, n *tree.Node) *tree.Node {
	switch {
	case p == nil:
		return m.refuse(at, p, c, n)
	case p.IsDir() == c.IsDir():
		// The new image changed the type. That is fine if nothing local is lost.
		if !m.body(p, c) || c.IsDir() && !m.children(p, c) {
			return m.refuse(at, p, c, n)
		}
		m.res.Report.Counts.NewChanged++
		if !m.meta(p, c) {
			m.report(Item{Path: at, Action: TookNew, Reason: TypeChanged}, p, c, n)
		}
		return m.take(at, n, false)
	case p.Kind != n.Kind:
		return m.refuse(at, p, c, n) // both changed the type
	}
	m.res.Report.Counts.LocalChanged++
	if !m.deep(p, n) {
		m.report(Item{Path: at, Action: KeptLocal, Reason: TypeChanged}, p, c, n)
	}
	return m.take(at, c, true)
}

// files merges two nodes that are no directories.
func (m *merger) files(at string, p, c, n *tree.Node) *tree.Node {
	if p != nil && p.IsDir() {
		p = nil // both replaced it
	}
	if p == nil || c.Kind == n.Kind && p.Kind != n.Kind {
		if m.body(c, n) {
			return m.fields(at, nil, c, n)
		}
		return m.keep(at, p, c, n)
	}
	switch {
	case p.Kind == c.Kind && c.Kind == n.Kind:
		return m.fields(at, p, c, n)
	case m.body(p, c):
		// The new image changed the type; local metadata was that of another type.
		m.res.Report.Counts.NewChanged++
		if !m.meta(p, c) {
			m.report(Item{Path: at, Action: TookNew, Reason: TypeChanged}, p, c, n)
		}
		return m.take(at, n, false)
	case m.body(p, n) && m.meta(p, n):
		m.res.Report.Counts.LocalChanged++
		return m.take(at, c, true)
	}
	return m.keep(at, p, c, n)
}

// keep takes the local file where both sides have another one.
func (m *merger) keep(at string, p, c, n *tree.Node) *tree.Node {
	m.res.Report.Counts.LocalChanged++
	m.report(Item{Path: at, Action: KeptLocal, Reason: bothReason(p), Fields: []string{"content"}}, p, c, n)
	return m.take(at, c, true)
}

// fields merges two files of one type field by field. Without p their bodies
// are equal.
func (m *merger) fields(at string, p, c, n *tree.Node) *tree.Node {
	var conflicts []string
	bodyOf, local := n, false
	if p != nil && !m.body(p, c) {
		bodyOf, local = c, true
		if !m.body(p, n) && !m.body(c, n) {
			conflicts = append(conflicts, "content")
		}
	}
	meta, more := mergeMeta(p, c, n, bodyOf, m.body(c, n))
	conflicts = append(conflicts, more...)
	m.count(p, c, n)
	if len(conflicts) > 0 {
		m.report(Item{Path: at, Action: Merged, Reason: bothReason(p), Fields: conflicts}, p, c, n)
	}
	out := m.leaf(at, bodyOf, local)
	out.Meta = meta
	return out
}

func bothReason(p *tree.Node) Reason {
	if p == nil {
		return BothAdded
	}
	return BothChanged
}

// count counts one path that both sides have.
func (m *merger) count(p, c, n *tree.Node) {
	counts := &m.res.Report.Counts
	switch {
	case p == nil:
		counts.LocalAdded++
		return
	case !m.body(p, c) || !m.meta(p, c):
		counts.LocalChanged++
	}
	if !m.body(p, n) || !m.meta(p, n) {
		counts.NewChanged++
	}
}

// refuse notes a conflict.
func (m *merger) refuse(at string, p, c, n *tree.Node) *tree.Node {
	m.report(Item{Path: at, Action: Refused, Reason: Unmergeable}, p, c, n)
	kind := func(n *tree.Node) string {
		if n == nil {
			return "nothing"
		}
		return n.Kind.String()
	}
	m.res.Conflicts = append(m.res.Conflicts, Conflict{
		Path:   at,
		Detail: fmt.Sprintf("the booted image has: %s; /etc has: %s; the new image has: %s", kind(p), kind(c), kind(n)),
	})
	return nil
}

// take copies a node with all that is below it, of the live directory (local)
// or the new image.
func (m *merger) take(at string, n *tree.Node, local bool) *tree.Node {
	if isSpecial(n) {
		if local {
			m.report(Item{Path: at, Action: Skipped, Reason: Special}, nil, n, nil)
			return nil
		}
		m.report(Item{Path: at, Action: TookNew, Reason: Special}, nil, nil, n)
	}
	if !n.IsDir() {
		return m.leaf(at, n, local)
	}
	out := tree.NewDir(keepMeta(n))
	for _, name := range m.names(at, n) {
		if child := m.take(path.Join(at, name), n.Lookup(name), local); child != nil {
			out.Set(name, child)
		}
	}
	return out
}

// leaf copies a node that is no directory.
func (m *merger) leaf(at string, n *tree.Node, local bool) *tree.Node {
	out := &tree.Node{
		Meta: keepMeta(n), Kind: n.Kind, Size: n.Size, Inline: n.Inline, Digest: n.Digest, Target: n.Target,
		Rdev: n.Rdev, NoVerity: n.NoVerity, Sparse: n.Sparse,
	}
	if local && n.Kind == tree.Regular {
		m.res.local[out] = at
	}
	if n.MaybeLinked() {
		if m.links[n] == nil {
			m.order = append(m.order, n)
		}
		m.links[n] = append(m.links[n], at)
	}
	return out
}

// reportLinks notes each hard link once.
func (m *merger) reportLinks() {
	for _, n := range m.order {
		if paths := m.links[n]; len(paths) > 1 {
			m.report(Item{Path: paths[0], Action: Noted, Reason: HardLink, Links: paths}, nil, nil, nil)
		}
	}
}

// names lists the entries of the directories, each once, in byte order.
func (m *merger) names(at string, dirs ...*tree.Node) []string {
	var names []string
	for _, d := range dirs {
		for name := range d.All() {
			if at != "." || name != updatedStamp {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (m *merger) report(item Item, p, c, n *tree.Node) {
	item.Pristine, item.Current, item.New = m.version(p), m.version(c), m.version(n)
	m.res.Report.Items = append(m.res.Report.Items, item)
}
