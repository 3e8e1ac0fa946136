package debian

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

func TestCheckConfigFindsLostOptions(t *testing.T) {
	made := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(made, []byte(uml.Fragment), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := checkConfig(made); err != nil {
		t.Errorf("everything taken: %v", err)
	}
	without := strings.Replace(uml.Fragment, "CONFIG_FS_VERITY=y\n", "# CONFIG_FS_VERITY is not set\n", 1)
	if err := os.WriteFile(made, []byte(without), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := checkConfig(made); err == nil || !strings.Contains(err.Error(), "CONFIG_FS_VERITY=y") {
		t.Errorf("got %v, want the lost option", err)
	}
}

// TestVMSetup looks at what "lab setup" left.
func TestVMSetup(t *testing.T) {
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("needs the lab's cache: CFSBOOT_VM_TESTS is not 1")
	}
	missing, err := MissingHostPackages(t.Context())
	if err != nil || len(missing) > 0 {
		t.Errorf("missing packages %q, error %v", missing, err)
	}
	s, err := FindSources(t.Context())
	if err != nil || s.Main == "" || strings.HasSuffix(s.Main, "/") {
		t.Errorf("sources %+v, error %v", s, err)
	}
	kernel, err := uml.FindKernel()
	if err != nil {
		t.Fatal(err)
	}
	version, err := os.ReadFile(filepath.Join(filepath.Dir(kernel), "version"))
	if err != nil || !strings.HasPrefix(string(version), kernelSource+"_") {
		t.Errorf("kernel of %q, error %v", version, err)
	}
}
