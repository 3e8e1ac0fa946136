package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// tagRefs is the directory of tags below streams/refs/.
const tagRefs = "oci"

// EncodeTag returns the file name of a tag: "%" and "/" are escaped.
func EncodeTag(tag string) string {
	return strings.ReplaceAll(strings.ReplaceAll(tag, "%", "%25"), "/", "%2F")
}

// DecodeTag undoes EncodeTag in one pass; other escapes stay as they are.
func DecodeTag(name string) string {
	return strings.NewReplacer("%2F", "/", "%25", "%").Replace(name)
}

// TagError is a name that cannot be a tag.
type TagError struct {
	Tag    string
	Detail string // what is wrong with it
}

func (e *TagError) Error() string { return fmt.Sprintf("tag %q: %s", e.Tag, e.Detail) }

// CheckTag refuses names that cannot be tags: empty, "." and "..", with a control
// character, starting with "@" (a digest on the command line), or too long for a
// file name. The error is a *TagError.
func CheckTag(tag string) error {
	switch encoded := EncodeTag(tag); {
	case tag == "" || tag == "." || tag == "..":
		return &TagError{tag, "not a name"}
	case strings.HasPrefix(tag, "@"):
		return &TagError{tag, `must not start with "@", which begins a digest`}
	case strings.IndexByte(tag, 0) >= 0:
		return &TagError{tag, "contains a NUL byte"}
	case strings.ContainsFunc(tag, unicode.IsControl):
		return &TagError{tag, "contains a line break or another control character"}
	case len(encoded) > 255:
		return &TagError{tag, fmt.Sprintf("%d bytes, want at most 255", len(encoded))}
	}
	return nil
}

// TagRef returns the stream ref of a tag.
func TagRef(tag string) string { return path.Join(tagRefs, EncodeTag(tag)) }

// Tag makes name point at a manifest, which must be in the repository. An
// existing tag is moved. It is durable after repo.Repository.Sync.
func Tag(ctx context.Context, r *repo.Repository, manifest digest.Digest, name string) error {
	if err := CheckTag(name); err != nil {
		return err
	}
	if err := r.SetRef(ctx, repo.Streams, TagRef(name), ManifestStream(manifest)); err != nil {
		return fmt.Errorf("tag %q: %w", name, err)
	}
	return nil
}

// Untag removes a tag. What it kept stays until garbage collection. It is durable
// after repo.Repository.Sync; a missing tag is fs.ErrNotExist.
func Untag(ctx context.Context, r *repo.Repository, name string) error {
	if err := CheckTag(name); err != nil {
		return err
	}
	err := r.RemoveRef(ctx, repo.Streams, TagRef(name))
	if errors.Is(err, repo.ErrNotFound) {
		return &repo.NotFoundError{Kind: "image", Name: name}
	}
	return err
}

// Resolve returns the manifest digest that name stands for: a tag, or "@" and a
// manifest digest. An unknown tag is fs.ErrNotExist; that the manifest of a
// digest exists is not checked.
func Resolve(r *repo.Repository, name string) (digest.Digest, error) {
	if d, ok := strings.CutPrefix(name, "@"); ok {
		m := digest.Digest(d)
		if err := m.Validate(); err != nil {
			return "", fmt.Errorf("manifest digest %q: %w", d, err)
		}
		return m, nil
	}
	if err := CheckTag(name); err != nil {
		return "", err
	}
	target, err := r.ResolveRef(repo.Streams, TagRef(name))
	if errors.Is(err, repo.ErrNotFound) {
		return "", &repo.NotFoundError{Kind: "image", Name: name}
	}
	if err != nil {
		return "", err
	}
	return manifestOf(name, target)
}

func manifestOf(tag, target string) (digest.Digest, error) {
	d, ok := strings.CutPrefix(target, manifestPrefix)
	m := digest.Digest(d)
	if !ok || m.Validate() != nil {
		return "", &FormatError{Where: fmt.Sprintf("tag %q", tag), Detail: fmt.Sprintf("points at %q, which is no manifest", target)}
	}
	return m, nil
}

// sortedKeys puts the keys of images in the order of composefs-rs: plain images
// first, then boot images.
func sortedKeys(m map[string]fsverity.Digest) []string {
	boot := func(key string) bool { return strings.HasPrefix(key, bootKey) }
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if boot(a) != boot(b) {
			if boot(a) {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
}
