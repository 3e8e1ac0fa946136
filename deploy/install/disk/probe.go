package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// Prober finds out what is on a disk and who uses it. Nothing is changed.
type Prober struct {
	Root  string // where /sys and /proc are; "" means "/"
	Tools Tools
}

func (p Prober) path(elem ...string) string {
	return filepath.Join(append([]string{"/", p.Root}, elem...)...)
}

// Open opens the disk at path, a block device or a regular file, for reading.
// Anything else is a *install.TargetError, a path that leads nowhere fs.ErrNotExist.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // a fifo would block
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		if t := st.Mode().Type(); t != 0 && t != os.ModeDevice {
			err = &install.TargetError{Path: path, Detail: fmt.Sprintf("it is a %s, want a block device or a regular file", kindOf(t))}
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func kindOf(t fs.FileMode) string {
	switch {
	case t.IsDir():
		return "directory"
	case t&os.ModeCharDevice != 0:
		return "character device"
	case t&os.ModeNamedPipe != 0:
		return "fifo"
	}
	return "file of type " + t.String()
}

// Probe returns what is known of the open disk. A partition, a device without a
// medium and a broken partition table that cannot be read are *TargetErrors.
func (p Prober) Probe(ctx context.Context, f *os.File) (Disk, error) {
	st, err := f.Stat()
	if err != nil {
		return Disk{}, err
	}
	d := Disk{Path: f.Name(), Regular: st.Mode().IsRegular(), Size: st.Size(), Sector: 512}
	if d.InUse, err = p.loopsOf(st); err != nil {
		return Disk{}, err
	}
	var sys string
	if !d.Regular {
		if sys, err = p.device(f, &d); err != nil {
			return Disk{}, err
		}
	}
	if d.Size == 0 && !d.Regular {
		return Disk{}, &install.TargetError{Path: d.Path, Detail: "the device has no medium, or 0 bytes"}
	}
	if d.Size > 0 {
		if d.Signatures, err = p.signatures(ctx, d.Path); err != nil {
			return Disk{}, err
		}
	}
	names := map[int]string{}
	parts, err := esp.ReadGPT(f, d.Sector)
	var broken *esp.GPTError
	switch {
	case err == nil:
		for _, x := range parts {
			names[x.Number] = x.Name
			if d.Regular {
				d.Partitions = append(d.Partitions, Partition{Number: x.Number, Size: x.Size, Name: x.Name})
			}
		}
	case !errors.As(err, &broken) && !errors.Is(err, io.EOF):
		return Disk{}, err
	}
	if !d.Regular {
		return d, p.partitions(ctx, sys, &d, names)
	}
	if len(d.Signatures) == 0 {
		// An empty disk has no use, a file may be somebody's text.
		if d.Data, err = hasData(ctx, f); err != nil {
			return Disk{}, err
		}
	}
	return d, nil
}

// hasData tells whether something else than zeros is in a file. Holes are not read.
func hasData(ctx context.Context, f *os.File) (bool, error) {
	b := make([]byte, 1<<20)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO): // none up to the end
			return false, nil
		case err == nil:
			at = data
		case !errors.Is(err, unix.EINVAL): // which says that the file system does not know
			return false, &fs.PathError{Op: "seek", Path: f.Name(), Err: err}
		}
		n, err := f.ReadAt(b, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if len(bytes.TrimLeft(b[:n], "\x00")) > 0 {
			return true, nil
		}
		if err != nil {
			return false, nil
		}
		at += int64(n)
	}
}

// device fills in what the kernel says of a block device. It returns its folder
// in sysfs.
func (p Prober) device(f *os.File, d *Disk) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	sys, err := filepath.EvalSymlinks(p.path("sys/dev/block", number))
	if err != nil {
		return "", fmt.Errorf("device %s (%s) in sysfs: %w", d.Path, number, err)
	}
	if _, err := os.Stat(filepath.Join(sys, "partition")); err == nil {
		return "", &install.TargetError{Path: d.Path, Detail: fmt.Sprintf("it is a partition of %s, want a whole disk", filepath.Base(filepath.Dir(sys)))}
	}
	sectors, err := readInt(sys, "size")
	if err != nil {
		return "", err
	}
	d.Size = sectors * 512 // whatever the sectors of the device are
	if d.Sector, err = readInt(sys, "queue/logical_block_size"); err != nil {
		return "", err
	}
	ro, err := readInt(sys, "ro")
	if err != nil {
		return "", err
	}
	d.ReadOnly = ro != 0
	return sys, nil
}

// partitions fills in the kernel's partitions of a disk, and who uses the disk and
// them: file systems, swap, other devices.
func (p Prober) partitions(ctx context.Context, sys string, d *Disk, names map[int]string) error {
	users, err := p.users()
	if err != nil {
		return err
	}
	look := func(dir, device string) error {
		number, err := os.ReadFile(filepath.Join(dir, "dev"))
		if err != nil {
			return err
		}
		for _, by := range users[string(bytes.TrimSpace(number))] {
			d.InUse = append(d.InUse, device+" is "+by)
		}
		holders, err := os.ReadDir(filepath.Join(dir, "holders"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, h := range holders {
			d.InUse = append(d.InUse, device+" is part of /dev/"+h.Name())
		}
		return nil
	}
	if err := look(sys, d.Path); err != nil {
		return err
	}
	list, err := os.ReadDir(sys)
	if err != nil {
		return err
	}
	for _, x := range list {
		dir := filepath.Join(sys, x.Name())
		if _, err := os.Stat(filepath.Join(dir, "partition")); err != nil {
			continue
		}
		n, err := readInt(dir, "partition")
		if err != nil {
			return err
		}
		sectors, err := readInt(dir, "size")
		if err != nil {
			return err
		}
		device := p.path("dev", x.Name())
		part := Partition{Number: int(n), Size: sectors * 512, Name: names[int(n)]}
		if err := look(dir, device); err != nil {
			return err
		}
		if part.Signatures, err = p.signatures(ctx, device); err != nil {
			if ctx.Err() != nil {
				return err
			}
			// An extended partition, a bad sector: it is listed, and need not be understood.
			part.Signatures = []Signature{{Type: "something that cannot be read"}}
		}
		d.Partitions = append(d.Partitions, part)
	}
	return nil
}

// users returns what file systems are mounted from and swap is on, by device
// number.
func (p Prober) users() (map[string][]string, error) {
	out := map[string][]string{}
	text, err := os.ReadFile(p.path("proc/self/mountinfo"))
	if err != nil {
		return nil, err
	}
	table, err := mnt.ParseTable(text)
	if err != nil {
		return nil, err
	}
	for _, m := range table {
		number := fmt.Sprintf("%d:%d", m.Major, m.Minor)
		out[number] = appendNew(out[number], fmt.Sprintf("mounted at %q", m.Point))
	}
	swaps, err := os.ReadFile(p.path("proc/swaps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without swap
		return nil, err
	}
	for line := range strings.Lines(string(swaps)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[1] != "partition" {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(p.path(fields[0]), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
			out[number] = append(out[number], "swap space")
		}
	}
	return out, nil
}

// loopsOf says which loop devices show the file or device.
func (p Prober) loopsOf(st os.FileInfo) ([]string, error) {
	list, err := filepath.Glob(p.path("sys/class/block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, name := range list {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it was detached
		}
		backing, err := os.Stat(string(bytes.TrimSpace(text)))
		if err == nil && os.SameFile(backing, st) {
			out = append(out, "it is attached to /dev/"+filepath.Base(filepath.Dir(filepath.Dir(name))))
		}
	}
	return out, nil
}

// signatures asks wipefs, which finds everything that libblkid knows, not only
// what it would choose to mount.
func (p Prober) signatures(ctx context.Context, device string) ([]Signature, error) {
	out, err := p.Tools.Run(ctx, "", "wipefs", "--no-act", "--json", device)
	if err != nil {
		return nil, fmt.Errorf("look for file systems: %w", err)
	}
	return ParseWipefs(out)
}

// ParseWipefs reads the output of "wipefs --json". Without a signature it may be
// empty.
func ParseWipefs(out []byte) ([]Signature, error) {
	if len(bytes.TrimSpace(out)) == 0 {
		return nil, nil
	}
	var doc struct {
		Signatures *[]struct {
			Type  string `json:"type"`
			Label string `json:"label"`
		} `json:"signatures"`
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		return nil, fmt.Errorf("output of wipefs: %w", err)
	}
	if doc.Signatures == nil {
		return nil, fmt.Errorf("output of wipefs: no field %q in %.80q", "signatures", out)
	}
	var list []Signature
	for _, s := range *doc.Signatures {
		if s.Type == "" {
			s.Type = "something unknown"
		}
		list = append(list, Signature{s.Type, s.Label})
	}
	return list, nil
}

func readInt(dir, name string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(dir, name), err)
	}
	return n, nil
}
