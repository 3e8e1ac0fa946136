package bootimage_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/selabel"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

const contexts = "etc/selinux/targeted/contexts/files/file_contexts"

// labels returns the label of each path of a tree that has one.
func labels(root *tree.Node) map[string]string {
	all := make(map[string]string)
	var walk func(n *tree.Node, path string)
	walk = func(n *tree.Node, path string) {
		if label, ok := n.Xattr("security.selinux"); ok {
			all[path] = label
		}
		if n.IsDir() {
			for name, child := range n.All() {
				walk(child, strings.TrimSuffix(path, "/")+"/"+name)
			}
		}
	}
	walk(root, "/")
	return all
}

// TestTransformPolicy: which configuration names a policy, and what is refused, with
// the tree as it was.
func TestTransformPolicy(t *testing.T) {
	o := objects{t.TempDir()}
	long := strings.Repeat("# comment\n", 20)
	gone := tree.NewExternal(tree.Meta{}, fsverity.Sum(fsverity.SHA256, nil), 70)
	link, folder := tree.NewSymlink(tree.Meta{}, "x"), tree.NewDir(tree.Meta{})
	const config, targeted = "etc/selinux/config", "SELINUXTYPE=targeted\n"
	type files map[string]*tree.Node
	for name, c := range map[string]struct {
		files files
		want  string // label of /usr, "" for none, "file" or "policy" for an error
	}{
		"no file":              {files{"etc/x": inline("")}, ""},
		"no type":              {files{config: inline("SELINUX=enforcing\n"), contexts: inline("/.* x")}, ""},
		"comment is no key":    {files{config: inline("#SELINUXTYPE=targeted\n"), contexts: inline("/.* x")}, ""},
		"in an object, none":   {files{config: o.put(t, long), contexts: inline("/.* x")}, ""},
		"policy without a use": {files{contexts: inline("/ x")}, ""},
		"type":                 {files{config: inline("SELINUX=enforcing\n" + targeted), contexts: inline("/usr x")}, "x"},
		"disabled":             {files{config: inline("SELINUX=disabled\nSELINUXTYPE=targeted"), contexts: inline("/usr x")}, "x"},
		"blanks and case":      {files{config: inline(" SELinuxType = targeted \n"), contexts: inline("/usr x")}, "x"},
		"first counts":         {files{config: inline(targeted + "SELINUXTYPE=b\n"), contexts: inline("/usr x")}, "x"},
		"in objects":           {files{config: o.put(t, long+targeted), contexts: o.put(t, long+"/usr x\n")}, "x"},
		"empty policy":         {files{config: inline(targeted), contexts: inline("")}, ""},
		"no label for it":      {files{config: inline(targeted), contexts: inline("/usr/.* x")}, ""},
		"other files alone":    {files{config: inline(targeted), contexts: inline(""), contexts + ".local": inline("/usr l"), contexts + ".homedirs": inline("/usr h")}, "h"},

		"config is missing its object": {files{config: gone}, "file"},
		"config is too large":          {files{config: tree.NewExternal(tree.Meta{}, fsverity.Sum(fsverity.SHA256, nil), 1<<20+1)}, "file"},
		"config is a link":             {files{config: link}, "file"},
		"config is a folder":           {files{config: folder}, "file"},
		"selinux is a link":            {files{"etc/selinux": link}, "file"},
		"no policy of the type":        {files{config: inline(targeted)}, "file"},
		"type is a link":               {files{config: inline(targeted), "etc/selinux/targeted": link}, "file"},
		"no file_contexts":             {files{config: inline(targeted), contexts + ".local": inline("/usr x")}, "file"},
		"file_contexts is a link":      {files{config: inline(targeted), contexts: link}, "file"},
		"file_contexts is a folder":    {files{config: inline(targeted), contexts: folder}, "file"},
		"file_contexts is too large":   {files{config: inline(targeted), contexts: tree.NewExternal(tree.Meta{}, fsverity.Sum(fsverity.SHA256, nil), selabel.MaxFile+1)}, "file"},
		"file_contexts has no object":  {files{config: inline(targeted), contexts: gone}, "file"},
		"local is a link":              {files{config: inline(targeted), contexts: inline("/usr x"), contexts + ".local": link}, "file"},
		"homedirs is a link":           {files{config: inline(targeted), contexts: inline("/usr x"), contexts + ".homedirs": link}, "file"},
		"subs is a link":               {files{config: inline(targeted), contexts: inline("/usr x"), contexts + ".subs": link}, "file"},
		"subs_dist is a folder":        {files{config: inline(targeted), contexts: inline("/usr x"), contexts + ".subs_dist": folder}, "file"},

		"type is empty":       {files{config: inline("SELINUXTYPE=\n")}, "policy"},
		"type leads out":      {files{config: inline("SELINUXTYPE=..\n")}, "policy"},
		"type is a path":      {files{config: inline("SELINUXTYPE=targeted/contexts\n")}, "policy"},
		"config is not UTF-8": {files{config: inline("#\xff\n" + targeted)}, "policy"},
		"bad type letter":     {files{config: inline(targeted), contexts: inline("/usr -x x")}, "policy"},
		"bad expression":      {files{config: inline(targeted), contexts: inline("/usr/(a x")}, "policy"},
		"bad alias":           {files{config: inline(targeted), contexts: inline("/usr x"), contexts + ".subs": inline("/a")}, "policy"},
		"too much work":       {files{config: inline(targeted), contexts: inline("/(?!c)(.{5}){1000}c x"), strings.Repeat(strings.Repeat("x", 200)+"/", 80) + "x": inline("")}, "policy"},
	} {
		t.Run(name, func(t *testing.T) {
			root := base()
			for path, n := range c.files {
				enter(root, path, n)
			}
			root.Xattrs = []tree.Xattr{{Name: "security.selinux", Value: "old"}}
			enter(root, "boot/x", inline("x"))
			before := dumpOf(t, root)
			err := bootimage.Transform(root, o)
			var se *bootimage.SELinuxError
			var fe *bootimage.FileError
			switch c.want {
			case "file":
				if !errors.As(err, &fe) || !strings.HasPrefix(fe.Path, "/etc/selinux") {
					t.Errorf("got %v, want a FileError", err)
				}
			case "policy":
				if !errors.As(err, &se) || !strings.HasPrefix(se.Path, "/etc/selinux") {
					t.Errorf("got %v, want a SELinuxError", err)
				}
			default:
				if err != nil {
					t.Fatal(err)
				}
				if got := labels(root)["/usr"]; got != c.want {
					t.Errorf("label of /usr: got %q, want %q", got, c.want)
				}
				return
			}
			if strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("an error of several lines: %v", err)
			}
			if diff := cmp.Diff(before, dumpOf(t, root)); diff != "" {
				t.Errorf("the refused tree changed (-before +after):\n%s", diff)
			}
		})
	}
	root := base()
	enter(root, "etc/selinux/config", o.put(t, long))
	if err := bootimage.Transform(root, nil); err == nil {
		t.Error("no error without an opener")
	}
	root = base()
	enter(root, "etc/selinux/config", inline("SELINUXTYPE=targeted"))
	if err := bootimage.Transform(root, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without file_contexts: got %v, want %v", err, fs.ErrNotExist)
	}
}

// TestLabels: aliases add up, emptied directories and what was linked there play no
// role, lists of attributes that nodes share are left alone.
func TestLabels(t *testing.T) {
	root := base()
	enter(root, "etc/selinux/config", inline("SELINUXTYPE=targeted"))
	enter(root, contexts, inline("/boot.* b\n/usr(/.*)? u\n/usr/local/.* -- l\n/srv/a(/.*)? s\n/sysroot r\n/etc(/.*)? <<none>>\n"))
	enter(root, contexts+".subs_dist", inline("/one /two\n/two/x /srv\n/srv/y /srv/a/y\n/slash /usr/\n/top /\n/two /never\n"))
	shared := []tree.Xattr{{Name: "security.capability", Value: "c"}, {Name: "security.selinux", Value: "old"}, {Name: "user.a", Value: "u"}}
	shared = shared[:3:3]
	file := func() *tree.Node { return tree.NewInline(tree.Meta{Xattrs: shared}, nil) }
	linked, split := file(), file()
	enter(root, "boot/linked", linked)
	enter(root, "usr/linked", linked)
	enter(root, "usr/linked2", linked)
	enter(root, "etc/split", split)
	enter(root, "usr/split", split)
	enter(root, "usr/split2", split)
	enter(root, "one/x/y/z", file())
	enter(root, "slash/f", file())
	enter(root, "top/usr/f", file())
	enter(root, "usr/local/l", tree.NewSymlink(tree.Meta{}, "x"))
	enter(root, "usr/local/f", tree.NewInline(tree.Meta{}, nil))
	if err := bootimage.Transform(root, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/boot": "b", "/sysroot": "r", "/usr": "u", "/usr/linked": "u", "/usr/linked2": "u", "/usr/split": "u", "/usr/split2": "u",
		"/one/x/y": "s", "/one/x/y/z": "s", "/slash": "u", "/slash/f": "u", "/top/usr": "u", "/top/usr/f": "u", "/usr/local": "u", "/usr/local/l": "u", "/usr/local/f": "l",
	}
	if diff := cmp.Diff(want, labels(root)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	usr := root.Lookup("usr")
	if usr.Lookup("linked") != usr.Lookup("linked2") {
		t.Error("a hard link with equal labels was split")
	}
	if s := usr.Lookup("split"); s == usr.Lookup("split2") || s == root.Lookup("etc").Lookup("split") {
		t.Error("a hard link with different labels is still one file, or two that disagree with the first one share")
	}
	if shared[0].Name != "security.capability" || shared[1].Value != "old" || shared[2].Name != "user.a" {
		t.Errorf("the shared list became %v", shared)
	}
	if x := usr.Lookup("linked").Xattrs; len(x) != 3 || x[1] != (tree.Xattr{Name: "security.selinux", Value: "u"}) {
		t.Errorf("attributes of a labelled file: %v", x)
	}
}

// TestLabelTree: a part of a tree is labelled as a walk from the root would do it.
func TestLabelTree(t *testing.T) {
	policy, err := selabel.Parse(selabel.Files{
		Contexts: []byte("/.* d\n/conf(/.*)? c\n/conf/x/.* -l l\n/never/.* <<none>>\n/(?!x)(.{5}){1000}c w\n"),
		SubsDist: []byte("/etc /conf\n/conf/y /never\n/etc/y /wrong\n"),
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := tree.NewDir(tree.Meta{})
	enter(dir, "x/link", tree.NewSymlink(tree.Meta{}, "f"))
	enter(dir, "x/f", inline(""))
	enter(dir, "y/f", tree.NewInline(tree.Meta{Xattrs: []tree.Xattr{{Name: "security.selinux", Value: "old"}}}, nil))
	if err := bootimage.LabelTree(dir, "/etc", policy); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"/": "c", "/x": "c", "/x/f": "c", "/x/link": "l", "/y": "d"}
	if diff := cmp.Diff(want, labels(dir)); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	for path, want := range map[string]string{"/": "d", "/etc": "c", "/etc/": "c", "/etc/x/link": "l", "/etc/y/f": "", "//etc//x/f": "l"} {
		if got, err := bootimage.LabelAt(policy, path, tree.Symlink); err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", path, got, err, want)
		}
	}
	long := tree.NewDir(tree.Meta{})
	enter(long, strings.Repeat(strings.Repeat("x", 200)+"/", 80)+"f", inline(""))
	var se *bootimage.SELinuxError
	if err := bootimage.LabelTree(long, "/etc", policy); !errors.As(err, &se) || len(labels(long)) > 0 {
		t.Errorf("a path that takes too long: %v, labels %v", err, labels(long))
	}
	if _, err := bootimage.LabelAt(policy, "/a", tree.Regular); !errors.As(err, &se) {
		t.Errorf("a policy that is given up: %v", err)
	}
	if err := bootimage.LabelTree(dir, "/etc", nil); err != nil || len(labels(dir)) > 0 {
		t.Errorf("without a policy: %v, labels %v", err, labels(dir))
	}
}
