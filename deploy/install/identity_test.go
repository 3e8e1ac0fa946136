package install_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/install"
)

const (
	ed25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBxS1GhIJjjQYGHQxaR6OUUFJHYVpXK7yJ8nOJq1hYkT"
	ecdsa   = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBAAA"
)

func TestCheckAuthorizedKeys(t *testing.T) {
	for _, good := range []string{
		ed25519, ed25519 + "\n", ed25519 + " somebody@somewhere\n", "# keys\n\n  " + ed25519 + "\n" + ecdsa + "\n",
		`restrict,command="echo a b" ` + ed25519 + " x\n",
	} {
		got, err := install.CheckAuthorizedKeys([]byte(good))
		if err != nil || string(got) != strings.TrimSuffix(good, "\n")+"\n" {
			t.Errorf("%q: got %q, %v", good, got, err)
		}
	}
	for name, c := range map[string]struct {
		text string
		line int
	}{
		"empty":     {"", 0},
		"comments":  {"# nothing\n\n", 0},
		"private":   {"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", 0},
		"large":     {strings.Repeat("#", install.MaxKeys+1), 0},
		"text":      {ed25519 + "\nhello world\n", 2},
		"type only": {"ssh-ed25519\n", 1},
		"cut":       {ed25519[:30], 1},
		"type":      {strings.Replace(ed25519, "ssh-ed25519 ", "ssh-rsa ", 1), 1},
		"nul":       {ed25519 + "\x00", 1},
		"crlf":      {"\n" + ed25519 + " a\rb\n", 2},
	} {
		var ke *install.KeyError
		if got, err := install.CheckAuthorizedKeys([]byte(c.text)); !errors.As(err, &ke) || ke.Line != c.line {
			t.Errorf("%s: got %q, %v, want a KeyError of line %d", name, got, err, c.line)
		}
	}
}

func FuzzCheckAuthorizedKeys(f *testing.F) {
	f.Add([]byte(ed25519))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := install.CheckAuthorizedKeys(b)
		if err == nil && (len(got) == 0 || got[len(got)-1] != '\n' || !bytes.HasPrefix(got, b) || bytes.Contains(b, []byte("PRIVATE KEY-----"))) {
			t.Errorf("%q: got %q", b, got)
		}
	})
}

func TestCheckHostname(t *testing.T) {
	for _, good := range []string{"a", "host-7", "Host.example.com", strings.Repeat("a", 63), "7"} {
		if err := install.CheckHostname(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", strings.Repeat("a", 64), strings.Repeat("ab.", 21) + "cd", "-a", "a-", "a..b", ".a", "a.", "a b", "a_b", "ä", "a\nb", "(none)"} {
		var he *install.HostnameError
		if err := install.CheckHostname(bad); !errors.As(err, &he) {
			t.Errorf("%q: got %v, want a HostnameError", bad, err)
		}
	}
}
