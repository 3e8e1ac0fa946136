package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

func TestReadConfig(t *testing.T) {
	const etc, run, usr = "etc/cfsboot/cfsboot.toml", "run/cfsboot/cfsboot.toml", "usr/lib/cfsboot/cfsboot.toml"
	for _, tc := range []struct {
		name    string
		files   map[string]string // "-> x" is a link
		keep    int
		unknown int
		fails   string
	}{
		{"none", nil, deploy.DefaultKeep, 0, ""},
		{"one", map[string]string{usr: "keep = 7"}, 7, 0, ""},
		{"the strongest counts", map[string]string{etc: "keep = 0", run: "keep = 2", usr: "keep = 7"}, 0, 0, ""},
		{"a masked main file", map[string]string{etc: "-> /dev/null", usr: "keep = 7"}, deploy.DefaultKeep, 0, ""},
		{"drop-ins by name", map[string]string{etc: "keep = 5", usr + ".d/20.toml": "keep = 4", etc + ".d/10.toml": "keep = 3"}, 4, 0, ""},
		{"a masked drop-in", map[string]string{etc: "keep = 5", usr + ".d/20.toml": "keep = 4", etc + ".d/20.toml": ""}, 5, 0, ""},
		{"other files", map[string]string{etc + ".d/20.conf": "keep = 4"}, deploy.DefaultKeep, 0, ""},
		{"newer keys", map[string]string{etc: "keep = 5\nfuture = true\n[section]\nx = 1\n"}, 5, 3, ""},
		{"not a number", map[string]string{etc: `keep = "many"`}, 0, 0, etc},
		{"negative", map[string]string{etc: "keep = -1"}, 0, 0, "want 0 to 100"},
		{"too many", map[string]string{etc: "keep = 101"}, 0, 0, "want 0 to 100"},
		{"no TOML", map[string]string{etc: "keep"}, 0, 0, etc},
		{"too long", map[string]string{etc: strings.Repeat("#", 65<<10)}, 0, 0, "at most 65536"},
		{"leads nowhere", map[string]string{etc: "-> missing"}, 0, 0, etc},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for name, text := range tc.files {
				path := filepath.Join(root, name)
				must(t, os.MkdirAll(filepath.Dir(path), 0o755))
				if target, ok := strings.CutPrefix(text, "-> "); ok {
					must(t, os.Symlink(target, path))
				} else {
					must(t, os.WriteFile(path, []byte(text), 0o600))
				}
			}
			c, unknown, err := deploy.ReadConfig(root)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("got %v, want %q", err, tc.fails)
				}
				return
			}
			if err != nil || c.Keep != tc.keep || len(unknown) != tc.unknown || slices.Contains(unknown, "") {
				t.Errorf("got %+v, %q, %v, want keep = %d", c, unknown, err, tc.keep)
			}
		})
	}
}

// TestConfigIsTold: a configuration that cannot be used is one refusal where it
// decides, and a problem in the status; a word that is misspelled is a problem.
func TestConfigIsTold(t *testing.T) {
	for text, want := range map[string]string{
		"keep = -1\n": "want 0 to 100", "keep = \"x\"\n": "keep", "nonsense": "unexpected EOF", "keep = 100000000000000000000\n": "keep", "keeep = 3\n": "unknown key", "keep = 3\n": "",
	} {
		w := newWorld(t)
		w.releases(release(t, "1"), release(t, "2"))
		w.configure(text)
		broken := want != "" && want != "unknown key"
		got := w.told(deploy.ProblemConfig)
		if (want == "") != (len(got) == 0) || want != "" && (len(got) != 1 || !strings.Contains(got[0], want) || !strings.Contains(got[0], "cfsboot.toml")) {
			t.Errorf("%q: status says %q, want %q", text, got, want)
		}
		_, err := deploy.GC(t.Context(), deploy.GCOptions{Options: w.options(), Keep: -1})
		if broken != refusedFor(deploy.CodeConfig)(err) || !broken && err != nil {
			t.Errorf("%q: gc: %v", text, err)
		}
		c, err := w.upgrade(release(t, "3"))
		must(t, err)
		if broken != (len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "cfsboot.toml")) {
			t.Errorf("%q: upgrade warns %q", text, c.Warnings)
		}
	}
}
