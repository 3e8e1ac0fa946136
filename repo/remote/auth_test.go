package remote_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/repo/remote"
)

// fakeEnv is an environment below a directory.
type fakeEnv struct {
	root string
	uid  int
	vars map[string]string
}

func (e fakeEnv) Getenv(name string) string { return e.vars[name] }
func (e fakeEnv) Getuid() int               { return e.uid }
func (e fakeEnv) Root() string              { return e.root }

func TestAuthFiles(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		env      fakeEnv
		explicit string
		want     []string
	}{
		{"explicit", fakeEnv{vars: map[string]string{"REGISTRY_AUTH_FILE": "/e", "HOME": "/h"}}, "/x", []string{"/x"}},
		{"root", fakeEnv{vars: map[string]string{"HOME": "/root"}}, "", []string{
			"/etc/ostree/auth.json", "/run/ostree/auth.json", "/usr/lib/ostree/auth.json", "/run/containers/0/auth.json",
			"/root/.config/containers/auth.json", "/root/.docker/config.json",
		}},
		{"service without HOME", fakeEnv{}, "", []string{"/etc/ostree/auth.json", "/run/ostree/auth.json", "/usr/lib/ostree/auth.json", "/run/containers/0/auth.json"}},
		{"user", fakeEnv{uid: 1000, vars: map[string]string{"HOME": "/h", "XDG_RUNTIME_DIR": "/run/user/1000", "REGISTRY_AUTH_FILE": "/e"}}, "", []string{
			"/e", "/run/user/1000/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json",
		}},
		{"user with own directories", fakeEnv{uid: 7, vars: map[string]string{"HOME": "/h", "XDG_CONFIG_HOME": "/c", "DOCKER_CONFIG": "/d"}}, "", []string{
			"/run/user/7/containers/auth.json", "/c/containers/auth.json", "/d/config.json",
		}},
	} {
		if d := cmp.Diff(tc.want, remote.AuthFiles(tc.env, tc.explicit)); d != "" {
			t.Errorf("%s mismatch (-want +got):\n%s", tc.name, d)
		}
	}
}

const testAuths = `{"auths": {
	"quay.io":               {"auth": "aG9zdDpwdw=="},
	"quay.io/team":          {"auth": "dGVhbTpwdw=="},
	"quay.io/team/app":      {"auth": "YXBwOnB3"},
	"https://old.example/v1/": {"auth": "b2xkOnB3OndpdGg6Y29sb25z"},
	"index.docker.io":       {"username": "hub", "password": "x"},
	"id.example":            {"identitytoken": "refresh"},
	"empty.example":         {}
}, "credHelpers": {"helper.example": "desktop"}}`

func TestFindCredentials(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	main := file("main.json", testAuths)
	other := file("other.json", `{"auths": {"quay.io": {"auth": "b3RoZXI6cHc="}, "only.example": {"auth": "b25seTpwdw=="}}}`)
	broken := file("broken.json", `{"auths": {"quay.io": {"auth": "topsecret`)
	badAuth := file("bad.json", `{"auths": {"quay.io": {"auth": "%%topsecret"}}}`)
	noColon := file("nocolon.json", `{"auths": {"quay.io": {"auth": "dG9wc2VjcmV0"}}}`)
	missing := filepath.Join(dir, "missing.json")
	for _, tc := range []struct {
		name, host, path string
		files            []string
		explicit         bool
		want             string // user:password or identity token
		err              string
	}{
		{"host", "quay.io", "x/y", []string{main}, false, "host:pw", ""},
		{"namespace", "quay.io", "team/other", []string{main}, false, "team:pw", ""},
		{"repository", "quay.io", "team/app", []string{main}, false, "app:pw", ""},
		{"below repository", "quay.io", "team/app/deep", []string{main}, false, "app:pw", ""},
		{"no prefix of a component", "quay.io", "teamx/app", []string{main}, false, "host:pw", ""},
		{"other port", "quay.io:444", "team/app", []string{main}, false, "", ""},
		{"docker form", "old.example", "x", []string{main}, false, "old:pw:with:colons", ""},
		{"docker hub", "index.docker.io", "library/debian", []string{main}, false, "hub:x", ""},
		{"identity token", "id.example", "x", []string{main}, false, "refresh", ""},
		{"first file wins", "quay.io", "x", []string{missing, other, main}, false, "other:pw", ""},
		{"second file", "only.example", "x", []string{main, other}, false, "only:pw", ""},
		{"empty entry", "empty.example", "x", []string{main, other}, false, "", ""},
		{"missing files", "quay.io", "x", []string{missing}, false, "", ""},
		{"missing explicit file", "quay.io", "x", []string{missing}, true, "", "no such file"},
		{"broken file", "quay.io", "x", []string{broken}, false, "", "not valid JSON"},
		{"broken auth", "quay.io", "x", []string{badAuth}, false, "", "not base64"},
		{"auth without colon", "quay.io", "x", []string{noColon}, false, "", "no colon"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := remote.FindCredentials(tc.files, tc.explicit, tc.host, tc.path)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q", err, tc.err)
				}
				if strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "dG9wc2VjcmV0") {
					t.Errorf("error shows a secret: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := c.User + ":" + c.Password
			if got == ":" {
				got = c.Identity
			}
			if got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	c, err := remote.FindCredentials([]string{main}, false, "helper.example", "x")
	if err != nil || len(c.Skipped) != 1 || !strings.Contains(c.Skipped[0], "desktop") {
		t.Errorf("credential helper: %+v, %v", c, err)
	}
}

// FuzzCredentials: whatever a credentials file holds, an error quotes nothing of it.
func FuzzCredentials(f *testing.F) {
	f.Add([]byte(testAuths), "quay.io", "team/app")
	f.Add([]byte(`{"auths": {"quay.io": {"auth": "%%topsecret"}}}`), "quay.io", "")
	f.Add([]byte(`{"auths": {"https://index.docker.io/v1/": {"auth": "b25seTpwdw"}}}`), "index.docker.io", "library/x")
	f.Fuzz(func(t *testing.T, b []byte, host, path string) {
		found, err := remote.MatchCredentials(b, host, path)
		if err == nil {
			return
		}
		if text := err.Error(); !found || text != `"auth" is not base64` && text != `"auth" has no colon between name and password` {
			t.Errorf("found %v, error %q", found, text)
		}
	})
}
