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
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// collect removes those of the named streams to which no ref and no other stream
// leads, and then those of the objects to which no image and no remaining stream
// leads. The caller has the exclusive lock, and all names are durable. Both
// arguments are used up.
//
// Every name that remains is a root, not only what refs lead to: this takes back
// what a failed run has stored and is no garbage collection of the whole.
func (r *Repository) collect(ctx context.Context, objects map[objectKey]struct{}, streams map[string]struct{}) (Removed, error) {
	var removed Removed
	m := &marker{r: r, objects: objects, walked: map[fsverity.Digest]struct{}{}}
	if err := m.mark(ctx, streams); err != nil {
		return removed, fmt.Errorf("find out what is in use: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(streams)) {
		if err := r.dir.Remove(Streams.String() + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return removed, err
		}
		removed.Streams = append(removed.Streams, name)
	}
	if len(removed.Streams) > 0 {
		if err := r.dir.SyncFS(); err != nil { // a name never outlives its objects
			return removed, err
		}
	}
	err := r.removeObjects(ctx, objects, &removed)
	return removed, err
}

// marker finds out what is in use. It takes that out of objects.
type marker struct {
	r       *Repository
	objects map[objectKey]struct{}
	walked  map[fsverity.Digest]struct{}
	pending []fsverity.Digest
}

// mark walks all images and streams but the given ones, and of these, which it
// takes out, those that are in use.
func (m *marker) mark(ctx context.Context, doomed map[string]struct{}) error {
	for ref, err := range m.r.Refs(Streams, "") {
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
			if len(m.objects) == 0 && len(doomed) == 0 {
				return nil // everything is in use
			}
			if err := m.name(ctx, kind.String()+"/"+e.Name); err != nil {
				return err
			}
		}
	}
	for name := range doomed {
		if d, err := m.target(Streams.String() + "/" + name); err != nil {
			return err
		} else if _, used := m.walked[d]; used {
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
	if err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	return d, nil
}

// name walks what a first-level name leads to.
func (m *marker) name(ctx context.Context, name string) error {
	d, err := m.target(name)
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
		if err := m.walk(d); err != nil {
			return fmt.Errorf("%s: object %s: %w", name, d, err)
		}
	}
	return nil
}

func (m *marker) use(d fsverity.Digest) { delete(m.objects, knownKey(d)) }

// walk marks d and what it names. Named references are followed by digest: the
// name that once led there may lead to a younger stream by now (repository.md
// 4.4). An object that is not there leads to nothing.
func (m *marker) walk(d fsverity.Digest) error {
	if _, done := m.walked[d]; done {
		return nil
	}
	m.walked[d] = struct{}{}
	m.use(d)
	f, err := m.r.openVerified(d)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
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

// removeObjects removes the files of objects.
func (r *Repository) removeObjects(ctx context.Context, objects map[objectKey]struct{}, removed *Removed) error {
	var wanted [256]bool
	for k := range objects {
		wanted[k[0]] = true
	}
	for b0 := range wanted {
		if !wanted[b0] {
			continue
		}
		shard, err := r.shard(byte(b0), false)
		if err != nil {
			return err
		}
		if shard == nil {
			continue
		}
		list, err := shard.ReadDir()
		if err != nil {
			return err
		}
		for _, e := range list {
			if err := ctx.Err(); err != nil {
				return err
			}
			d, err := fsverity.ParseObjectPath(fmt.Sprintf("%02x/%s", b0, e.Name))
			if err != nil || d.Algorithm() != r.meta.Algorithm {
				continue
			}
			if _, ok := objects[knownKey(d)]; !ok {
				continue
			}
			st, err := shard.Lstat(e.Name)
			if err != nil {
				return err
			}
			if err := shard.Remove(e.Name); err != nil {
				return err
			}
			removed.Objects++
			removed.Bytes += st.Blocks * blockUnit
		}
	}
	return nil
}

// blockUnit is what st_blocks counts, in bytes.
const blockUnit = 512
