package bls_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

func TestParseCmdline(t *testing.T) {
	for line, want := range map[string][]string{
		"":                          nil,
		"  \t\n":                    nil,
		"a  b":                      {"a", "b"},
		`x="a b" y`:                 {`x="a b"`, "y"},
		`"x=a b" y`:                 {`"x=a b"`, "y"},
		`open="a b`:                 {`open="a b`},
		"a\vb":                      {"a\vb"},
		"root=UUID=1 ro\nquiet\r\n": {"root=UUID=1", "ro", "quiet"},
	} {
		if diff := cmp.Diff(want, []string(bls.ParseCmdline(line))); diff != "" {
			t.Errorf("%q: mismatch (-want +got):\n%s", line, diff)
		}
	}
}

func TestSplitToken(t *testing.T) {
	for token, want := range map[string][3]string{
		"quiet":       {"quiet", "", ""},
		"a=":          {"a", "", "="},
		"root=UUID=1": {"root", "UUID=1", "="},
		`x="a b"`:     {"x", "a b", "="},
		`"x=a b"`:     {"x", "a b", "="},
		`"x`:          {"x", "", ""},
		`x=a"b"`:      {"x", `a"b"`, "="},
	} {
		key, value, has := bls.SplitToken(token)
		got := [3]string{key, value, ""}
		if has {
			got[2] = "="
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", token, got, want)
		}
	}
}

func TestCmdlineSetComposefs(t *testing.T) {
	for line, want := range map[string]string{
		"quiet composefs=old123":                                  "quiet NEW",
		"composefs=?a quiet composefs.digest=b \"composefs=c\" z": "NEW quiet z",
		"composefs quiet composefsx=1":                            "composefs quiet composefsx=1 NEW",
		"":                                                        "NEW",
	} {
		if got := bls.ParseCmdline(line).SetComposefs("NEW").String(); got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
}

func TestCmdlineLookup(t *testing.T) {
	c := bls.ParseCmdline(`root=a ro "init=x y" root=b roo=1`)
	for key, want := range map[string]string{"root": "b", "ro": "", "init": "x y", "roo": "1"} {
		if got, ok := c.Lookup(key); !ok || got != want {
			t.Errorf("%s: got %q, %v, want %q", key, got, ok, want)
		}
	}
	if c.Has("r") || c.Has("rooo") || c.Has("") {
		t.Error("a key that is not there was found")
	}
}
