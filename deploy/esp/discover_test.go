package esp_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	alone := gptDisk(512)
	copy(alone[1024:], mixedGUID(esp.TypeXBOOTLDR))
	seal(alone, 512)
	fakeDisk(t, root, "sde", 11, []int{1, 3}, alone)
	two := gptDisk(512)
	copy(two[1024+2*128:], mixedGUID(esp.TypeESP))
	seal(two, 512)
	fakeDisk(t, root, "sdf", 12, []int{1, 3}, two)
	for _, tc := range []struct {
		name, rootDev string
		vars          vars
		want          []string // kernel names, the likeliest first
	}{
		{"by type", "254:3", nil, []string{"vda1"}},
		{"by the loader", "254:3", vars{"LoaderDevicePartUUID": "00112233-4455-6677-8899-AABBCCDDEEFF"}, []string{"vda1"}},
		{"loader on another disk", "254:3", vars{"LoaderDevicePartUUID": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"}, []string{"sdc1", "vda1"}},
		{"loader from nowhere", "254:3", vars{"LoaderDevicePartUUID": "bbbbbbbb-bbbb-cccc-dddd-eeeeeeeeeeee"}, []string{"vda1"}},
		{"XBOOTLDR last", "10:1", nil, []string{"sdd1", "sdd3"}},
		{"XBOOTLDR last, known loader", "10:1", vars{"LoaderDevicePartUUID": espUUID}, []string{"sdd1", "sdd3"}},
		{"loader on XBOOTLDR", "10:1", vars{"LoaderDevicePartUUID": "0fc63daf-8483-4772-8e79-3d69d8477de4"}, []string{"sdd3", "sdd1"}},
		{"XBOOTLDR alone", "11:1", nil, []string{"sde1"}},
		{"two ESPs", "12:1", vars{"LoaderDevicePartUUID": "0fc63daf-8483-4772-8e79-3d69d8477de4"}, []string{"sdf3", "sdf1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			list, err := esp.Find(root, tc.vars, tc.rootDev)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, dev := range list {
				got = append(got, filepath.Base(dev.Path))
				number, err := os.ReadFile(filepath.Join(root, "sys/class/block", filepath.Base(dev.Path), "dev"))
				if err != nil || dev.Dev+"\n" != string(number) || dev.Why == "" || filepath.Dir(dev.Path) != filepath.Join(root, "dev") {
					t.Errorf("got %+v, want device number %s", dev, number)
				}
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
	for _, dev := range []string{"8:1", "7:7", "254:0"} {
		if got, err := esp.Find(root, vars{}, dev); !errors.Is(err, esp.ErrNoESP) {
			t.Errorf("root on %s: got %+v, %v, want ErrNoESP", dev, got, err)
		}
	}
}
