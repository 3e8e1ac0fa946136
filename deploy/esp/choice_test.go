package esp_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
)

type fakeVars map[string]string

func (v fakeVars) Loader(name string) (string, error) {
	if text, ok := v[name]; ok {
		return text, nil
	}
	return "", fs.ErrNotExist
}

// TestChoices: the order of boot.md 4.2.
func TestChoices(t *testing.T) {
	e, path := openTemp(t)
	if err := os.MkdirAll(filepath.Join(path, "loader"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(path, esp.LoaderConf), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	loader := func(version string) []esp.Loader {
		return []esp.Loader{{Product: esp.SystemdBoot, Version: version}}
	}
	all := fakeVars{"LoaderEntryOneShot": "o", "LoaderEntryPreferred": "p", "LoaderEntryDefault": "d", "LoaderEntryLastBooted": "l"}
	conf("default cd\npreferred cp\n")
	for _, x := range []struct {
		name   string
		vars   fakeVars
		copies []esp.Loader
		want   []string
	}{
		{"all", all, loader("257.13-1"), []string{"o", "d", "cd"}},
		{"all, of a newer loader", all, loader("260"), []string{"o", "p", "d", "cd"}},
		{"preferred in the file", fakeVars{}, loader("260"), []string{"cp", "cd"}},
		{"another partition's loader", all, nil, []string{"o", "d"}},
		{"saved", fakeVars{"LoaderEntryDefault": "@Saved", "LoaderEntryLastBooted": "l"}, loader("257"), []string{"l", "cd"}},
		{"nothing saved", fakeVars{"LoaderEntryDefault": "@saved"}, loader("257"), []string{"cd"}},
	} {
		choices, err := e.Choices(x.vars, x.copies)
		var got []string
		for _, c := range choices {
			got = append(got, c.Pattern)
			if c.Once != (c.Pattern == "o") || c.NotBad != (c.Pattern == "p" || c.Pattern == "cp") {
				t.Errorf("%s: %+v", x.name, c)
			}
		}
		if diff := cmp.Diff(x.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v: mismatch (-want +got):\n%s", x.name, err, diff)
		}
	}
	conf("default \xff\n")
	if got, err := e.Choices(all, loader("257")); err == nil || len(got) != 2 {
		t.Errorf("no loader.conf: %+v, %v", got, err)
	}
}

// TestChoose: the first match of the menu, of the first choice that has one.
func TestChoose(t *testing.T) {
	entry := func(file string) esp.Entry {
		return esp.Entry{File: file, Entry: bls.Entry{Fields: []bls.Field{{Key: "linux", Value: "/x"}}}}
	}
	torn := esp.Entry{File: "b0.conf"}
	menu := []esp.Entry{entry("a1.conf"), entry("B1.conf"), entry("b2+0-3.conf"), entry("c1+3-0.conf"), torn}
	for _, x := range []struct {
		name    string
		choices []esp.Choice
		want    string
	}{
		{"nothing", nil, ""},
		{"no match", []esp.Choice{{Pattern: "x*"}}, ""},
		{"first match", []esp.Choice{{Pattern: "b*"}}, "B1.conf"},
		{"second choice", []esp.Choice{{Pattern: "x*"}, {Pattern: "c1.conf"}}, "c1+3-0.conf"},
		{"bad", []esp.Choice{{Pattern: "b2.conf"}}, "b2+0-3.conf"},
		{"bad, but", []esp.Choice{{Pattern: "b2.conf", NotBad: true}, {Pattern: "a*"}}, "a1.conf"},
		{"not shown", []esp.Choice{{Pattern: "b0.conf"}}, ""},
	} {
		got := ""
		if e, _ := esp.Choose(menu, x.choices); e != nil {
			got = e.File
		}
		if got != x.want {
			t.Errorf("%s: got %q, want %q", x.name, got, x.want)
		}
	}
}
