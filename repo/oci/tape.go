package oci

// pieces hands out a byte stream in slices of any size. A slice is valid until
// the next call. At the end the error is io.EOF, with an empty slice.
type pieces interface {
	next() ([]byte, error)
}

// tape is the input of archive/tar. It keeps a record of what passes through
// (headers, padding, small bodies), so that a layer can be put together again
// bit for bit, and it lets large bodies be taken out at the side.
//
// It hides io.Seeker: archive/tar must read everything.
type tape struct {
	in     pieces
	piece  []byte // unread part of the last slice
	raw    []byte // recorded since the owner cleared it
	skip   int64  // bytes that were taken and that archive/tar believes to be there
	offset int64  // bytes that passed, skipped ones included
	err    error
}

// fill gets the next slice if there is none.
func (t *tape) fill() error {
	for len(t.piece) == 0 {
		if t.err != nil {
			return t.err
		}
		t.piece, t.err = t.in.next()
	}
	return nil
}

// Read serves archive/tar.
func (t *tape) Read(p []byte) (int, error) {
	if t.skip > 0 {
		// The bytes were taken already; nobody looks at these.
		n := min(int64(len(p)), t.skip)
		t.skip -= n
		return int(n), nil
	}
	if err := t.fill(); err != nil {
		return 0, err
	}
	n := copy(p, t.piece)
	t.raw = append(t.raw, t.piece[:n]...)
	t.piece = t.piece[n:]
	t.offset += int64(n)
	return n, nil
}

// take returns up to n unread bytes, at least one, without recording them;
// archive/tar will be made to believe that it reads them. The slice is valid
// until the next call of any method. A stream that ends gives errCut.
func (t *tape) take(n int64) ([]byte, error) {
	if err := t.fill(); err != nil {
		if IsEOF(err) {
			err = errCut
		}
		return nil, err
	}
	p := t.piece
	if int64(len(p)) > n {
		p = p[:n]
	}
	t.piece = t.piece[len(p):]
	t.pretend(int64(len(p)))
	return p, nil
}

// pretend makes archive/tar believe that n more bytes lie ahead.
func (t *tape) pretend(n int64) {
	t.skip += n
	t.offset += n
}

// takeInline takes n bytes and records them.
func (t *tape) takeInline(n int64) ([]byte, error) {
	start := len(t.raw)
	for n > 0 {
		p, err := t.take(n)
		if err != nil {
			return nil, err
		}
		t.raw = append(t.raw, p...)
		n -= int64(len(p))
	}
	return t.raw[start:len(t.raw):len(t.raw)], nil
}

// drain records everything up to the end of the stream, but not more than limit
// bytes at a time: call it until it returns io.EOF.
func (t *tape) drain(limit int) error {
	if err := t.fill(); err != nil {
		return err
	}
	n := min(len(t.piece), limit)
	t.raw = append(t.raw, t.piece[:n]...)
	t.piece = t.piece[n:]
	t.offset += int64(n)
	return nil
}
