package systemd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestD22UnitsRunHere: no unit waits for a file or a kernel parameter that a machine of cfsboot does not have, as bootc's timer does
// for ostree's marker (lifecycle.md 2.20).
func TestD22UnitsRunHere(t *testing.T) {
	units := 0
	for _, top := range []string{"host", "initramfs"} {
		err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			units++
			for line := range strings.Lines(string(text)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				if !strings.HasPrefix(key, "Condition") && !strings.HasPrefix(key, "Assert") {
					continue
				}
				if strings.Contains(value, "ostree") || key == "ConditionKernelCommandLine" {
					t.Errorf("%s: %s", path, strings.TrimSpace(line))
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if units < 5 {
		t.Errorf("only %d units were looked at", units)
	}
}
