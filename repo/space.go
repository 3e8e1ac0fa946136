package repo

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// What objects leave free by default: the rest of the machine, /var above all,
// lies on the same file system. A small one keeps a share of it.
const (
	keepBytes  = 64 << 20
	keepInodes = 1024
	keepShare  = 8
)

// room counts down what may be stored before the file system is asked again.
type room struct {
	keep  int64                         // Options.KeepFree
	space func() (durable.Space, error) // Options.Space

	mu    sync.Mutex
	bytes int64
	files int64
}

// spare is what may be used, and what must not.
type spare struct {
	bytes, files         int64 // usable
	keepBytes, keepFiles int64
	freeBytes            int64
}

// spare asks the file system. Files are a large number where there is no limit.
func (r *Repository) spare() (spare, error) {
	s, err := r.room.space()
	if err != nil {
		return spare{}, err
	}
	return spareOf(s, r.room.keep), nil
}

// spareOf is what spare tells, if keep is wanted to be left (Options.KeepFree).
func spareOf(s durable.Space, keep int64) spare {
	out := spare{freeBytes: s.Bytes, keepBytes: keep}
	switch {
	case s.Size == 0: // such as ramfs: nothing to keep a part of
		out.keepBytes, out.freeBytes = 0, noLimit
	case keep == 0:
		out.keepBytes, out.keepFiles = min(keepBytes, s.Size/keepShare), min(keepInodes, s.MaxInodes/keepShare)
	case keep < 0:
		out.keepBytes = 0
	}
	out.bytes, out.files = out.freeBytes-out.keepBytes, s.Inodes-out.keepFiles
	if s.Inodes < 0 {
		out.files = noLimit
	}
	return out
}

// noLimit is what a file system has that tells none.
const noLimit = 1 << 60

// Need returns a *durable.SpaceError if need bytes in so many files are more than
// can be stored before the file system has only Options.KeepFree left.
func (r *Repository) Need(need, files int64) error {
	s, err := r.spare()
	if err != nil {
		return err
	}
	return r.full(s, need, files)
}

// full says whether need bytes in so many files are too much.
func (r *Repository) full(s spare, need, files int64) error {
	e := &durable.SpaceError{Where: r.dir.Path(), Need: need, Have: s.freeBytes, Err: unix.ENOSPC}
	switch {
	case need > s.bytes:
		if e.Need += s.keepBytes; e.Need < 0 { // more than there are numbers
			e.Need = need
		}
		return fmt.Errorf("leave %d bytes free: %w", s.keepBytes, e)
	case files > s.files:
		e.Inodes, e.NeedFiles, e.HaveFiles = true, files+s.keepFiles, s.files+s.keepFiles
		return fmt.Errorf("leave %d inodes free: %w", s.keepFiles, e)
	}
	return nil
}

// take is called before n bytes of an object are written. It may count a file
// more than once: then the file system is asked earlier.
func (r *Repository) take(n int64) error {
	const block = 4096
	n = (n + block - 1) &^ (block - 1)
	m := &r.room
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= m.bytes && m.files > 0 {
		m.bytes -= n
		m.files--
		return nil
	}
	s, err := r.spare()
	if err != nil {
		return err
	}
	if err := r.full(s, n, 1); err != nil {
		return err
	}
	// Others write there too, so what is left is not relied on for long.
	m.bytes = min(s.bytes-n, max(s.keepBytes/16, 1<<16))
	m.files = min(s.files-1, max(s.keepFiles/16, 16))
	return nil
}
