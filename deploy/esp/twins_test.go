package esp_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

func TestCheckTwins(t *testing.T) {
	root := t.TempDir()
	table := gptDisk(512)
	fakeDisk(t, root, "vda", 254, []int{1, 3}, table)
	fakeDisk(t, root, "sdb", 8, []int{1}, make([]byte, 4096)) // no partition table
	fakeDisk(t, root, "loop0", 7, nil, table)                 // a file
	fakeDisk(t, root, "sdc", 9, nil, table)                   // half of a mirror
	if err := os.MkdirAll(filepath.Join(root, "sys/devices/virtual/block/sdc/holders/md0"), 0o755); err != nil {
		t.Fatal(err)
	}
	fakeDisk(t, root, "sde", 10, nil, table) // no room for a system
	if err := os.WriteFile(filepath.Join(root, "sys/devices/virtual/block/sde/size"), []byte("8\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dev := range []string{"254:3", "254:0", "1:1", ""} {
		if err := esp.CheckTwins(root, dev); err != nil {
			t.Errorf("root on %q: %v", dev, err)
		}
	}
	fakeDisk(t, root, "vdc", 12, []int{1, 3}, table)
	fakeDisk(t, root, "vdb", 11, []int{1, 3}, table)
	var twins *esp.TwinError
	if err := esp.CheckTwins(root, "254:3"); !errors.As(err, &twins) {
		t.Fatalf("got %v, want a TwinError", err)
	}
	want := &esp.TwinError{Disk: root + "/dev/vda", Twins: []string{root + "/dev/vdb", root + "/dev/vdc"}}
	if d := cmp.Diff(want, twins); d != "" {
		t.Errorf("mismatch (-want +got):\n%s", d)
	}
}
