package oci

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxZstdWindow is what the peers' decoder takes.
const maxZstdWindow = 128 << 20

// sourceError remembers why the source failed, to tell that from bad data.
type sourceError struct {
	r   io.Reader
	err error
}

func (s *sourceError) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !IsEOF(err) {
		s.err = err
	}
	return n, err
}

// decompressor gives the uncompressed bytes of a layer blob, all gzip members or
// zstd frames of it. What the blob is is decided by its first bytes, not by its
// media type, since producers label layers wrongly. io.EOF means that the whole
// blob was read, so a blob that verifies itself was verified.
type decompressor struct {
	src   *sourceError
	buf   *bufio.Reader
	r     io.Reader
	close func()
	where string
}

func newDecompressor(blob io.Reader, where string) (*decompressor, error) {
	d := &decompressor{src: &sourceError{r: blob}, where: where, close: func() {}}
	d.buf = bufio.NewReaderSize(d.src, 64<<10)
	magic, err := d.buf.Peek(4)
	if err != nil && !IsEOF(err) {
		return nil, d.fail(err)
	}
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		gz, err := gzip.NewReader(d.buf)
		if err != nil {
			return nil, d.fail(err)
		}
		d.r = gz
	case len(magic) == 4 && isZstd(binary.LittleEndian.Uint32(magic)):
		dec, err := zstd.NewReader(d.buf, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, d.fail(err)
		}
		d.r, d.close = dec, dec.Close
	default:
		d.r = d.buf
	}
	return d, nil
}

// isZstd knows frames and skippable frames.
func isZstd(magic uint32) bool { return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50 }

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	switch {
	case err == nil:
		return n, nil
	case !IsEOF(err):
		return n, d.fail(err)
	}
	// The decoder may be content with less than the whole blob.
	rest, err := io.Copy(io.Discard, d.buf)
	if err != nil {
		return n, d.fail(err)
	}
	if rest > 0 {
		return n, &FormatError{Where: d.where, Detail: fmt.Sprintf("%d bytes behind the compressed data", rest)}
	}
	return n, io.EOF
}

func (d *decompressor) fail(err error) error {
	if d.src.err != nil {
		return d.src.err
	}
	return &FormatError{Where: d.where, Detail: "decompress", Err: err}
}

func (d *decompressor) Close() { d.close() }

const (
	pieceSize  = 256 << 10
	pieceCount = 4
)

// readAhead runs a reader in a goroutine of its own, so that decompressing and
// what follows share two cores; hashing the stream is done on this side, which has
// less to do. It implements pieces for one reader.
type readAhead struct {
	ctx  context.Context // ends both sides
	hash hash.Hash       // of all bytes; complete when next has returned io.EOF
	full chan piece
	free chan []byte
	last []byte
}

type piece struct {
	b   []byte
	err error
}

func newReadAhead(ctx context.Context, h hash.Hash) *readAhead {
	a := &readAhead{ctx: ctx, hash: h, full: make(chan piece, pieceCount), free: make(chan []byte, pieceCount)}
	for range pieceCount {
		a.free <- nil // made when needed
	}
	return a
}

// run reads r to its end. Its own error is nil: the reader's is handed on.
func (a *readAhead) run(r io.Reader) error {
	for {
		var b []byte
		select {
		case b = <-a.free:
		case <-a.ctx.Done():
			return nil
		}
		if b == nil {
			b = make([]byte, pieceSize)
		}
		n, err := 0, error(nil)
		for n < pieceSize && err == nil && a.ctx.Err() == nil {
			var m int
			m, err = r.Read(b[n:pieceSize])
			n += m
		}
		a.hash.Write(b[:n])
		select {
		case a.full <- piece{b[:n], err}:
		case <-a.ctx.Done():
			return nil
		}
		if err != nil {
			return nil
		}
	}
}

// next returns the next piece; after an error it must not be called again.
func (a *readAhead) next() ([]byte, error) {
	if a.last != nil {
		a.free <- a.last[:pieceSize] // there is room: this side took it out of full
		a.last = nil
	}
	select {
	case p := <-a.full:
		a.last = p.b
		return p.b, p.err
	case <-a.ctx.Done():
		return nil, context.Cause(a.ctx)
	}
}
