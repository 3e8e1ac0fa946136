package disk_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/install/disk"
	"github.com/cfsboot/cfsboot/internal/durable"
)

const mib, gib = int64(1) << 20, int64(1) << 30

func TestMakePlan(t *testing.T) {
	for name, c := range map[string]struct {
		disk disk.Disk
		o    disk.Options
		want disk.Plan
	}{
		"large": {
			disk.Disk{Size: 100 * gib, Sector: 512}, disk.Options{Arch: "amd64"},
			disk.Plan{ESPSize: gib, RootSize: 99*gib - 2*mib, RootType: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", Cluster: 4096, Sector: 512, Destroys: []string{}},
		},
		"small": {
			disk.Disk{Size: 4*gib + 12345, Sector: 512}, disk.Options{Arch: "arm64"},
			disk.Plan{ESPSize: 512 * mib, RootSize: 4*gib - 514*mib, RootType: "b921b045-1df0-41c3-af44-4c6f280d3fae", Cluster: 4096, Sector: 512, Destroys: []string{}},
		},
		"smallest": {
			disk.Disk{Size: 128*mib + disk.MinRoot + 2*mib, Sector: 512}, disk.Options{Arch: "amd64"},
			disk.Plan{ESPSize: 128 * mib, RootSize: disk.MinRoot, RootType: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", Cluster: 1024, Sector: 512, Destroys: []string{}},
		},
		"large sectors": {
			disk.Disk{Size: 100 * gib, Sector: 4096}, disk.Options{Arch: "amd64", ESPSize: 300 * mib},
			disk.Plan{ESPSize: 300 * mib, RootSize: 100*gib - 302*mib, RootType: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", Cluster: 4096, Sector: 4096, Destroys: []string{}},
		},
		"wipe": {
			disk.Disk{Size: 4 * gib, Sector: 512, Signatures: []disk.Signature{{Type: "xfs", Label: "data"}}}, disk.Options{Arch: "amd64", Wipe: true},
			disk.Plan{ESPSize: 512 * mib, RootSize: 4*gib - 514*mib, RootType: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", Cluster: 4096, Sector: 512, Destroys: []string{`xfs "data" on the whole disk`}},
		},
	} {
		got, err := disk.MakePlan(c.disk, c.o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(&c.want, got); d != "" {
			t.Errorf("%s: mismatch (-want +got):\n%s", name, d)
		}
	}
}

// used is a disk with everything.
var used = disk.Disk{
	Path: "/dev/sda", Size: 4 * gib, Sector: 512,
	Signatures: []disk.Signature{{Type: "gpt"}, {Type: "gpt"}, {Type: "PMBR"}},
	Partitions: []disk.Partition{
		{Number: 1, Size: 192 * mib, Name: "EFI-SYSTEM", Signatures: []disk.Signature{{Type: "vfat", Label: "ESP"}, {Type: "vfat", Label: "ESP"}}},
		{Number: 2, Size: 3 * gib, Name: "root", Signatures: []disk.Signature{{Type: "ext4", Label: "root"}}},
		{Number: 5, Size: mib},
	},
}

func TestMakePlanRefuses(t *testing.T) {
	with := func(change func(*disk.Disk)) disk.Disk {
		d := used
		d.Partitions = slices.Clone(d.Partitions)
		change(&d)
		return d
	}
	text := func(want string) func(error) bool {
		return func(err error) bool { return err.Error() == want }
	}
	const contents = `gpt partition table on the whole disk; partition 1 "EFI-SYSTEM" of 192 MiB with vfat "ESP"; partition 2 "root" of 3072 MiB with ext4 "root"; partition 5 of 1 MiB`
	wipe := disk.Options{Arch: "amd64", Wipe: true}
	for name, c := range map[string]struct {
		disk  disk.Disk
		o     disk.Options
		check func(error) bool
	}{
		"not empty": {used, disk.Options{Arch: "amd64"}, text(`disk "/dev/sda" is not empty; --wipe destroys: ` + contents)},
		"incomplete": {
			with(func(d *disk.Disk) { d.Partitions[1].Name = disk.IncompleteName }), disk.Options{Arch: "amd64"},
			text(`disk "/dev/sda" holds an installation that was interrupted and is incomplete; --wipe starts over and destroys: ` + strings.Replace(contents, `"root" of`, `"cfsboot-incomplete" of`, 1)),
		},
		"in use": {
			with(func(d *disk.Disk) {
				d.InUse = []string{`/dev/sda2 is mounted at "/"`, "/dev/sda5 is swap space"}
			}), wipe,
			text(`disk "/dev/sda" is in use: /dev/sda2 is mounted at "/"; /dev/sda5 is swap space`),
		},
		"read-only": {with(func(d *disk.Disk) { d.ReadOnly = true }), wipe, text(`target "/dev/sda": the disk is read-only`)},
		"too small": {with(func(d *disk.Disk) { d.Size = 300 * mib }), wipe, func(err error) bool {
			var space *durable.SpaceError
			return errors.As(err, &space) && space.Need == 386*mib && space.Have == 300*mib && space.Where == "/dev/sda"
		}},
		"empty": {with(func(d *disk.Disk) { d.Size = 0 }), wipe, func(err error) bool {
			var space *durable.SpaceError
			return errors.As(err, &space)
		}},
		"sectors":   {with(func(d *disk.Disk) { d.Sector = 8192 }), wipe, text(`target "/dev/sda": sectors of 8192 bytes, want 512 to 4096`)},
		"ESP":       {used, disk.Options{Arch: "amd64", Wipe: true, ESPSize: 32 * mib}, text(`target "/dev/sda": EFI system partition of 32 MiB, want at least 33 MiB (FAT32 with sectors of 512 bytes)`)},
		"odd ESP":   {used, disk.Options{Arch: "amd64", Wipe: true, ESPSize: 64*mib + 1}, text(`target "/dev/sda": EFI system partition of 67108865 bytes, want whole MiB`)},
		"large ESP": {used, disk.Options{Arch: "amd64", Wipe: true, ESPSize: 4 * gib}, func(err error) bool { return strings.HasPrefix(err.Error(), "disk too small") }},
		"arch": {used, disk.Options{Arch: "riscv64", Wipe: true}, func(err error) bool {
			var arch *install.ArchError
			return errors.As(err, &arch)
		}},
	} {
		if plan, err := disk.MakePlan(c.disk, c.o); err == nil || !c.check(err) {
			t.Errorf("%s: got %+v, %v", name, plan, err)
		}
	}
}

// TestPlanOracle lets sfdisk and mkfs.vfat read what a plan says.
func TestPlanOracle(t *testing.T) {
	tools := disk.Programs{}
	if err := disk.CheckTools(tools); err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	for _, size := range []int64{33, 64, 128, 192, 256, 300, 512, 1024} {
		path := filepath.Join(t.TempDir(), "disk")
		plan, err := disk.MakePlan(disk.Disk{Path: path, Size: 4*gib + 4711, Sector: 512}, disk.Options{Arch: "amd64", ESPSize: size * mib})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 4*gib+4711); err != nil {
			t.Fatal(err)
		}
		if _, err := tools.Run(t.Context(), plan.Script(), "sfdisk", "-q", path); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		parts, err := esp.ReadGPT(f, 512)
		if err != nil {
			t.Fatal(err)
		}
		boot, root, err := plan.Check(parts)
		if err != nil || boot.Start != mib || boot.Name != disk.ESPName || root.Name != disk.IncompleteName {
			t.Errorf("%d MiB: %+v, %v", size, parts, err)
		}
		fat := filepath.Join(t.TempDir(), "fat")
		if err := os.WriteFile(fat, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(fat, size*mib); err != nil {
			t.Fatal(err)
		}
		c := plan.MakeESP(fat)
		out, err := exec.CommandContext(t.Context(), c[0], c[1:]...).CombinedOutput()
		if err != nil || bytes.Contains(out, []byte("WARNING")) {
			t.Errorf("%q: %v\n%s", c, err, out)
		}
		g, err := os.Open(fat)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		b := make([]byte, 512)
		if _, err := g.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		// BPB_BytsPerSec, BPB_SecPerClus, and the clusters that make it FAT32.
		if got := int64(binary.LittleEndian.Uint16(b[11:])) * int64(b[13]); got != plan.Cluster {
			t.Errorf("%d MiB: clusters of %d bytes, want %d", size, got, plan.Cluster)
		}
		tables := int64(b[16]) * int64(binary.LittleEndian.Uint32(b[36:])) * 512
		if clusters := (size*mib - tables - 32*512) / plan.Cluster; clusters < 65525 {
			t.Errorf("%d MiB: %d clusters, want 65525 at least", size, clusters)
		}
	}
}

// brokenTools has an sfdisk that writes something, or not, and fails.
type brokenTools struct {
	disk.Programs
	write string
	err   error
	ran   bool
}

func (b *brokenTools) Run(_ context.Context, _, name string, args ...string) ([]byte, error) {
	b.ran = true
	if b.write != "" {
		f, err := os.OpenFile(args[len(args)-1], os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(b.write), 512); err != nil {
			return nil, err
		}
	}
	return nil, b.err
}

// TestDivideUntouched: only what fails after the first write has written.
func TestDivideUntouched(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx       context.Context
		tools     brokenTools
		untouched bool
		runs      bool
	}{
		"cannot be started": {t.Context(), brokenTools{err: exec.ErrNotFound}, true, true},
		"refuses":           {t.Context(), brokenTools{err: errors.New("exit status 1")}, true, true},
		"cancelled before":  {cancelled, brokenTools{write: "EFI PART"}, true, false},
		"has written":       {t.Context(), brokenTools{write: "EFI PART", err: errors.New("exit status 1")}, false, true},
		"killed":            {t.Context(), brokenTools{write: "EFI PART", err: context.Canceled}, false, true},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 4*gib); err != nil {
			t.Fatal(err)
		}
		plan, err := disk.MakePlan(disk.Disk{Path: path, Size: 4 * gib, Sector: 512}, disk.Options{Arch: "amd64"})
		if err != nil {
			t.Fatal(err)
		}
		f, err := disk.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		_, err = plan.Divide(c.ctx, &c.tools, f)
		want := c.tools.err
		if c.ctx == cancelled {
			want = context.Canceled
		}
		untouched, is := errors.AsType[*disk.UntouchedError](err)
		if !errors.Is(err, want) || is != c.untouched || c.tools.ran != c.runs {
			t.Errorf("%s: got %v, sfdisk ran: %v", name, err, c.tools.ran)
		}
		if is && (untouched.Path != path || !strings.HasPrefix(err.Error(), "nothing was written to "+path+": ")) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestPlanCheckRefuses(t *testing.T) {
	plan, err := disk.MakePlan(disk.Disk{Path: "x", Size: 4 * gib, Sector: 512}, disk.Options{Arch: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	good := []esp.Partition{{Number: 1, Type: esp.TypeESP, Size: plan.ESPSize}, {Number: 2, Type: plan.RootType, Size: plan.RootSize}}
	if _, _, err := plan.Check(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]esp.Partition) []esp.Partition{
		"one":    func(p []esp.Partition) []esp.Partition { return p[:1] },
		"type":   func(p []esp.Partition) []esp.Partition { p[1].Type = esp.TypeXBOOTLDR; return p },
		"size":   func(p []esp.Partition) []esp.Partition { p[0].Size--; return p },
		"number": func(p []esp.Partition) []esp.Partition { p[1].Number = 3; return p },
	} {
		var te *install.TargetError
		if _, _, err := plan.Check(change(slices.Clone(good))); !errors.As(err, &te) {
			t.Errorf("%s: got %v, want a TargetError", name, err)
		}
	}
}

func TestCommands(t *testing.T) {
	p := &disk.Plan{Sector: 512, Cluster: 2048}
	if got := strings.Join(p.MakeESP("/dev/sda1"), " "); got != "mkfs.vfat -F 32 -S 512 -s 4 -n ESP /dev/sda1" {
		t.Error(got)
	}
	if got := strings.Join(p.MakeRoot("/dev/sda2"), " "); got != "mkfs.ext4 -q -b 4096 -L root -O verity /dev/sda2" {
		t.Error(got)
	}
	p.NoVerity = true
	if got := strings.Join(p.MakeRoot("/dev/sda2"), " "); got != "mkfs.ext4 -q -b 4096 -L root /dev/sda2" {
		t.Error(got)
	}
}

type missing struct{ disk.Programs }

func (missing) Find(name string) error {
	if name == "sfdisk" || name == "mkfs.vfat" {
		return exec.ErrNotFound
	}
	return nil
}

func TestCheckTools(t *testing.T) {
	err := disk.CheckTools(missing{})
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "sfdisk (Debian's package fdisk)") || !strings.Contains(err.Error(), "mkfs.vfat (Debian's package dosfstools)") {
		t.Errorf("got %v", err)
	}
}

func TestProgramsRun(t *testing.T) {
	out, err := disk.Programs{}.Run(t.Context(), "text", "cat")
	if err != nil || string(out) != "text" {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := (disk.Programs{}).Run(t.Context(), "", "sh", "-c", "echo reason\necho more >&2; exit 3"); err == nil || !strings.HasSuffix(err.Error(), "exit status 3: more") {
		t.Errorf("got %v", err)
	}
	if _, err := (disk.Programs{}).Run(t.Context(), "", "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (disk.Programs{}).Run(ctx, "", "cat"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
