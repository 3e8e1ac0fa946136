package efivar_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/internal/efivar"
)

func TestParseText(t *testing.T) {
	const attr = "\x06\x00\x00\x00"
	tests := []struct{ name, data, want, wantErr string }{
		{"text", attr + "a\x00b\x00\x00\x00", "ab", ""},
		{"no NUL", attr + "a\x00", "a", ""},
		{"stops at NUL", attr + "a\x00\x00\x00b\x00", "a", ""},
		{"empty", attr, "", ""},
		{"not Latin", attr + "\xe9\x00\x3d\xd8\x00\xde", "é😀", ""},
		{"no attributes", "\x06\x00", "", "2 bytes"},
		{"odd", attr + "a\x00b", "", "even"},
		{"lone surrogate", attr + "\x00\xd8", "", "printable"},
		{"control", attr + "\x07\x00", "", "printable"},
		{"huge", attr + strings.Repeat("a\x00", 40000), "", "at most"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := efivar.ParseText("X", []byte(tc.data))
			var fe *efivar.FormatError
			if (err != nil) != (tc.wantErr != "") || got != tc.want {
				t.Fatalf("got %q, %v, want %q, error %q", got, err, tc.want, tc.wantErr)
			}
			if err != nil && (!errors.As(err, &fe) || !strings.Contains(err.Error(), tc.wantErr)) {
				t.Errorf("error %v, want a FormatError with %q", err, tc.wantErr)
			}
		})
	}
}

func TestLoader(t *testing.T) {
	root := t.TempDir()
	file := filepath.Join(root, "LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	if err := os.WriteFile(file, []byte("\x06\x00\x00\x00x\x00.\x00c\x00\x00\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := efivar.Dir{Root: root}
	if got, err := d.Loader(efivar.LoaderInfo); got != "x.c" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := d.Loader(efivar.LoaderDevicePartUUID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing variable: %v, want fs.ErrNotExist", err)
	}
}

func FuzzParseText(f *testing.F) {
	f.Add([]byte("\x06\x00\x00\x00a\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := efivar.ParseText("X", data)
		if err == nil && strings.ContainsRune(got, 0) {
			t.Errorf("text %q has a NUL", got)
		}
	})
}
