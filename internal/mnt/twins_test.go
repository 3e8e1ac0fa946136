package mnt_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/internal/mnt"
)

func TestTwins(t *testing.T) {
	const uuid = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	device := func(root, dev, name, props string, holders ...string) {
		t.Helper()
		write := func(path, text string) {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		write("run/udev/data/b"+dev, "S:disk/by-id/x\nI:123\n"+props)
		if name == "" {
			return // unplugged, and udev has not noticed yet
		}
		write("sys/devices/"+name+"/dev", dev+"\n")
		for _, h := range holders {
			write("sys/devices/"+name+"/holders/"+h, "")
		}
		if err := os.MkdirAll(filepath.Join(root, "sys/dev/block"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("../../devices/"+name, filepath.Join(root, "sys/dev/block", dev)); err != nil {
			t.Fatal(err)
		}
	}
	fs := "E:ID_FS_UUID=" + uuid + "\nE:ID_FS_USAGE=filesystem\n"
	for _, tc := range []struct {
		name    string
		prepare func(root string)
		want    []string
	}{
		{"nothing known", func(string) {}, nil},
		{"alone", func(root string) {
			device(root, "254:2", "vda2", fs)
			device(root, "254:1", "vda1", "E:ID_FS_UUID=0B1C-2D3E\nE:ID_FS_USAGE=filesystem\n")
		}, nil},
		{"copies", func(root string) {
			device(root, "254:2", "vda2", fs)
			device(root, "8:18", "sdb2", fs)
			device(root, "8:2", "sda2", fs)
		}, []string{"vda2", "sda2", "sdb2"}},
		{"array", func(root string) {
			device(root, "254:2", "dm-0", fs)
			device(root, "8:2", "sda2", fs, "dm-0")
			device(root, "8:18", "sdb2", strings.ReplaceAll(fs, "filesystem", "raid"))
		}, nil},
		{"unplugged", func(root string) {
			device(root, "254:2", "vda2", fs)
			device(root, "8:2", "", fs)
		}, nil},
		{"without file system", func(root string) {
			device(root, "254:2", "vda2", "E:ID_PART_ENTRY_NUMBER=2\n")
			device(root, "8:2", "sda2", "E:ID_PART_ENTRY_NUMBER=2\n")
		}, nil},
		{"not udev's", func(root string) {
			device(root, "254:2", "vda2", fs)
			device(root, "8:2", "sda2", strings.Repeat("E:X=y\n", 20000)+fs)
		}, nil},
	} {
		root := t.TempDir()
		tc.prepare(root)
		if got := mnt.Twins(root, "254:2"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}
