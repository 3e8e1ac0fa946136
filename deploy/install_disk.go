package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/install/disk"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// DiskOptions are those of InstallToDisk. Sysroot, ESP, ESPPath and RootUUID are
// not used: they are what is made.
type DiskOptions struct {
	InstallOptions
	ESPSize int64 // bytes, whole MiB; 0: disk.DefaultESPSize
	// Size makes a new file of so many bytes and installs to that. 0: the disk, or
	// the file, is there.
	Size int64
	// Wipe destroys what is on the disk. A disk that is in use is refused all the
	// same.
	Wipe  bool
	Tools disk.Tools // nil: the programs of this machine
}

// DiskChange is what InstallToDisk did.
type DiskChange struct {
	*Change
	Disk InstalledDisk
}

// InstalledDisk is a disk with a system on it.
type InstalledDisk struct {
	Path      string             `json:"path"`
	SizeBytes int64              `json:"size_bytes"`
	ESP       InstalledPartition `json:"esp"`
	Root      InstalledPartition `json:"root"`
	RootUUID  string             `json:"root_uuid"` // of the file system, as in root=UUID=
	Destroyed []string           `json:"destroyed"` // what was on the disk; never null
}

// InstalledPartition is one of its partitions.
type InstalledPartition struct {
	Number    int    `json:"number"`
	SizeBytes int64  `json:"size_bytes"`
	PartUUID  string `json:"part_uuid"`
}

// InstallToDisk divides a disk, a block device or a regular file, into an EFI
// system partition and a root partition that reaches to its end, formats both and
// installs an image, as Install does. Nothing is mounted where another process
// could see it.
//
// Everything that can be known is checked before the disk is written: that it is
// not in use, that it is empty or may be wiped, that it is large enough, that
// kernel and programs can do it, and that the image is there. From the first write
// on until the end the disk counts as incomplete, and says so to the next run. A
// file that was made for it is removed again if anything fails.
//
// Errors: *IncompleteError around everything after the first write, *disk.UntouchedError if that was to come, *RefusedError, *durable.SpaceError, *repo.LockedError if somebody else is
// writing the disk, fs.ErrPermission, fs.ErrNotExist, errors.ErrUnsupported, and
// those of Install.
func InstallToDisk(ctx context.Context, path string, o DiskOptions) (_ *DiskChange, err error) {
	if o.Tools == nil {
		o.Tools = disk.Programs{}
	}
	o.Options = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("divide and format %q: %w", path, fs.ErrPermission)
	}
	if err := disk.CheckTools(o.Tools); err != nil {
		return nil, err
	}
	dev, found, err := o.probe(ctx, path)
	if err != nil {
		return nil, refuseDisk(err)
	}
	defer func() {
		if dev != nil {
			err = errors.Join(err, dev.Close())
		}
	}()
	arch := o.Platform.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	plan, err := disk.MakePlan(found, disk.Options{ESPSize: o.ESPSize, Arch: arch, Wipe: o.Wipe})
	if err != nil {
		return nil, refuseDisk(err)
	}
	if plan.NoVerity, err = checkKernel(found, o.AllowMissingVerity); err != nil {
		return nil, err
	}
	if err := o.checkImage(ctx, plan, arch); err != nil {
		return nil, err
	}
	made := dev == nil
	if made {
		if dev, err = makeFile(ctx, path, o.Size); err != nil {
			return nil, err
		}
	}
	c, err := o.install(ctx, plan, dev, found.Size)
	var untouched *disk.UntouchedError
	switch {
	case err == nil:
		return c, nil
	case made:
		return nil, &IncompleteError{Path: path, Removed: true, Err: errors.Join(err, removeFile(path))}
	case errors.As(err, &untouched):
		return nil, err
	}
	return nil, &IncompleteError{Path: path, Destroyed: plan.Destroys, Err: err}
}

// IncompleteError is what went wrong after the first write to a disk.
type IncompleteError struct {
	Path      string
	Destroyed []string // what was on the disk
	Removed   bool     // a file that was made for it, which is gone again
	Err       error
}

func (e *IncompleteError) Error() string {
	switch {
	case e.Removed:
		return fmt.Sprintf("the new file %q is removed again: %v", e.Path, e.Err)
	case len(e.Destroyed) > 0:
		return fmt.Sprintf("%s was wiped (%s) and is incomplete: %v", e.Path, strings.Join(e.Destroyed, "; "), e.Err)
	}
	return fmt.Sprintf("%s was written to and is incomplete: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *IncompleteError) Unwrap() error { return e.Err }

// probe opens the disk, locks it and looks at it. For a file that is to be made
// there is nothing to open.
func (o DiskOptions) probe(ctx context.Context, path string) (*os.File, disk.Disk, error) {
	dev, err := disk.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.Size > 0:
		if strings.HasPrefix(filepath.Clean(path), "/dev/") {
			return nil, disk.Disk{}, fmt.Errorf("%w: no file is made in /dev", err)
		}
		return nil, disk.Disk{Path: path, Regular: true, Size: o.Size, Sector: 512}, nil
	case errors.Is(err, fs.ErrNotExist) && !strings.HasPrefix(filepath.Clean(path), "/dev/"):
		return nil, disk.Disk{}, fmt.Errorf("%w; --size makes a new file", err)
	case err != nil:
		return nil, disk.Disk{}, err
	}
	var d disk.Disk
	if o.Size > 0 {
		err = &install.TargetError{Path: path, Detail: "it is there, and a size is for a new file: leave --size out"}
	}
	if err == nil {
		err = lockDisk(ctx, dev)
	}
	if err == nil {
		d, err = disk.Prober{Tools: o.Tools}.Probe(ctx, dev)
	}
	if err == nil && !d.Regular && len(d.InUse) == 0 {
		err = disk.Exclusive(path)
	}
	if err != nil {
		return nil, d, errors.Join(err, dev.Close())
	}
	return dev, d, nil
}

// lockDisk takes the lock that udev and partitioning programs respect
// (systemd.io/BLOCK_DEVICE_LOCKING). udev has it for moments.
func lockDisk(ctx context.Context, dev *os.File) error {
	for end := time.Now().Add(3 * time.Second); ; {
		err := unix.Flock(int(dev.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return &fs.PathError{Op: "lock", Path: dev.Name(), Err: err}
		case time.Now().After(end):
			return &repo.LockedError{Path: dev.Name(), Exclusive: true}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// refuseDisk makes a *RefusedError of what install says about a disk.
func refuseDisk(err error) error {
	var inUse *disk.InUseError
	var full *disk.NotEmptyError
	var target *install.TargetError
	var arch *install.ArchError
	switch {
	case errors.As(err, &inUse):
		return &RefusedError{Code: CodeInUse, Err: err}
	case errors.As(err, &full) && full.Incomplete:
		return &RefusedError{Code: CodeIncomplete, Err: err}
	case errors.As(err, &full):
		return &RefusedError{Code: CodeNotEmpty, Err: err}
	case errors.As(err, &target):
		return &RefusedError{Code: CodeTarget, Err: err}
	case errors.As(err, &arch):
		return &RefusedError{Code: CodeImage, Err: err}
	}
	return err
}

// refuseTwins makes a *RefusedError of what esp says about copies of the root's
// disk: a change might go to the one that does not boot.
func refuseTwins(err error) error {
	var twins *esp.TwinError
	if errors.As(err, &twins) {
		return &RefusedError{Code: CodeTwins, Err: err}
	}
	return err
}

// checkKernel finds out what the kernel lacks while the disk is still untouched.
func checkKernel(d disk.Disk, allowMissing bool) (noVerity bool, err error) {
	if d.Regular {
		if err := disk.CheckLoop(); err != nil {
			return false, err
		}
	}
	for _, kind := range []string{"vfat", "ext4"} {
		if err := mnt.Supports(kind); err != nil {
			return false, err
		}
	}
	if _, err := os.Stat("/sys/fs/ext4/features/verity"); err == nil {
		return false, nil
	}
	if !allowMissing {
		return false, refuse(CodeNoVerity, "the running kernel's ext4 has no fs-verity (CONFIG_FS_VERITY), so an image cannot be stored with it (--allow-missing-verity does without)")
	}
	return true, nil
}

// checkImage asks for the image before the disk is written: it must be there, and
// not be larger than the root partition as it is transferred already. If something
// is on the disk and the image need not be fetched for it, it is looked into, too.
func (o DiskOptions) checkImage(ctx context.Context, plan *disk.Plan, arch string) (err error) {
	src, resolved, err := resolve(ctx, o.PullOptions, o.Image)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	_, size, err := manifestOf(o.Image, resolved)
	if err == nil && size > plan.RootSize {
		err = &durable.SpaceError{Where: plan.Path, Need: size, Have: plan.RootSize, Err: unix.ENOSPC}
	}
	if err != nil {
		return err
	}
	opts := pull.Options{Bootable: true, Platform: o.Platform, Progress: o.Progress, Logger: o.Logger}
	if ref, err := record.ParseImageReference(o.Image); err != nil || ref.Transport == "registry" || len(plan.Destroys) == 0 {
		return refuseImage(pull.Check(ctx, src, opts))
	}
	// It is at hand, and something will be lost: all of it is looked into.
	root, err := pull.Survey(ctx, nil, src, opts, wantedBySurvey)
	if err != nil {
		return refuseImage(err)
	}
	if _, err := checkTree(root, nil); err != nil {
		return err
	}
	_, err = findLoader(root, arch)
	return err
}

// removeFile removes what makeFile has made.
func removeFile(path string) error {
	parent, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(parent.Remove(filepath.Base(path)), parent.Close())
}

// makeFile makes a sparse file.
func makeFile(ctx context.Context, path string, size int64) (*os.File, error) {
	parent, err := durable.OpenDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer parent.Close() //nolint:errcheck // synced below
	f, err := parent.Create(filepath.Base(path), 0o644)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("make a file of %d bytes: %w", size, errors.Join(err, parent.Remove(filepath.Base(path))))
	}
	if err := parent.Sync(); err != nil {
		return nil, errors.Join(err, removeFile(path))
	}
	dev, err := disk.Open(path)
	if err != nil {
		return nil, errors.Join(err, removeFile(path))
	}
	if err := lockDisk(ctx, dev); err != nil {
		return nil, errors.Join(err, dev.Close()) // somebody else has it
	}
	return dev, nil
}

// install writes the disk.
func (o DiskOptions) install(ctx context.Context, plan *disk.Plan, dev *os.File, size int64) (_ *DiskChange, err error) {
	for _, lost := range plan.Destroys {
		o.say("destroying on %s: %s", plan.Path, lost)
	}
	o.say("dividing %s: EFI system partition of %s, root of %s", plan.Path, progress.FormatBytes(plan.ESPSize), progress.FormatBytes(plan.RootSize))
	layout, err := plan.Divide(ctx, o.Tools, dev)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, layout.Close()) }()
	c := &DiskChange{Disk: InstalledDisk{
		Path: plan.Path, SizeBytes: size, Destroyed: plan.Destroys,
		ESP:  InstalledPartition{layout.ESP.Number, layout.ESP.Size, layout.ESP.UUID},
		Root: InstalledPartition{layout.Root.Number, layout.Root.Size, layout.Root.UUID},
	}}
	if c.Change, c.Disk.RootUUID, err = o.installPartitions(ctx, layout); err != nil {
		return nil, err
	}
	return c, plan.Complete(ctx, o.Tools, layout)
}

// installPartitions installs to both new file systems. They are mounted for this
// process only, and not any more when it returns.
func (o DiskOptions) installPartitions(ctx context.Context, l *disk.Layout) (_ *Change, uuid string, err error) {
	open := func(mount func(string) (*mnt.Mount, error), device string) (*durable.Dir, error) {
		m, err := mount(device)
		if err != nil {
			return nil, err
		}
		defer m.Close() //nolint:errcheck // the directory keeps it
		return dirOf(m.File(), device)
	}
	root, err := open(mnt.Ext4, l.RootDevice)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	boot, err := open(mnt.FAT, l.ESPDevice)
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, boot.Close()) }()
	if uuid, err = install.FSUUID(root.Fd(), "/dev/disk/by-uuid"); err != nil {
		return nil, "", err
	}
	in := o.InstallOptions
	in.Sysroot, in.ESP, in.RootUUID = root, boot, uuid
	c, err := Install(ctx, l.RootDevice, in)
	if err != nil {
		return nil, "", err
	}
	return c, uuid, boot.SyncFS()
}

func (o DiskOptions) say(format string, args ...any) {
	progress.Report(o.Progress, progress.Message{Text: fmt.Sprintf(format, args...)})
}
