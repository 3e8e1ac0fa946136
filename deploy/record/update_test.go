package record_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/record"
)

var goodUpdate = record.Update{
	Reference: "docker://r/os:1", ManifestDigest: "sha256:" + strings.Repeat("ab", 32), IndexDigest: "sha256:" + strings.Repeat("cd", 32),
	Architecture: "amd64", Version: "1.2", Created: "2026-11-25T10:00:00Z", Checked: start,
}

func TestUpdateRoundTrip(t *testing.T) {
	t.Parallel()
	data, err := goodUpdate.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.ParseUpdate(data)
	want := goodUpdate
	want.Schema = record.UpdateSchema
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("mismatch (-want +got): %v\n%s", err, d)
	}
}

func TestUpdateRejects(t *testing.T) {
	t.Parallel()
	for field, change := range map[string]func(*record.Update){
		"schema":          func(u *record.Update) { u.Schema = "cfsboot.update/2" },
		"reference":       func(u *record.Update) { u.Reference = "docker://" },
		"manifest_digest": func(u *record.Update) { u.ManifestDigest = "sha256:ab" },
		"index_digest":    func(u *record.Update) { u.IndexDigest = "x" },
		"":                func(u *record.Update) { u.Version = strings.Repeat("x", 64<<10) },
	} {
		u := goodUpdate
		change(&u)
		var bad *record.FormatError
		if _, err := u.Encode(); !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func FuzzParseUpdate(f *testing.F) {
	data, err := goodUpdate.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		u, err := record.ParseUpdate(data)
		if err != nil {
			return
		}
		data, err = u.Encode()
		if err != nil {
			return // larger with its blanks, or a time that JSON does not have
		}
		if _, err := record.ParseUpdate(data); err != nil {
			t.Errorf("it was written and cannot be read: %v", err)
		}
	})
}
