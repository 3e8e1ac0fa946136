package disk

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// Names of the partitions that are made. A root partition is called
// IncompleteName until the installation on it is complete, so that one that was
// interrupted is recognised wherever it was interrupted.
const (
	ESPName        = "EFI-SYSTEM"
	RootName       = "root"
	IncompleteName = "cfsboot-incomplete"
)

// rootTypes are the partition types of the root file system (UAPI.2, Discoverable
// Partitions), by Go's names of architectures.
var rootTypes = map[string]string{
	"amd64": "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
	"arm64": "b921b045-1df0-41c3-af44-4c6f280d3fae",
}

// Sizes in bytes.
const (
	mib = 1 << 20
	gib = 1 << 30

	alignment = mib // of partitions, and what both ends of the disk keep for the tables

	// MinRoot is the smallest root partition that is made. Whether the image fits
	// is found out later.
	MinRoot = 256 * mib
	// maxDefaultESP is the size of the ESP on a disk that is not small (boot.md 4.6).
	maxDefaultESP = gib
	minDefaultESP = 128 * mib
)

// minFATClusters is how many clusters FAT32 has at least, with room for what the
// tables take.
const minFATClusters = 65525 + 1024

// Signature is something that was recognised on a disk or a partition.
type Signature struct {
	Type  string // in the words of libblkid: "gpt", "ext4", "vfat", "LVM2_member"
	Label string // may be empty
}

// Partition is a partition that is on a disk before the installation.
type Partition struct {
	Number     int
	Size       int64  // bytes
	Name       string // in the partition table, may be empty
	Signatures []Signature
}

// Disk is what is known of a disk that is to be installed to.
type Disk struct {
	Path     string
	Regular  bool  // a file, not a device
	Size     int64 // bytes
	Sector   int64 // bytes of a logical sector
	ReadOnly bool
	// InUse says by whom the disk or a part of it is used: "/dev/sda2 is mounted at /".
	InUse      []string
	Signatures []Signature // of the disk itself: partition table, file system without one
	Partitions []Partition
	Data       bool // a file with data of no known kind
}

// Contents says in words what is on the disk, one string for each thing; nil for
// an empty disk.
func (d Disk) Contents() []string {
	var out, kinds []string
	for _, s := range d.Signatures {
		if s.Type != "PMBR" { // a part of the GPT
			kinds = appendNew(kinds, describe(s))
		}
	}
	for _, k := range kinds {
		out = append(out, k+" on the whole disk")
	}
	if d.Data {
		out = append(out, "data that is no disk image")
	}
	for _, p := range d.Partitions {
		text := fmt.Sprintf("partition %d", p.Number)
		if p.Name != "" {
			text += fmt.Sprintf(" %q", p.Name)
		}
		text += fmt.Sprintf(" of %d MiB", p.Size/mib)
		var found []string
		for _, s := range p.Signatures {
			found = appendNew(found, describe(s))
		}
		if len(found) > 0 {
			text += " with " + strings.Join(found, ", ")
		}
		out = append(out, text)
	}
	return out
}

func describe(s Signature) string {
	text := s.Type
	switch s.Type {
	case "gpt", "dos":
		text += " partition table"
	}
	if s.Label != "" {
		text += fmt.Sprintf(" %q", s.Label)
	}
	return text
}

func appendNew(list []string, s string) []string {
	for _, x := range list {
		if x == s {
			return list
		}
	}
	return append(list, s)
}

// incomplete tells whether the disk holds an installation that was interrupted.
func (d Disk) incomplete() bool {
	for _, p := range d.Partitions {
		if p.Name == IncompleteName {
			return true
		}
	}
	return false
}

// InUseError says that a disk cannot be installed to because somebody uses it.
type InUseError struct {
	Path string
	By   []string // never empty
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("disk %q is in use: %s", e.Path, strings.Join(e.By, "; "))
}

// NotEmptyError says that a disk holds something and that nobody allowed to
// destroy it.
type NotEmptyError struct {
	Path       string
	Contents   []string
	Incomplete bool // it is an installation by cfsboot that was interrupted
}

func (e *NotEmptyError) Error() string {
	list := strings.Join(e.Contents, "; ")
	if e.Incomplete {
		return fmt.Sprintf("disk %q holds an installation that was interrupted and is incomplete; --wipe starts over and destroys: %s", e.Path, list)
	}
	return fmt.Sprintf("disk %q is not empty; --wipe destroys: %s", e.Path, list)
}

// Options say how a disk is to be divided.
type Options struct {
	ESPSize int64  // bytes, a multiple of 1 MiB; 0: as DefaultESPSize says
	Arch    string // of the image, Go's name
	Wipe    bool   // destroy what is there
}

// DefaultESPSize is the size of the ESP on a disk of size bytes: 1 GiB, on a small
// disk an eighth of it, but 128 MiB at least.
func DefaultESPSize(size int64) int64 {
	return min(max(size/8/mib*mib, minDefaultESP), maxDefaultESP)
}

// Plan is how a disk is going to be divided and formatted.
type Plan struct {
	Path     string
	ESPSize  int64  // bytes
	RootSize int64  // bytes, about: sfdisk rounds it down
	RootType string // partition type, lower case
	Cluster  int64  // bytes of a cluster of the ESP's file system
	Sector   int64  // bytes
	// NoVerity makes a file system without fs-verity, for a kernel without it. The
	// caller sets it.
	NoVerity bool
	Destroys []string // what is lost, as Disk.Contents; never nil
}

// MakePlan decides how a disk is divided, or refuses it: *InUseError, whatever is
// allowed; *NotEmptyError without Options.Wipe; *durable.SpaceError if it is
// too small; *install.ArchError; *install.TargetError otherwise. Nothing is changed.
func MakePlan(d Disk, o Options) (*Plan, error) {
	rootType, ok := rootTypes[o.Arch]
	switch {
	case !ok:
		return nil, &install.ArchError{Arch: o.Arch}
	case d.ReadOnly:
		return nil, &install.TargetError{Path: d.Path, Detail: "the disk is read-only"}
	case d.Sector < 512 || d.Sector > 4096 || d.Sector&(d.Sector-1) != 0:
		return nil, &install.TargetError{Path: d.Path, Detail: fmt.Sprintf("sectors of %d bytes, want 512 to 4096", d.Sector)}
	case len(d.InUse) > 0:
		return nil, &InUseError{d.Path, d.InUse}
	}
	size := o.ESPSize
	if size == 0 {
		size = DefaultESPSize(d.Size)
	}
	minESP := (minFATClusters*d.Sector + mib - 1) / mib * mib
	switch {
	case size%mib != 0 || size < 0:
		return nil, &install.TargetError{Path: d.Path, Detail: fmt.Sprintf("EFI system partition of %d bytes, want whole MiB", size)}
	case size < minESP:
		return nil, &install.TargetError{Path: d.Path, Detail: fmt.Sprintf("EFI system partition of %d MiB, want at least %d MiB (FAT32 with sectors of %d bytes)", size/mib, minESP/mib, d.Sector)}
	}
	if need := size + MinRoot + 2*alignment; d.Size < need {
		return nil, fmt.Errorf("disk too small for an EFI system partition of %d MiB and a root of %d MiB: %w", size/mib, int64(MinRoot/mib),
			&durable.SpaceError{Where: d.Path, Need: need, Have: d.Size, Err: unix.ENOSPC})
	}
	contents := d.Contents()
	if len(contents) > 0 && !o.Wipe {
		return nil, &NotEmptyError{d.Path, contents, d.incomplete()}
	}
	if contents == nil {
		contents = []string{}
	}
	return &Plan{
		Path: d.Path, ESPSize: size, RootSize: (d.Size - size - 2*alignment) / mib * mib, RootType: rootType,
		Cluster: clusterSize(size, d.Sector), Sector: d.Sector, Destroys: contents,
	}, nil
}

// clusterSize returns how large the clusters of an ESP are: as large as FAT32
// allows, up to 4 KiB. Its tables are read at each check of the file system, and
// with the smallest clusters they are eight times as large.
func clusterSize(size, sector int64) int64 {
	c := sector
	for c < 4096 && size/(c*2) >= minFATClusters {
		c *= 2
	}
	return c
}

// Script is what sfdisk reads: a new GPT with the ESP first and the root last, so
// that it can grow. The identifiers are random.
func (p *Plan) Script() string {
	return fmt.Sprintf("label: gpt\nstart=%dKiB, size=%dKiB, type=%s, name=%q\nstart=%dKiB, size=%dKiB, type=%s, name=%q\n",
		alignment>>10, p.ESPSize>>10, strings.ToUpper(esp.TypeESP), ESPName,
		(alignment+p.ESPSize)>>10, p.RootSize>>10, strings.ToUpper(p.RootType), IncompleteName)
}

// MakeESP is the command that formats the device of the ESP.
func (p *Plan) MakeESP(device string) []string {
	return []string{"mkfs.vfat", "-F", "32", "-S", fmt.Sprint(p.Sector), "-s", fmt.Sprint(p.Cluster / p.Sector), "-n", "ESP", device}
}

// MakeRoot is the command that formats the device of the root file system. The
// blocks have 4 KiB whatever the size of the disk: fs-verity needs them.
func (p *Plan) MakeRoot(device string) []string {
	args := []string{"mkfs.ext4", "-q", "-b", "4096", "-L", RootName}
	if !p.NoVerity {
		args = append(args, "-O", "verity")
	}
	return append(args, device)
}

// Check compares the partition table of a disk with the plan and returns both
// partitions.
func (p *Plan) Check(parts []esp.Partition) (boot, root esp.Partition, err error) {
	if len(parts) != 2 {
		return boot, root, &install.TargetError{Path: p.Path, Detail: fmt.Sprintf("%d partitions after it was divided, want 2", len(parts))}
	}
	boot, root = parts[0], parts[1]
	var errs []error
	for i, want := range []struct {
		kind string
		size int64
	}{{esp.TypeESP, p.ESPSize}, {p.RootType, p.RootSize}} {
		if got := parts[i]; got.Type != want.kind || got.Size != want.size || got.Number != i+1 {
			errs = append(errs, &install.TargetError{Path: p.Path, Detail: fmt.Sprintf("partition %d has type %s and %d bytes after it was divided, want partition %d, %s and %d bytes", got.Number, got.Type, got.Size, i+1, want.kind, want.size)})
		}
	}
	return boot, root, errors.Join(errs...)
}
