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
