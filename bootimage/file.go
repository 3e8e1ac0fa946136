package bootimage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// ObjectOpener opens the object with a digest. The caller of a function here
// decides how much is verified: a repository measures the object or hashes it.
type ObjectOpener interface {
	OpenObject(fsverity.Digest) (*os.File, error)
}

// FileError says that a file of the image is not what it must be, or cannot be
// read.
type FileError struct {
	Path string // absolute, in the image
	Err  error
}

func (e *FileError) Error() string { return fmt.Sprintf("%s of the image: %v", e.Path, e.Err) }

// Unwrap returns the cause.
func (e *FileError) Unwrap() error { return e.Err }

// lookup returns the node at path, nil if it or a directory above it is missing. It must be of the kind want, and no link
// is followed: something else in these places is a *FileError.
func lookup(root *tree.Node, path string, want tree.Kind) (*tree.Node, error) {
	n, at := root, ""
	for part := range strings.SplitSeq(path[1:], "/") {
		if !n.IsDir() {
			return nil, &FileError{at, fmt.Errorf("a %s, want a %s", n.Kind, tree.Directory)}
		}
		at += "/" + part
		if n = n.Lookup(part); n == nil {
			return nil, nil
		}
	}
	if n.Kind != want {
		return nil, &FileError{at, fmt.Errorf("a %s, want a %s", n.Kind, want)}
	}
	return n, nil
}

// Open returns the contents of a regular file. The caller closes it. Errors are
// those of o.
func Open(n *tree.Node, o ObjectOpener) (io.ReadCloser, error) {
	switch {
	case n.Kind != tree.Regular || n.Sparse:
		return nil, fmt.Errorf("a %s without contents", n.Kind)
	case !n.IsExternal():
		return io.NopCloser(bytes.NewReader(n.Inline)), nil
	case o == nil:
		return nil, fmt.Errorf("contents are in object %s, and no repository was given", n.Digest)
	}
	f, err := o.OpenObject(n.Digest)
	if err != nil {
		return nil, err
	}
	return &object{f: f, size: n.Size, left: n.Size}, nil
}

// object reads exactly the bytes that the tree says: an object of another size is
// not the file's.
type object struct {
	f          *os.File
	size, left int64
}

func (r *object) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if r.left == 0 {
		var more [1]byte
		n, err := r.f.Read(more[:])
		if n > 0 {
			return 0, fmt.Errorf("object %q has more than %d bytes", r.f.Name(), r.size)
		}
		return 0, err
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.f.Read(p)
	r.left -= int64(n)
	if n == 0 && errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("object %q has %d bytes, want %d", r.f.Name(), r.size-r.left, r.size)
	}
	return n, err
}

func (r *object) Close() error { return r.f.Close() }

// readFile returns the contents of n, the file at path. The error is a *FileError.
func readFile(n *tree.Node, o ObjectOpener, path string, limit int64) ([]byte, error) {
	if n.Size > limit {
		return nil, &FileError{path, fmt.Errorf("%d bytes, limit %d", n.Size, limit)}
	}
	r, err := Open(n, o)
	if err != nil {
		return nil, &FileError{path, err}
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, &FileError{path, err}
	}
	return b, nil
}
