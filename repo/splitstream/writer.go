package splitstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/cfsboot/cfsboot/fsverity"
)

// WriterOptions says what a Writer writes.
type WriterOptions struct {
	ContentType ContentType
	// Temp makes scratch space for what does not fit into a few MiB of memory. nil
	// keeps everything in memory.
	Temp func() (Temp, error)
}

// Writer collects a stream. Inline bytes are written with Write. Nothing comes
// out before Finish, because the tables precede the stream in the file. After an
// error every method returns it again. Call Finish or Close.
type Writer struct {
	algorithm fsverity.Algorithm
	opts      WriterOptions
	objects   table
	streams   table
	named     map[string]int
	pending   spool // inline bytes of the chunk that is not finished
	stream    spool // compressed chunks
	enc       *zstd.Encoder
	size      int64
	err       error
}

// table is a flat array of unique digests in order of first use.
type table struct {
	index map[fsverity.Digest]int
	raw   []byte
}

func (t *table) add(d fsverity.Digest) int {
	if i, ok := t.index[d]; ok {
		return i
	}
	if t.index == nil {
		t.index = make(map[fsverity.Digest]int)
	}
	i := len(t.index)
	t.index[d] = i
	t.raw = append(t.raw, d.Raw()...)
	return i
}

// encoders are reused: one holds about 4 MiB.
var encoders = sync.Pool{New: func() any {
	// Window and level decide memory: tar headers repeat within a few KiB, and the
	// peer's encoder uses 2 MiB.
	enc, err := zstd.NewWriter(nil,
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true),
		zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err != nil {
		panic(err) // the options are constants
	}
	return enc
}}

// NewWriter returns a Writer for a repository with this algorithm.
func NewWriter(a fsverity.Algorithm, opts WriterOptions) *Writer {
	w := &Writer{algorithm: a, opts: opts, named: make(map[string]int)}
	w.pending.newTemp, w.stream.newTemp = opts.Temp, opts.Temp
	w.enc = encoders.Get().(*zstd.Encoder)
	w.enc.Reset(&w.stream)
	return w
}

// Size returns the length of the stream so far, in bytes.
func (w *Writer) Size() int64 { return w.size }

// Write appends inline bytes. Adjacent calls make one chunk.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.pending.Write(p)
	w.size += int64(n)
	w.err = err
	return n, err
}

// External appends the whole content of the object d, which is size bytes long.
func (w *Writer) External(d fsverity.Digest, size int64) error {
	if w.err != nil {
		return w.err
	}
	if err := w.check(d); err != nil {
		return err
	}
	if len(w.objects.raw) >= maxTable {
		return fmt.Errorf("splitstream: more than %d objects", len(w.objects.index))
	}
	if size < 0 {
		return fmt.Errorf("splitstream: object %s of %d bytes", d, size)
	}
	if w.err = w.flush(); w.err != nil {
		return w.err
	}
	w.err = w.chunk(int64(w.objects.add(d)))
	w.size += size
	return w.err
}

// Named adds a named reference to the splitstream or image d. A name that was
// used before now means d; order of first use fixes the order of the table.
func (w *Writer) Named(name string, d fsverity.Digest) error {
	if w.err != nil {
		return w.err
	}
	if err := w.check(d); err != nil {
		return err
	}
	if strings.IndexByte(name, 0) >= 0 || !utf8.ValidString(name) {
		return fmt.Errorf("splitstream: name %q of a reference, want UTF-8 without NUL", name)
	}
	w.named[name] = w.streams.add(d)
	return nil
}

func (w *Writer) check(d fsverity.Digest) error {
	if d.Algorithm() != w.algorithm {
		return fmt.Errorf("splitstream: reference to %s, want a %s digest", d, w.algorithm.Name())
	}
	return nil
}

func (w *Writer) chunk(n int64) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(n))
	_, err := w.enc.Write(b[:])
	return err
}

// flush ends the inline chunk.
func (w *Writer) flush() error {
	if w.pending.size == 0 {
		return nil
	}
	if err := w.chunk(-w.pending.size); err != nil {
		return err
	}
	if err := w.pending.copyTo(w.enc); err != nil {
		return err
	}
	return w.pending.reset()
}

// Finish ends the stream and writes the splitstream to out, in sections of at
// most 64 KiB; it returns the number of bytes. The Writer is closed.
func (w *Writer) Finish(out io.Writer) (n int64, err error) {
	if w.err != nil {
		return 0, errors.Join(w.err, w.Close())
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.flush(); err != nil {
		return 0, err
	}
	if err := w.enc.Close(); err != nil {
		return 0, err
	}
	named, err := w.encodeNamed()
	if err != nil {
		return 0, err
	}
	c := &counter{w: out}
	for _, part := range [][]byte{w.head(int64(len(named))), w.streams.raw, w.objects.raw, named} {
		if len(part) == 0 {
			continue
		}
		if _, err := c.Write(part); err != nil {
			return c.n, err
		}
	}
	return c.n, w.stream.copyTo(c)
}

// head lays out the header and the info section.
func (w *Writer) head(named int64) []byte {
	b := make([]byte, 0, headerSize+infoSize)
	le := binary.LittleEndian
	b = append(b, magic...)
	b = append(b, formatVersion, 0, 0, byte(w.algorithm), blockBits)
	put := func(values ...int64) {
		for _, v := range values {
			b = le.AppendUint64(b, uint64(v))
		}
	}
	put(headerSize, headerSize+infoSize)
	streams := int64(headerSize + infoSize)
	objects := streams + int64(len(w.streams.raw))
	names := objects + int64(len(w.objects.raw))
	stream := names + named
	put(streams, objects, objects, names, stream, stream+w.stream.size, names, stream)
	b = le.AppendUint64(b, uint64(w.opts.ContentType))
	put(w.size)
	return b
}

func (w *Writer) encodeNamed() ([]byte, error) {
	var text []byte
	for _, name := range slices.Sorted(maps.Keys(w.named)) {
		text = fmt.Appendf(text, "%d:%s\x00", w.named[name], name)
	}
	var out spool
	w.enc.Reset(&out)
	if _, err := w.enc.Write(text); err != nil {
		return nil, err
	}
	if err := w.enc.Close(); err != nil {
		return nil, err
	}
	return out.buf, nil
}

// Close drops what was collected. It does nothing after Finish.
func (w *Writer) Close() error {
	if w.enc == nil {
		return nil
	}
	w.enc.Reset(nil)
	encoders.Put(w.enc)
	w.enc = nil
	if w.err == nil {
		w.err = errors.New("splitstream: the writer is closed")
	}
	return errors.Join(w.pending.reset(), w.stream.reset())
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
