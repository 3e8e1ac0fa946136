package esp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/testutil/peloader"
)

func parseLoader(data []byte) (string, string, error) {
	return esp.ParseLoader(bytes.NewReader(data), int64(len(data)))
}

func TestParseLoader(t *testing.T) {
	product, version, err := parseLoader(peloader.SystemdBoot("257.13-1~deb13u1"))
	if product != "systemd-boot" || version != "257.13-1~deb13u1" || err != nil {
		t.Errorf("got %q, %q, %v", product, version, err)
	}
	magic := func(text string) []byte {
		return peloader.Image(peloader.Section{Name: ".sdmagic", Data: []byte(text)})
	}
	good := peloader.SystemdBoot("257")
	edit := func(at int, b ...byte) []byte {
		out := bytes.Clone(good)
		copy(out[at:], b)
		return out
	}
	// The second line of the section table is that of .sdmagic.
	const table = 0x80 + 24 + 0xf0
	const line = table + 40
	for name, c := range map[string]struct {
		data  []byte
		field string
	}{
		"empty":            {nil, "MS-DOS header"},
		"no MZ":            {edit(0, 'X'), "MS-DOS header"},
		"short":            {good[:63], "MS-DOS header"},
		"PE header beyond": {edit(0x3c, 0xff, 0xff, 0xff, 0xff), "PE header"},
		"no PE":            {edit(0x80, 'N', 'E'), "PE header"},
		"many sections":    {edit(0x86, 0xff, 0xff), "PE header"},
		"table beyond":     {edit(0x80+20, 0xff, 0xff), "section table"},
		"no section":       {edit(0x86, 0, 0), "section .sdmagic"},
		"other section":    {edit(line, '.', 'x'), "section .sdmagic"},
		"section beyond":   {edit(line+20, 0xff, 0xff, 0xff, 0xff), "section .sdmagic"},
		"large section":    {edit(line+8, 0, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff), "section .sdmagic"},
		"cut off":          {good[:1024], "section .sdmagic"},
		"other text":       {magic("#### LoaderInfo: systemd-boot ####"), "section .sdmagic"},
		"no end":           {magic("#### LoaderInfo: systemd-boot 257"), "section .sdmagic"},
		"control":          {magic("#### LoaderInfo: systemd-boot 2\x1b57 ####"), "section .sdmagic"},
		"three words":      {magic("#### LoaderInfo: systemd-boot 257 x ####"), "section .sdmagic"},
	} {
		_, _, err := parseLoader(c.data)
		var le *esp.LoaderError
		if !errors.As(err, &le) || le.Field != c.field {
			t.Errorf("%s: %v, want a LoaderError of %q", name, err, c.field)
		}
	}
	// The size of the file decides, not what the reader would give.
	if _, _, err := esp.ParseLoader(bytes.NewReader(good[:600]), int64(len(good))); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a file that shrinks: %v", err)
	}
	if binary.LittleEndian.Uint32(good[0x3c:]) != 0x80 || string(good[line:line+8]) != ".sdmagic" {
		t.Error("the fixture has another layout than this test thinks")
	}
}

// TestOracleLoader reads the loader that systemd built, if the package is installed.
func TestOracleLoader(t *testing.T) {
	const path = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Skip("package systemd-boot-efi is not installed: " + err.Error())
	}
	product, version, err := parseLoader(data)
	l := esp.Loader{Product: product, Version: version}
	if err != nil || product != esp.SystemdBoot || l.Major() < 240 || !bytes.Contains(data, []byte("systemd-boot "+version+" ####")) {
		t.Errorf("got %q, %q, %v", product, version, err)
	}
}

// TestLoaderKeys is what was measured with 257 and 262 (vm.md 4.4).
func TestLoaderKeys(t *testing.T) {
	for _, c := range []struct {
		version, key   string
		starts, counts bool
	}{
		{"257.13-1~deb13u1", "linux", true, true},
		{"257.13-1~deb13u1", "efi", true, true},
		{"257.13-1~deb13u1", "uki", false, false},
		{"258", "uki", true, true},
		{"258~rc1", "efi", true, false},
		{"262-1", "linux", true, true},
		{"262-1", "efi", true, false},
		{"262-1", "uki", true, true},
		{"239", "linux", true, false},
		{"unknown", "linux", true, false},
	} {
		l := esp.Loader{Product: esp.SystemdBoot, Version: c.version}
		if l.Starts(c.key) != c.starts || l.Counts(c.key) != c.counts {
			t.Errorf("%s, key %s: starts %v, counts %v", c.version, c.key, l.Starts(c.key), l.Counts(c.key))
		}
	}
	if l := (esp.Loader{Product: "shim", Version: "257"}); l.Starts("linux") || l.Counts("linux") {
		t.Error("another loader counts")
	}
	sd := func(v string) esp.Loader { return esp.Loader{Path: "x", Product: esp.SystemdBoot, Version: v} }
	for _, c := range []struct {
		copies []esp.Loader
		want   string
	}{
		{[]esp.Loader{sd("257"), sd("257")}, "efi"},
		{[]esp.Loader{sd("262"), sd("258")}, "uki"},
		{[]esp.Loader{sd("257"), sd("262")}, ""},
		{[]esp.Loader{sd("257"), {Path: "y", Err: fs.ErrNotExist}}, ""},
		{nil, ""},
	} {
		got, err := esp.UKIKey(c.copies)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v: got %q, %v", c.copies, got, err)
		}
	}
}

func TestLoaders(t *testing.T) {
	root := t.TempDir()
	dir, err := durable.OpenDir(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := esp.New(dir).Loaders(); got != nil {
		t.Errorf("an empty partition: %v", got)
	}
	write := func(name string, data []byte) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("EFI/systemd/systemd-bootx64.efi", peloader.SystemdBoot("257.13"))
	got := esp.New(dir).Loaders()
	if len(got) != 2 || got[0].Version != "257.13" || got[0].Err != nil || !errors.Is(got[1].Err, fs.ErrNotExist) || got[1].Path != "EFI/BOOT/BOOTX64.EFI" {
		t.Errorf("one copy: %v", got)
	}
	if err := os.MkdirAll(filepath.Join(root, "EFI/BOOT/BOOTX64.EFI"), 0o755); err != nil {
		t.Fatal(err)
	}
	var le *esp.LoaderError
	if got := esp.New(dir).Loaders(); len(got) != 2 || !errors.As(got[1].Err, &le) {
		t.Errorf("a directory where the copy belongs: %v", got)
	}
}

func TestParseLoaderInfo(t *testing.T) {
	for in, want := range map[string]int{"systemd-boot 257.13-1~deb13u1": 257, "systemd-boot 262": 262, "GRUB": 0, "": 0} {
		if l, ok := esp.ParseLoaderInfo(in); ok != (want > 0) || l.Major() != want {
			t.Errorf("%q: %+v, %v", in, l, ok)
		}
	}
}

func FuzzParseLoader(f *testing.F) {
	f.Add(peloader.SystemdBoot("257.13-1~deb13u1"))
	f.Add(peloader.Image())
	f.Fuzz(func(t *testing.T, data []byte) {
		product, version, err := parseLoader(data)
		if err == nil && (product == "" || version == "" || strings.ContainsAny(product+version, " \x00\x1b\n")) {
			t.Errorf("got %q, %q", product, version)
		}
	})
}
