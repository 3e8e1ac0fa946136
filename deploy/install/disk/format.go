package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

// Layout is a disk that was divided: both partitions and the devices that show
// them. Close gives the devices back that Divide made.
type Layout struct {
	ESP, Root             esp.Partition
	ESPDevice, RootDevice string
	loops                 []*os.File
}

// Close detaches loop devices. Nothing may be mounted from them any more.
func (l *Layout) Close() error {
	var errs []error
	for _, f := range l.loops {
		// Whatever still uses it keeps it: it detaches itself then.
		if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
			errs = append(errs, &os.PathError{Op: "detach", Path: f.Name(), Err: err})
		}
		errs = append(errs, f.Close())
	}
	l.loops = nil
	return errors.Join(errs...)
}

// Exclusive returns an *InUseError if the kernel lets nobody have the disk for
// itself: a file system is mounted from it or from a partition, in whatever mount
// namespace.
func Exclusive(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return &InUseError{path, []string{"the kernel says that it, or a partition of it, is busy"}}
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

// Divide writes the partition table of the plan to the open disk, formats both
// partitions and returns them. Everything on the disk is lost. From the first
// write until Complete the disk is recognised as incomplete. If nothing was written
// the error is an *UntouchedError.
func (p *Plan) Divide(ctx context.Context, t Tools, disk *os.File) (_ *Layout, err error) {
	before, err := ends(disk)
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, &UntouchedError{p.Path, err}
	}
	if _, err := t.Run(ctx, p.Script(), "sfdisk", "--quiet", "--wipe", "always", "--wipe-partitions", "always", p.Path); err != nil {
		err = fmt.Errorf("partition the disk: %w", err)
		if after, rerr := ends(disk); rerr == nil && bytes.Equal(before, after) {
			return nil, &UntouchedError{p.Path, err}
		}
		return nil, err
	}
	parts, err := esp.ReadGPT(disk, p.Sector)
	if err != nil {
		return nil, fmt.Errorf("read what sfdisk wrote: %w", err)
	}
	l := &Layout{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.ESP, l.Root, err = p.Check(parts); err != nil {
		return nil, err
	}
	st, err := disk.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		err = l.attach(disk.Name())
	} else {
		err = l.wait(ctx, disk)
	}
	if err != nil {
		return nil, err
	}
	for _, c := range [][]string{p.MakeESP(l.ESPDevice), p.MakeRoot(l.RootDevice)} {
		if _, err := t.Run(ctx, "", c[0], c[1:]...); err != nil {
			return nil, fmt.Errorf("make a file system: %w", err)
		}
	}
	return l, nil
}

// UntouchedError is what went wrong before the first write to a disk.
type UntouchedError struct {
	Path string
	Err  error
}

func (e *UntouchedError) Error() string {
	return fmt.Sprintf("nothing was written to %s: %v", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *UntouchedError) Unwrap() error { return e.Err }

// ends reads what sfdisk changes whenever it writes a table: it puts one at both ends
// of the disk.
func ends(disk *os.File) ([]byte, error) {
	size, err := disk.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	n := min(size, alignment)
	b := make([]byte, 2*n)
	if _, err := disk.ReadAt(b[:n], 0); err != nil {
		return nil, err
	}
	if _, err := disk.ReadAt(b[n:], size-n); err != nil {
		return nil, err
	}
	return b, nil
}

// Complete marks the disk as completely installed. Nothing may be mounted from it.
func (p *Plan) Complete(ctx context.Context, t Tools, l *Layout) error {
	// The kernel's view of the partitions does not change.
	if _, err := t.Run(ctx, "", "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", "--part-label", p.Path, fmt.Sprint(l.Root.Number), RootName); err != nil {
		return fmt.Errorf("mark the installation as complete: %w", err)
	}
	f, err := os.OpenFile(p.Path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// partitionWait is how long the kernel and udev may take for device nodes.
const partitionWait = 10 * time.Second

// wait finds the device nodes of the partitions. They appear on their own.
func (l *Layout) wait(ctx context.Context, disk *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(disk.Fd()), &st); err != nil {
		return err
	}
	sys := fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for end := time.Now().Add(partitionWait); ; {
		err1, err2 := find1(sys, l.ESP, &l.ESPDevice), find1(sys, l.Root, &l.RootDevice)
		err := errors.Join(err1, err2)
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("partitions of %s after %v: %w", disk.Name(), partitionWait, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// find1 looks for the device node of a partition as the kernel knows it.
func find1(sys string, part esp.Partition, device *string) error {
	list, err := filepath.Glob(sys + "/*/partition")
	if err != nil {
		return err
	}
	for _, name := range list {
		dir := filepath.Dir(name)
		number, err1 := readInt(dir, "partition")
		start, err2 := readInt(dir, "start")
		size, err3 := readInt(dir, "size")
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		if int(number) != part.Number {
			continue
		}
		if start*512 != part.Start || size*512 != part.Size {
			return fmt.Errorf("partition %d: the kernel knows %d bytes at byte %d, want %d at %d", number, size*512, start*512, part.Size, part.Start)
		}
		path := "/dev/" + filepath.Base(dir)
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		*device = path
		return f.Close()
	}
	return fmt.Errorf("partition %d: the kernel does not show it", part.Number)
}

// ErrNoLoop says that a file cannot be installed to because the kernel has no loop
// devices.
var ErrNoLoop = fmt.Errorf("the kernel has no loop devices (CONFIG_BLK_DEV_LOOP), so a file cannot be installed to: give it to a virtual machine or User Mode Linux as a disk and install to that: %w", errors.ErrUnsupported)

// CheckLoop returns ErrNoLoop, or why loop devices cannot be used, or nil.
func CheckLoop() error {
	f, err := os.OpenFile(loopControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return ErrNoLoop
	case err != nil:
		return err
	}
	return f.Close()
}

const loopControl = "/dev/loop-control"

// attach makes a loop device for each partition: the kernel need not read
// partition tables of loop devices.
func (l *Layout) attach(file string) error {
	for _, x := range []struct {
		part   esp.Partition
		device *string
	}{{l.ESP, &l.ESPDevice}, {l.Root, &l.RootDevice}} {
		f, err := attachLoop(file, x.part.Start, x.part.Size)
		if err != nil {
			return fmt.Errorf("attach partition %d of %s: %w", x.part.Number, file, err)
		}
		l.loops = append(l.loops, f)
		*x.device = f.Name()
	}
	return nil
}

// attachLoop returns an open loop device that shows a part of a file. It detaches
// itself when nobody uses it any more.
func attachLoop(file string, start, size int64) (*os.File, error) {
	back, err := os.OpenFile(file, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	control, err := os.OpenFile(loopControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	info := unix.LoopInfo64{Offset: uint64(start), Sizelimit: uint64(size), Flags: unix.LO_FLAGS_AUTOCLEAR}
	copy(info.File_name[:len(info.File_name)-1], file)
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, &os.PathError{Op: "get a free loop device", Path: loopControl, Err: err}
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(back.Fd()), Info: info})
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, &os.PathError{Op: "attach to", Path: loop.Name(), Err: err}
		}
	}
	return nil, &os.PathError{Op: "get a free loop device", Path: loopControl, Err: unix.EBUSY}
}
