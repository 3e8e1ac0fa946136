// Package mnt mounts file systems through the new mount API (fsopen, fsconfig, fsmount, open_tree, move_mount,
// mount_setattr) and explains failures with the messages that the kernel leaves in the file system context and in
// its log.
//
// It knows the two file systems a composefs root is made of: EROFS images, mounted from the descriptor that was
// measured before, and overlayfs with a data-only layer and verity=require. What the running kernel can do is found
// by trying; a missing feature is a *FeatureError, which wraps errors.ErrUnsupported. Facts: boot.md 1.7, vm.md 4.2.
//
// The package does not decide what may be mounted, creates no files or directories, and has no loop device
// fallback. All functions are safe for concurrent use; they act on the mount namespace of the process.
package mnt

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Error is a mount operation that the kernel refused.
type Error struct {
	Op       string   // what was tried, for example `mount overlay "composefs:ab…": set verity=require`
	Messages []string // what the kernel said: file system context first, then new records of its log; may be empty
	Err      error    // the errno
}

// Error gives operation, errno and the kernel's own words on one line.
func (e *Error) Error() string {
	s := e.Op + ": " + e.Err.Error()
	if len(e.Messages) > 0 {
		s += " (kernel: " + strings.Join(e.Messages, "; ") + ")"
	}
	return s
}

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Err }

// FeatureError says that the running kernel lacks something that is needed. It wraps errors.ErrUnsupported and,
// where the kernel was asked, the *Error with its answer.
type FeatureError struct {
	Feature string // for people: "EROFS on a regular file"
	Option  string // kernel option or version that brings it: "CONFIG_EROFS_FS_BACKED_BY_FILE, Linux 6.12"
	Err     error  // the kernel's answer; may be nil
}

// Error names the feature and where it would come from.
func (e *FeatureError) Error() string {
	s := fmt.Sprintf("kernel %s lacks %s (%s)", release(), e.Feature, e.Option)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap makes errors.Is(err, errors.ErrUnsupported) true and keeps the errno visible.
func (e *FeatureError) Unwrap() []error {
	if e.Err == nil {
		return []error{errors.ErrUnsupported}
	}
	return []error{errors.ErrUnsupported, e.Err}
}

// release is the version string of the running kernel, for messages.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "of unknown version"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// fsContext is an open file system configuration. Every refused step becomes an *Error with the messages that the
// kernel attached to the context.
type fsContext struct {
	fd   int
	op   string
	klog *kernelLog
}

// openContext starts the configuration of one mount of the file system type fstype; op leads all its errors.
func openContext(fstype, op string) (*fsContext, error) {
	klog := openKernelLog()
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		klog.close()
		return nil, openError(fstype, op, err)
	}
	return &fsContext{fd: fd, op: op, klog: klog}, nil
}

func openError(fstype, op string, errno error) error {
	err := &Error{Op: op + ": fsopen " + fstype, Err: errno}
	switch {
	case errors.Is(errno, unix.ENODEV):
		return &FeatureError{Feature: "file system type " + fstype, Option: "CONFIG_" + strings.ToUpper(fstype) + "_FS or its module", Err: err}
	case errors.Is(errno, unix.ENOSYS):
		return &FeatureError{Feature: "the mount API fsopen", Option: "Linux 5.2", Err: err}
	}
	return err
}

func (c *fsContext) close() {
	_ = unix.Close(c.fd) // nothing is written through it
	c.klog.close()
}

// fail wraps errno with the messages of this context and what the log gained since it was opened.
func (c *fsContext) fail(step string, errno error) error {
	msgs := c.messages()
	return &Error{Op: c.op + ": " + step, Messages: append(msgs, c.klog.since()...), Err: errno}
}

// set gives one string option. The kernel takes at most 255 bytes.
func (c *fsContext) set(key, value string) error {
	if len(value) > 255 {
		return &Error{Op: fmt.Sprintf("%s: set %s=%.40s…: %d bytes, the kernel takes 255", c.op, key, value, len(value)), Err: unix.ENAMETOOLONG}
	}
	if err := unix.FsconfigSetString(c.fd, key, value); err != nil {
		return c.fail("set "+key+"="+value, err)
	}
	return nil
}

func (c *fsContext) flag(key string) error {
	if err := unix.FsconfigSetFlag(c.fd, key); err != nil {
		return c.fail("set "+key, err)
	}
	return nil
}

// mount creates the superblock and returns a detached mount of it.
func (c *fsContext) mount(attr Attr) (*Mount, error) {
	if err := unix.FsconfigCreate(c.fd); err != nil {
		return nil, c.fail("create", err)
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return nil, c.fail("fsmount", err)
	}
	return &Mount{f: os.NewFile(uintptr(fd), c.op)}, nil
}

// messages drains the context: one message per read, prefixed "e ", "w " or "i ", then ENODATA.
func (c *fsContext) messages() []string {
	var out []string
	buf := make([]byte, 1024)
	for range 32 {
		n, err := unix.Read(c.fd, buf)
		if err != nil || n <= 0 {
			break
		}
		msg := strings.TrimSpace(string(buf[:n]))
		if len(msg) > 2 && msg[1] == ' ' {
			msg = msg[2:]
		}
		out = append(out, msg)
	}
	return out
}
