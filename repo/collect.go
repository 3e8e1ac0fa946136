package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// collect removes those of the named streams to which no ref and no other stream
// leads, and then those of the objects to which no image and no remaining stream
// leads; with all, also the streams that it gives up, and all objects. The caller
// has the exclusive lock, and all names are durable. objects and streams are used
// up.
//
// Every name that remains is a root, not only what refs lead to: this takes back
// what has no name and is no garbage collection of the whole.
func (r *Repository) collect(ctx context.Context, objects map[objectKey]struct{}, streams map[string]struct{}, all *ReclaimOptions) (Removed, error) {
	var removed Removed
	m := &marker{r: r, objects: maps.Clone(objects), walked: map[fsverity.Digest]struct{}{}, lenient: true, all: all != nil}
	if m.all {
		m.live = map[objectKey]struct{}{}
	}
	candidates := maps.Clone(streams)
	if all != nil && all.Streams != nil {
		if err := r.candidates(all.Streams, candidates); err != nil {
			return removed, fmt.Errorf("find out what is in use: %w", err)
		}
	}
	if err := m.mark(ctx, candidates); err != nil {
		return removed, fmt.Errorf("find out what is in use: %w", err)
	}
	if len(m.damaged) > 0 && len(candidates) > 0 {
		// What is damaged may need one of them by its name.
		for name := range candidates {
			if _, own := streams[name]; !own {
				delete(candidates, name)
				if err := m.name(ctx, Streams.String()+"/"+name); err != nil {
					return removed, fmt.Errorf("find out what is in use: %w", err)
				}
			}
		}
	}
	streams, removed.Damaged = candidates, m.damaged
	if len(streams) > 0 {
		r.order.touch(levelRefs) // an error below leaves it for the next sync
	}
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		if err := r.dir.Remove(Streams.String() + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed.Streams = append(removed.Streams, name)
	}
	if err := r.settle(levelRefs); err != nil { // a name never outlives its objects
		return removed, err
	}
	own := func(k objectKey) bool { _, ok := m.objects[k]; return ok }
	if err := r.sweepOwn(ctx, m.objects, own, &removed); err != nil || all == nil || m.unknown {
		return removed, err
	}
	s := sweep{
		r:      r,
		shard:  func(byte) bool { return true },
		doomed: func(k objectKey) bool { _, live := m.live[k]; return !live },
		remove: true,
	}
	err := s.run(ctx)
	removed.OldObjects, removed.OldBytes = s.objects, s.bytes
	removed.Objects += s.objects
	removed.Bytes += s.bytes
	return removed, err
}

// sweepOwn removes the given objects.
func (r *Repository) sweepOwn(ctx context.Context, objects map[objectKey]struct{}, doomed func(objectKey) bool, removed *Removed) error {
	var wanted [256]bool
	for k := range objects {
		wanted[k[0]] = true
	}
	s := sweep{r: r, shard: func(b0 byte) bool { return wanted[b0] }, doomed: doomed, remove: true}
	err := s.run(ctx)
	removed.Objects, removed.Bytes = s.objects, s.bytes
	return err
}

// candidates adds the names of streams that are wanted to set.
func (r *Repository) candidates(wanted func(name string) bool, set map[string]struct{}) error {
	list, err := r.dir.ReadSubDir(Streams.String())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range list {
		if e.IsSymlink() && wanted(e.Name) {
			set[e.Name] = struct{}{}
		}
	}
	return nil
}

// marker finds out what is in use: it takes that out of objects and puts it into
// live, where those are wanted.
type marker struct {
	r       *Repository
	objects map[objectKey]struct{}
	live    map[objectKey]struct{}
	walked  map[fsverity.Digest]struct{}
	pending []fsverity.Digest

	all bool // everything is wanted, not only whether some objects are in use
	// lenient reads what is damaged as far as possible: what that names is in use, too.
	lenient bool
	damaged []RootProblem
	unknown bool // something could not be read at all
}

// mark walks all images and streams but the given ones, and of these, which it
// takes out, those that are in use.
func (m *marker) mark(ctx context.Context, doomed map[string]struct{}) error {
	for ref, err := range m.r.Refs(Streams, "") {
		if errors.Is(err, ErrNoRef) {
			continue
		}
		if err != nil {
			return err
		}
		delete(doomed, ref.Target)
	}
	for _, kind := range []Kind{Streams, Images} {
		list, err := m.r.dir.ReadSubDir(kind.String())
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range list {
			if _, skip := doomed[e.Name]; !e.IsSymlink() || (skip && kind == Streams) {
				continue
			}
			if len(m.objects) == 0 && len(doomed) == 0 && !m.all {
				return nil // everything is in use
			}
			if err := m.name(ctx, kind.String()+"/"+e.Name); err != nil {
				return err
			}
		}
	}
	for name := range doomed {
		d, err := m.target(Streams.String() + "/" + name)
		if err != nil && !errors.Is(err, errForeignLink) {
			return err
		}
		if _, used := m.walked[d]; used || err != nil {
			delete(doomed, name)
		}
	}
	return nil
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

func (m *marker) use(d fsverity.Digest) {
	k := knownKey(d)
	delete(m.objects, k)
	if m.live != nil {
		m.live[k] = struct{}{}
	}
}

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
	shard  func(b0 byte) bool   // whether to look there
	doomed func(objectKey) bool // whether an object goes
	remove bool                 // else they are only counted

	objects int   // that went
	bytes   int64 // that those took on the medium
	kept    int   // objects that stayed, of the shards that were looked at
}

func (s *sweep) run(ctx context.Context) error {
	for b0 := range 256 {
		if !s.shard(byte(b0)) {
			continue
		}
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
