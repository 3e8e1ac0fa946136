package kargs_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/kargs"
	"github.com/cfsboot/cfsboot/deploy/record"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		want       kargs.Config
	}{
		{"bootc's example", "kargs = [\"mitigations=auto,nosmt\"]\nmatch-architectures = [\"x86_64\"]\n", kargs.Config{Kargs: []string{"mitigations=auto,nosmt"}, Architectures: []string{"x86_64"}}},
		{"several in one string", `kargs = ["console=tty0  console=ttyS0,115200n8", 'dyndbg="file a.c +p"']`, kargs.Config{Kargs: []string{"console=tty0", "console=ttyS0,115200n8", `dyndbg="file a.c +p"`}}},
		{"empty", "", kargs.Config{}},
		{"only comments", "# nothing\n\n", kargs.Config{}},
		{"none", "kargs = []\n", kargs.Config{}},
		{"for no architecture", "kargs = [\"a\"]\nmatch-architectures = []\n", kargs.Config{Kargs: []string{"a"}, Architectures: []string{}}},
		{"names that only begin like a protected one", `kargs = ["rootwait", "rootdelay=1", "rw", "composefsx=1"]`, kargs.Config{Kargs: []string{"rootwait", "rootdelay=1", "rw", "composefsx=1"}}},
	} {
		got, err := kargs.Parse("/f.toml", []byte(tc.text))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: mismatch (-want +got):\n%s", tc.name, diff)
		}
	}
}

func TestParseRejects(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"no TOML", "kargs = [\n\"a\"\nb", "line 3: "},
		{"unknown key", "kargs = [\"a\"]\nkarg = [\"b\"]\n", `unknown key "karg"`},
		{"unknown table", "kargs = [\"a\"]\n[x]\ny = 1\n", `unknown key "x"`},
		{"a string", `kargs = "quiet"`, "kargs"},
		{"a number", `kargs = [1]`, "kargs"},
		{"twice", "kargs = [\"a\"]\nkargs = [\"b\"]\n", "line 2: "},
		{"architecture alone", `match-architectures = ["x86_64"]`, "match-architectures without kargs"},
		{"empty argument", `kargs = ["a", " "]`, `kargs[1] " " is empty`},
		{"line break", `kargs = ["a\nb"]`, `kargs[0] "a\nb" has a control character`},
		{"open quote", `kargs = ['a="b']`, "a quote that is not closed"},
		{"no name", `kargs = ["=x"]`, "has no name"},
		{"end of arguments", `kargs = ["quiet -- single"]`, "ends the arguments of the kernel"},
		{"root", `kargs = ["quiet root=/dev/sda"]`, "sets root, "},
		{"quoted root", `kargs = ['"root=/dev/sda"']`, "sets root, "},
		{"ro", `kargs = ["ro"]`, "sets ro, "},
		{"root flags", `kargs = ["rootflags=ro"]`, "sets rootflags, "},
		{"root type", `kargs = ["rootfstype=tmpfs"]`, "sets rootfstype, "},
		{"another image", `kargs = ["composefs=` + strings.Repeat("ab", 32) + `"]`, "sets composefs, "},
		{"another image, new spelling", `kargs = ["composefs.digest=?v1-sha256-12:` + strings.Repeat("ab", 32) + `"]`, "sets composefs.digest, "},
		{"not UTF-8", "kargs = [\"a\xff\"]", "not UTF-8"},
		{"large", "#" + strings.Repeat("x", kargs.MaxFile), "65537 bytes, limit 65536"},
	} {
		_, err := kargs.Parse("/etc/f.toml", []byte(tc.text))
		var bad *kargs.FormatError
		if !errors.As(err, &bad) || bad.Path != "/etc/f.toml" || !strings.Contains(bad.Detail, tc.want) || strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("%s: got %v, want %q in one line", tc.name, err, tc.want)
		}
	}
}

func TestApplies(t *testing.T) {
	for _, tc := range []struct {
		list []string
		arch string
		want bool
	}{
		{nil, "amd64", true},
		{[]string{}, "amd64", false},
		{[]string{"aarch64", "x86_64"}, "amd64", true},
		{[]string{"x86_64"}, "arm64", false},
		{[]string{"amd64"}, "amd64", true},
		{[]string{"aarch64"}, "arm64", true},
		{[]string{"powerpc64"}, "ppc64le", true},
		{[]string{"s390x"}, "s390x", true},
		{[]string{"X86_64"}, "amd64", false},
	} {
		if got := (kargs.Config{Architectures: tc.list}).Applies(tc.arch); got != tc.want {
			t.Errorf("%v on %s: got %v, want %v", tc.list, tc.arch, got, tc.want)
		}
	}
}

const composefs = "composefs.digest=v1-sha512-12:ab"

func file(path, text string) kargs.File { return kargs.File{Path: path, Data: []byte(text)} }

func own(argument string) record.Karg {
	return record.Karg{Argument: argument, Source: record.KargCfsboot}
}

func given(argument string) record.Karg {
	return record.Karg{Argument: argument, Source: record.KargInstall}
}

// TestCompose: the order of sources and files, masks, architectures and repeated arguments.
func TestCompose(t *testing.T) {
	base := []record.Karg{own("root=UUID=x"), own("rw"), given("console=ttyS0"), given("quiet")}
	for _, tc := range []struct {
		name        string
		image, site []kargs.File
		want        string
	}{
		{"no files", nil, nil, "root=UUID=x rw panic=30 " + composefs + " console=ttyS0 quiet"},
		{
			"files by name, whatever their directory, then the site's",
			[]kargs.File{file("/usr/lib/cfsboot/kargs.d/20-b.toml", `kargs = ["b"]`), file("/usr/lib/bootc/kargs.d/30-c.toml", `kargs = ["c"]`), file("/usr/lib/bootc/kargs.d/10-a.toml", `kargs = ["a"]`)},
			[]kargs.File{file("/etc/cfsboot/kargs.d/05-z.toml", `kargs = ["z"]`), file("/etc/cfsboot/kargs.d/01-y.toml", `kargs = ["y"]`)},
			"root=UUID=x rw panic=30 " + composefs + " a b c console=ttyS0 quiet y z",
		},
		{
			"a later directory masks, and what is masked is not read",
			[]kargs.File{file("/usr/lib/bootc/kargs.d/1.toml", "broken"), file("/usr/lib/cfsboot/kargs.d/1.toml", `kargs = ["new"]`), file("/usr/lib/cfsboot/kargs.d/2.toml", "broken")},
			[]kargs.File{file("/etc/cfsboot/kargs.d/2.toml", "")},
			"root=UUID=x rw panic=30 " + composefs + " new console=ttyS0 quiet",
		},
		{
			"another architecture", []kargs.File{file("/usr/lib/bootc/kargs.d/1.toml", "kargs = [\"arm\"]\nmatch-architectures = [\"aarch64\"]")}, nil,
			"root=UUID=x rw panic=30 " + composefs + " console=ttyS0 quiet",
		},
		{
			"the last of equal arguments counts", []kargs.File{file("/usr/lib/bootc/kargs.d/1.toml", `kargs = ["quiet", "rw", "loglevel=3"]`)},
			[]kargs.File{file("/etc/cfsboot/kargs.d/1a.toml", `kargs = ["console=tty0 console=ttyS0", "loglevel=7"]`)},
			"root=UUID=x panic=30 " + composefs + " rw loglevel=3 quiet console=tty0 console=ttyS0 loglevel=7",
		},
	} {
		list, err := kargs.Compose(kargs.Input{Composefs: composefs, Base: base, Image: tc.image, Site: tc.site, Architecture: "amd64"})
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := kargs.Line(list).String(); got != tc.want {
			t.Errorf("%s:\n got %q\nwant %q", tc.name, got, tc.want)
		}
	}
	for _, panics := range []kargs.Input{
		{Base: append(slices.Clone(base), given("panic=5"))},
		{Base: append(slices.Clone(base), own("panic=30")), Image: []kargs.File{file("/usr/lib/bootc/kargs.d/1.toml", `kargs = ["panic=5"]`)}},
		{Base: base, Site: []kargs.File{file("/etc/cfsboot/kargs.d/1.toml", `kargs = ["panic=5"]`)}},
	} {
		list, err := kargs.Compose(panics)
		if line := kargs.Line(list).String(); err != nil || strings.Count(line, "panic=") != 1 || !strings.Contains(line, "panic=5") {
			t.Errorf("somebody else decides about a panic: %q, %v", line, err)
		}
	}
	_, err := kargs.Compose(kargs.Input{Composefs: composefs, Site: []kargs.File{file("/etc/cfsboot/kargs.d/1.toml", "broken")}})
	if bad := (*kargs.FormatError)(nil); !errors.As(err, &bad) || bad.Path != "/etc/cfsboot/kargs.d/1.toml" {
		t.Errorf("a broken file: %v", err)
	}
}

// TestReleases takes the arguments through releases: those of the image follow the image, those of the installation, of the
// site, and of a person who edited the entry stay, and none of them multiplies.
func TestReleases(t *testing.T) {
	compose := func(base []record.Karg, image, site string) ([]record.Karg, bls.Cmdline) {
		t.Helper()
		in := kargs.Input{Composefs: composefs, Base: base, Architecture: "amd64"}
		if image != "" {
			in.Image = []kargs.File{file(kargs.BootcDir+"/1.toml", `kargs = [`+image+`]`)}
		}
		if site != "" {
			in.Site = []kargs.File{file(kargs.SiteDir+"/9.toml", `kargs = [`+site+`]`)}
		}
		list, err := kargs.Compose(in)
		if err != nil {
			t.Fatal(err)
		}
		return list, kargs.Line(list)
	}
	want := func(what string, line bls.Cmdline, text string) {
		t.Helper()
		if line.String() != text {
			t.Errorf("%s:\n got %q\nwant %q", what, line, text)
		}
	}
	list, line := compose([]record.Karg{own("root=UUID=x"), own("rw"), given("quiet"), given("splash")}, `"quiet", "one", "rw"`, `"site"`)
	want("installed", line, "root=UUID=x panic=30 "+composefs+" one rw quiet splash site")

	// The image's "quiet" and "rw" go with the image; those that were there without it stay.
	list, line = compose(kargs.Base(list, line), `"two"`, `"site"`)
	want("second release", line, "root=UUID=x rw panic=30 "+composefs+" two quiet splash site")

	edited := append(slices.DeleteFunc(slices.Clone(line), func(s string) bool { return s == "splash" || s == "two" }), "nomodeset")
	list, line = compose(kargs.Base(list, edited), `"two", "three"`, `"site"`)
	want("after an edit", line, "root=UUID=x rw panic=30 "+composefs+" two three quiet nomodeset site")

	if got := kargs.Explain(list, line); len(got) != len(line) || got[7].Source != record.KargLocal || got[4].File != kargs.BootcDir+"/1.toml" || got[8].Source != record.KargSite {
		t.Errorf("sources %+v", got)
	}
	_, line = compose(kargs.Base(list, line), "", "")
	want("without files", line, "root=UUID=x rw panic=30 "+composefs+" quiet nomodeset")

	// A deployment of a program that wrote no sources down.
	old := bls.ParseCmdline("root=UUID=x quiet rw composefs=" + strings.Repeat("ab", 32))
	_, line = compose(kargs.Base(nil, old), `"one"`, "")
	want("old record", line, "root=UUID=x rw panic=30 "+composefs+" one quiet")
	var sources []string
	for _, k := range kargs.Explain(nil, old) {
		sources = append(sources, k.Source)
	}
	if diff := cmp.Diff([]string{"cfsboot", "install", "cfsboot", "cfsboot"}, sources); diff != "" {
		t.Errorf("sources of an old record (-want +got):\n%s", diff)
	}
}

// FuzzParse: whatever a file holds, what is accepted is a list of single tokens that leave the choice of the root alone.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", "kargs = [\"quiet\", \"console=tty0 console=ttyS0\"]\nmatch-architectures = [\"x86_64\"]\n", "kargs = ['a=\"b c\"']", "kargs = [\"root=x\"]",
		"[kargs]\n", "kargs = [[\"a\"]]", strings.Repeat("[", 3000), "kargs = [\"\\u0000\"]", "kargs = [\"\\\"composefs=x\\\"\"]",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := kargs.Parse("/etc/f.toml", data)
		if err != nil {
			if bad := (*kargs.FormatError)(nil); !errors.As(err, &bad) || strings.ContainsAny(bad.Detail, "\r\n") {
				t.Fatalf("error %q", err)
			}
			return
		}
		line := bls.Cmdline(c.Kargs)
		if again := bls.ParseCmdline(line.String()); !slices.Equal(again, line) {
			t.Fatalf("%q comes back as %q", line, again)
		}
		if images, err := bls.ParseKargs(line.String()); err != nil || len(images) > 0 {
			t.Fatalf("%q selects %v, %v", line, images, err)
		}
		for _, key := range []string{"root", "ro", "--"} {
			if line.Has(key) {
				t.Fatalf("%q has %s", line, key)
			}
		}
	})
}
