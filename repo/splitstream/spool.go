package splitstream

import "io"

// Temp is unnamed scratch space. Close drops it.
type Temp interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// spoolMemory is how much a spool keeps in memory before it uses a Temp.
const spoolMemory = 2 << 20

// spool holds bytes until what goes before them is known. The zero value keeps
// everything in memory.
type spool struct {
	newTemp func() (Temp, error)
	buf     []byte
	temp    Temp
	size    int64
}

func (s *spool) Write(p []byte) (int, error) {
	if s.temp == nil {
		if s.newTemp == nil || len(s.buf)+len(p) <= spoolMemory {
			s.buf = append(s.buf, p...)
			s.size += int64(len(p))
			return len(p), nil
		}
		temp, err := s.newTemp()
		if err != nil {
			return 0, err
		}
		s.temp = temp
		if _, err := temp.Write(s.buf); err != nil {
			return 0, err
		}
		s.buf = s.buf[:0]
	}
	n, err := s.temp.Write(p)
	s.size += int64(n)
	return n, err
}

// copyTo writes what the spool holds.
func (s *spool) copyTo(w io.Writer) error {
	if s.temp == nil {
		_, err := w.Write(s.buf)
		return err
	}
	// Only Write: the ReadFrom of a zstd encoder starts new blocks, so that the
	// bytes would depend on how much memory a spool uses.
	_, err := io.Copy(struct{ io.Writer }{w}, io.NewSectionReader(s.temp, 0, s.size))
	return err
}

// reset empties the spool.
func (s *spool) reset() error {
	var err error
	if s.temp != nil {
		err = s.temp.Close()
		s.temp = nil
	}
	s.buf, s.size = s.buf[:0], 0
	return err
}
