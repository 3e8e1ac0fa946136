package selabel_test

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

// randomExpression writes an expression of what Go's regexp reads in the same way.
func randomExpression(r *rand.Rand, depth int) string {
	atoms := []string{"a", "b", "/", `\.`, ".", "[ab]", "[^/]", "[a-c.]", `\w`, `\d`, "^", "$", "[[:alpha:]]", "(?i:A)", `\x61`}
	var b strings.Builder
	for range r.IntN(4) + 1 {
		if depth > 0 && r.IntN(4) == 0 {
			b.WriteString([]string{"(", "(?:", "(?i:"}[r.IntN(3)] + randomExpression(r, depth-1))
			for range r.IntN(3) {
				b.WriteString("|" + randomExpression(r, depth-1))
			}
			b.WriteString(")")
		} else {
			b.WriteString(atoms[r.IntN(len(atoms))])
		}
		if r.IntN(3) == 0 {
			b.WriteString([]string{"*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{2,}", "{0,2}?", "{0}"}[r.IntN(11)])
		}
	}
	return b.String()
}

func randomPath(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(7) {
		b.WriteByte("ab/.cA1\n-d"[r.IntN(10)])
	}
	return b.String()
}

// TestAgainstRegexp: single specs give the answers of Go's regexp, matched by the DFA
// and by the search.
func TestAgainstRegexp(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 1))
	matches := 0
	for range 3000 {
		text := randomExpression(r, 3)
		re, err := regexp.Compile("(?s)^(" + text + ").$")
		if err != nil {
			t.Fatal(err)
		}
		p, err := selabel.Parse(selabel.Files{Contexts: []byte(text + " x")})
		if err != nil {
			t.Fatal(err)
		}
		s, err := selabel.Searching(text)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			path := randomPath(r)
			want := re.MatchString(path + "-")
			if want {
				matches++
			}
			if got := label(t, p, path, '-') != ""; got != want {
				t.Fatalf("%q on %q: got %v, want %v", text, path, got, want)
			}
			if got := label(t, s, path, '-') != ""; got != want {
				t.Fatalf("%q on %q, by the search: got %v, want %v", text, path, got, want)
			}
		}
	}
	if matches < 1000 {
		t.Errorf("only %d matches", matches)
	}
}

// TestWholePolicies: policies of many specs give the answer of the last single spec
// that matches, whichever way each one is matched.
func TestWholePolicies(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 2))
	for range 150 {
		var text strings.Builder
		var single []*selabel.Policy
		var contexts []string
		for i := range r.IntN(12) + 1 {
			spec := randomExpression(r, 1)
			switch r.IntN(4) {
			case 0:
				spec = "(?!c)" + spec
			case 1:
				spec = regexp.QuoteMeta(randomPath(r))
				if strings.TrimSpace(spec) == "" || strings.Contains(spec, "\n") {
					spec = "/"
				}
			}
			typ := []string{"", "--", "-d", "-l"}[r.IntN(4)]
			context := string(rune('A' + i))
			line := spec + " " + typ + " " + context + "\n"
			one, err := selabel.Parse(selabel.Files{Contexts: []byte(line)})
			if err != nil {
				continue // what PCRE2 refuses behind a look-ahead
			}
			text.WriteString(line)
			single = append(single, one)
			contexts = append(contexts, context)
		}
		p := parse(t, selabel.Files{Contexts: []byte(text.String())})
		for range 60 {
			path, typ := randomPath(r), []selabel.Type{'-', 'd', 'l', 'p'}[r.IntN(4)]
			want := ""
			for i := range single {
				if label(t, single[i], path, typ) != "" {
					want = contexts[i]
				}
			}
			if got := label(t, p, path, typ); got != want {
				t.Fatalf("%q -%c: got %q, want %q by\n%s", path, typ, got, want, &text)
			}
		}
	}
}
