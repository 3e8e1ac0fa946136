package splitstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cfsboot/cfsboot/fsverity"
)

const streamField = "stream"

// Chunk is one piece of the stream.
type Chunk struct {
	Object fsverity.Digest // the external object; zero for an inline chunk
	Size   int64           // bytes of an inline chunk, which Read returns
}

// Next moves to the next chunk and skips what is unread of the present one. At
// the end of the stream the error is io.EOF.
func (r *Reader) Next() (Chunk, error) {
	if err := r.start(); err != nil {
		return Chunk{}, err
	}
	if r.left > 0 {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return Chunk{}, err
		}
	}
	var b [8]byte
	at := r.pos
	n, err := io.ReadFull(r.dec, b[:])
	r.pos += int64(n)
	switch {
	case err == nil:
	case n == 0 && errors.Is(err, io.EOF):
		return Chunk{}, io.EOF
	default:
		return Chunk{}, r.stream.cause(at, streamField, err)
	}
	v := int64(binary.LittleEndian.Uint64(b[:]))
	if v >= 0 {
		if v >= int64(r.Objects()) {
			return Chunk{}, formatError(at, streamField, "object %d of %d", v, r.Objects())
		}
		return Chunk{Object: r.Object(int(v))}, nil
	}
	// v may be the smallest integer, which has no positive counterpart.
	if v < -(r.size - r.inline) {
		return Chunk{}, formatError(at, streamField, "inline chunk of %d bytes in a stream of %d bytes, of which %d were seen", uint64(-v), r.size, r.inline)
	}
	r.left = -v
	r.inline += r.left
	return Chunk{Size: r.left}, nil
}

// Read returns bytes of the present inline chunk, io.EOF at its end.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.dec.Read(p)
	r.pos += int64(n)
	r.left -= int64(n)
	switch {
	case err == nil, n > 0 && r.left == 0:
		return n, nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return n, r.stream.cause(r.pos, streamField, err)
}

func (r *Reader) start() error {
	if r.dec != nil {
		return nil
	}
	if r.stream != nil {
		return errors.New("splitstream: the reader is closed")
	}
	r.stream = &source{r: r.section}
	dec, err := newDecoder(r.stream)
	if err != nil {
		return err
	}
	r.dec = dec
	return nil
}

// Cat writes the whole stream to w; open gives the content of an object. It
// checks that the length is the one that the file claims. It must be the first
// to read the stream.
func (r *Reader) Cat(w io.Writer, open func(fsverity.Digest) (io.ReadCloser, error)) error {
	var total int64
	for total <= r.size { // a stream can name a large object millions of times
		c, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		n, err := r.copyChunk(w, c, open)
		total += n
		if err != nil {
			return err
		}
	}
	if total != r.size {
		return formatError(0, "info.stream_size", "got %d bytes, want %d", total, r.size)
	}
	return nil
}

func (r *Reader) copyChunk(w io.Writer, c Chunk, open func(fsverity.Digest) (io.ReadCloser, error)) (n int64, err error) {
	if c.Object.IsZero() {
		return io.Copy(w, onlyReader{r})
	}
	f, err := open(c.Object)
	if err != nil {
		return 0, fmt.Errorf("open object %s: %w", c.Object, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.Copy(w, f)
}

// onlyReader hides everything of a Reader but Read.
type onlyReader struct{ io.Reader }
