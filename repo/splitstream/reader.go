package splitstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/cfsboot/cfsboot/fsverity"
)

const (
	// maxNamed bounds the decompressed table of named references, in bytes. The
	// longest real ones have a hundred entries of 90 bytes.
	maxNamed = 16 << 20
	// maxTable bounds a table of digests, in bytes: four million objects. It holds
	// for the writer too.
	maxTable = 256 << 20
	// maxWindow is the largest zstd window that the peer's decoder takes.
	maxWindow = 128 << 20
)

// Reader reads one splitstream. Its tables are checked when it is made; the
// stream is decompressed as it is read.
type Reader struct {
	algorithm   fsverity.Algorithm
	contentType ContentType
	size        int64
	objects     string // raw digests, one after the other
	named       []NamedRef
	section     io.Reader
	stream      *source
	dec         *zstd.Decoder
	pos         int64 // bytes read of the decompressed section
	left        int64 // bytes left of the inline chunk
	inline      int64 // inline bytes promised so far
}

// NewReader checks header and tables of the splitstream in src, which is size
// bytes long and belongs to a repository with algorithm a. Every error about its
// content is a *FormatError. Close the Reader when the stream was read.
func NewReader(src io.ReaderAt, size int64, a fsverity.Algorithm) (*Reader, error) {
	return newReader(src, size, a, nil)
}

// NewReaderOf is NewReader for a stream that must have this content type.
func NewReaderOf(src io.ReaderAt, size int64, a fsverity.Algorithm, want ContentType) (*Reader, error) {
	return newReader(src, size, a, &want)
}

func newReader(src io.ReaderAt, size int64, a fsverity.Algorithm, want *ContentType) (*Reader, error) {
	info, err := readHeader(src, size, a)
	if err != nil {
		return nil, err
	}
	var b [infoSize]byte
	if err := readFull(src, b[:], info.start, "info"); err != nil {
		return nil, err
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	r := &Reader{algorithm: a, contentType: ContentType(number(8))}
	if want != nil && r.contentType != *want {
		return nil, formatError(info.start+64, "info.content_type", "got %v, want %v", r.contentType, *want)
	}
	if number(9) > math.MaxInt64 {
		return nil, formatError(info.start+72, "info.stream_size", "%d bytes", number(9))
	}
	r.size = int64(number(9))
	spans, err := sections(number, info, size)
	if err != nil {
		return nil, err
	}
	streams, err := readTable(src, spans[0], a, "stream_refs")
	if err != nil {
		return nil, err
	}
	if r.objects, err = readTable(src, spans[1], a, "object_refs"); err != nil {
		return nil, err
	}
	if err := r.readNamed(src, spans[3], streams); err != nil {
		return nil, err
	}
	if spans[2].size() == 0 {
		return nil, formatError(spans[2].start, "stream", "no zstd frame")
	}
	r.section = io.NewSectionReader(src, spans[2].start, spans[2].size())
	return r, nil
}

// Sniff says whether a file that begins with these bytes, at least 32 of a longer
// one, is meant to be a splitstream, in either layout of the header.
func Sniff(head []byte) bool {
	at := func(offset int) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	return at(0) || at(magicOffsetOld)
}

// readHeader returns where the info section is.
func readHeader(src io.ReaderAt, size int64, a fsverity.Algorithm) (span, error) {
	var b [headerSize]byte
	if size < headerSize {
		return span{}, formatError(0, "header", "the file has %d bytes, want at least %d", size, headerSize)
	}
	if err := readFull(src, b[:], 0, "header"); err != nil {
		return span{}, err
	}
	// Offsets of version, algorithm, block size and info in the two layouts.
	version, algorithm, bits, info := 11, 14, 15, 16
	if string(b[:len(magic)]) != magic {
		if string(b[magicOffsetOld:magicOffsetOld+len(magic)]) != magic {
			return span{}, formatError(0, "header.magic", "got %q, want %q here or at byte %d", b[:len(magic)], magic, magicOffsetOld)
		}
		version, algorithm, bits, info = 29, 30, 31, 0
	}
	if b[version] != formatVersion {
		return span{}, formatError(int64(version), "header.version", "got %d, want %d", b[version], formatVersion)
	}
	if b[algorithm] != byte(a) {
		return span{}, formatError(int64(algorithm), "header.algorithm", "got %d, want %d (%s)", b[algorithm], byte(a), a.Name())
	}
	if b[bits] != blockBits {
		return span{}, formatError(int64(bits), "header.lg_blocksize", "got %d, want %d", b[bits], blockBits)
	}
	s, err := checkSpan(binary.LittleEndian.Uint64(b[info:]), binary.LittleEndian.Uint64(b[info+8:]), size, int64(info), "header.info")
	if err != nil {
		return span{}, err
	}
	if s.size() < infoSize {
		return span{}, formatError(int64(info), "header.info", "%d bytes, want at least %d", s.size(), infoSize)
	}
	return s, nil
}

// sections returns stream_refs, object_refs, stream and named_refs.
func sections(number func(int) uint64, info span, size int64) ([4]span, error) {
	var spans [4]span
	used := []span{{0, headerSize}, info}
	for i, name := range []string{"info.stream_refs", "info.object_refs", "info.stream", "info.named_refs"} {
		at := info.start + int64(16*i)
		s, err := checkSpan(number(2*i), number(2*i+1), size, at, name)
		if err != nil {
			return spans, err
		}
		for _, u := range used {
			if s.size() > 0 && s.start < u.end && u.start < s.end {
				return spans, formatError(at, name, "bytes %d to %d belong to another section too", s.start, s.end)
			}
		}
		spans[i], used = s, append(used, s)
	}
	return spans, nil
}

func checkSpan(start, end uint64, size, at int64, field string) (span, error) {
	if end < start || end > uint64(size) {
		return span{}, formatError(at, field, "bytes %d to %d of a file of %d bytes", start, end, size)
	}
	return span{int64(start), int64(end)}, nil
}

func readTable(src io.ReaderAt, s span, a fsverity.Algorithm, field string) (string, error) {
	if s.size()%int64(a.Size()) != 0 {
		return "", formatError(s.start, field, "%d bytes, want a multiple of %d", s.size(), a.Size())
	}
	if s.size() > maxTable {
		return "", formatError(s.start, field, "%d bytes, want at most %d", s.size(), maxTable)
	}
	b := make([]byte, s.size())
	if err := readFull(src, b, s.start, field); err != nil {
		return "", err
	}
	return string(b), nil
}

func readFull(src io.ReaderAt, b []byte, offset int64, field string) error {
	n, err := src.ReadAt(b, offset)
	switch {
	case n == len(b):
		return nil
	case errors.Is(err, io.EOF):
		return formatError(offset+int64(n), field, "the file ends, want %d more bytes", len(b)-n)
	}
	return fmt.Errorf("read splitstream %s: %w", field, err)
}

// readNamed decodes records "<index>:<name>" NUL.
func (r *Reader) readNamed(src io.ReaderAt, s span, streams string) error {
	const field = "named_refs"
	if s.size() == 0 {
		return formatError(s.start, field, "no zstd frame")
	}
	in := &source{r: io.NewSectionReader(src, s.start, s.size())}
	dec, err := newDecoder(in)
	if err != nil {
		return err
	}
	defer dec.Close()
	text, err := io.ReadAll(io.LimitReader(dec, maxNamed+1))
	if err != nil {
		return in.cause(s.start, field, err)
	}
	if len(text) > maxNamed {
		return formatError(s.start, field, "more than %d bytes", maxNamed)
	}
	seen := make(map[string]fsverity.Digest)
	count := uint64(len(streams) / r.algorithm.Size())
	for rest := string(text); rest != ""; {
		at := int64(len(text) - len(rest))
		record, after, ok := strings.Cut(rest, "\x00")
		if !ok {
			return formatError(at, field, "record %.80q without NUL", rest)
		}
		rest = after
		index, name, ok := strings.Cut(record, ":")
		if !ok {
			return formatError(at, field, "record %.80q without colon", record)
		}
		i, err := strconv.ParseUint(index, 10, 63)
		if err != nil || i >= count {
			return formatError(at, field, "index %.80q of %d references", index, count)
		}
		if !utf8.ValidString(name) {
			return formatError(at, field, "name %.80q is not UTF-8", name)
		}
		seen[name] = r.digest(streams, int(i))
	}
	for name, d := range seen {
		r.named = append(r.named, NamedRef{name, d})
	}
	slices.SortFunc(r.named, func(a, b NamedRef) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (r *Reader) digest(table string, i int) fsverity.Digest {
	n := r.algorithm.Size()
	d, err := fsverity.DigestFromRaw(table[i*n : (i+1)*n])
	if err != nil {
		panic(err) // the length is that of the algorithm
	}
	return d
}

// ContentType returns what the writer said the stream is.
func (r *Reader) ContentType() ContentType { return r.contentType }

// Size returns the length of the stream in bytes, as the file claims it.
func (r *Reader) Size() int64 { return r.size }

// Objects returns the number of distinct objects in the table.
func (r *Reader) Objects() int { return len(r.objects) / r.algorithm.Size() }

// Object returns the i-th object of the table.
func (r *Reader) Object(i int) fsverity.Digest { return r.digest(r.objects, i) }

// Single returns the only object of a stream that must have exactly one: a
// manifest, config or blob. The stream itself is not decompressed.
func (r *Reader) Single() (fsverity.Digest, error) {
	if n := r.Objects(); n != 1 {
		return fsverity.Digest{}, formatError(0, "object_refs", "%d objects, want exactly 1", n)
	}
	return r.Object(0), nil
}

// NamedRefs returns the named references, sorted by name; names are unique. The
// caller must not change the slice.
func (r *Reader) NamedRefs() []NamedRef { return r.named }

// Close releases the decoder. It does not close the file.
func (r *Reader) Close() error {
	if r.dec != nil {
		r.dec.Close()
		r.dec = nil
	}
	return nil
}

func newDecoder(in io.Reader) (*zstd.Decoder, error) {
	return zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
}

// source remembers why reading the file failed, to tell that from bad content.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

func (s *source) cause(at int64, field string, err error) error {
	if s.err != nil {
		return fmt.Errorf("read splitstream %s: %w", field, s.err)
	}
	return formatError(at, field, "%v", err)
}
