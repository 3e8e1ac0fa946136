package selabel_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

// FuzzParse: no text of a policy makes it panic, run away or answer differently the
// second time.
func FuzzParse(f *testing.F) {
	f.Add([]byte("/(/.*)? u:o:default:s0\n/usr/bin/x -- x\n/tmp(/.*)? <<none>>\n"), []byte("/usr/bin/l -- local\n"), []byte("/home/[^/]+ -d home\n"), []byte("/srv/h /home\n"), []byte("/lib64 /usr/lib\n"), "/usr/bin/x")
	f.Add([]byte("/var/run/waydroid-(?!lxc).* x\n/a(?<=b|c)(?>d*)e++ y"), []byte("/[[:alpha:]_-]{1,3}\\.x\\d x"), []byte("(?i:a|B)*+ y"), []byte("#\n"), []byte("/a /"), "/var/run/waydroid-x")
	f.Add([]byte("/((a*)*)*b x\n/(.{9}){99}"), []byte("/\\b\\B^$ x"), []byte("/[]a-\\xff] x"), []byte("a b c"), []byte("\xff"), strings.Repeat("/a", 200))
	f.Fuzz(func(t *testing.T, contexts, local, homedirs, subs, dist []byte, path string) {
		files := selabel.Files{Contexts: contexts, Local: local, Homedirs: homedirs, Subs: subs, SubsDist: dist}
		p, err := selabel.Parse(files)
		if err != nil {
			var fe *selabel.FormatError
			var le *selabel.LimitError
			switch {
			case errors.As(err, &fe):
				if fe.Line < 1 || fe.Column < 1 || fe.File == "" || fe.Detail == "" {
					t.Errorf("incomplete error: %#v", fe)
				}
			case !errors.As(err, &le):
				t.Errorf("an error of another type: %v", err)
			}
			return
		}
		p.WithWorkLimit(50_000_000)
		path = p.Alias(path)
		for _, typ := range []selabel.Type{selabel.Regular, selabel.Directory, selabel.Symlink} {
			one, err := p.Lookup(path, typ)
			if err != nil {
				return
			}
			if two, err := p.Lookup(path, typ); one != two || err != nil {
				t.Errorf("%q -%c: %q, then %q and %v", path, typ, one, two, err)
			}
		}
	})
}

// FuzzExpression: the DFA and the search agree about every expression that both can
// match.
func FuzzExpression(f *testing.F) {
	for _, seed := range []string{"/usr(/.*)?", "/(a|b|)c{2,3}", "/a*+b??", "/[]a-c^-]", "(?i)é\\x{41}\\d", "/a{x", "((^a)|b$)*"} {
		f.Add(seed, "/usr/abc")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		if strings.ContainsAny(text, " \t\r\n") || len(path) > 1000 {
			return
		}
		p, err := selabel.Parse(selabel.Files{Contexts: []byte(text + " x")})
		if err != nil || p.Specs() == 0 || p.Engine() != "dfa" {
			return
		}
		s, err := selabel.Searching(text)
		if err != nil {
			t.Fatal(err)
		}
		p.WithWorkLimit(20_000_000)
		s.WithWorkLimit(20_000_000)
		one, err1 := p.Lookup(path, '-')
		two, err2 := s.Lookup(path, '-')
		if err1 == nil && err2 == nil && one != two {
			t.Errorf("%q on %q: DFA %q, search %q", text, path, one, two)
		}
	})
}
