package disk_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/install/disk"
)

// wipefs answers for devices by their base name.
type wipefs map[string]string

func (wipefs) Find(string) error { return nil }

func (w wipefs) Run(_ context.Context, _ string, name string, args ...string) ([]byte, error) {
	device := filepath.Base(args[len(args)-1])
	out, ok := w[device]
	if name != "wipefs" || args[0] != "--no-act" || !ok {
		return nil, errors.New("unexpected " + name + " " + strings.Join(args, " "))
	}
	return []byte(out), nil
}

func TestParseWipefs(t *testing.T) {
	got, err := disk.ParseWipefs([]byte(`{"signatures": [
      {"device":"a", "offset":"0x438", "type":"ext4", "uuid":"b0", "label":null},
      {"device":"a", "offset":"0x0", "type":"vfat", "uuid":null, "label":"ESP"},
      {"device":"a", "offset":"0x0", "type":null}]}`))
	want := []disk.Signature{{Type: "ext4"}, {Type: "vfat", Label: "ESP"}, {Type: "something unknown"}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v, mismatch (-want +got):\n%s", err, d)
	}
	for _, empty := range []string{"", "\n", `{"signatures": [ ]}`} {
		if got, err := disk.ParseWipefs([]byte(empty)); err != nil || len(got) > 0 {
			t.Errorf("%q: got %v, %v", empty, got, err)
		}
	}
	for _, bad := range []string{"{", `{"signatures": 3}`, `{}`, `[]`, "DEVICE OFFSET"} {
		if got, err := disk.ParseWipefs([]byte(bad)); err == nil {
			t.Errorf("%q: got %v", bad, got)
		}
	}
}

func FuzzParseWipefs(f *testing.F) {
	f.Add([]byte(`{"signatures": [{"type":"ext4","label":null}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := disk.ParseWipefs(b)
		if err != nil && list != nil {
			t.Error("a list and an error")
		}
		for _, s := range list {
			if s.Type == "" {
				t.Error("a signature without type")
			}
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "directory", fifo: "fifo", os.DevNull: "character device"} {
		var te *install.TargetError
		f, err := disk.Open(path)
		if !errors.As(err, &te) || !strings.Contains(err.Error(), "it is a "+want+", want a block device or a regular file") {
			t.Errorf("%s: got %v, %v", path, f, err)
		}
	}
	if _, err := disk.Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestProbeFile: a file with a partition table, an empty one, one with text, and
// one that is attached to a loop device.
func TestProbeFile(t *testing.T) {
	root := t.TempDir()
	p := disk.Prober{Root: root, Tools: wipefs{"empty": "", "text": "", "full": `{"signatures": [{"type":"iso9660","label":"CD"}]}`}}
	write := func(name, text string) string {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(name, "sys") {
			if err := os.Truncate(path, 2<<20); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	empty, text, full := write("empty", ""), write("text", "text"), write("full", "x")
	write("sys/class/block/loop3/loop/backing_file", full+"\n")
	write("sys/class/block/loop4/loop/backing_file", root+"/gone (deleted)\n")
	for path, want := range map[string]disk.Disk{
		empty: {},
		text:  {Data: true},
		full:  {Signatures: []disk.Signature{{Type: "iso9660", Label: "CD"}}, InUse: []string{"it is attached to /dev/loop3"}},
	} {
		want.Path, want.Regular, want.Size, want.Sector = path, true, 2<<20, 512
		f, err := disk.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := p.Probe(t.Context(), f)
		if d := cmp.Diff(want, got); err != nil || d != "" {
			t.Errorf("%s: %v, mismatch (-want +got):\n%s", path, err, d)
		}
	}
	f, err := disk.Open(write("unknown", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if d, err := p.Probe(t.Context(), f); err == nil { // no wipefs, no answer
		t.Errorf("got %+v", d)
	}
}

// TestProbeFileData: data is found wherever it lies in a file; zeros are none,
// whether they take space or not.
func TestProbeFileData(t *testing.T) {
	const size = 32 << 20
	for name, c := range map[string]struct {
		at    int64
		bytes []byte
		want  bool
	}{
		"zeros at the beginning": {0, make([]byte, 100), false},
		"zeros behind":           {5 << 20, make([]byte, 3<<20), false},
		"in the first MiB":       {1<<20 - 1, []byte{1}, true},
		"behind it":              {1 << 20, []byte{1}, true},
		"after zeros":            {5 << 20, append(make([]byte, 3<<20), 1), true},
		"last byte":              {size - 1, []byte{1}, true},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(c.bytes, c.at); err != nil {
			t.Fatal(err)
		}
		got, err := disk.Prober{Root: t.TempDir(), Tools: wipefs{"disk": ""}}.Probe(t.Context(), f)
		if err != nil || got.Data != c.want {
			t.Errorf("%s: got %+v, %v", name, got, err)
		}
	}
}

// TestProbeDevice: what sysfs, the mount table and the swap table say of a disk.
func TestProbeDevice(t *testing.T) {
	device := blockNode(t)
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	number := device7(st.Rdev)
	write("sys/devices/disk/dev", number)
	write("sys/devices/disk/size", "2097152")
	write("sys/devices/disk/ro", "1")
	write("sys/devices/disk/queue/logical_block_size", "512")
	write("sys/devices/disk/holders/dm-1", "")
	write("sys/devices/disk/disk1/partition", "1")
	write("sys/devices/disk/disk1/size", "2048")
	write("sys/devices/disk/disk1/dev", "8:1")
	write("sys/devices/disk/disk2/partition", "2")
	write("sys/devices/disk/disk2/size", "4096")
	write("sys/devices/disk/disk2/dev", "8:2")
	write("sys/devices/disk/disk2/holders/md0", "")
	write("proc/swaps", "Filename Type Size Used Priority\n/dev/none partition 1 0 -2\n/swapfile file 1 0 -3")
	write("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/x rw\n2 0 8:1 /a /mnt\\040a rw - ext4 /dev/x rw\n3 0 9:1 / /other rw - ext4 /dev/y rw")
	if err := os.MkdirAll(filepath.Join(root, "sys/dev/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../devices/disk", filepath.Join(root, "sys/dev/block", number)); err != nil {
		t.Fatal(err)
	}
	f, err := disk.Open(device)
	if err != nil {
		t.Skip(err) // no such device behind the node
	}
	defer f.Close()
	p := disk.Prober{Root: root, Tools: wipefs{filepath.Base(device): `{"signatures": [{"type":"dos"}]}`, "disk1": `{"signatures": [{"type":"LVM2_member"}]}`, "disk2": ""}}
	got, err := p.Probe(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	want := disk.Disk{
		Path: device, Size: 1 << 30, Sector: 512, ReadOnly: true, Signatures: []disk.Signature{{Type: "dos"}},
		InUse: []string{device + " is part of /dev/dm-1", root + `/dev/disk1 is mounted at "/"`, root + `/dev/disk1 is mounted at "/mnt a"`, root + "/dev/disk2 is part of /dev/md0"},
		Partitions: []disk.Partition{
			{Number: 1, Size: 1 << 20, Signatures: []disk.Signature{{Type: "LVM2_member"}}},
			{Number: 2, Size: 2 << 20},
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("mismatch (-want +got):\n%s", d)
	}
	delete(p.Tools.(wipefs), "disk2")
	if got, err := p.Probe(t.Context(), f); err != nil || got.Partitions[1].Signatures[0].Type != "something that cannot be read" {
		t.Errorf("a partition that wipefs fails at: %+v, %v", got.Partitions, err)
	}
	write("sys/devices/disk/partition", "1")
	var te *install.TargetError
	if _, err := p.Probe(t.Context(), f); !errors.As(err, &te) || !strings.Contains(err.Error(), "it is a partition of devices, want a whole disk") {
		t.Errorf("got %v", err)
	}
}

// blockNode makes the node of a loop device, which can be opened without being
// attached to anything.
func blockNode(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 7))); err != nil {
		t.Skipf("device nodes need root: %v", err)
	}
	return path
}

func device7(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}
