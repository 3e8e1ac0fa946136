package bls_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

const sampleEntry = "title Debian GNU/Linux 13 (trixie)\n" +
	"version 0000000042.13\n" +
	"sort-key cfsboot-0123abcd\n" +
	"linux /cfsboot/x/vmlinuz\n" +
	"initrd /cfsboot/x/initrd\n" +
	"options root=UUID=1 rw quiet\n"

func TestEntryRoundTrip(t *testing.T) {
	e, err := bls.ParseEntry([]byte(sampleEntry))
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Format()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(sampleEntry, string(got)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	if key, path, err := e.Kind(); key != "linux" || path != "/cfsboot/x/vmlinuz" || err != nil {
		t.Errorf("kind: got %q %q %v", key, path, err)
	}
}

func TestParseEntry(t *testing.T) {
	text := "# made by hand\r\n\n  title\t A  title \nversion\noptions a b\nx-vendor keep me\ninitrd /i1\noptions c=\"d e\"\ninitrd /i2\nefi /e.efi"
	e, err := bls.ParseEntry([]byte("\xef\xbb\xbf" + text))
	if err != nil {
		t.Fatal(err)
	}
	want := []bls.Field{
		{Key: "#", Value: "made by hand"}, {Key: "title", Value: "A  title"}, {Key: "options", Value: "a b"},
		{Key: "x-vendor", Value: "keep me"}, {Key: "initrd", Value: "/i1"}, {Key: "options", Value: `c="d e"`},
		{Key: "initrd", Value: "/i2"}, {Key: "efi", Value: "/e.efi"},
	}
	if diff := cmp.Diff(want, e.Fields); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	if got, want := e.Options().String(), `a b c="d e"`; got != want {
		t.Errorf("options: got %q, want %q", got, want)
	}
	e.SetOptions(e.Options().SetComposefs("composefs=x"))
	e.Set("version", "7")
	e.Set("initrd", "/i3")
	e.Set("efi")
	got, err := e.Format()
	if err != nil {
		t.Fatal(err)
	}
	const formatted = "# made by hand\ntitle A  title\noptions a b c=\"d e\" composefs=x\nx-vendor keep me\ninitrd /i3\nversion 7\n"
	if diff := cmp.Diff(formatted, string(got)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func TestParseEntryRejects(t *testing.T) {
	for name, data := range map[string]string{
		"too large": "title " + strings.Repeat("x", bls.MaxEntrySize),
		"nul":       "title a\x00b\n",
		"no utf-8":  "title \xff\n",
	} {
		_, err := bls.ParseEntry([]byte(data))
		var ee *bls.EntryError
		if !errors.As(err, &ee) {
			t.Errorf("%s: got %v, want an *EntryError", name, err)
		}
	}
}

func TestFormatEntryRejects(t *testing.T) {
	for name, f := range map[string]bls.Field{
		"line break": {Key: "title", Value: "a\nlinux /evil"},
		"cr":         {Key: "title", Value: "a\rb"},
		"nul":        {Key: "title", Value: "a\x00"},
		"no value":   {Key: "title"},
		"no key":     {Value: "x"},
		"blank key":  {Key: "a b", Value: "x"},
		"comment":    {Key: "#x", Value: "x"},
		"padded":     {Key: "title", Value: " x"},
		"no utf-8":   {Key: "title", Value: "\xff"},
	} {
		_, err := bls.Entry{Fields: []bls.Field{f}}.Format()
		var ee *bls.EntryError
		if !errors.As(err, &ee) {
			t.Errorf("%s: got %v, want an *EntryError", name, err)
		}
	}
}

func TestEntryKind(t *testing.T) {
	for text, ok := range map[string]bool{
		"linux /a\n":            true,
		"uki /a.efi\n":          true,
		"efi /a.efi\n":          true,
		"title x\n":             false,
		"linux /a\nefi /b\n":    false,
		"linux /a\nlinux /b\n":  false,
		"uki-url http://x\n":    true,
		"uki /a\nuki-url /b\n ": false,
	} {
		e, err := bls.ParseEntry([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := e.Kind(); (err == nil) != ok {
			t.Errorf("%q: error %v, want ok: %v", text, err, ok)
		}
	}
}

func TestSplitCounter(t *testing.T) {
	for _, tc := range []struct {
		name, prefix string
		c            bls.Counter
		ok           bool
	}{
		{"a.conf", "a", bls.Counter{}, true},
		{"a+3.conf", "a", bls.Counter{Present: true, Left: 3}, true},
		{"a+3-0.conf", "a", bls.Counter{Present: true, Left: 3}, true},
		{"a+0-3.CONF", "a", bls.Counter{Present: true, Done: 3}, true},
		{"a+b+2-1.conf", "a+b", bls.Counter{Present: true, Left: 2, Done: 1}, true},
		{"a+2x.conf", "a+2x", bls.Counter{}, true},
		{"a+.conf", "a+", bls.Counter{}, true},
		{"a+1-.conf", "a+1-", bls.Counter{}, true},
		{"a+-1.conf", "a+-1", bls.Counter{}, true},
		{"a+1-2-3.conf", "a+1-2-3", bls.Counter{}, true},
		{"a+99999999999.conf", "a+99999999999", bls.Counter{}, true},
		{"a+3.efi", "a+3.efi", bls.Counter{}, false},
		{".conf", "", bls.Counter{}, true},
		{"conf", "conf", bls.Counter{}, false},
	} {
		prefix, c, ok := bls.SplitCounter(tc.name, ".conf")
		if prefix != tc.prefix || c != tc.c || ok != tc.ok {
			t.Errorf("%s: got %q %+v %v, want %q %+v %v", tc.name, prefix, c, ok, tc.prefix, tc.c, tc.ok)
		}
	}
	if c := (bls.Counter{Present: true, Done: 3}); !c.Bad() || c.String() != "+0-3" {
		t.Errorf("%+v: bad %v, text %q", c, c.Bad(), c)
	}
	if c := (bls.Counter{}); c.Bad() || c.String() != "" {
		t.Errorf("%+v: bad %v, text %q", c, c.Bad(), c)
	}
}

// TestCompareMenu gives the menu of boot.md 4.2 in its order.
func TestCompareMenu(t *testing.T) {
	item := func(name, sortKey, version string) bls.MenuItem {
		e := bls.Entry{}
		if sortKey != "" {
			e.Set("sort-key", sortKey)
		}
		if version != "" {
			e.Set("version", version)
		}
		m, ok := bls.MenuItemOf(name, e)
		if !ok {
			t.Fatalf("%s is not listed", name)
		}
		return m
	}
	want := []bls.MenuItem{
		item("a_x-0000000044+3-0.conf", "a", "0000000044.13"),
		item("a_x-0000000043.conf", "a", "0000000043.14"),
		item("a_x-0000000009.conf", "a", "9"),
		item("b+1-0.conf", "b", "99"),
		item("z-10.conf", "", ""),
		item("z-2.conf", "", ""),
		item("a_x-0000000045+0-3.conf", "a", "0000000045.15"),
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, bls.CompareMenu)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	for _, name := range []string{".a.conf", "auto-x.conf", "AUTO-x.conf", "a.efi"} {
		if _, ok := bls.MenuItemOf(name, bls.Entry{}); ok {
			t.Errorf("%s is listed", name)
		}
	}
}

func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(sampleEntry))
	f.Add([]byte("# c\n#\nkey\tv"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := bls.ParseEntry(data)
		if err != nil {
			return
		}
		text, err := e.Format()
		if err != nil {
			var ee *bls.EntryError
			if !errors.As(err, &ee) {
				t.Fatal(err)
			}
			return
		}
		again, err := bls.ParseEntry(text)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(e, again); diff != "" {
			t.Errorf("mismatch (-want +got):\n%s", diff)
		}
	})
}

// FuzzSplitCounter: file names come from a FAT that anybody may have written.
func FuzzSplitCounter(f *testing.F) {
	f.Add("cfsboot_ab-0000000044+3-0.conf")
	f.Add("a+b+2-1.CONF")
	f.Add("a+1-.conf")
	f.Fuzz(func(t *testing.T, name string) {
		prefix, c, ok := bls.SplitCounter(name, ".conf")
		if !strings.HasPrefix(name, prefix) || !ok && (prefix != name || c.Present) {
			t.Fatalf("%q: %q, %+v, %v", name, prefix, c, ok)
		}
		if !c.Present {
			return
		}
		// The canonical spelling of the same name has the same parts.
		again, c2, ok := bls.SplitCounter(prefix+c.String()+".conf", ".conf")
		if again != prefix || c2 != c || !ok {
			t.Errorf("%q: got %q %+v %v, want %q %+v", name, again, c2, ok, prefix, c)
		}
	})
}
