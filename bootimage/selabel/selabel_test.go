package selabel_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

func parse(t *testing.T, f selabel.Files) *selabel.Policy {
	t.Helper()
	p, err := selabel.Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func label(t *testing.T, p *selabel.Policy, path string, typ selabel.Type) string {
	t.Helper()
	got, err := p.Lookup(path, typ)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestLookup: the last spec in load order wins, whatever it is matched by; types,
// <<none>>, files in their order.
func TestLookup(t *testing.T) {
	p := parse(t, selabel.Files{
		Contexts: []byte("# comment\n\n/(/.*)? default\r\n \t/usr(/.*)?\u00a0usr  \n/usr/bin/x -- first\n/usr/bin/x -- last\n" +
			"/t(/.*)? any\n/t(/.*)? -d dir\n/t/.* -l lnk\n/t/.* -p pipe\n/t/.* -s sock\n/t/.* -b blk\n/t/.* -c chr\n/t/.* -- reg\n" +
			"/exact lit\n/exac. pattern\n/(?!y)exact -d look\n/exact -s sock2\n/tmp(/.*)? <<none>>\n/tmp/a(?!b). seen\n/tmp/ac -d <<none>>\n"),
		Local:    []byte("/usr/bin/l -- local\n/usr/bin/x -d xdir"),
		Homedirs: []byte("/home/[^/]+ -d home\n/usr/bin/l -- homedirs\n"),
	})
	if p.Specs() != 23 {
		t.Errorf("got %d specs, want 23", p.Specs())
	}
	for _, c := range []struct {
		path string
		typ  selabel.Type
		want string
	}{
		{"/", 'd', "default"},
		{"/usr", 'd', "usr"},
		{"/usr/bin/x", '-', "last"},
		{"/usr/bin/x", 'd', "xdir"},
		{"/usr/bin/x", 'l', "usr"},
		{"/usr/bin/l", '-', "homedirs"},
		{"/home/u", 'd', "home"},
		{"/home/u", '-', ""},
		{"/home/u/f", '-', ""},
		{"/t", 'd', "dir"},
		{"/t/a", 'd', "dir"},
		{"/t", '-', "any"},
		{"/t/a", '-', "reg"},
		{"/t/a", 'l', "lnk"},
		{"/t/a", 'p', "pipe"},
		{"/t/a", 's', "sock"},
		{"/t/a", 'b', "blk"},
		{"/t/a", 'c', "chr"},
		{"/exact", '-', "pattern"},
		{"/exact", 'd', "look"},
		{"/exact", 's', "sock2"},
		{"/tmp", 'd', ""},
		{"/tmp/a", '-', ""},
		{"/tmp/ac", '-', "seen"},
		{"/tmp/ac", 'd', ""},
		{"/tmp/ab", '-', ""},
		{"", 'd', ""},
	} {
		for range 2 { // with the tables made, too
			if got := label(t, p, c.path, c.typ); got != c.want {
				t.Errorf("%q -%c: got %q, want %q", c.path, c.typ, got, c.want)
			}
		}
	}
	if _, err := p.Lookup("/", 'x'); err == nil {
		t.Error("a label for a type that does not exist")
	}
}

// TestOrder: paths are asked for in every order, so what one leaves in the tables
// does not change the label of another.
func TestOrder(t *testing.T) {
	files := selabel.Files{Contexts: []byte("/a(/.*)? a\n/a/b/.* b\n/a/b/c(/.*)? c\n/a/.*/c d\n/a/b/x/y e\n")}
	paths := []string{"/", "/a", "/a/", "/a/b", "/a/b/", "/a/b/c", "/a/b/c/d", "/a/b/x/y", "/a/x/c", "/b", "a", "/a/b/x/z"}
	want := make([]string, len(paths))
	for i, path := range paths {
		want[i] = label(t, parse(t, files), path, '-')
	}
	p := parse(t, files)
	for i := range paths {
		for j := range paths {
			label(t, p, paths[i], '-')
			if got := label(t, p, paths[j], '-'); got != want[j] {
				t.Fatalf("%q after %q: got %q, want %q", paths[j], paths[i], got, want[j])
			}
		}
	}
}

func TestAlias(t *testing.T) {
	p := parse(t, selabel.Files{
		Contexts: []byte(""),
		Subs:     []byte("# x\n\n/srv/h /home\n/opt/p /usr/bin\n/opt/p /usr/sbin\nrel etive/x\n"),
		SubsDist: []byte("/opt/p\t/usr/t \n/slash /a/\n/top /"),
	})
	for path, want := range map[string]string{
		"/srv/h": "/home", "/opt/p": "/usr/t", "/opt": "/opt", "/opt/p/x": "/opt/p/x", "/opt/p/": "/opt/p/", "rel": "etive/x", "/slash": "/a/", "/top": "/", "": "",
	} {
		if got := p.Alias(path); got != want {
			t.Errorf("%q: got %q, want %q", path, got, want)
		}
	}
}

// TestRefused: lines that are no specs or aliases, with their place.
func TestRefused(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, c := range []struct {
		file, text   string
		line, column int
	}{
		{"file_contexts", "/a", 1, 3},
		{"file_contexts", "/a x\n/b --\n", 2, 6},
		{"file_contexts", "/a x\n/b -x y\n", 2, 4},
		{"file_contexts", "/b - y\n", 1, 4},
		{"file_contexts", "/b --- y\n", 1, 4},
		{"file_contexts", "/b -dd y\n", 1, 4},
		{"file_contexts", "/b -d y z\n", 1, 9},
		{"file_contexts", "/b y z\n", 1, 6},
		{"file_contexts", "/b y z a b c\n", 1, 6},
		{"file_contexts", "/b y\n# \xff\n", 2, 3},
		{"file_contexts", "/b y\n\xc3 z\n", 2, 1},
		{"file_contexts", "/b " + long, 1, 4},
		{"file_contexts", strings.Repeat("x", 20000) + " y", 1, 1},
		{"file_contexts.local", "/b -x y", 1, 4},
		{"file_contexts.homedirs", "\n\n(", 3, 2},
		{"file_contexts.homedirs", "\n\n(( x", 3, 2},
		{"file_contexts.subs", "/a", 1, 1},
		{"file_contexts.subs", "/a /b\n /a /b /c", 2, 2},
		{"file_contexts.subs", "/a /b//c", 1, 4},
		{"file_contexts.subs", "/a /b//", 1, 4},
		{"file_contexts.subs", "/a //b", 1, 4},
		{"file_contexts.subs_dist", "/a /b/.", 1, 4},
		{"file_contexts.subs_dist", "/a /b/../c", 1, 4},
		{"file_contexts.subs_dist", "/a \xff", 1, 4},
	} {
		f := selabel.Files{Contexts: []byte("/ok x\n")}
		*map[string]*[]byte{
			"file_contexts": &f.Contexts, "file_contexts.local": &f.Local, "file_contexts.homedirs": &f.Homedirs,
			"file_contexts.subs": &f.Subs, "file_contexts.subs_dist": &f.SubsDist,
		}[c.file] = []byte(c.text)
		_, err := selabel.Parse(f)
		var fe *selabel.FormatError
		if !errors.As(err, &fe) {
			t.Errorf("%.60q: got %v, want a FormatError", c.text, err)
			continue
		}
		if fe.File != c.file || fe.Line != c.line || fe.Column != c.column || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: got %s, want line %d, column %d of %s", c.text, err, c.line, c.column, c.file)
		}
	}
}

func TestPolicyType(t *testing.T) {
	for _, c := range []struct {
		text, want string
		found, bad bool
	}{
		{"", "", false, false},
		{"SELINUX=enforcing\n", "", false, false},
		{"#SELINUXTYPE=a\n", "", false, false},
		{"SELINUXTYPE a\n", "", false, false},
		{"\u017fELINUXTYPE=a\n", "", false, false}, // no S
		{"SELINUXTYPE=targeted", "targeted", true, false},
		{" selinuxType\t=  default # x\r\nSELINUXTYPE=b", "default # x", true, false},
		{"SELINUXTYPE=a=b\n\xff", "a=b", true, false},
		{"\xff\nSELINUXTYPE=a", "", false, true},
		{"SELINUXTYPE=\nSELINUXTYPE=a", "", false, true},
		{"SELINUXTYPE=.", "", false, true},
		{"SELINUXTYPE=..", "", false, true},
		{"SELINUXTYPE=a/b", "", false, true},
		{"SELINUXTYPE=/a", "", false, true},
		{"SELINUXTYPE=a\x00b", "", false, true},
		{"SELINUXTYPE=" + strings.Repeat("a", 256), "", false, true},
	} {
		got, found, err := selabel.PolicyType([]byte(c.text))
		var fe *selabel.FormatError
		if got != c.want || found != c.found || errors.As(err, &fe) != c.bad || (err != nil) != c.bad {
			t.Errorf("%.40q: got %q, %v, %v", c.text, got, found, err)
		}
	}
}

// TestLimits: too much of anything is an error, in bounded time; 100,000 specs are
// not too much.
func TestLimits(t *testing.T) {
	many := func(n int, line string) []byte {
		var b bytes.Buffer
		for i := range n {
			fmt.Fprintf(&b, line, i)
		}
		return b.Bytes()
	}
	for name, f := range map[string]selabel.Files{
		"file":         {Contexts: make([]byte, selabel.MaxFile+1)},
		"aliases file": {Contexts: []byte{}, Subs: make([]byte, selabel.MaxFile+1)},
		"specs":        {Contexts: many(150_000, "/%d x\n"), Local: many(60_000, "/%d x\n")},
		"aliases":      {Contexts: []byte{}, Subs: many(10_001, "/%d /x\n")},
		"instructions": {Contexts: many(500, "/(a.{9}){900}%d x\n")},
	} {
		_, err := selabel.Parse(f)
		var le *selabel.LimitError
		if !errors.As(err, &le) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want a LimitError", name, err)
		}
	}
	for name, text := range map[string][]byte{
		"literals":    many(100_000, "/some/directory/file%d -- x\n"),
		"patterns":    many(100_000, "/some/dir/f%d(/.*)? x\n"),
		"look-aheads": many(100_000, "/some/f%d(?!x). x\n"),
	} {
		start := time.Now()
		p := parse(t, selabel.Files{Contexts: text})
		for i := range 100 {
			label(t, p, fmt.Sprintf("/some/dir/f%d/y", i*7), '-')
		}
		if got := label(t, p, "/some/dir/f99999/x", '-'); (got == "x") != (name == "patterns") {
			t.Errorf("%s: got %q", name, got)
		}
		if d := time.Since(start); d > 2*time.Minute {
			t.Errorf("%s: 100,000 specs took %s", name, d)
		}
	}
}

// TestWork: expressions that make the tables large or the search long end in an
// error, for good and after the same number of steps each time.
func TestWork(t *testing.T) {
	noise := make([]byte, 3000) // no two places of it look alike
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = "ab/"[x>>30%3]
	}
	for name, text := range map[string]string{
		"states":   strings.Repeat("/.*a.{300}b x\n", 30),
		"search":   "/(?!c)(.*.*.*){300}c x",
		"look":     "/(?:.(?!.*.*.*c))*c x",
		"memory":   "/(?!c)(.{5}){1000}c x",
		"behind":   strings.Repeat("/.*(?<=a.{200}).*c x\n", 100),
		"counting": "/(a|b|/){1,2500}(?!c)c x",
	} {
		var works [2]int64
		for i := range works {
			p := parse(t, selabel.Files{Contexts: []byte(text)}).WithWorkLimit(2_000_000)
			var err error
			for n := 1; n < len(noise) && err == nil; n += 50 {
				path := "/" + string(noise[n:]) + string(noise[:n])
				if name == "memory" {
					path += path + path
				}
				_, err = p.Lookup(path, '-')
			}
			var le *selabel.LimitError
			if !errors.As(err, &le) || le.Limit != 2_000_000 && name != "memory" {
				t.Fatalf("%s: got %v, want a LimitError", name, err)
			}
			if _, err := p.Lookup("/x", '-'); !errors.As(err, &le) {
				t.Errorf("%s: the next path is answered: %v", name, err)
			}
			works[i] = p.Work()
		}
		if works[0] != works[1] {
			t.Errorf("%s: stopped after %d and after %d steps", name, works[0], works[1])
		}
	}
}

// TestFlush: the answers stay the same when states are thrown away.
func TestFlush(t *testing.T) {
	files := selabel.Files{Contexts: []byte("/(a|b)*a(a|b){6} x\n/a(/.*)? y\n/a/b/c z\n/(?!a)b.* w\n")}
	p := parse(t, files).WithStateLimit(20_000)
	q := parse(t, files)
	for i := range 3000 {
		path := "/" + strings.NewReplacer("0", "a", "1", "b").Replace(fmt.Sprintf("%b", i))
		if got, want := label(t, p, path, '-'), label(t, q, path, '-'); got != want {
			t.Fatalf("%q: got %q, want %q", path, got, want)
		}
		if got := label(t, p, "/a/b/c", '-'); got != "z" {
			t.Fatalf("after %q: got %q", path, got)
		}
	}
	if p.Floods() == 0 || q.Floods() > 0 {
		t.Error("nothing was thrown away: the test shows nothing")
	}
}
