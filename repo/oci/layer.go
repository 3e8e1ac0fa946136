package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// flushSize is how much inline data is collected before the splitstream gets it.
const flushSize = 64 << 10

// Layer is one layer whose bytes have the diff_id that names it.
type Layer struct {
	DiffID  digest.Digest
	Stream  fsverity.Digest // the splitstream, an object; not published yet
	Entries []tree.Entry    // in tar order
	Size    int64           // uncompressed bytes
	Inline  int64           // of these, what the splitstream holds
	Memory  int64           // bytes that Entries take, about
}

// ImportLayer reads a layer blob, stores its files as objects and its tar as a
// splitstream, and compares the uncompressed bytes with diffID. blob must verify
// itself (Source.Blob) and may be compressed with gzip or zstd. No name is made:
// for that see PublishLayer.
//
// Errors: *DigestError, *FormatError, those of the blob and of the repository.
// After an error, objects of the layer may remain; they have no name.
func ImportLayer(ctx context.Context, r *repo.Repository, blob io.Reader, diffID digest.Digest) (*Layer, error) {
	where := "layer " + diffID.String()
	if err := diffID.Validate(); err != nil {
		return nil, &FormatError{Where: where, Detail: "diff_id", Err: err}
	}
	dec, err := newDecompressor(blob, where)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	g, gctx := errgroup.WithContext(ctx)
	ahead := newReadAhead(gctx, diffID.Algorithm().Hash())
	g.Go(func() error { return ahead.run(dec) })
	var layer *Layer
	g.Go(func() error {
		var err error
		layer, err = importTar(gctx, r, ahead, diffID)
		if err != nil {
			return err
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return layer, nil
}

// importTar splits an uncompressed layer.
func importTar(ctx context.Context, r *repo.Repository, in *readAhead, diffID digest.Digest) (_ *Layer, err error) {
	where := "layer " + diffID.String()
	out, err := r.NewStream(ctx, splitstream.Layer)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, out.Abort())
		}
	}()
	s := splitter{objects: r.NewBatch(0), out: out, tape: &tape{in: in}, layer: &Layer{DiffID: diffID}}
	err = s.split(ctx, where)
	// What could not be stored is the cause of any other error.
	if stored := s.objects.Wait(); stored != nil {
		return nil, stored
	}
	if err != nil {
		return nil, err
	}
	if got := digest.NewDigest(diffID.Algorithm(), in.hash); got != diffID {
		return nil, &DigestError{Where: "uncompressed layer", Got: got, Want: diffID, GotSize: s.tape.offset, WantSize: s.tape.offset}
	}
	s.layer.Size = s.tape.offset
	s.layer.Inline += s.tape.offset
	if s.layer.Stream, err = out.Commit(ctx); err != nil {
		return nil, err
	}
	return s.layer, nil
}

// splitter puts file bodies into objects and all the rest into the stream.
type splitter struct {
	objects *repo.Batch
	out     *repo.StreamWriter
	tape    *tape
	layer   *Layer
}

func (s *splitter) split(ctx context.Context, where string) error {
	a := newArchive(s.tape, where)
	var m member
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err := a.next(&m)
		if IsEOF(err) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.member(ctx, a, &m); err != nil {
			return err
		}
		if len(s.tape.raw) >= flushSize {
			if err := s.flush(); err != nil {
				return err
			}
		}
	}
	s.layer.Memory = a.taken
	return s.tail(a)
}

func (s *splitter) member(ctx context.Context, a *archive, m *member) error {
	e, err := m.node(
		func() ([]byte, error) { return s.tape.takeInline(m.size) },
		func() (fsverity.Digest, error) { return s.external(ctx, m.size) },
	)
	if err != nil {
		return a.failBody(err)
	}
	s.layer.Entries = append(s.layer.Entries, e)
	return nil
}

// failBody adds the place only to what is wrong with the tar itself.
func (a *archive) failBody(err error) error {
	var detail detailError
	if errors.As(err, &detail) {
		return a.fail(detail.error)
	}
	return err
}

// detailError is something wrong with a member.
type detailError struct{ error }

// errCut is a layer that ends too early. It is told from an io.ErrUnexpectedEOF
// of a source, which says that a connection broke.
var errCut = detailError{io.ErrUnexpectedEOF}

// external moves the next size bytes into an object.
func (s *splitter) external(ctx context.Context, size int64) (fsverity.Digest, error) {
	if err := s.flush(); err != nil {
		return fsverity.Digest{}, err
	}
	w, err := s.objects.NewObject(ctx)
	if err != nil {
		return fsverity.Digest{}, err
	}
	for left := size; left > 0; {
		p, err := s.tape.take(left)
		if err == nil {
			_, err = w.Write(p)
		}
		if err != nil {
			return fsverity.Digest{}, errors.Join(err, w.Abort())
		}
		left -= int64(len(p))
	}
	d, _, err := w.Commit()
	if err != nil {
		return fsverity.Digest{}, err
	}
	s.layer.Inline -= size
	return d, s.out.External(d, size)
}

func (s *splitter) flush() error {
	_, err := s.out.Write(s.tape.raw)
	s.tape.raw = s.tape.raw[:0]
	return err
}

// tail takes what follows the end marker.
func (s *splitter) tail(a *archive) error {
	start := s.tape.offset
	for {
		if err := s.flush(); err != nil {
			return err
		}
		err := s.tape.drain(flushSize)
		if IsEOF(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.tape.offset-start > maxTrailing {
			return a.fail(fmt.Errorf("more than %d bytes behind the end of the archive", maxTrailing))
		}
	}
}

// node makes the tree entry of a member; the functions fetch a body.
func (m *member) node(inline func() ([]byte, error), external func() (fsverity.Digest, error)) (tree.Entry, error) {
	if !m.regular() {
		e, err := m.entry()
		if err != nil {
			err = detailError{err}
		}
		return e, err
	}
	if m.external() {
		d, err := external()
		return tree.Entry{Path: m.path, Node: tree.NewExternal(m.meta, d, m.size)}, err
	}
	b, err := inline()
	return tree.Entry{Path: m.path, Node: tree.NewInline(m.meta, bytes.Clone(b))}, err
}

// LoadLayer reads the entries of a stored layer from its splitstream, without
// its files. It does not check the diff_id: use it for layers that VerifyLayer
// or ImportLayer has seen. Errors about the content are *FormatError or
// *splitstream.FormatError.
func LoadLayer(ctx context.Context, r *repo.Repository, diffID digest.Digest, stream fsverity.Digest) (_ *Layer, err error) {
	in, err := r.OpenStreamByID(ctx, stream, splitstream.Layer)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	chunks := &chunkReader{r: in.Reader}
	t := &tape{in: chunks}
	a := newArchive(t, "layer "+diffID.String())
	layer := &Layer{DiffID: diffID, Stream: stream, Size: in.Size(), Inline: in.Size()}
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
		e, err := m.node(
			func() ([]byte, error) { return t.takeInline(m.size) },
			func() (fsverity.Digest, error) { layer.Inline -= m.size; return chunks.external(t, m.size) },
		)
		if err != nil {
			return nil, a.failBody(err)
		}
		layer.Entries = append(layer.Entries, e)
	}
}

// chunkReader gives the inline chunks of a splitstream. An external chunk ends
// the stream until it was asked for.
type chunkReader struct {
	r       *splitstream.Reader
	buf     [32 << 10]byte
	left    int64           // of the present inline chunk
	pending fsverity.Digest // the external chunk that comes next
}

var errUnexpectedObject = detailError{errors.New("an object where the tar has no file body of more than 64 bytes")}

func (c *chunkReader) next() ([]byte, error) {
	for c.left == 0 {
		if !c.pending.IsZero() {
			return nil, errUnexpectedObject
		}
		chunk, err := c.r.Next()
		if err != nil {
			return nil, err
		}
		c.left, c.pending = chunk.Size, chunk.Object
	}
	n, err := c.r.Read(c.buf[:min(c.left, int64(len(c.buf)))])
	c.left -= int64(n)
	if IsEOF(err) && n > 0 {
		err = nil
	}
	return c.buf[:n], err
}

// external takes the object that stands for the next size bytes.
func (c *chunkReader) external(t *tape, size int64) (fsverity.Digest, error) {
	if len(t.piece) > 0 || c.left > 0 {
		return fsverity.Digest{}, detailError{fmt.Errorf("a file body of %d bytes that is not an object", size)}
	}
	if c.pending.IsZero() {
		chunk, err := c.r.Next()
		if IsEOF(err) {
			err = errCut
		}
		if err != nil {
			return fsverity.Digest{}, err
		}
		if chunk.Object.IsZero() {
			return fsverity.Digest{}, detailError{fmt.Errorf("a file body of %d bytes that is not an object", size)}
		}
		c.pending = chunk.Object
	}
	d := c.pending
	c.pending = fsverity.Digest{}
	t.pretend(size)
	return d, nil
}

// VerifyLayer puts a stored layer together again, reads all its objects and
// compares the result with its diff_id. The error is a *DigestError, a
// *fsverity.MismatchError, or one about the splitstream.
func VerifyLayer(ctx context.Context, r *repo.Repository, diffID digest.Digest, stream fsverity.Digest) (err error) {
	if err := diffID.Validate(); err != nil {
		return &FormatError{Where: "layer " + diffID.String(), Detail: "diff_id", Err: err}
	}
	in, err := r.OpenStreamByID(ctx, stream, splitstream.Layer)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	h := diffID.Algorithm().Hash()
	err = in.Cat(h, func(d fsverity.Digest) (io.ReadCloser, error) {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		f, err := r.OpenObject(d)
		if err != nil {
			return nil, err
		}
		m := &measuredFile{ctx: ctx, f: f, want: d}
		if !r.Secure() {
			m.hasher = fsverity.NewHasher(d.Algorithm())
		}
		return m, nil
	})
	if err != nil {
		return err
	}
	if got := digest.NewDigest(diffID.Algorithm(), h); got != diffID {
		return &DigestError{Where: "stored layer", Got: got, Want: diffID, GotSize: in.Size(), WantSize: in.Size()}
	}
	return nil
}

// measuredFile checks the name of an object where the kernel does not, and ends
// when its context does.
type measuredFile struct {
	ctx    context.Context // of one call: a reader has no other way to get one
	f      *os.File
	want   fsverity.Digest
	hasher *fsverity.Hasher // nil if the kernel vouches for the content
}

func (m *measuredFile) Read(p []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	n, err := m.f.Read(p)
	if m.hasher == nil {
		return n, err
	}
	_, _ = m.hasher.Write(p[:n]) // never fails
	if IsEOF(err) {
		if got := m.hasher.Sum(); got != m.want {
			return n, &fsverity.MismatchError{Where: m.f.Name(), Got: got, Want: m.want}
		}
	}
	return n, err
}

func (m *measuredFile) Close() error { return m.f.Close() }
