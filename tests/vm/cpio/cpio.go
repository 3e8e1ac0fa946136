// Package cpio writes the archive format of Linux' initial RAM disks ("newc",
// Documentation/driver-api/early-userspace/buffer-format.rst of the kernel):
// enough of it for the lab's own guests.
package cpio

import (
	"fmt"
	"io"
)

// Writer writes one archive. The first error is kept and returned by Close.
type Writer struct {
	w   io.Writer
	ino int
	pos int64
	err error
}

// NewWriter returns a Writer on w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Dir adds a directory; parents have to be added before their children.
func (w *Writer) Dir(name string, perm uint32) { w.member(name, 0o040000|perm, nil, 0, 0) }

// File adds a regular file.
func (w *Writer) File(name string, perm uint32, data []byte) {
	w.member(name, 0o100000|perm, data, 0, 0)
}

// Symlink adds a symbolic link.
func (w *Writer) Symlink(name, target string) { w.member(name, 0o120777, []byte(target), 0, 0) }

// CharDevice adds a character device node.
func (w *Writer) CharDevice(name string, perm, major, minor uint32) {
	w.member(name, 0o020000|perm, nil, major, minor)
}

// Close writes the trailer. It does not close the underlying writer.
func (w *Writer) Close() error {
	w.ino = -1
	w.member("TRAILER!!!", 0, nil, 0, 0)
	return w.err
}

func (w *Writer) member(name string, mode uint32, data []byte, major, minor uint32) {
	w.ino++
	w.write([]byte(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		w.ino, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)))
	w.pad()
	w.write(data)
	w.pad()
}

func (w *Writer) write(b []byte) {
	if w.err != nil {
		return
	}
	n, err := w.w.Write(b)
	w.pos += int64(n)
	w.err = err
}

func (w *Writer) pad() {
	if n := w.pos % 4; n != 0 {
		w.write(make([]byte, 4-n))
	}
}
