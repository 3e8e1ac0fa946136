package esp_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

func content(name, data string) esp.Content {
	return esp.Content{Sum: esp.Sum{Name: name}, Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(data)), nil
	}}
}

func payload(t *testing.T, kernel, initrd string) esp.Payload {
	t.Helper()
	p, err := esp.NewPayload(t.Context(), []esp.Content{content("vmlinuz", kernel), content("initrd", initrd)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func openTemp(t *testing.T) (*esp.ESP, string) {
	t.Helper()
	path := t.TempDir()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dir.Close() })
	return esp.New(dir), path
}

// TestBootDigest is the vector of lifecycle.md 2.3.
func TestBootDigest(t *testing.T) {
	p := payload(t, "kernel", "initrd")
	if want := "3822c8916ff94fb5cd0710581582600efdb585747470c3ef45ead0e6ed5b3982"; p.Digest != want {
		t.Errorf("got %s, want %s", p.Digest, want)
	}
}

// TestCheckSizes: names, types and sizes of a payload, without its content.
func TestCheckSizes(t *testing.T) {
	e, path := openTemp(t)
	p := payload(t, "kernel", "initrd")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(e.Place(t.Context(), p, false))
	file := filepath.Join(path, esp.Path(p.Digest, "initrd"))
	sums, unknown := p.Sums(), []esp.Sum{{Name: "vmlinuz", Size: esp.AnySize}, {Name: "initrd", Size: esp.AnySize}}
	check := func(what string, files []esp.Sum, want string) {
		t.Helper()
		var got []string
		for _, err := range e.CheckSizes(p.Digest, files) {
			got = append(got, err.Path+" "+err.Got)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: got %q, want %q", what, text, want)
		}
	}
	name := esp.Path(p.Digest, "initrd")
	check("whole", sums, "")
	check("whole, sizes unknown", unknown, "")
	must(os.WriteFile(file, []byte("torn!!"), 0o600))
	check("other content", sums, "")
	must(os.Truncate(file, 3))
	check("cut", sums, name+" 3 bytes")
	check("cut, sizes unknown", unknown, "")
	must(os.Truncate(file, 0))
	check("empty", sums, name+" 0 bytes")
	check("empty, sizes unknown", unknown, name+" 0 bytes")
	must(os.Remove(file))
	check("gone", sums, name+" missing")
	must(os.Mkdir(file, 0o700))
	check("a directory", unknown, name+" "+esp.NoFile)
	must(os.RemoveAll(filepath.Dir(file)))
	check("all gone", unknown, esp.Path(p.Digest, "vmlinuz")+" missing, "+name+" missing")
}

func TestPlace(t *testing.T) {
	e, path := openTemp(t)
	p := payload(t, "kernel", "initrd")
	for range 2 {
		if err := e.Place(t.Context(), p, false); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(filepath.Join(path, "cfsboot", p.Digest, "vmlinuz"))
	if err != nil || string(got) != "kernel" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := e.CheckDigest(t.Context(), p.Digest); err != nil {
		t.Error(err)
	}
	list, err := e.Payloads()
	if d := cmp.Diff([]string{p.Digest}, list); d != "" || err != nil {
		t.Errorf("payloads %v: mismatch (-want +got):\n%s", err, d)
	}
	if err := e.RemovePayload(p.Digest); err != nil {
		t.Fatal(err)
	}
	if list, err := e.Payloads(); len(list) != 0 || err != nil {
		t.Errorf("after the removal: %v, %v", list, err)
	}
}

// TestPlaceOverLeftover: peers fail for ever on a kernel directory without
// initrd (D8).
func TestPlaceOverLeftover(t *testing.T) {
	p := payload(t, "kernel", "initrd")
	for _, tc := range []struct {
		name  string
		files map[string]string
	}{
		{"empty directory", nil},
		{"no initrd", map[string]string{"vmlinuz": "kernel"}},
		{"torn initrd", map[string]string{"vmlinuz": "kernel", "initrd": "ini"}},
		{"wrong bytes", map[string]string{"vmlinuz": "KERNEL", "initrd": ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, path := openTemp(t)
			dir := filepath.Join(path, "cfsboot", p.Digest)
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for name, data := range tc.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := e.Place(t.Context(), p, false); err != nil {
				t.Fatal(err)
			}
			if err := e.CheckDigest(t.Context(), p.Digest); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPlaceKeepsWhatAnEntryUses: a damaged file that an entry names is an
// integrity error, not something to write over (V4).
func TestPlaceKeepsWhatAnEntryUses(t *testing.T) {
	e, path := openTemp(t)
	p := payload(t, "kernel", "initrd")
	if err := e.Place(t.Context(), p, false); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(path, "cfsboot", p.Digest, "initrd")
	if err := os.WriteFile(file, []byte("inITrd"), 0o600); err != nil {
		t.Fatal(err)
	}
	var bad *esp.VerifyError
	if err := e.Place(t.Context(), p, true); !errors.As(err, &bad) || bad.Path != "cfsboot/"+p.Digest+"/initrd" {
		t.Errorf("got %v, want a VerifyError that names the initrd", err)
	}
	if got, _ := os.ReadFile(file); string(got) != "inITrd" {
		t.Errorf("the file in use was changed to %q", got)
	}
	if err := e.CheckDigest(t.Context(), p.Digest); !errors.As(err, &bad) || bad.Path != "cfsboot/"+p.Digest {
		t.Errorf("got %v, want a VerifyError that names the payload", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := e.CheckDigest(t.Context(), p.Digest); !errors.As(err, &bad) || bad.Got != "missing" {
		t.Errorf("got %v, want a VerifyError that says missing", err)
	}
}

func TestWriteEntry(t *testing.T) {
	e, _ := openTemp(t)
	if err := e.WriteEntry("a.conf", []byte("linux /x\n")); err != nil {
		t.Fatal(err)
	}
	if err := e.WriteEntry("a.conf", []byte("linux /y\n")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a used name: got %v, want fs.ErrExist", err)
	}
	if err := e.CheckEntry("a.conf", []byte("linux /x\n")); err != nil {
		t.Error(err)
	}
	if err := e.WriteEntry("b.conf", bytes.Repeat([]byte("#"), esp.MaxEntry+1)); err == nil {
		t.Error("an entry larger than a cluster is accepted")
	}
	var bad *esp.VerifyError
	if err := e.CheckEntry("b.conf", nil); !errors.As(err, &bad) {
		t.Errorf("got %v, want a VerifyError", err)
	}
	for range 2 {
		if err := e.RemoveEntry("a.conf"); err != nil {
			t.Fatal(err)
		}
	}
}

func entryText(t *testing.T, token string, seq uint64) string {
	t.Helper()
	x, err := record.NewEntry(record.EntrySpec{
		Token: token, Seq: seq, Linux: "/cfsboot/" + strings.Repeat("ab", 32) + "/vmlinuz", Initrd: "/cfsboot/x/initrd",
		Options: bls.ParseCmdline("rw composefs.digest=v1-sha512-12:" + strings.Repeat("cd", 64)),
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := x.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestEntries lists what the loader and its helpers may have renamed, foreign
// and broken files among them (D7: those must not fail a command).
func TestEntries(t *testing.T) {
	e, path := openTemp(t)
	if list, err := e.Entries(); len(list) != 0 || err != nil {
		t.Fatalf("no directory: %v, %v", list, err)
	}
	dir := filepath.Join(path, "loader", "entries")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"cfsboot_aa-0000000001.conf":      entryText(t, "aa", 1),
		"cfsboot_aa-0000000002+2-1.conf":  entryText(t, "aa", 2),
		"cfsboot_aa-0000000003+0-3.conf":  entryText(t, "aa", 3),
		"CFSBOOT_AA-0000000004+3.CONF":    entryText(t, "aa", 4),
		"cfsboot_aa-0000000005+3-0.conf":  "",
		"fedora.conf":                     "title x\nlinux /y\n",
		"broken.conf":                     "\xff\x00",
		"readme.txt":                      "no entry",
		"cfsboot_aa-0000000006+3-0.conf~": "backup",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.conf"), 0o700); err != nil {
		t.Fatal(err)
	}
	list, err := e.Entries()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range list {
		got = append(got, x.File)
	}
	want := []string{
		"CFSBOOT_AA-0000000004+3.CONF", "cfsboot_aa-0000000002+2-1.conf", "cfsboot_aa-0000000001.conf",
		"fedora.conf", "cfsboot_aa-0000000003+0-3.conf", "broken.conf", "cfsboot_aa-0000000005+3-0.conf",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("order of the menu: mismatch (-want +got):\n%s", d)
	}
	first, third := list[0], list[2]
	if !first.Ours || first.Name.Seq != 4 || first.Name.Token != "aa" || !first.Name.Counter.Present {
		t.Errorf("first entry %+v", first)
	}
	if third.Name.Counter.Present || third.Payload() != strings.Repeat("ab", 32) || third.ImageID() != strings.Repeat("cd", 64) {
		t.Errorf("third entry: counter %v, payload %q, image %q", third.Name.Counter, third.Payload(), third.ImageID())
	}
	if list[5].Err == nil || list[6].Err == nil || list[3].Ours {
		t.Errorf("broken, torn and foreign entries: %v, %v, %v", list[5].Err, list[6].Err, list[3].Ours)
	}
}

// TestMayName: what counts of a file that somebody else may have written is
// whether the digits are anywhere in it, whatever it says and however long it is.
func TestMayName(t *testing.T) {
	e, path := openTemp(t)
	dir := filepath.Join(path, "loader/entries")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a, b, image := strings.Repeat("ab", 32), strings.Repeat("cd", 32), strings.Repeat("ef", 64)
	for name, tc := range map[string]struct {
		text   string
		digest string
		want   bool
	}{
		"plain":                  {"linux /cfsboot/" + a + "/vmlinuz\n", a, true},
		"of another":             {"linux /cfsboot/" + a + "/vmlinuz\n", b, false},
		"initrd of another":      {"linux /cfsboot/" + a + "/vmlinuz\ninitrd /cfsboot/" + b + "/initrd\n", b, true},
		"second initrd":          {"linux /x\ninitrd /cfsboot/" + a + "/initrd\ninitrd /cfsboot/" + b + "/initrd\n", b, true},
		"backslashes":            {"linux \\cfsboot\\" + b + "\\vmlinuz\n", b, true},
		"capitals":               {"linux /CFSBOOT/" + strings.ToUpper(b) + "/VMLINUZ\n", b, true},
		"key nobody knows":       {"linux /x\ndevicetree-overlay /cfsboot/" + b + "/vmlinuz\n", b, true},
		"comment":                {"# linux /cfsboot/" + b + "/vmlinuz\nlinux /x\n", b, true},
		"second image":           {"linux /x\noptions composefs.digest=v1-sha512-12:" + strings.Repeat("01", 64) + " composefs.digest=v1-sha512-12:" + image + "\n", image, true},
		"no entry":               {"\xff\x00" + b, b, true},
		"empty":                  {"", b, false},
		"long, named at its end": {"# " + strings.Repeat("x", 3<<20) + b, b, true},
		"long":                   {"# " + strings.Repeat("x", 3<<20), b, false},
		"without end":            {"# " + strings.Repeat("x", 9<<20), b, false},
	} {
		file := filepath.Join(dir, "x.conf")
		if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := e.Entries()
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if got := list[0].MayName(tc.digest); got != tc.want {
			t.Errorf("%s: got %v, want %v (%v)", name, got, tc.want, list[0].Err)
		}
		if long := len(tc.text) > bls.MaxEntrySize; long && list[0].Err == nil {
			t.Errorf("%s: %d bytes are taken for an entry", name, len(tc.text))
		}
	}
	if unread := (esp.Entry{File: "x.conf", Err: os.ErrPermission}); !unread.MayName(a) {
		t.Error("what cannot be read names nothing")
	}
}

// TestManyEntries: however many files there are and however long they are, little is
// kept of them, and those of ours are read. What was not read may name anything.
func TestManyEntries(t *testing.T) {
	const ours = "cfsboot_aa-0000000001.conf"
	digest, other := strings.Repeat("ab", 32), strings.Repeat("ef", 32)
	for name, tc := range map[string]struct {
		files  int
		text   string // of each
		size   int64  // that it is made longer to
		unread int
	}{
		"many":       {esp.MaxEntries + 9, "linux /x\n", 0, 10},
		"long":       {40, "# " + digest + "\n", 4 << 20, 24}, // the first 16 have 64 MiB
		"digests":    {1, strings.Repeat(digest+"\n", 9000), 0, 1},
		"all digits": {1, strings.Repeat("0", 3<<20), 0, 1},
		"full":       {90, strings.Repeat(digest+" ", 1000), 0, 90 - 32}, // 32 are kept, as text and as digits
	} {
		t.Run(name, func(t *testing.T) {
			e, path := openTemp(t)
			dir := filepath.Join(path, "loader/entries")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for i := range tc.files {
				file := filepath.Join(dir, fmt.Sprintf("a%d.conf", i))
				if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
					t.Fatal(err)
				}
				if tc.size > 0 {
					if err := os.Truncate(file, tc.size); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := os.WriteFile(filepath.Join(dir, ours), []byte(entryText(t, "aa", 1)), 0o600); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			list, err := e.Entries()
			runtime.ReadMemStats(&after)
			if err != nil || len(list) != tc.files+1 {
				t.Fatalf("%d entries, %v", len(list), err)
			}
			if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 64 {
				t.Errorf("%d MiB were allocated", got)
			}
			unread := 0
			for _, x := range list {
				switch {
				case x.File == ours:
					if x.Err != nil || x.Unread() || x.MayName(other) {
						t.Errorf("ours: %v, unread %v", x.Err, x.Unread())
					}
				case x.Unread():
					if unread++; !x.MayName(other) || x.Err == nil {
						t.Fatalf("%s was not read, names %v, %v", x.File, x.MayName(other), x.Err)
					}
				case x.MayName(other) || x.MayName(digest) != strings.Contains(tc.text, digest):
					t.Fatalf("%s names what it does not, or not what it does", x.File)
				}
			}
			if unread != tc.unread {
				t.Errorf("%d files were not read, want %d", unread, tc.unread)
			}
		})
	}
}

// TestNamesIn: a digest counts wherever it stands, also next to other digits and
// across the pieces in which a file is read.
func TestNamesIn(t *testing.T) {
	digest := strings.Repeat("0a", 32)
	for text, want := range map[string]bool{
		"":                                    false,
		digest:                                true,
		strings.ToUpper(digest):               true,
		"1" + digest + "b":                    true,
		digest[:63] + "\n" + digest[63:]:      false,
		digest[:63]:                           false,
		"x" + digest[:63] + "x" + digest + "": true,
		strings.Repeat("f", 64) + digest:      true,
	} {
		if got := (esp.Entry{Named: esp.NamesIn([]byte(text))}).MayName(digest); got != want {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
	e, path := openTemp(t)
	if err := os.MkdirAll(filepath.Join(path, "loader/entries"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int{bls.MaxEntrySize, bls.MaxEntrySize + 1, bls.MaxEntrySize + 32<<10 + 1} {
		text := strings.Repeat("-", at-30) + digest + "-"
		if err := os.WriteFile(filepath.Join(path, "loader/entries/x.conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := e.Entries(); err != nil || !list[0].MayName(digest) || list[0].MayName(strings.Repeat("0b", 32)) {
			t.Errorf("at %d: %v, %+v", at, err, list)
		}
	}
}

func TestEnsure(t *testing.T) {
	e, path := openTemp(t)
	loader := payload(t, "loader", "config").Files
	loader[0].Name, loader[1].Name = "EFI/BOOT/BOOTX64.EFI", "loader.conf"
	for range 2 {
		if err := e.Ensure(t.Context(), loader, false); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(path, "EFI/BOOT/BOOTX64.EFI")
	if err := os.WriteFile(file, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	var bad *esp.VerifyError
	if err := e.Ensure(t.Context(), loader, false); !errors.As(err, &bad) || bad.Path != "EFI/BOOT/BOOTX64.EFI" {
		t.Errorf("got %v, want a VerifyError that names the loader", err)
	}
	if err := e.Ensure(t.Context(), loader, true); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(file); string(got) != "loader" {
		t.Errorf("got %q", got)
	}
}

func TestNeedFor(t *testing.T) {
	e, _ := openTemp(t)
	p := payload(t, strings.Repeat("k", 5000), "initrd")
	const c = 4096
	// kernel 2 clusters, initrd 1, entry 1; growth of /, cfsboot, its new
	// directory, loader and entries: 5
	if got, want := e.NeedFor(p.Digest, p.Sums(), c), int64((2+1+1+5)*c); got != want {
		t.Errorf("nothing there: got %d, want %d", got, want)
	}
	if err := e.Place(t.Context(), p, false); err != nil {
		t.Fatal(err)
	}
	if got, want := e.NeedFor(p.Digest, p.Sums(), c), int64((1+3)*c); got != want {
		t.Errorf("payload there: got %d, want %d", got, want)
	}
}
