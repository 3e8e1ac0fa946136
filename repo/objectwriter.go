package repo

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// writerBuffer is how much of an object is collected before a file is made for
// it. Most files of an OS image fit, so their digest is known first, and one that
// the repository has already costs no file.
const writerBuffer = 64 << 10

var writerBuffers = sync.Pool{New: func() any { return new([writerBuffer]byte) }}

// ObjectWriter stores one object whose content comes piece by piece. End it with
// Commit or Abort.
type ObjectWriter struct {
	r      *Repository
	array  *[writerBuffer]byte
	buf    []byte // what array holds and the file does not
	temp   *durable.Temp
	hasher *fsverity.Hasher // nil once the kernel is to compute the digest
	size   int64
	method Method
	batch  *Batch // stores what fits into the buffer, if set
	err    error
}

var errWriterDone = errors.New("repository: the object is finished")

// NewObject starts an object.
func (r *Repository) NewObject(ctx context.Context) (*ObjectWriter, error) {
	if err := r.mayWrite(ctx); err != nil {
		return nil, err
	}
	w := &ObjectWriter{r: r, array: writerBuffers.Get().(*[writerBuffer]byte)}
	w.buf = w.array[:0]
	return w, nil
}

// Write appends p.
func (w *ObjectWriter) Write(p []byte) (int, error) {
	written := 0
	for w.err == nil && len(p) > 0 {
		if len(w.buf) == 0 && w.temp != nil && len(p) >= writerBuffer {
			written += len(p)
			w.err = w.append(p)
			break
		}
		n := copy(w.buf[len(w.buf):writerBuffer], p)
		w.buf = w.buf[:len(w.buf)+n]
		written += n
		p = p[n:]
		if len(p) > 0 {
			w.err = w.flush()
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	return written, nil
}

// ReadFrom appends all of src. Every error of src but io.EOF is returned.
func (w *ObjectWriter) ReadFrom(src io.Reader) (int64, error) {
	var total int64
	for w.err == nil {
		if len(w.buf) == writerBuffer {
			if w.err = w.flush(); w.err != nil {
				break
			}
		}
		n, err := src.Read(w.buf[len(w.buf):writerBuffer])
		w.buf = w.buf[:len(w.buf)+n]
		total += int64(n)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
	return total, w.err
}

// flush moves the buffer to the file.
func (w *ObjectWriter) flush() error {
	err := w.append(w.buf)
	w.buf = w.array[:0]
	return err
}

func (w *ObjectWriter) append(p []byte) (err error) {
	if w.temp == nil {
		if w.temp, err = w.r.temp(); err != nil {
			return err
		}
		if w.r.verity == verityNone {
			w.hasher = w.r.getHasher()
		}
	}
	if err := w.r.take(int64(len(p))); err != nil {
		return err
	}
	if _, err := w.temp.Write(p); err != nil {
		return err
	}
	if w.hasher != nil {
		_, _ = w.hasher.Write(p) // never fails
	}
	w.size += int64(len(p))
	return nil
}

// Commit ends the object and returns its digest and its size in bytes. What was
// stored is durable after the next Sync or Publish call.
func (w *ObjectWriter) Commit() (fsverity.Digest, int64, error) {
	if w.err != nil {
		return fsverity.Digest{}, 0, errors.Join(w.err, w.Abort())
	}
	d, err := w.commit()
	size := w.size
	return d, size, errors.Join(err, w.Abort())
}

func (w *ObjectWriter) commit() (d fsverity.Digest, err error) {
	if w.temp == nil {
		w.size = int64(len(w.buf))
		h := w.r.getHasher()
		defer w.r.hashers.Put(h)
		_, _ = h.Write(w.buf) // never fails
		d = h.Sum()
		if w.batch != nil {
			w.batch.put(d, w.array, len(w.buf))
			w.array, w.buf, w.err = nil, nil, errWriterDone
			return d, nil
		}
		w.method, err = w.r.putBytes(d, w.buf)
		return d, err
	}
	if err := w.flush(); err != nil {
		return d, err
	}
	if w.hasher != nil {
		d = w.hasher.Sum()
		if w.r.known.has(d) {
			w.method = AlreadyPresent
			w.r.stats.add(AlreadyPresent, w.size)
			return d, nil
		}
		w.method, err = w.r.place(w.temp, d, w.size, Copied, false)
		return d, err
	}
	return w.commitEnforced()
}

// commitEnforced lets the kernel compute the digest.
func (w *ObjectWriter) commitEnforced() (d fsverity.Digest, err error) {
	r := w.r
	if w.temp, d, err = r.enable(w.temp, w.size); err != nil {
		return d, err
	}
	if d.IsZero() { // an insecure repository whose file system refuses after all
		if d, _, err = fsverity.SumReader(r.meta.Algorithm, io.NewSectionReader(w.temp, 0, w.size)); err != nil {
			return d, err
		}
	}
	w.method, err = r.link(w.temp, d, w.size, Copied, false)
	return d, err
}

// Method says how the object came into the repository, after Commit.
func (w *ObjectWriter) Method() Method { return w.method }

// Abort drops what was written. After Commit it does nothing, so that it can be
// deferred.
func (w *ObjectWriter) Abort() error {
	if w.array == nil {
		return nil
	}
	writerBuffers.Put(w.array)
	w.array, w.buf = nil, nil
	if w.hasher != nil {
		w.r.hashers.Put(w.hasher)
		w.hasher = nil
	}
	if w.err == nil {
		w.err = errWriterDone
	}
	if w.temp == nil {
		return nil
	}
	return w.temp.Discard()
}

func (r *Repository) getHasher() *fsverity.Hasher {
	if h, ok := r.hashers.Get().(*fsverity.Hasher); ok {
		h.Reset()
		return h
	}
	return fsverity.NewHasher(r.meta.Algorithm)
}
