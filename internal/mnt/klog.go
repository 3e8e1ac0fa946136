package mnt

import (
	"errors"
	"strings"

	"golang.org/x/sys/unix"
)

// kernelLog reads the records that the kernel log gains while a mount is configured: "cannot find valid erofs
// superblock" and overlayfs' reasons are only there. Without the right to read it, there are no messages.
type kernelLog struct{ fd int }

func openKernelLog() *kernelLog {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &kernelLog{fd: -1}
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd) // read only
		fd = -1
	}
	return &kernelLog{fd: fd}
}

func (k *kernelLog) close() {
	if k.fd >= 0 {
		_ = unix.Close(k.fd) // read only
		k.fd = -1
	}
}

// since returns the new records that speak of the file systems this package mounts.
func (k *kernelLog) since() []string {
	if k.fd < 0 {
		return nil
	}
	var out []string
	buf := make([]byte, 8192) // one record per read
	for range 256 {
		n, err := unix.Read(k.fd, buf)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINTR) {
			continue // a record was overwritten before it was read: the next read goes on behind it
		}
		if err != nil || n <= 0 {
			break
		}
		if msg, ok := parseRecord(string(buf[:n])); ok {
			out = append(out, msg)
		}
	}
	return out
}

// parseRecord takes "prio,seq,usec,flags;text\n KEY=value\n" and returns the text if it is about our file systems.
func parseRecord(rec string) (string, bool) {
	_, text, ok := strings.Cut(rec, ";")
	if !ok {
		return "", false
	}
	text, _, _ = strings.Cut(text, "\n")
	for _, word := range []string{"erofs", "overlayfs", "fs-verity"} {
		if strings.HasPrefix(text, word) {
			return text, true
		}
	}
	return "", false
}
