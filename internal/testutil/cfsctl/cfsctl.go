// Package cfsctl finds the program of composefs-rs, the peer that tests compare with.
package cfsctl

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const missing = "cfsctl is neither in PATH nor in ~/.cache/cfsboot/cfsctl/bin"

// Lookup returns the path of the program, "" if it is not there. With
// CFSBOOT_REQUIRE_CFSCTL=1 the test fails then.
func Lookup(t testing.TB) string {
	t.Helper()
	home, _ := os.UserHomeDir()
	for _, name := range []string{"cfsctl", filepath.Join(home, ".cache/cfsboot/cfsctl/bin/cfsctl")} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CFSBOOT_REQUIRE_CFSCTL") == "1" {
		t.Fatal(missing + ", and is required")
	}
	return ""
}

// Find is Lookup, and skips the test if the program is not there.
func Find(t testing.TB) string {
	t.Helper()
	path := Lookup(t)
	if path == "" {
		t.Skip(missing)
	}
	return path
}
