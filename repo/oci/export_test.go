package oci

import (
	"bytes"
	"io"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// ReadTar walks an uncompressed layer with pieces of the given size and returns
// its entries, with made-up objects, and the recorded bytes.
func ReadTar(b []byte, size int) ([]tree.Entry, []byte, error) {
	return ReadTarLimit(b, size, MaxMetadata)
}

// ReadTarLimit is ReadTar with another limit than MaxMetadata.
func ReadTarLimit(b []byte, size int, limit int64) ([]tree.Entry, []byte, error) {
	t := &tape{in: &sliceSource{b, size}}
	a := newArchive(t, "layer")
	a.limit = limit
	var entries []tree.Entry
	var all []byte
	var m member
	for {
		err := a.next(&m)
		if IsEOF(err) {
			break
		}
		if err != nil {
			return entries, all, err
		}
		take := func() ([]byte, error) { return t.takeInline(m.size) }
		e, err := m.node(take, func() (d fsverity.Digest, err error) { _, err = take(); return d, err })
		if err != nil {
			return entries, all, a.failBody(err)
		}
		entries = append(entries, e)
	}
	for {
		err := t.drain(100)
		if IsEOF(err) {
			return entries, t.raw, nil
		}
		if err != nil {
			return entries, t.raw, err
		}
	}
}

type sliceSource struct {
	b    []byte
	size int
}

func (s *sliceSource) next() ([]byte, error) {
	n := min(len(s.b), s.size)
	p := s.b[:n]
	s.b = s.b[n:]
	if n == 0 {
		return nil, io.EOF
	}
	return p, nil
}

// Decompress reads at most limit bytes of what a layer blob decompresses to.
func Decompress(b []byte, limit int64) (int64, error) {
	d, err := newDecompressor(bytes.NewReader(b), "layer")
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return io.Copy(io.Discard, io.LimitReader(d, limit))
}

// ParseMtime parses a PAX time.
func ParseMtime(s string) (int64, uint32, error) { return parseMtime(s) }
