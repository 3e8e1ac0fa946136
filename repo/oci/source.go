package oci

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits of what is read into memory. The peers' limits are larger; no real
// image comes near these.
const (
	MaxManifestSize = 4 << 20 // bytes of a manifest or an index
	MaxConfigSize   = 16 << 20
	// MaxMetadata is how many bytes the entries of an image may take in memory:
	// over two million files. A small blob can decompress to more.
	MaxMetadata = 1 << 30
)

// Source is a place that one image comes from. Implementations are safe for
// several goroutines.
type Source interface {
	// Resolve returns the manifest for the platform that the source was opened
	// with. The manifest bytes were checked against Descriptor.Digest, and
	// against the digest that the user's reference names, if it names one.
	Resolve(ctx context.Context) (Resolved, error)

	// Blob opens a blob of the resolved image. The reader returns io.EOF only
	// after exactly d.Size bytes whose digest is d.Digest, otherwise a
	// *DigestError (VerifyReader does that). Who stops before has verified
	// nothing. Interrupted transfers are repeated inside.
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)

	Close() error
}

type componentKey struct{}

// WithComponent notes for which component of the progress something is read, so
// that what a source says about it can name it.
func WithComponent(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, componentKey{}, name)
}

// ComponentOf returns what WithComponent noted, or "".
func ComponentOf(ctx context.Context) string {
	name, _ := ctx.Value(componentKey{}).(string)
	return name
}

// IsEOF reports whether err is io.EOF itself, the end of what a reader has. An
// error that only wraps it, as that of a broken connection may, is no end.
func IsEOF(err error) bool {
	return err == io.EOF //nolint:errorlint // errors.Is would take a broken connection for the end
}

// Resolved is the image that a reference stands for at this moment.
type Resolved struct {
	Manifest    []byte        // as it was sent
	Descriptor  v1.Descriptor // of Manifest: MediaType, Digest, Size
	IndexDigest digest.Digest // of the index that was resolved for the platform, or empty
	Reference   string        // as the user typed it
}

// CheckDescriptor refuses descriptors that nothing can be verified against:
// malformed or unknown digests, negative sizes. The error is a *FormatError.
func CheckDescriptor(where string, d v1.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return &FormatError{Where: where, Detail: fmt.Sprintf("digest %q", d.Digest), Err: err}
	}
	if d.Size < 0 {
		return &FormatError{Where: where, Detail: fmt.Sprintf("size %d of blob %s", d.Size, d.Digest)}
	}
	return nil
}

// VerifyReader checks what comes from r against d while it is read. Instead of
// io.EOF it returns a *DigestError if size or digest differ; it never hands out
// more than d.Size bytes. where begins the text of the error.
func VerifyReader(r io.Reader, where string, d v1.Descriptor) io.Reader {
	return &verifyReader{r: r, where: where, desc: d, hash: d.Digest.Algorithm().Hash()}
}

type verifyReader struct {
	r     io.Reader
	where string
	desc  v1.Descriptor
	hash  hash.Hash
	n     int64
	err   error
}

func (v *verifyReader) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	left := v.desc.Size - v.n
	if left == 0 {
		return 0, v.end()
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	if IsEOF(err) {
		if v.n < v.desc.Size {
			err = v.sizeError()
		} else {
			err = nil // the next call finds the end
		}
	}
	v.err = err
	return n, err
}

// end is called once all bytes are there.
func (v *verifyReader) end() error {
	var one [1]byte
	for range 100 { // as io.ReadFull: give up on readers that return nothing for ever
		n, err := v.r.Read(one[:])
		if n > 0 {
			v.n++
			v.err = v.sizeError()
			return v.err
		}
		if IsEOF(err) {
			v.err = io.EOF
			if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.hash); got != v.desc.Digest {
				v.err = &DigestError{Where: v.where, Got: got, Want: v.desc.Digest, GotSize: v.n, WantSize: v.n}
			}
			return v.err
		}
		if err != nil {
			v.err = err
			return err
		}
	}
	v.err = io.ErrNoProgress
	return v.err
}

func (v *verifyReader) sizeError() error {
	return &DigestError{Where: v.where, Want: v.desc.Digest, GotSize: v.n, WantSize: v.desc.Size}
}

// ReadBlob reads a small blob of a source as a whole. limit is in bytes; where
// begins the text of errors about the content.
func ReadBlob(ctx context.Context, s Source, where string, d v1.Descriptor, limit int64) ([]byte, error) {
	if err := CheckDescriptor(where, d); err != nil {
		return nil, err
	}
	if d.Size > limit {
		return nil, &FormatError{Where: where, Detail: fmt.Sprintf("%d bytes, limit %d bytes", d.Size, limit)}
	}
	r, err := s.Blob(ctx, d)
	if err != nil {
		return nil, NameBlob(err, where)
	}
	defer r.Close()
	b := make([]byte, 0, d.Size+1)
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if IsEOF(err) {
			return b, nil
		}
		if err != nil {
			return nil, NameBlob(err, where)
		}
	}
}

// NameBlob says in a *DigestError what the blob is. Other errors stay as they are.
func NameBlob(err error, where string) error {
	var d *DigestError
	if !errors.As(err, &d) {
		return err
	}
	named := *d
	named.Where = where
	return &named
}

// VerifyBytes checks bytes against a digest. The error is a *DigestError, or a
// *FormatError if the digest itself is malformed.
func VerifyBytes(where string, b []byte, want digest.Digest) error {
	if err := CheckDescriptor(where, v1.Descriptor{Digest: want}); err != nil {
		return err
	}
	if got := want.Algorithm().FromBytes(b); got != want {
		return &DigestError{Where: where, Got: got, Want: want, GotSize: int64(len(b)), WantSize: int64(len(b))}
	}
	return nil
}
