package bls_test

import (
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// The vectors of boot.md 2.5: absent is shown as "-".
func TestOSReleaseQuoting(t *testing.T) {
	for raw, want := range map[string]string{
		`"\$5"`:       `$5`,
		`"$5"`:        `$5`,
		`'\'`:         `\`,
		`"\'"`:        `'`,
		`\\\\`:        `\\\\`,
		`""''""`:      ``,
		`"x`:          `-`,
		`"\"`:         `-`,
		`'\''`:        `-`,
		`"a"'b'c`:     `abc`,
		`"a \"b\""`:   `a "b"`,
		`  "padded" `: `padded`,
		`plain text`:  `plain text`,
		`"end\`:       `-`,
	} {
		r := bls.ParseOSRelease([]byte("KEY=" + raw + "\nFALLBACK=-\n"))
		if got := r.Get("KEY", "FALLBACK"); got != want {
			t.Errorf("%s: got %q, want %q", raw, got, want)
		}
	}
}

func TestOSRelease(t *testing.T) {
	const debian = `PRETTY_NAME="Debian GNU/Linux 13 (trixie)"
# NAME="comment"
   # VERSION="comment"
NAME="Debian GNU/Linux"
VERSION_ID="12"
VERSION="13 (trixie)"
no equal sign
VERSION_ID="13"
ID=debian`
	for _, tc := range []struct {
		name, text         string
		id, title, version string
	}{
		{"debian", debian, "debian", "Debian GNU/Linux 13 (trixie)", "13"},
		{"empty", "", "linux", "", ""},
		{"name", "NAME=x\nVERSION='1 2'\n", "linux", "x", "1 2"},
		{"broken pretty name", "PRETTY_NAME=\"x\nID=y\n", "y", "y", ""},
		{"image version", "ID=a\nIMAGE_VERSION=7\nVERSION_ID=1\n", "a", "a", "7"},
		{"keys are not trimmed", " ID=a\n", "linux", "", ""},
		{"last wins, even if broken", "ID=a\nID=\"b\n", "linux", "", ""},
		{"carriage return", "ID=a\r\nNAME=b\r\n", "a", "b", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := bls.ParseOSRelease([]byte(tc.text))
			got := [3]string{r.ID(), r.Title(), r.Version()}
			if want := [3]string{tc.id, tc.title, tc.version}; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func FuzzOSRelease(f *testing.F) {
	f.Add([]byte("ID=\"a\\\nNAME='"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bls.ParseOSRelease(data)
		if r.ID() == "" {
			t.Error("an os-release without an ID")
		}
		_, _ = r.Title(), r.Version()
	})
}
