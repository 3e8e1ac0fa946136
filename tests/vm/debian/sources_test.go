package debian

import (
	"strings"
	"testing"
)

func TestParseTargets(t *testing.T) {
	out := "http://mirror.example/debian/ bookworm\nhttp://mirror.example/debian/ bookworm-updates\nhttp://backports.example/debian/ bookworm-backports\n" +
		"http://mirror.example/security/ bookworm-security\nhttp://second.example/debian bookworm\n"
	got := parseTargets(out, "bookworm")
	if want := (Sources{Main: "http://mirror.example/debian", Security: "http://mirror.example/security"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := parseTargets(out, "trixie"); got != (Sources{}) {
		t.Errorf("another release: got %+v, want nothing", got)
	}
}

func TestLines(t *testing.T) {
	s := Sources{Main: "http://m.example/debian", Security: "http://m.example/security"}
	if got := strings.Join(s.Lines(Stable), "\n"); strings.Count(got, "\n") != 2 || !strings.Contains(got, "/security trixie-security main") {
		t.Errorf("lines of %s:\n%s", Stable, got)
	}
	if got := s.Lines(Testing); len(got) != 1 || !strings.HasSuffix(got[0], "http://m.example/debian forky main") {
		t.Errorf("lines of %s: %q", Testing, got)
	}
	s.Security = ""
	if got := s.Lines(Stable); len(got) != 2 {
		t.Errorf("lines without a security archive: %q", got)
	}
}

func TestOSReleaseValue(t *testing.T) {
	text := "ID=debian\nVERSION_CODENAME=trixie\nNAME=\"Debian GNU/Linux\"\n"
	for key, want := range map[string]string{"VERSION_CODENAME": "trixie", "NAME": "Debian GNU/Linux", "CODENAME": ""} {
		if got := osReleaseValue(text, key); got != want {
			t.Errorf("%s: got %q, want %q", key, got, want)
		}
	}
}
