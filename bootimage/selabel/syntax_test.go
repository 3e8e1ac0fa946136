package selabel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

// matcher returns a function that tells whether an expression matches a path.
func matcher(t *testing.T, text, letter string) (*selabel.Policy, func(path string, typ selabel.Type) bool) {
	t.Helper()
	line := text + " " + letter + " x"
	p, err := selabel.Parse(selabel.Files{Contexts: []byte(line)})
	if err != nil {
		t.Fatal(err)
	}
	return p, func(path string, typ selabel.Type) bool {
		t.Helper()
		label, err := p.Lookup(path, typ)
		if err != nil {
			t.Fatal(err)
		}
		return label != ""
	}
}

// TestExpressions: what expressions match. Every row was compared with the engines
// of composefs-rs 0.9.4 (regex-automata 0.4.19, then PCRE2 10.42).
func TestExpressions(t *testing.T) {
	for _, c := range []struct {
		text, engine string
		yes, no      []string
	}{
		{"/usr/bin", "literal", []string{"/usr/bin"}, []string{"/usr", "/usr/bin/", "/usr/bin2", ""}},
		{`/a\.b\-c`, "literal", []string{"/a.b-c"}, []string{"/axb-c"}},
		{"/a]b}c#&~", "literal", []string{"/a]b}c#&~"}, nil},
		{"/é", "literal", []string{"/é"}, []string{"/e"}},
		{`/\x41\x{42}\_`, "literal", []string{"/AB_"}, nil},
		{"/usr(/.*)?", "dfa", []string{"/usr", "/usr/", "/usr/a/b", "/usr/a\nb"}, []string{"/usrx", "/us"}},
		{"/a.c", "dfa", []string{"/abc", "/a\nc", "/a\xffc"}, []string{"/ac", "/a\x00c"}},
		{"/a{2}b{1,2}c{2,}", "dfa", []string{"/aabcc", "/aabbccc"}, []string{"/abcc", "/aabbbcc", "/aabc"}},
		{"/(a|b|)c", "dfa", []string{"/ac", "/bc", "/c"}, []string{"/abc"}},
		{"/a*+b", "dfa", []string{"/b", "/aab"}, []string{"/a"}},
		{"/a*+a", "dfa", []string{"/a", "/aa"}, nil}, // not possessive: a repetition of a repetition
		{"/(a*)*b", "dfa", []string{"/b", "/aab"}, []string{"/aa"}},
		{"/a??b+?", "dfa", []string{"/b", "/abb"}, []string{"/aab"}},
		{"/é+x", "dfa", []string{"/éx", "/ééx"}, []string{"/é\xa9x"}},
		{"/[a-c_-]", "dfa", []string{"/a", "/c", "/_", "/-"}, []string{"/d", "/"}},
		{"/[]a]", "dfa", []string{"/]", "/a"}, []string{"/["}},
		{"/[]-a]", "dfa", []string{"/]", "/a", "/-"}, []string{"/^"}}, // no range
		{"/[--/]", "dfa", []string{"/-", "//"}, []string{"/."}},       // no range either
		{"/[^]b]", "dfa", []string{"/a", "/\n"}, []string{"/]", "/b"}},
		{"/[^/]+", "dfa", []string{"/ab", "/a\n", "/\xff"}, []string{"/a/b", "/"}},
		{"/[[:alpha:]-][^[:digit:]]", "dfa", []string{"/ab", "/-b"}, []string{"/a1", "/1b"}},
		{`/\d\w\s`, "dfa", []string{"/1_ ", "/1a\v"}, []string{"/1é", "/aa "}},
		{`/\D\W\S`, "dfa", []string{"/a-x", "/a\xe9x"}, []string{"/1-x", "/aax"}},
		{`/[\d.-]`, "dfa", []string{"/1", "/.", "/-"}, []string{"/a"}},
		{"/(?i)aB[c-d]", "dfa", []string{"/abc", "/ABD", "/aBC"}, []string{"/abe"}},
		{"/(?i:a)b", "dfa", []string{"/Ab", "/ab"}, []string{"/aB"}},
		{"/(a(?i)b|c)d", "dfa", []string{"/aBd", "/Cd"}, []string{"/ABd", "/cD"}},
		{"/(?i)é", "literal", []string{"/é"}, []string{"/É"}},
		{"/(?P<n>a)(?<m>[b])", "dfa", []string{"/ab"}, nil},
		{"/a|b", "dfa", []string{"/a", "b"}, []string{"a", "/ab"}},
		{"^/a", "dfa", []string{"/a"}, []string{"a"}},
		{"/a$", "dfa", nil, []string{"/a"}}, // the letter is still to come
		{"/(a|b$)", "dfa", []string{"/a"}, []string{"/b"}},
		{`/a\b.*`, "search", []string{"/a-x", "/a/b"}, []string{"/ax"}},
		{`/a\B.+`, "search", []string{"/ax"}, []string{"/a-"}},

		// What the automaton cannot read goes to PCRE2.
		{"/a{x", "literal", []string{"/a{x"}, nil},
		{"/a{.", "dfa", []string{"/a{x"}, []string{"/a{\n"}},
		{"/[é]", "dfa", []string{"/\xc3", "/\xa9"}, []string{"/é"}},
		{"/waydroid-(?!lxc).*", "search", []string{"/waydroid-x", "/waydroid-lx"}, []string{"/waydroid-lxc", "/waydroid-lxc/a", "/waydroid-\nb"}},
		{"/a(?=b)..", "search", []string{"/abc"}, []string{"/acb"}},
		{"/.*(?<=b)c", "search", []string{"/abc"}, []string{"/aac"}},
		{"/.*(?<!b)c", "search", []string{"/aac", "/c"}, []string{"/abc"}},
		{"/(?<!//)a", "search", []string{"/a"}, nil},
		{"/(?>a*)b", "search", []string{"/aab"}, nil},
		{"/(?>a*)a", "search", nil, []string{"/a", "/aa"}},
		{"/(?!x)a*+a", "search", nil, []string{"/a", "/aa"}}, // possessive, here
		{"/(?!x)a?+b{1,2}+c", "search", []string{"/abc", "/bbc"}, []string{"/ac"}},
		{"/(?!x)é+", "search", []string{"/é", "/é\xa9"}, []string{"/éé"}}, // bytes
		{"/(?!x)[]-a]", "search", []string{"/^"}, []string{"/-"}},         // a range
		{"/(?s)(?!x).", "search", []string{"/\n"}, []string{"/x"}},
		{"/(?=(?!b)[a-c])[b-d]", "search", []string{"/c"}, []string{"/b", "/d"}},
		{"/(?=.*x$).*", "search", nil, []string{"/ax", "/a"}}, // the last byte is the letter
		{"/(?=.*-$).*", "search", []string{"/ax", "/a"}, nil},
	} {
		t.Run(c.text, func(t *testing.T) {
			p, match := matcher(t, c.text, "")
			if p.Engine() != c.engine {
				t.Errorf("matched by %s, want %s", p.Engine(), c.engine)
			}
			for _, path := range c.yes {
				if !match(path, selabel.Regular) {
					t.Errorf("does not match %q", path)
				}
			}
			for _, path := range c.no {
				if match(path, selabel.Regular) {
					t.Errorf("matches %q", path)
				}
			}
		})
	}
	_, match := matcher(t, "/(?!x).*", "-d")
	if !match("/a", selabel.Directory) || match("/a", selabel.Regular) || match("/x", selabel.Directory) {
		t.Error("the type of a spec with a look-around does not hold")
	}
}

// TestExpressionsRefused: what one of the engines refuses, what they would not read
// alike, and what is left out, each with the column.
func TestExpressionsRefused(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
	}{
		{"/(a", 2}, {"/a)", 3}, {"/a)|(b", 3}, {"/[a", 2}, {"/[", 2}, {"/[]", 2}, {`/a\`, 3}, {"*a", 1}, {"/(*a)", 3}, {"/a|+", 4}, {"/(?", 4},
		{"/a{2,1}", 3}, {"/a{20001}", 3}, {"{2}", 1}, {"/({2})", 3}, {"/a{,2}", 3}, {"/a{2}{,3}", 6},
		{"/[b-a]", 6}, {`/[\w-z]`, 7}, {`/[a-\d]`, 7}, {"/[[a]b]", 3}, {"/[a&&b]", 4}, {"/[a--b]", 4}, {"/[a~~b]", 4}, {"/[[:foo:]]", 3}, {"/[[.a.]]", 3}, {"/[[=a=]]", 3},
		{`/\1`, 2}, {`/\07`, 2}, {`/\Qa\E`, 2}, {`/\p{L}`, 2}, {`/\h`, 2}, {`/\K`, 2}, {`/\R`, 2}, {`/\é`, 2}, {`/\<a`, 2}, {`/a\>`, 3}, {`/\b{start}`, 2},
		{`/\x4`, 2}, {`/\xzz`, 2}, {`/\x{80}`, 2}, {`/\x{`, 2}, {`/[\b]`, 3}, {`/\x@@`, 2},
		{"/(?m)a", 4}, {"/(?x)a", 4}, {"/(?u)a", 4}, {"/(?)a", 4}, {"/(?-)a", 5}, {"/(?ii)a", 5}, {"/(?i)*", 6}, {"/(?#a)", 4}, {"/(?P=n)", 4}, {"/(?R)", 4}, {"/(?1)", 4},
		{"/(?P<>a)", 6}, {"/(?P<1>a)", 6}, {"/(?<n>a)(?<n>b)", 12}, {"/(?<n", 5},
		{"/(?!a)*", 8}, {"/(?!a)b**", 10}, {"/(?!x)^*", 9}, {`/(?!x)\v`, 7}, {"/(?<=a|bc)d", 2}, {"/(?<=a*)d", 2}, {"/(?!x)[:a:]", 7}, {"/(?!x)[[:alpha:]-z]", 17}, {"/(?U)(?!a)", 4},
		{strings.Repeat("(", 61) + strings.Repeat(")", 61), 61},
		{"/((a{100}){100}){100}", 1}, {"/" + strings.Repeat("(", 40) + "a" + strings.Repeat("{2})", 40), 1},
	} {
		_, err := selabel.Parse(selabel.Files{Contexts: []byte("# x\n " + c.text + " -- u:r:t:s0\n")})
		var fe *selabel.FormatError
		if !errors.As(err, &fe) || fe.Line != 2 || fe.File != "file_contexts" {
			t.Errorf("%q: got %v, want a FormatError for line 2", c.text, err)
			continue
		}
		if fe.Column != c.column+1 || !strings.Contains(fe.Detail, "expression") {
			t.Errorf("%q: column %d, want %d: %v", c.text, fe.Column-1, c.column, err)
		}
		if strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%q: an error of several lines", c.text)
		}
	}
}
