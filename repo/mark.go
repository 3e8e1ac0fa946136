package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// marker finds out what is in use.
type marker struct {
	r       *Repository
	live    map[objectKey]struct{} // objects that are in use
	walked  map[fsverity.Digest]struct{}
	pending []fsverity.Digest

	// lenient reads what is damaged as far as possible: what that names is in use, too.
	lenient bool
	damaged []RootProblem
	unknown bool // something could not be read at all
}

func (m *marker) target(name string) (fsverity.Digest, error) {
	target, err := m.r.dir.Readlink(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fsverity.Digest{}, nil
	}
	if err != nil {
		return fsverity.Digest{}, err
	}
	d, err := m.r.parseTarget(target)
	if err == nil {
		err = m.r.checkDigest(d)
	}
	if err != nil {
		return fsverity.Digest{}, fmt.Errorf("%s: %w: %w", name, errForeignLink, err)
	}
	return d, nil
}

// errForeignLink says that a name does not lead to an object of the repository.
var errForeignLink = errors.New("leads elsewhere")

// name walks what a first-level name leads to.
func (m *marker) name(ctx context.Context, name string) error {
	d, err := m.target(name)
	if m.lenient && errors.Is(err, errForeignLink) {
		return nil // to nothing that could be removed
	}
	if err != nil || d.IsZero() {
		return err
	}
	m.pending = append(m.pending[:0], d)
	for len(m.pending) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		d := m.pending[len(m.pending)-1]
		m.pending = m.pending[:len(m.pending)-1]
		damage, err := m.walk(d)
		if err != nil {
			return fmt.Errorf("%s: object %s: %w", name, d, err)
		}
		if damage != nil {
			m.damaged = append(m.damaged, RootProblem{Name: name, Err: fmt.Errorf("object %s: %w", d, damage)})
		}
	}
	return nil
}

func (m *marker) use(d fsverity.Digest) { m.live[knownKey(d)] = struct{}{} }

// walk marks d and what it names. Named references are followed by digest: the
// name that once led there may lead to a younger stream by now (repository.md
// 4.4). An object that is not there leads to nothing. Damage is told only by a
// lenient marker; for others it is the error.
func (m *marker) walk(d fsverity.Digest) (damage, err error) {
	if _, done := m.walked[d]; done {
		return nil, nil
	}
	m.walked[d] = struct{}{}
	m.use(d)
	f, err := m.r.openVerified(d)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil && m.lenient {
		damage = err
		f, err = m.r.openUnverified(d)
	}
	if err == nil {
		defer f.Close()
		err = m.content(f, damage == nil)
	}
	if err != nil && damage != nil {
		m.unknown = true
		return damage, nil
	}
	return damage, err // what is not damaged and cannot be read is of another format
}

// openUnverified opens an object whatever it contains.
func (r *Repository) openUnverified(d fsverity.Digest) (*os.File, error) {
	b0, rest := objectName(d)
	shard, err := r.shard(b0, false)
	if err != nil {
		return nil, err
	}
	if shard == nil {
		return nil, &NotFoundError{Kind: "object", Name: d.Hex()}
	}
	return openRegular(shard, rest)
}

var errNotReadable = errors.New("neither a stream nor an image")

// content marks what an object names. What is right may be a file, that names
// nothing.
func (m *marker) content(f *os.File, right bool) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, 32)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF { //nolint:errorlint // ReadAt returns it bare at the end
		return err
	}
	switch head = head[:n]; {
	case splitstream.Sniff(head):
		return m.stream(f, st.Size())
	case bytes.HasPrefix(head, imageMagic):
		list, err := imageObjects(f, st.Size())
		for _, o := range list {
			m.use(o)
		}
		return err
	}
	if !right {
		return errNotReadable
	}
	return nil
}

// imageMagic begins a composefs image.
var imageMagic = []byte{0x9a, 0x62, 0x78, 0xd0}

func (m *marker) stream(f *os.File, size int64) error {
	s, err := splitstream.NewReader(f, size, m.r.meta.Algorithm)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // read only
	for i := range s.Objects() {
		m.use(s.Object(i))
	}
	for _, ref := range s.NamedRefs() {
		m.pending = append(m.pending, ref.Digest)
	}
	return nil
}

// sweep goes over the files of objects.
type sweep struct {
	r      *Repository
	doomed func(objectKey) bool // whether an object goes
	remove bool                 // else they are only counted

	objects int   // that went
	bytes   int64 // that those took on the medium
	kept    int   // objects that stayed
}

func (s *sweep) run(ctx context.Context) error {
	for b0 := range 256 {
		dir, err := s.r.shard(byte(b0), false)
		if err != nil {
			return err
		}
		if dir == nil {
			continue
		}
		list, err := dir.ReadDir()
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			d, err := fsverity.ParseObjectPath(fmt.Sprintf("%02x/%s", b0, e.Name))
			if err != nil || d.Algorithm() != s.r.meta.Algorithm || !e.IsRegular() {
				continue
			}
			if !s.doomed(knownKey(d)) {
				s.kept++
				continue
			}
			if err := s.object(dir, e.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *sweep) object(dir *durable.Dir, name string) error {
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if s.remove {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	s.objects++
	s.bytes += st.Blocks * blockUnit
	return nil
}

// blockUnit is what st_blocks counts, in bytes.
const blockUnit = 512
