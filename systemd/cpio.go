package systemd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The archive format of initial RAM disks: "newc" of cpio(5), as the kernel reads it
// (Documentation/driver-api/early-userspace/buffer-format.rst, init/initramfs.c).
const (
	cpioHeaderSize = 110
	cpioTrailer    = "TRAILER!!!"
	cpioMaxName    = 4096 // PATH_MAX of the kernel, NUL included
	cpioTypeMask   = 0o170000
	cpioDir        = 0o040000
	cpioRegular    = 0o100000
	cpioSymlink    = 0o120000
)

// cpioMember is one member of an archive.
type cpioMember struct {
	name string // without leading "/" or "./"
	mode uint32 // type and permissions
	size int64
	data io.Reader // exactly size bytes; only valid until the next member
}

// readCpio reads archives from r, which is at the start of one, and calls visit for every member, trailers excepted. It
// stops behind the trailer of the last archive: zeros may separate archives, anything else ends the input. It returns
// the number of bytes up to there.
func readCpio(r *bufio.Reader, visit func(cpioMember) error) (int64, error) {
	c := &countingReader{r: r}
	for {
		end, err := readArchive(c, visit)
		if err != nil {
			return c.n, fmt.Errorf("cpio archive: %w at byte %d", err, c.n)
		}
		if err := skipZeros(r, c); errors.Is(err, io.EOF) {
			return end, nil
		} else if err != nil {
			return end, err
		}
		if b, err := r.Peek(1); err != nil || b[0] != '0' {
			return end, nil //nolint:nilerr // whatever follows is not of this stream
		}
	}
}

// skipZeros drops the zero bytes between archives.
func skipZeros(r *bufio.Reader, c *countingReader) error {
	for {
		b, err := r.Peek(1)
		if err != nil {
			return err
		}
		if b[0] != 0 {
			return nil
		}
		if _, err := io.CopyN(io.Discard, c, 1); err != nil {
			return err
		}
	}
}

func readArchive(c *countingReader, visit func(cpioMember) error) (end int64, err error) {
	start := c.n
	var header [cpioHeaderSize]byte
	for {
		if _, err := io.ReadFull(c, header[:]); err != nil {
			return 0, unexpected(err)
		}
		if magic := string(header[:6]); magic != "070701" && magic != "070702" {
			return 0, fmt.Errorf("magic %q, want 070701", magic)
		}
		mode, err1 := cpioField(header, 1)
		size, err2 := cpioField(header, 6)
		nameSize, err3 := cpioField(header, 11)
		if err := errors.Join(err1, err2, err3); err != nil {
			return 0, err
		}
		if nameSize == 0 || nameSize > cpioMaxName {
			return 0, fmt.Errorf("name of %d bytes, want 1 to %d", nameSize, cpioMaxName)
		}
		name := make([]byte, nameSize)
		if _, err := io.ReadFull(c, name); err != nil {
			return 0, unexpected(err)
		}
		if err := c.align(start); err != nil {
			return 0, err
		}
		m := cpioMember{name: cleanName(string(name[:nameSize-1])), mode: mode, size: int64(size)}
		if m.name == cpioTrailer {
			return c.n, nil
		}
		limited := &io.LimitedReader{R: c, N: m.size}
		m.data = limited
		if err := visit(m); err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, limited, limited.N); err != nil {
			return 0, unexpected(err)
		}
		if err := c.align(start); err != nil {
			return 0, err
		}
	}
}

// cpioField reads the n-th of the 13 fields of 8 hex digits.
func cpioField(h [cpioHeaderSize]byte, n int) (uint32, error) {
	s := string(h[6+8*n : 14+8*n])
	v, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("header field %d is %q, want 8 hex digits", n, s)
	}
	return uint32(v), nil
}

// cleanName drops what some writers put in front of names.
func cleanName(name string) string {
	for {
		switch {
		case len(name) > 1 && name[0] == '/':
			name = name[1:]
		case len(name) > 2 && name[:2] == "./":
			name = name[2:]
		default:
			return name
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// countingReader knows how many bytes went through it.
type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// align skips to a multiple of 4 bytes from start.
func (c *countingReader) align(start int64) error {
	if pad := (start - c.n) & 3; pad != 0 {
		if _, err := io.CopyN(io.Discard, c, pad); err != nil {
			return unexpected(err)
		}
	}
	return nil
}

// cpioWriter writes one archive whose bytes depend on the members only: owner root, time zero, inode numbers counted.
// The first error is kept and returned by close.
type cpioWriter struct {
	w   io.Writer
	ino uint32
	n   int64
	err error
}

func (c *cpioWriter) dir(name string) { c.member(name, cpioDir|0o755, 2, nil) }
func (c *cpioWriter) file(name string, perm uint32, data []byte) {
	c.member(name, cpioRegular|perm, 1, data)
}
func (c *cpioWriter) symlink(name, target string) {
	c.member(name, cpioSymlink|0o777, 1, []byte(target))
}

// close writes the trailer.
func (c *cpioWriter) close() error {
	c.ino = ^uint32(0)
	c.member(cpioTrailer, 0, 1, nil)
	return c.err
}

func (c *cpioWriter) member(name string, mode, links uint32, data []byte) {
	c.ino++
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.ino, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}

func (c *cpioWriter) pad() { c.write(make([]byte, -c.n&3)) }
