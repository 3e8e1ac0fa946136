package esp_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

type vars map[string]string

func (v vars) Loader(name string) (string, error) {
	if s, ok := v[name]; ok {
		return s, nil
	}
	return "", fs.ErrNotExist
}

// fakeDisk lays out sysfs and a device node's content for one disk.
func fakeDisk(t *testing.T, root, disk string, major int, parts []int, table []byte) {
	t.Helper()
	write := func(name, text string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	dir := "sys/devices/virtual/block/" + disk
	write(dir+"/queue/logical_block_size", "512\n")
	write(dir+"/dev", fmt.Sprintf("%d:0\n", major))
	link("../../devices/virtual/block/"+disk, "sys/class/block/"+disk)
	for _, n := range parts {
		name := fmt.Sprintf("%s%d", disk, n)
		write(dir+"/"+name+"/partition", fmt.Sprintf("%d\n", n))
		write(dir+"/"+name+"/dev", fmt.Sprintf("%d:%d\n", major, n))
		link("../../devices/virtual/block/"+disk+"/"+name, fmt.Sprintf("sys/dev/block/%d:%d", major, n))
		link("../../devices/virtual/block/"+disk+"/"+name, "sys/class/block/"+name)
	}
	write("dev/"+disk, string(table))
}

const espUUID = "00112233-4455-6677-8899-aabbccddeeff"

func TestFind(t *testing.T) {
	root := t.TempDir()
	fakeDisk(t, root, "vda", 254, []int{1, 3}, gptDisk(512))
	fakeDisk(t, root, "sdb", 8, []int{1}, make([]byte, 4096)) // no partition table
	other := gptDisk(512)
	copy(other[1024+16:], mixedGUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"))
	seal(other, 512)
	fakeDisk(t, root, "sdc", 9, []int{1, 3}, other)
	xbootldr := gptDisk(512)
	copy(xbootldr[1024+2*128:], mixedGUID(esp.TypeXBOOTLDR))
	seal(xbootldr, 512)
	fakeDisk(t, root, "sdd", 10, []int{1, 3}, xbootldr)
	for _, tc := range []struct {
		name, rootDev string
		vars          vars
		want          string // kernel name
		dev           string
	}{
		{"by type", "254:3", nil, "vda1", "254:1"},
		{"by the loader", "254:3", vars{"LoaderDevicePartUUID": "00112233-4455-6677-8899-AABBCCDDEEFF"}, "vda1", "254:1"},
		{"loader on another disk", "254:3", vars{"LoaderDevicePartUUID": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"}, "sdc1", "9:1"},
		{"loader from nowhere", "254:3", vars{"LoaderDevicePartUUID": "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"}, "vda1", "254:1"},
		{"XBOOTLDR first", "10:1", vars{"LoaderDevicePartUUID": espUUID}, "sdd3", "10:3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := esp.Find(root, tc.vars, tc.rootDev)
			if err != nil {
				t.Fatal(err)
			}
			if got.Path != filepath.Join(root, "dev", tc.want) || got.Dev != tc.dev || got.Why == "" {
				t.Errorf("got %+v, want %s %s", got, tc.want, tc.dev)
			}
		})
	}
	for _, dev := range []string{"8:1", "7:7", "254:0"} {
		if got, err := esp.Find(root, vars{}, dev); !errors.Is(err, esp.ErrNoESP) {
			t.Errorf("root on %s: got %+v, %v, want ErrNoESP", dev, got, err)
		}
	}
}
