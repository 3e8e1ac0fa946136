// Package splitstream reads and writes splitstreams: a byte stream, for example
// a layer tar, cut into inline pieces, which the splitstream holds compressed,
// and external pieces, which are whole objects of a repository. Putting the
// pieces together again gives the stream bit for bit.
//
// A splitstream also holds a table of all objects it uses and a table of named
// references to other splitstreams or images; both can be read without
// decompressing the stream. The format is that of composefs-rs 0.9
// (docs/design/repository.md); the header that it wrote before 0.7.0 is read,
// never written. Compressed bytes differ between zstd encoders, so the digest of
// a splitstream means nothing outside the repository that holds it.
//
// Writer and Reader stream: memory is the tables plus fixed buffers. Each is
// used by one goroutine. The package opens no files.
package splitstream

import (
	"encoding/binary"
	"fmt"

	"github.com/cfsboot/cfsboot/fsverity"
)

const (
	magic         = "SplitStream"
	formatVersion = 0
	blockBits     = 12
	headerSize    = 32
	infoSize      = 80
	// magicOffsetOld is where the compiler of composefs-rs before 0.7.0 put the magic.
	magicOffsetOld = 18
)

// ContentType says what the stream is. It is usually 8 ASCII characters, the
// first in the lowest byte.
type ContentType uint64

// The content types of composefs-rs.
const (
	Untyped  ContentType = 0                  // tests
	Layer    ContentType = 0x726579616c69636f // "ocilayer": a tar, split
	Config   ContentType = 0x67666e6f6369636f // "ociconfg": raw JSON, one external piece
	Manifest ContentType = 0x66696e616d69636f // "ocimanif": raw JSON, one external piece
	Blob     ContentType = 0x626f6c625f69636f // "oci_blob": raw bytes, one external piece
)

// String returns the ASCII form, or a number if there is none.
func (t ContentType) String() string {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], uint64(t))
	for _, c := range b {
		if c < 0x21 || c > 0x7e {
			return fmt.Sprintf("%#x", uint64(t))
		}
	}
	return string(b[:])
}

// NamedRef is one entry of the table of named references.
type NamedRef struct {
	Name   string
	Digest fsverity.Digest // of a splitstream or an image
}

// FormatError reports bytes that no conforming writer produces.
type FormatError struct {
	Offset int64  // byte offset in the splitstream file, or of a chunk in the decompressed section
	Field  string // name on disk, for example "header.magic"
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("splitstream: %s at byte %d: %s", e.Field, e.Offset, e.Detail)
}

func formatError(offset int64, field, format string, args ...any) error {
	return &FormatError{Offset: offset, Field: field, Detail: fmt.Sprintf(format, args...)}
}

// span is a range of bytes in the file, end exclusive.
type span struct{ start, end int64 }

func (s span) size() int64 { return s.end - s.start }
