package esp_test

import (
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

func TestFileCost(t *testing.T) {
	for _, tc := range []struct{ size, cluster, want int64 }{
		{0, 4096, 0}, {1, 4096, 4096}, {4096, 4096, 4096}, {4097, 4096, 8192},
		{16000000, 4096, 16003072}, {90000000, 4096, 90001408}, {513, 512, 1024},
	} {
		if got := esp.FileCost(tc.size, tc.cluster); got != tc.want {
			t.Errorf("FileCost(%d, %d) = %d, want %d", tc.size, tc.cluster, got, tc.want)
		}
	}
}

func TestNameCost(t *testing.T) {
	for _, tc := range []struct {
		name string
		want int64
	}{
		{strings.Repeat("a", 150), 416},
		{"bootc_composefs-" + strings.Repeat("0", 128), 416},
		{"BOOTX64.EFI", 32}, {"EFI", 32}, {"vmlinuz", 64}, {"Efi", 64}, {"A.B.C", 64}, {"NAME.", 64},
		{strings.Repeat("x", 13), 64}, {strings.Repeat("x", 14), 96},
		{"😀", 64}, {strings.Repeat("😀", 7), 96}, // two units each
	} {
		if got := esp.NameCost(tc.name); got != tc.want {
			t.Errorf("NameCost(%q) = %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestCost(t *testing.T) {
	files := []esp.File{{"cfsboot/ab/vmlinuz", 5000}, {"cfsboot/ab/initrd", 1}}
	// two files: 8192 + 4096; new directories cfsboot and ab, growth of the root: a cluster each
	if got, want := esp.Cost(files, 4096, nil), int64(8192+4096+3*4096); got != want {
		t.Errorf("nothing there: %d, want %d", got, want)
	}
	exists := func(dir string) bool { return dir == "cfsboot" }
	if got, want := esp.Cost(files, 4096, exists), int64(8192+4096+2*4096); got != want {
		t.Errorf("parent there: %d, want %d", got, want)
	}
	if got := esp.Cost(nil, 4096, nil); got != 0 {
		t.Errorf("nothing to place costs %d", got)
	}
}

func TestReserve(t *testing.T) {
	for _, tc := range []struct{ total, want int64 }{
		{1 << 30, 1 << 30 / 100}, {256 << 20, 4 << 20}, {32 << 20, 4 << 20}, {16 << 20, 2 << 20},
	} {
		if got := esp.Reserve(tc.total); got != tc.want {
			t.Errorf("Reserve(%d) = %d, want %d", tc.total, got, tc.want)
		}
	}
}
