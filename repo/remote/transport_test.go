package remote_test

import (
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
