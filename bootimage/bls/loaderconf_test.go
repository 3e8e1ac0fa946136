package bls_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

func TestParseLoaderConf(t *testing.T) {
	for text, want := range map[string]bls.LoaderConf{
		"":                              {},
		"timeout 3\n":                   {},
		"default windows*\n":            {Default: "windows*"},
		"default A.CONF":                {Default: "a.conf"},
		"\t default\t x y \r\nbeep 1\n": {Default: "x y"},
		"default a\ndefault b\n":        {Default: "b"},
		"default a\ndefault\n":          {Default: "a"},
		"#default a\n# default b\n":     {},
		"default \"a b\"\n":             {Default: "a b"},
		"default \"\n":                  {Default: "\""},
		"default @saved\n":              {Default: "@saved"},
		"default a\ndefault @other\n":   {Default: "a"},
		"defaults a\nDefault b\n":       {},
		"preferred p\ndefault d\n":      {Default: "d", Preferred: "p"},
		"default =a":                    {Default: "=a"},
	} {
		got, err := bls.ParseLoaderConf([]byte(text))
		if err != nil || got != want {
			t.Errorf("%q: got %+v, %v, want %+v", text, got, err, want)
		}
	}
}

func TestParseLoaderConfRejects(t *testing.T) {
	for name, x := range map[string]struct {
		text string
		line int
	}{
		"too large": {strings.Repeat("#", bls.MaxLoaderConf+1), 0},
		"nul":       {"timeout 3\ndefault a\x00b\n", 2},
		"no utf-8":  {"default \xff\n", 1},
	} {
		_, err := bls.ParseLoaderConf([]byte(x.text))
		var bad *bls.LoaderConfError
		if !errors.As(err, &bad) || bad.Line != x.line {
			t.Errorf("%s: got %v, want an error of line %d", name, err, x.line)
		}
	}
	if _, err := bls.ParseLoaderConf([]byte(strings.Repeat("#", bls.MaxLoaderConf))); err != nil {
		t.Errorf("as large as it may be: %v", err)
	}
}

func TestMatchID(t *testing.T) {
	for _, x := range []struct {
		pattern, id string
		want        bool
	}{
		{"a.conf", "a.conf", true}, {"a.conf", "A.conf", true}, {"a.con", "a.conf", false}, {"a.conf", "a.con", false},
		{"*", "", true}, {"", "", true}, {"", "a", false}, {"**", "ab", true},
		{"a*", "abc", true}, {"*c", "abc", true}, {"*b", "abc", false}, {"a*c*e", "abcde", true}, {"a*c*f", "abcde", false},
		{"*ab", "aab", true}, {"*a*b", "xaxxb", true},
		{"a?c", "abc", true}, {"a?c", "ac", false}, {"?", "é", true},
		{"a[bx]c", "abc", true}, {"a[xy]c", "abc", false}, {"[a-c]", "b", true}, {"[a-c]", "d", false},
		{"[-a]", "-", true}, {"[a-]", "-", true}, {"[]a]", "]", true}, {"[a", "a", false}, {"[", "[", false}, {"[a-c-e]", "d", false}, {"[a-c-e]", "-", true},
		{`\*`, "*", true}, {`\*`, "a", false}, {`\`, `\`, false}, {`[\]]`, "]", true}, {`[a-\c]`, "b", true},
		{strings.Repeat("*", bls.MaxPattern), "a", true}, {strings.Repeat("*", bls.MaxPattern+1), "a", false},
		{"cfsboot_*", "cfsboot_tok-0000000001.conf", true}, {"windows*", "auto-windows", false},
	} {
		if got := bls.MatchID(x.pattern, x.id); got != x.want {
			t.Errorf("%q and %q: got %v", x.pattern, x.id, got)
		}
	}
}

func FuzzParseLoaderConf(f *testing.F) {
	f.Add([]byte("timeout 3\ndefault \"a*\"\npreferred @saved\n"))
	f.Add([]byte("default [a-\\"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := bls.ParseLoaderConf(data)
		if err != nil {
			if c != (bls.LoaderConf{}) {
				t.Errorf("an error and %+v", c)
			}
			return
		}
		for _, p := range []string{c.Default, c.Preferred} {
			if strings.ContainsAny(p, "\n\r\x00") {
				t.Errorf("pattern %q", p)
			}
			if !strings.ContainsAny(p, `*?[\`) && !bls.MatchID(p, p) {
				t.Errorf("%q does not match itself", p)
			}
			bls.MatchID(p, string(data))
		}
		if c2, err := bls.ParseLoaderConf(append(data, "\ndefault x"...)); err == nil && c2.Default != "x" {
			t.Errorf("the last default is not the one that counts: %+v", c2)
		}
	})
}
