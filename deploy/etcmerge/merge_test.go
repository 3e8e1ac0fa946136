package etcmerge_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/erofs/tree"
)

type node = tree.Node

// long is more than the 128 bytes at which a peer gives up.
var long = "user.long=" + strings.Repeat("v", 5000)

// TestMergeTable has one case for each row of the table in
// docs/design/etc-merge.md; the path is "x" where nothing else is said.
func TestMergeTable(t *testing.T) {
	in := func(entries map[string]*node) *node { return d(0o755, entries) }
	for _, tc := range []struct {
		name      string
		p, c, n   *node
		want      []string
		report    []string
		conflicts []string
	}{
		{name: "1 vendor update", p: f("a"), c: f("a"), n: f("b"), want: []string{`x 0644 "b"`}},
		{name: "2 local change", p: f("a"), c: f("b"), n: f("a"), want: []string{`x 0644 "b"`}},
		{name: "3 both changed", p: f("a"), c: f("b"), n: f("c"), want: []string{`x 0644 "b"`}, report: []string{"x merged both-changed content"}},
		{name: "3 both changed to the same", p: f("a"), c: f("b"), n: f("b"), want: []string{`x 0644 "b"`}},
		{name: "4 removed locally", p: f("a"), n: f("a")},
		{name: "5 removed locally, updated", p: f("a"), n: f("b"), report: []string{"x removed removed-locally"}},
		{name: "6 changed, vendor dropped it", p: f("a"), c: f("b"), want: []string{`x 0644 "b"`}, report: []string{"x kept-local orphan"}},
		{name: "6 mode changed, vendor dropped it", p: f("a"), c: fm("a", 0o600), want: []string{`x 0600 "a"`}, report: []string{"x kept-local orphan"}},
		{name: "7 vendor dropped it", p: f("a"), c: f("a")},
		{name: "8 added locally", c: f("x"), want: []string{`x 0644 "x"`}},
		{name: "9 added by both", c: f("x"), n: f("y"), want: []string{`x 0644 "x"`}, report: []string{"x kept-local both-added content"}},
		{name: "9 added by both, equal", c: f("x"), n: f("x"), want: []string{`x 0644 "x"`}},
		{name: "9 added by both, other mode", c: fm("x", 0o600), n: f("x"), want: []string{`x 0600 "x"`}, report: []string{"x merged both-added mode"}},
		{name: "10 added by vendor", n: f("y"), want: []string{`x 0644 "y"`}},
		{name: "11 fields", p: f("a"), c: fm("a", 0o600), n: f("b"), want: []string{`x 0600 "b"`}},
		{name: "11 same field", p: f("a"), c: fm("a", 0o600), n: fm("b", 0o640), want: []string{`x 0600 "b"`}, report: []string{"x merged both-changed mode"}},
		{name: "12 mode of a directory", p: d(0o755, nil), c: d(0o700, nil), n: d(0o755, nil), want: []string{"x 0700 dir"}},
		{name: "13 vendor dropped a directory with local files", p: in(map[string]*node{"f": f("f")}), c: in(map[string]*node{"f": f("f"), "g": f("g")}),
			want: []string{"x 0755 dir", `x/g 0644 "g"`}, report: []string{"x kept-local orphan"}},
		{name: "13 vendor dropped a directory", p: in(map[string]*node{"f": f("f")}), c: in(map[string]*node{"f": f("f")})},
		{name: "13 its mode was local", p: in(nil), c: d(0o700, nil), want: []string{"x 0700 dir"}, report: []string{"x kept-local orphan"}},
		{name: "14 directory became a link", p: in(map[string]*node{"f": f("f")}), c: l("/else"), n: in(map[string]*node{"f": f("f")}), want: []string{"x 0777 -> /else"}},
		{name: "14 and the vendor changed it", p: in(map[string]*node{"f": f("f")}), c: l("/else"), n: in(map[string]*node{"f": f("g")}),
			want: []string{"x 0777 -> /else"}, report: []string{"x kept-local type-changed"}},
		{name: "15 file became a directory", p: f("a"), c: in(map[string]*node{"x": f("x")}), n: f("a"), want: []string{"x 0755 dir", `x/x 0644 "x"`}},
		{name: "15 and the vendor changed it", p: f("a"), c: in(nil), n: f("b"), want: []string{"x 0755 dir"}, report: []string{"x kept-local type-changed"}},
		{name: "16 changed, vendor made a directory", p: f("a"), c: f("b"), n: in(nil), report: []string{"x refused directory-or-file"}, conflicts: []string{"x"}},
		{name: "16 not changed, vendor made a directory", p: f("a"), c: f("a"), n: in(map[string]*node{"f": f("f")}), want: []string{"x 0755 dir", `x/f 0644 "f"`}},
		{name: "16 only the mode was changed", p: f("a"), c: fm("a", 0o600), n: in(nil), want: []string{"x 0755 dir"}, report: []string{"x took-new type-changed"}},
		{name: "17 directory changed below, vendor made a file", p: in(map[string]*node{"f": f("f")}), c: in(map[string]*node{"f": f("g")}), n: f("file"),
			report: []string{"x refused directory-or-file"}, conflicts: []string{"x"}},
		{name: "17 not changed, vendor made a file", p: in(map[string]*node{"f": f("f")}), c: in(map[string]*node{"f": f("f")}), n: f("file"), want: []string{`x 0644 "file"`}},
		{name: "17 only the mode was changed", p: in(nil), c: d(0o700, nil), n: f("file"), want: []string{`x 0644 "file"`}, report: []string{"x took-new type-changed"}},
		{name: "18 added file against directory", c: f("x"), n: in(nil), report: []string{"x refused directory-or-file"}, conflicts: []string{"x"}},
		{name: "19 added directory against file", c: in(map[string]*node{"x": f("x")}), n: f("y"), report: []string{"x refused directory-or-file"}, conflicts: []string{"x"}},
		{name: "19 file became a directory here and a link there", p: f("a"), c: in(nil), n: l("t"), report: []string{"x refused directory-or-file"}, conflicts: []string{"x"}},
		{name: "20 link against vendor update", p: f("a"), c: l("t"), n: f("b"), want: []string{"x 0777 -> t"}, report: []string{"x kept-local both-changed content"}},
		{name: "20 link, vendor did nothing", p: f("a"), c: l("t"), n: f("a"), want: []string{"x 0777 -> t"}},
		{name: "20 vendor made a link", p: f("a"), c: f("a"), n: l("t"), want: []string{"x 0777 -> t"}},
		{name: "20 vendor made a link, local mode", p: f("a"), c: fm("a", 0o600), n: l("t"), want: []string{"x 0777 -> t"}, report: []string{"x took-new type-changed"}},
		{name: "20 vendor made a link, local content", p: f("a"), c: f("b"), n: l("t"), want: []string{`x 0644 "b"`}, report: []string{"x kept-local both-changed content"}},
		{name: "20 both made links", p: f("a"), c: l("t"), n: l("u"), want: []string{"x 0777 -> t"}, report: []string{"x kept-local both-changed content"}},
		{name: "20 both made the same link", p: f("a"), c: l("t"), n: l("t"), want: []string{"x 0777 -> t"}},
		{name: "21 attribute added locally", p: f("a"), c: with(f("a"), "user.x=1"), n: f("b"), want: []string{`x 0644 "b" user.x=1`}},
		{name: "21 attribute changed by both", p: with(f("a"), "user.x=1"), c: with(f("a"), "user.x=2"), n: with(f("b"), "user.x=3"),
			want: []string{`x 0644 "b" user.x=2`}, report: []string{"x merged both-changed xattr user.x"}},
		{name: "22 relabelled locally", p: with(f("a"), "security.selinux=1"), c: with(f("a"), "security.selinux=2"), n: with(f("b"), "security.selinux=1"),
			want: []string{`x 0644 "b" security.selinux=1`}},
		{name: "23 attribute of a directory removed", p: dx(in(nil), "user.k=1"), c: in(nil), n: dx(in(nil), "user.k=1"), want: []string{"x 0755 dir"}},
		{name: "24 set-id bit", p: fm("a", 0o4755), c: fm("b", 0o4755), n: fm("a", 0o4755), want: []string{`x 4755 "b"`}},
		{name: "24 set-id bit taken away", p: fm("a", 0o4755), c: fm("a", 0o755), n: fm("b", 0o4755), want: []string{`x 0755 "b"`}},
		{name: "25 hard links", p: linked("y", "z"), c: linked("y", "z"), n: linked("y", "z"),
			want: []string{"x 0755 dir", `x/y 0644 "h"`, `x/z 0644 "h"`}, report: []string{"x/y noted hard-link x/y,x/z"}},
		{name: "25 local hard links", c: linked("y", "z"), want: []string{"x 0755 dir", `x/y 0644 "h"`, `x/z 0644 "h"`}, report: []string{"x/y noted hard-link x/y,x/z"}},
		{name: "26 local fifo", c: special(tree.Fifo, 0), report: []string{"x skipped special-file"}},
		{name: "26 local socket in an added directory", c: in(map[string]*node{"s": special(tree.Socket, 0)}), want: []string{"x 0755 dir"}, report: []string{"x/s skipped special-file"}},
		{name: "26 device in place of a file", p: f("a"), c: special(tree.CharDevice, 259), n: f("b"), want: []string{`x 0644 "b"`}, report: []string{"x skipped special-file"}},
		{name: "26 whiteout in place of a directory", p: in(map[string]*node{"f": f("f")}), c: special(tree.CharDevice, 0), n: in(map[string]*node{"f": f("g")}),
			want: []string{"x 0755 dir", `x/f 0644 "g"`}, report: []string{"x skipped special-file"}},
		{name: "26 fifo everywhere", p: special(tree.Fifo, 0), c: special(tree.Fifo, 0), n: special(tree.Fifo, 0), want: []string{"x 0600 fifo"},
			report: []string{"x skipped special-file", "x took-new special-file"}},
		{name: "26 fifo from the vendor", n: special(tree.Fifo, 0), want: []string{"x 0600 fifo"}, report: []string{"x took-new special-file"}},
		{name: "26 fifo replaced by a file", p: special(tree.Fifo, 0), c: f("a"), n: special(tree.Fifo, 0), want: []string{`x 0644 "a"`}},
		{name: "27 long attribute, local", p: f("a"), c: with(f("a"), long), n: f("b"), want: []string{`x 0644 "b" user.long=(5000 bytes)`}},
		{name: "27 long attribute, everywhere", p: with(f("a"), long), c: with(f("b"), long), n: with(f("a"), long), want: []string{`x 0644 "b" user.long=(5000 bytes)`}},
		{name: "27 many attributes", c: with(f("x"), manyAttributes(200)...), want: []string{`x 0644 "x" ` + strings.Join(manyAttributes(200), " ")}},
		{name: "both made a directory", p: f("a"), c: in(map[string]*node{"c": f("c"), "s": f("s")}), n: d(0o700, map[string]*node{"n": f("n"), "s": f("t")}),
			want:   []string{"x 0755 dir", `x/c 0644 "c"`, `x/n 0644 "n"`, `x/s 0644 "s"`},
			report: []string{"x merged both-added mode", "x/s kept-local both-added content"}},
		{name: "directory became different files", p: in(nil), c: f("c"), n: f("n"), want: []string{`x 0644 "c"`}, report: []string{"x kept-local both-added content"}},
		{name: "directory became a file, vendor dropped it", p: in(nil), c: f("c"), want: []string{`x 0644 "c"`}, report: []string{"x kept-local orphan"}},
		{name: "file became a directory, vendor dropped it", p: f("a"), c: in(nil), want: []string{"x 0755 dir"}, report: []string{"x kept-local orphan"}},
		{name: "removed directory that the vendor extends", p: in(map[string]*node{"f": f("f")}), n: in(map[string]*node{"f": f("f"), "g": f("g")}), report: []string{"x removed removed-locally"}},
		{name: "notes of overlayfs and EVM", c: with(f("x"), "trusted.overlay.opaque=y", "security.evm=1", "user.k=v"), want: []string{`x 0644 "x" user.k=v`}},
		{name: "ACL goes with the mode", p: f("a"), c: with(fm("a", 0o660), "system.posix_acl_access=mask"), n: fm("b", 0o600),
			want: []string{`x 0660 "b" system.posix_acl_access=mask`}, report: []string{"x merged both-changed mode"}},
		{name: "capabilities are a field", p: with(f("a"), "security.capability=1"), c: with(f("b"), "security.capability=1"), n: with(f("a"), "security.capability=2"),
			want: []string{`x 0644 "b" security.capability=2`}},
		{name: "integrity signature goes with the contents", p: with(f("a"), "security.ima=1"), c: with(f("a"), "security.ima=9"), n: with(f("b"), "security.ima=2"),
			want: []string{`x 0644 "b" security.ima=2`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := func(x *node) *node { return d(0o755, map[string]*node{"x": x}) }
			r, err := etcmerge.Merge(root(tc.p), liveOf(root(tc.c)), root(tc.n))
			if err != nil {
				t.Fatal(err)
			}
			want := func(s []string) []string { return append([]string{}, s...) }
			if diff := cmp.Diff(want(tc.want), show(r.Root)); diff != "" && tc.conflicts == nil {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want(tc.report), showItems(r.Report.Items)); diff != "" {
				t.Errorf("report (-want +got):\n%s", diff)
			}
			var conflicts []string
			for _, c := range r.Conflicts {
				conflicts = append(conflicts, c.Path)
			}
			if diff := cmp.Diff(tc.conflicts, conflicts); diff != "" {
				t.Errorf("conflicts (-want +got):\n%s", diff)
			}
			if tc.conflicts != nil {
				if err := r.Build(t.Context(), openDir(t, t.TempDir()), "etc.tx", nil); !errors.Is(err, etcmerge.ErrConflicts) {
					t.Errorf("build: %v, want ErrConflicts", err)
				}
			}
		})
	}
}

func dx(n *node, attrs ...string) *node {
	n.Meta = with(tree.NewInline(n.Meta, nil), attrs...).Meta
	return n
}

func linked(names ...string) *node {
	n, h := d(0o755, nil), f("h")
	for _, name := range names {
		n.Set(name, h)
	}
	return n
}

func manyAttributes(n int) []string {
	var out []string
	for i := range n {
		out = append(out, "user."+string([]byte{byte('a' + i/26), byte('a' + i%26)})+"=v")
	}
	return out
}

func TestMergeDropsUpdatedStamp(t *testing.T) {
	root := func(extra string) *node {
		return d(0o755, map[string]*node{".updated": f("stamp"), "sub": d(0o755, map[string]*node{".updated": f("kept")}), extra: f("x")})
	}
	r, err := etcmerge.Merge(root("p"), liveOf(root("c")), root("n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{`c 0644 "x"`, `n 0644 "x"`, "sub 0755 dir", `sub/.updated 0644 "kept"`}, show(r.Root)); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestMergeNeedsDirectories(t *testing.T) {
	dir := d(0o755, nil)
	for name, run := range map[string]func() (*etcmerge.Result, error){
		"pristine": func() (*etcmerge.Result, error) { return etcmerge.Merge(f("x"), liveOf(dir), dir) },
		"current":  func() (*etcmerge.Result, error) { return etcmerge.Merge(dir, liveOf(nil), dir) },
		"new":      func() (*etcmerge.Result, error) { return etcmerge.Merge(dir, liveOf(dir), nil) },
	} {
		if _, err := run(); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// equal compares trees, times included, special files of the right one aside.
func equal(t *testing.T, what string, want, got *node) {
	t.Helper()
	if diff := cmp.Diff(full(want), full(got)); diff != "" {
		t.Errorf("%s: mismatch (-want +got):\n%s", what, diff)
	}
}

func full(n *node) []string {
	out := show(n)
	var times func(n *node)
	times = func(n *node) {
		out = append(out, strings.Join([]string{n.Kind.String(), jsonOf(n.MtimeSec), jsonOf(n.MtimeNsec)}, " "))
		if n.IsDir() {
			for _, child := range n.All() {
				times(child)
			}
		}
	}
	times(n)
	return out
}

func jsonOf(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}

// TestMergeProperties runs random trees through the laws of a merge.
func TestMergeProperties(t *testing.T) {
	merge := func(p, c, n *node) *etcmerge.Result {
		r, err := etcmerge.Merge(p, liveOf(c), n)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	conflicts, merged := 0, 0
	for seed := range uint64(400) {
		g := newGenerator(seed)
		p := g.tree(3)
		c, n := g.editDir(p), g.editDir(p)
		equal(t, "nothing local gives the new side", n, merge(p, p, n).Root)
		equal(t, "nothing new gives the local side", c, merge(p, c, p).Root)
		equal(t, "equal changes give either", n, merge(p, n, n).Root)
		r := merge(p, c, n)
		if len(r.Conflicts) > 0 {
			conflicts++
			continue
		}
		merged++
		equal(t, "again gives the same", r.Root, merge(p, c, n).Root)
		// What was merged carries all local changes: merging it once more on top
		// of the new image changes nothing.
		equal(t, "merging the result again", r.Root, merge(n, r.Root, n).Root)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if conflicts == 0 || merged < 100 {
		t.Errorf("%d merges with conflicts, %d without: the generator does not test much", conflicts, merged)
	}
}

func TestReport(t *testing.T) {
	root := func(x *node) *node { return d(0o755, map[string]*node{"x": x}) }
	r, err := etcmerge.Merge(root(f("a")), liveOf(root(l("t"))), root(f("b")))
	if err != nil {
		t.Fatal(err)
	}
	r.Report.From, r.Report.To, r.Report.Transaction = "from", "to", "tx"
	data, err := r.Report.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := etcmerge.ParseReport(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.Report, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	item := got.Items[0]
	if item.Pristine.Type != "regular file" || item.Pristine.Size != 1 || !strings.HasPrefix(item.Pristine.Digest, "sha512:") || item.Current.Target != "t" {
		t.Errorf("versions: %+v %+v", item.Pristine, item.Current)
	}
	if got.Counts.LocalChanged != 1 || got.Counts.Reported != 1 {
		t.Errorf("counts: %+v", got.Counts)
	}
	for name, bad := range map[string]string{"empty": "", "schema": `{"schema":"x"}`, "type": `{"items":1}`} {
		if _, err := etcmerge.ParseReport([]byte(bad)); !errors.Is(err, etcmerge.ErrReport) {
			t.Errorf("%s: got %v, want ErrReport", name, err)
		}
	}
}

func TestReportCounts(t *testing.T) {
	p := d(0o755, map[string]*node{"kept": f("1"), "edited": f("1"), "gone": f("1"), "dropped": f("1"), "updated": f("1")})
	c := d(0o755, map[string]*node{"kept": f("1"), "edited": f("2"), "dropped": f("1"), "updated": f("1"), "mine": f("m")})
	n := d(0o755, map[string]*node{"kept": f("1"), "edited": f("1"), "gone": f("1"), "updated": f("2"), "fresh": f("n")})
	r, err := etcmerge.Merge(p, liveOf(c), n)
	if err != nil {
		t.Fatal(err)
	}
	want := etcmerge.Counts{LocalAdded: 1, LocalChanged: 1, LocalRemoved: 1, NewAdded: 1, NewChanged: 1, NewRemoved: 1}
	if r.Report.Counts != want {
		t.Errorf("got %+v, want %+v", r.Report.Counts, want)
	}
	if len(r.Report.Items) != 0 {
		t.Errorf("reported: %q", showItems(r.Report.Items))
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"schema":"cfsboot.etc-merge/1","items":[{"path":"x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := etcmerge.ParseReport(data)
		if err != nil {
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := etcmerge.ParseReport(again); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzMerge lets the fuzzer choose the trees.
func FuzzMerge(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) {
		g := newGenerator(a)
		g.special = true
		p := g.tree(3)
		c := g.editDir(p)
		g.r = newGenerator(b).r
		n := g.editDir(p)
		r, err := etcmerge.Merge(p, liveOf(c), n)
		if err != nil {
			t.Fatal(err)
		}
		var refused []string
		for _, i := range r.Report.Items {
			if i.Action == etcmerge.Refused {
				refused = append(refused, i.Path)
			}
		}
		var conflicts []string
		for _, c := range r.Conflicts {
			conflicts = append(conflicts, c.Path)
		}
		if !slices.Equal(refused, conflicts) {
			t.Errorf("conflicts %q, refused in the report %q", conflicts, refused)
		}
		if _, err := r.Report.Encode(); err != nil {
			t.Fatal(err)
		}
	})
}
