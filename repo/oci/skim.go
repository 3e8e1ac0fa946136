package oci

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// maxSkimmed is the largest file that SkimLayer keeps, in bytes.
const maxSkimmed = 1 << 20

// SkimLayer reads a layer blob as ImportLayer does, and stores nothing. Files have
// their sizes, but only those of up to 64 bytes, and the ones whose paths keep
// wants, have contents; the digest of the others is zero. The bytes are not
// compared with diffID, which is for messages: what is found is good for a
// decision that ImportLayer will put to the proof.
//
// Errors: *FormatError and those of the blob.
func SkimLayer(ctx context.Context, blob io.Reader, diffID digest.Digest, keep func(path string) bool) (*Layer, error) {
	where := "layer " + diffID.String()
	dec, err := newDecompressor(blob, where)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	t := &tape{in: &blockReader{r: dec}}
	a := newArchive(t, where)
	layer := &Layer{DiffID: diffID}
	var m member
	for {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		t.raw = t.raw[:0]
		err := a.next(&m)
		if IsEOF(err) {
			layer.Memory = a.taken
			return layer, nil
		}
		if err != nil {
			return nil, err
		}
		e, err := m.skim(t, keep)
		if err != nil {
			return nil, a.failBody(err)
		}
		layer.Entries = append(layer.Entries, e)
	}
}

// skim makes the tree entry of a member and passes over its body.
func (m *member) skim(t *tape, keep func(path string) bool) (tree.Entry, error) {
	if m.external() && m.size <= maxSkimmed && keep(m.path) {
		b, err := t.takeInline(m.size)
		return tree.Entry{Path: m.path, Node: tree.NewInline(m.meta, append([]byte(nil), b...))}, err
	}
	return m.node(
		func() ([]byte, error) { return t.takeInline(m.size) },
		func() (fsverity.Digest, error) {
			for left := m.size; left > 0; {
				p, err := t.take(left)
				if err != nil {
					return fsverity.Digest{}, err
				}
				left -= int64(len(p))
			}
			return fsverity.Digest{}, nil
		},
	)
}

// blockReader hands out what a reader gives, in one goroutine.
type blockReader struct {
	r   io.Reader
	buf []byte
}

func (b *blockReader) next() ([]byte, error) {
	if b.buf == nil {
		b.buf = make([]byte, pieceSize)
	}
	for {
		n, err := b.r.Read(b.buf)
		if n > 0 || err != nil {
			return b.buf[:n], err
		}
	}
}
