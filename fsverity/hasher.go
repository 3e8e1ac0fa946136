package fsverity

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"io"
	"sync"
)

const descriptorSize = 256 // sizeof(struct fsverity_descriptor)

// Hasher computes the fs-verity digest of what is written to it. It keeps one
// block for the data and one for each level of the Merkle tree, so its memory
// grows with the logarithm of the size; after the first blocks it does not
// allocate. It is not safe for concurrent use.
type Hasher struct {
	alg    Algorithm
	size   uint64
	data   level   // the last, partial block of the data
	levels []level // levels[0] holds hashes of data blocks; none is ever full
}

type level struct {
	n   int
	buf *[BlockSize]byte
}

// NewHasher returns a Hasher for a, which must be valid.
func NewHasher(a Algorithm) *Hasher {
	if !a.Valid() {
		panic("fsverity: NewHasher with unknown algorithm")
	}
	return &Hasher{alg: a}
}

// Algorithm returns the algorithm the Hasher was made for.
func (h *Hasher) Algorithm() Algorithm { return h.alg }

// Size returns the number of bytes written since the last Reset.
func (h *Hasher) Size() int64 { return int64(h.size) }

// Reset forgets what was written.
func (h *Hasher) Reset() {
	h.size, h.data.n = 0, 0
	for i := range h.levels {
		h.levels[i].n = 0
	}
}

// Write adds data. It never fails.
func (h *Hasher) Write(p []byte) (int, error) {
	written := len(p)
	h.size += uint64(written)
	if h.data.n > 0 {
		n := copy(h.data.buf[h.data.n:], p)
		h.data.n += n
		p = p[n:]
		if h.data.n < BlockSize {
			return written, nil
		}
		h.addBlock(0, h.data.buf[:])
		h.data.n = 0
	}
	for len(p) >= BlockSize {
		h.addBlock(0, p[:BlockSize])
		p = p[BlockSize:]
	}
	if len(p) > 0 {
		if h.data.buf == nil {
			h.data.buf = new([BlockSize]byte)
		}
		h.data.n = copy(h.data.buf[:], p)
	}
	return written, nil
}

// addBlock hashes a full block and adds the hash to the level, passing full
// levels up. A full level is passed up at once; so at any time a level with
// hashes below a non-empty one is a true remainder.
func (h *Hasher) addBlock(lvl int, block []byte) {
	size := h.alg.Size()
	for {
		if lvl == len(h.levels) {
			h.levels = append(h.levels, level{buf: new([BlockSize]byte)})
		}
		l := &h.levels[lvl]
		hashInto(h.alg, l.buf[l.n:l.n+size], block)
		l.n += size
		if l.n < BlockSize {
			return
		}
		l.n = 0
		block = l.buf[:]
		lvl++
	}
}

func hashInto(a Algorithm, dst, block []byte) {
	if a == SHA256 {
		sum := sha256.Sum256(block)
		copy(dst, sum[:])
		return
	}
	sum := sha512.Sum512(block)
	copy(dst, sum[:])
}

// Sum returns the digest of what was written so far. It does not change the
// state: one may go on writing.
func (h *Hasher) Sum() Digest {
	var block [BlockSize]byte
	var carry [64]byte // hash of the padded remainder of the level below
	carrying := false
	size := h.alg.Size()

	if h.data.n > 0 {
		copy(block[:], h.data.buf[:h.data.n])
		hashInto(h.alg, carry[:size], block[:])
		carrying = true
	}
	for i := range h.levels {
		l := &h.levels[i]
		n := copy(block[:], l.buf[:l.n])
		if carrying {
			n += copy(block[n:], carry[:size])
		}
		if n == 0 {
			continue
		}
		if n == size && h.emptyAbove(i) { // a single hash is the root
			copy(carry[:], block[:size])
			carrying = true
			break
		}
		clear(block[n:])
		hashInto(h.alg, carry[:size], block[:])
		carrying = true
	}
	if !carrying {
		clear(carry[:]) // the root hash of an empty file is all zero
	}
	return h.describe(carry[:size])
}

func (h *Hasher) emptyAbove(lvl int) bool {
	for _, l := range h.levels[lvl+1:] {
		if l.n > 0 {
			return false
		}
	}
	return true
}

// describe hashes the fsverity_descriptor of the finished tree.
func (h *Hasher) describe(root []byte) Digest {
	var d [descriptorSize]byte
	d[0] = 1           // version
	d[1] = byte(h.alg) // hash_algorithm
	d[2] = 12          // log_blocksize
	binary.LittleEndian.PutUint64(d[8:], h.size)
	copy(d[16:80], root) // root_hash, zero-padded to 64 bytes
	var out [64]byte
	hashInto(h.alg, out[:h.alg.Size()], d[:])
	return Digest{raw: string(out[:h.alg.Size()])}
}

// Sum returns the digest of b.
func Sum(a Algorithm, b []byte) Digest {
	h := NewHasher(a)
	_, _ = h.Write(b) // never fails
	return h.Sum()
}

var copyBuffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// SumReader returns the digest and the number of bytes of r, read to its end.
// Errors are those of r.
func SumReader(a Algorithm, r io.Reader) (Digest, int64, error) {
	h := NewHasher(a)
	buf := copyBuffers.Get().(*[64 << 10]byte)
	defer copyBuffers.Put(buf)
	for {
		n, err := r.Read(buf[:])
		_, _ = h.Write(buf[:n]) // never fails
		if errors.Is(err, io.EOF) {
			return h.Sum(), h.Size(), nil
		}
		if err != nil {
			return Digest{}, h.Size(), err
		}
	}
}
