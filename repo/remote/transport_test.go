package remote_test

import (
	"errors"
	"io"
	"net/url"
	"testing"

	"github.com/cfsboot/cfsboot/repo/remote"
)

func TestCheckRedirect(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		registry, from, to string
		ok                 bool
	}{
		{"quay.io", "https://quay.io/a", "https://cdn.example/b", true},
		{"quay.io", "https://quay.io/a", "https://8.8.8.8/b", true},
		{"quay.io", "https://quay.io/a", "http://quay.io/b", false},
		{"quay.io", "https://quay.io/a", "https://10.0.0.1/b", false},
		{"quay.io", "https://quay.io/a", "https://127.0.0.1/b", false},
		{"quay.io", "https://quay.io/a", "https://localhost/b", false},
		{"quay.io", "https://quay.io/a", "https://169.254.169.254/latest", false},
		{"quay.io", "https://quay.io/a", "https://[fe80::1]/b", false},
		{"quay.io", "https://quay.io/a", "https://[::1]:5000/b", false},
		{"10.0.0.9:5000", "https://10.0.0.9:5000/a", "https://10.0.0.1/b", true},
		{"localhost:5000", "http://localhost:5000/a", "http://127.0.0.1:9000/b", true},
	} {
		if err := remote.CheckRedirect(tc.registry, tc.from, tc.to); (err == nil) != tc.ok {
			t.Errorf("%s to %s: %v, want allowed %v", tc.from, tc.to, err, tc.ok)
		}
	}
}

func TestHideURL(t *testing.T) {
	t.Parallel()
	inner := &url.Error{Op: "Get", URL: "https://auth.example/token?X-Signature=1", Err: io.EOF}
	err := remote.HideURL(&url.Error{Op: "Get", URL: "https://quay.io/v2/?X-Signature=2", Err: inner})
	if want := "quay.io: auth.example: EOF"; err.Error() != want || !errors.Is(err, io.EOF) {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestHideSecrets(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`you said Basic YWxpY2U6cGFzcw==, go away`: `you said Basic [hidden], go away`,
		`bearer abc.def-ghi`:                       `bearer [hidden]`,
	} {
		if got := remote.HideSecrets(in); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
