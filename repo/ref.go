package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// Kind says which of the two name spaces an entry or a ref is in.
type Kind int

// The two name spaces.
const (
	Images Kind = iota
	Streams
)

// String returns the directory of the kind.
func (k Kind) String() string {
	if k == Images {
		return "images"
	}
	return "streams"
}

func (k Kind) entry() string { return strings.TrimSuffix(k.String(), "s") }

// Ref is a name that keeps an image or stream alive.
type Ref struct {
	Name   string // below refs/, for example "oci/debian:13"
	Target string // first-level entry: the hex digest of an image, or the name of a stream
}

// SetRef makes name, relative to refs/ and with slashes where wanted, a ref to
// target: the name of a published stream, or the hex digest of a published image.
// All published names are durable first. An existing ref is replaced atomically.
// The ref itself is durable after Sync.
func (r *Repository) SetRef(ctx context.Context, kind Kind, name, target string) error {
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	parts, err := refParts(name)
	if err != nil {
		return fmt.Errorf("set %s ref %q: %w", kind.entry(), name, err)
	}
	if err := checkEntryName(target); err != nil {
		return fmt.Errorf("set %s ref %q to %q: %w", kind.entry(), name, target, err)
	}
	if _, err := r.lookup(kind, target); err != nil {
		return fmt.Errorf("set %s ref %q: %w", kind.entry(), name, err)
	}
	if err := r.settle(levelNames); err != nil {
		return err
	}
	dir, err := r.dir.MkdirAll(path.Join(kind.String(), "refs", path.Dir(name)), 0o755)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced through r
	link := strings.Repeat("../", len(parts)) + target
	if err := dir.ReplaceSymlink(link, parts[len(parts)-1], r.dir, linkPrefix); err != nil {
		return err
	}
	r.order.touch(levelRefs)
	return nil
}

func refParts(name string) ([]string, error) {
	parts := strings.Split(name, "/")
	for _, p := range parts {
		switch {
		case p == "" || p == "." || p == ".." || strings.IndexByte(p, 0) >= 0:
			return nil, fmt.Errorf("an empty, \".\" or \"..\" component or a NUL: %w", unix.EINVAL)
		case len(p) > 255:
			return nil, fmt.Errorf("a component of %d bytes: %w", len(p), unix.ENAMETOOLONG)
		}
	}
	return parts, nil
}

// RemoveRef removes a ref. What it kept alive stays until garbage collection. A
// missing ref is a *NotFoundError.
func (r *Repository) RemoveRef(ctx context.Context, kind Kind, name string) error {
	if err := r.mayWrite(ctx); err != nil {
		return err
	}
	if _, err := r.ResolveRef(kind, name); err != nil {
		return err
	}
	err := r.dir.Remove(path.Join(kind.String(), "refs", name))
	if errors.Is(err, fs.ErrNotExist) {
		return &NotFoundError{Kind: kind.entry() + " ref", Name: name}
	}
	if err == nil {
		r.order.touch(levelRefs)
	}
	return err
}

// ResolveRef returns the first-level entry that a ref names, which may be gone.
func (r *Repository) ResolveRef(kind Kind, name string) (string, error) {
	if _, err := refParts(name); err != nil {
		return "", fmt.Errorf("%s ref %q: %w", kind.entry(), name, err)
	}
	target, err := r.dir.Readlink(path.Join(kind.String(), "refs", name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", &NotFoundError{Kind: kind.entry() + " ref", Name: name}
	}
	if err != nil {
		return "", err
	}
	return path.Base(target), nil
}

// Refs yields the refs of a kind below prefix, a directory below refs/ or "" for
// all, in byte order of the path components. What cannot be read is yielded as an
// error, and so is what is neither a link nor a directory, as ErrNoRef.
func (r *Repository) Refs(kind Kind, prefix string) iter.Seq2[Ref, error] {
	return func(yield func(Ref, error) bool) {
		if prefix = strings.Trim(prefix, "/"); prefix != "" {
			if _, err := refParts(prefix); err != nil {
				yield(Ref{}, fmt.Errorf("%s refs below %q: %w", kind.entry(), prefix, err))
				return
			}
		}
		dir, err := r.dir.Sub(path.Join(kind.String(), "refs", prefix))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Ref{}, err)
			return
		}
		walkRefs(dir, prefix, yield)
	}
}

// walkRefs closes dir. It returns false when the caller wants no more.
func walkRefs(dir *durable.Dir, prefix string, yield func(Ref, error) bool) bool {
	defer dir.Close() //nolint:errcheck // read only
	list, err := dir.ReadDir()
	if err != nil {
		return yield(Ref{}, err)
	}
	for _, e := range list {
		name := path.Join(prefix, e.Name)
		var ok bool
		switch {
		case e.IsDir():
			sub, err := dir.Sub(e.Name)
			if err != nil {
				ok = yield(Ref{Name: name}, err)
			} else {
				ok = walkRefs(sub, name, yield)
			}
		case e.IsSymlink():
			target, err := dir.Readlink(e.Name)
			ok = yield(Ref{Name: name, Target: path.Base(target)}, err)
		default:
			ok = yield(Ref{Name: name}, fmt.Errorf("ref %q: %w", name, ErrNoRef))
		}
		if !ok {
			return false
		}
	}
	return true
}
