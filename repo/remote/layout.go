package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// layout is an image in an OCI layout directory. It satisfies oci.Source.
type layout struct {
	typed string
	ref   reference
	want  Platform
	dir   *durable.Dir
}

var _ oci.Source = (*layout)(nil)

func openLayout(typed string, ref reference, opts Options) (*layout, error) {
	st, err := os.Stat(ref.path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a directory (an OCI archive is not supported)", ref.path)
	}
	if err != nil {
		return nil, &LayoutError{Ref: typed, Op: "open layout", Err: err}
	}
	dir, err := durable.OpenDir(ref.path)
	if err != nil {
		return nil, &LayoutError{Ref: typed, Op: "open layout", Err: err}
	}
	return &layout{typed: typed, ref: ref, want: opts.Platform, dir: dir}, nil
}

func (l *layout) Close() error { return l.dir.Close() }

// Resolve reads index.json and chooses by tag, then by platform.
func (l *layout) Resolve(ctx context.Context) (oci.Resolved, error) {
	b, err := l.dir.ReadFile("index.json", oci.MaxManifestSize)
	if err != nil {
		return oci.Resolved{}, &LayoutError{Ref: l.typed, Op: "read index.json", Err: err}
	}
	where := l.typed
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return oci.Resolved{}, &oci.FormatError{Where: where, Detail: "index.json is not an image index", Err: err}
	}
	candidates := index.Manifests
	if l.ref.hasTag {
		candidates = nil
		for _, d := range index.Manifests {
			if d.Annotations[v1.AnnotationRefName] == l.ref.tag {
				candidates = append(candidates, d)
			}
		}
		if len(candidates) == 0 {
			return oci.Resolved{}, &LayoutError{
				Ref: l.typed, Op: "read index.json", Tags: tags(index.Manifests),
				Err: &noTagError{l.ref.tag},
			}
		}
	}
	if other := l.ambiguous(candidates); !l.ref.hasTag && len(other) > 0 {
		return oci.Resolved{}, &LayoutError{Ref: l.typed, Op: "read index.json", Tags: other, Err: errors.New("it holds several images, name the tag of one")}
	}
	c := chooser{f: l, where: where, want: l.want}
	f, ok, err := c.choose(ctx, candidates, true)
	if err != nil {
		return oci.Resolved{}, err
	}
	if !ok {
		return oci.Resolved{}, c.noMatch()
	}
	res, err := resolve(ctx, l, l.typed, f.desc, f.manifest, l.want)
	res.IndexDigest = f.index
	return res, err
}

// ambiguous lists the tags of images that may be for the platform that is wanted, if
// they do not stand for one image.
func (l *layout) ambiguous(list []v1.Descriptor) []string {
	list = slices.DeleteFunc(slices.Clone(list), func(d v1.Descriptor) bool {
		return d.Annotations[v1.AnnotationRefName] == "" || d.Platform != nil && !oci.MatchPlatform(l.want, *d.Platform)
	})
	if all := tags(list); len(all) > 1 && slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest != list[0].Digest }) {
		return all
	}
	return nil
}

// tags lists the tags of an index, each once, in its order.
func tags(list []v1.Descriptor) []string {
	var out []string
	for _, d := range list {
		tag := d.Annotations[v1.AnnotationRefName]
		if tag != "" && len(out) < maxTags && !slices.Contains(out, tag) {
			out = append(out, shorten(tag, 100))
		}
	}
	return out
}

// noTagError says that a layout has no such tag. It is fs.ErrNotExist too.
type noTagError struct{ tag string }

func (e *noTagError) Error() string { return fmt.Sprintf("no image is tagged %q", e.tag) }

func (*noTagError) Unwrap() error { return fs.ErrNotExist }

// maxTags is how many tags an error lists.
const maxTags = 10

func (l *layout) fetchManifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	where := "manifest " + d.Digest.String()
	if err := oci.CheckDescriptor(where, d); err != nil {
		return nil, err
	}
	if d.Size > oci.MaxManifestSize {
		return nil, &oci.FormatError{Where: where, Detail: fmt.Sprintf("%d bytes, limit %d bytes", d.Size, oci.MaxManifestSize)}
	}
	of := "manifest of " + l.typed
	r, err := l.Blob(ctx, d)
	if err != nil {
		return nil, oci.NameBlob(err, of)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return b, oci.NameBlob(err, of)
}

// Blob opens a file of blobs/. Symbolic links are refused: a layout that comes
// from elsewhere must not make us read other files.
func (l *layout) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := oci.CheckDescriptor("blob", d); err != nil {
		return nil, err
	}
	op := "read blob " + d.Digest.String()
	f, err := l.dir.Open("blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded())
	if err != nil {
		return nil, &LayoutError{Ref: l.typed, Op: op, Err: err}
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("got a file of type %v, want a regular file", st.Mode().Type())
	}
	if err != nil {
		return nil, &LayoutError{Ref: l.typed, Op: op, Err: errors.Join(err, f.Close())}
	}
	if st.Size() != d.Size {
		return nil, errors.Join(&oci.DigestError{Where: "blob", Want: d.Digest, GotSize: st.Size(), WantSize: d.Size}, f.Close())
	}
	return &layoutBlob{Reader: oci.VerifyReader(&contextReader{ctx, f}, "blob", d), f: f}, nil
}

type layoutBlob struct {
	io.Reader
	f *os.File
}

func (b *layoutBlob) Close() error { return b.f.Close() }

// contextReader ends a long read when the context does.
type contextReader struct {
	ctx context.Context // a reader has no other way to get one
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
