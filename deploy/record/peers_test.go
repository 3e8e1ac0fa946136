package record_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// peersEntry is an entry as a deployment gets it.
func peersEntry(t *testing.T, seq uint64, title, version string) bls.Entry {
	t.Helper()
	e, err := record.NewEntry(record.EntrySpec{
		Token: "ab", Seq: seq, Title: title, OSVersion: version, Linux: "/cfsboot/x/vmlinuz", Initrd: "/cfsboot/x/initrd",
		Options: bls.ParseCmdline("rw"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestP12CountedKey: the loader bumps boot counters for entries with the key "linux", newer ones not for "efi".
func TestP12CountedKey(t *testing.T) {
	e := peersEntry(t, 1, "Debian", "13")
	if key, path, err := e.Kind(); key != "linux" || path != "/cfsboot/x/vmlinuz" || err != nil {
		t.Errorf("kind %q, %q, %v", key, path, err)
	}
	if e.Get("efi") != "" {
		t.Errorf("the entry has the key efi: %q", e.Get("efi"))
	}
}

// TestP13TitleAndVersion: the menu says what it boots, and two releases with one OS version have a defined order.
func TestP13TitleAndVersion(t *testing.T) {
	a, b := peersEntry(t, 9, "Debian GNU/Linux 13", "13"), peersEntry(t, 10, "Debian GNU/Linux 13", "13")
	if a.Get("title") != "Debian GNU/Linux 13" || !strings.HasSuffix(a.Get("version"), ".13") {
		t.Errorf("title %q, version %q", a.Get("title"), a.Get("version"))
	}
	if a.Get("sort-key") != b.Get("sort-key") || bls.CompareVersions(a.Get("version"), b.Get("version")) >= 0 {
		t.Errorf("order: %q, %q before %q, %q", a.Get("sort-key"), a.Get("version"), b.Get("sort-key"), b.Get("version"))
	}
}

// TestTornEntryStartsNothing: any beginning of an entry is ignored by the loader.
func TestTornEntryStartsNothing(t *testing.T) {
	data, err := peersEntry(t, 1, "Debian", "13").Format()
	if err != nil {
		t.Fatal(err)
	}
	for n := range bytes.LastIndex(data, []byte("linux ")) + len("linux ") {
		torn, err := bls.ParseEntry(data[:n])
		if err != nil {
			continue
		}
		if _, _, err := torn.Kind(); err == nil {
			t.Fatalf("the first %d bytes start something: %q", n, data[:n])
		}
	}
}
