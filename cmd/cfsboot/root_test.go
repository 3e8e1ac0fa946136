package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestRootRepoInit: on a repository that is secure, --insecure does not claim that it is not. Whether that is a success or a
// conflict, what is printed is true.
func TestRootRepoInit(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs the lab's kernel and file system (CFSBOOT_ROOT_TESTS=1)")
	}
	path := filepath.Join(t.TempDir(), "r")
	for _, flags := range [][]string{nil, {"--insecure"}} {
		status, stdout, stderr := capture(t, append([]string{"repo", "init", "--json", "--repo", path}, flags...)...)
		if status == 0 && !bytes.Contains(stdout, []byte(`"secure": true`)) || status != 0 && (flags == nil || status != 6) {
			t.Errorf("%v: status %d, %s%s", flags, status, stdout, stderr)
		}
	}
}
