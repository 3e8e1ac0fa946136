// Package ocitest makes small OCI images for tests, from dumpfile text, from
// trees or from tar bytes, and serves them from memory, as a layout or to be put
// in a registry. Everything is deterministic: the same input gives the same
// digests.
package ocitest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs/dump"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// Compression of a layer blob.
type Compression string

// The compressions of OCI layers.
const (
	None Compression = ""
	Gzip Compression = "gzip"
	Zstd Compression = "zstd"
)

// Layer is one layer of an image: Tar if it is not nil, else the tree that Dump
// describes, a composefs dumpfile. Files of the dumpfile that have no inline
// contents get made-up ones of their size (Contents). Whiteouts are files called
// ".wh.NAME".
type Layer struct {
	Dump        string
	Tar         []byte
	Compression Compression
	MediaType   string        // instead of the right one
	DiffID      digest.Digest // instead of the right one
}

// Spec describes an image. The zero Platform is linux/amd64.
type Spec struct {
	Layers      []Layer
	Platform    v1.Platform
	Labels      map[string]string
	Annotations map[string]string // of the manifest
}

// Image is a finished image.
type Image struct {
	Manifest   []byte
	Descriptor v1.Descriptor // of the manifest
	Config     []byte
	DiffIDs    []digest.Digest
	Layers     []v1.Descriptor
	Blobs      map[digest.Digest][]byte // manifest, config and layers
}

// Build makes the image.
func Build(s Spec) (*Image, error) {
	img := &Image{Blobs: map[digest.Digest][]byte{}}
	for i, l := range s.Layers {
		if err := img.addLayer(l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if s.Platform.OS == "" {
		s.Platform = v1.Platform{OS: "linux", Architecture: "amd64"}
	}
	config := v1.Image{Platform: s.Platform, Config: v1.ImageConfig{Labels: s.Labels}, RootFS: v1.RootFS{Type: "layers", DiffIDs: img.DiffIDs}}
	var err error
	if img.Config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: img.add(v1.MediaTypeImageConfig, img.Config), Layers: img.Layers, Annotations: s.Annotations,
	}
	return img, img.SetManifest(m)
}

// SetManifest replaces the manifest, for tests of odd ones.
func (img *Image) SetManifest(m v1.Manifest) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	img.Manifest, img.Descriptor = b, img.add(v1.MediaTypeImageManifest, b)
	return nil
}

// SetConfig replaces the config, and the manifest accordingly.
func (img *Image) SetConfig(b []byte) error {
	var m v1.Manifest
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		return err
	}
	delete(img.Blobs, m.Config.Digest)
	delete(img.Blobs, img.Descriptor.Digest)
	img.Config, m.Config = b, img.add(v1.MediaTypeImageConfig, b)
	return img.SetManifest(m)
}

func (img *Image) add(mediaType string, b []byte) v1.Descriptor {
	d := digest.FromBytes(b)
	img.Blobs[d] = b
	return v1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (img *Image) addLayer(l Layer) error {
	raw := l.Tar
	if raw == nil {
		root, err := dump.Read(strings.NewReader(l.Dump))
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := WriteTar(&b, root); err != nil {
			return err
		}
		raw = b.Bytes()
	}
	diffID := l.DiffID
	if diffID == "" {
		diffID = digest.FromBytes(raw)
	}
	blob, suffix, err := compress(raw, l.Compression)
	if err != nil {
		return err
	}
	mediaType := l.MediaType
	if mediaType == "" {
		mediaType = v1.MediaTypeImageLayer + suffix
	}
	img.DiffIDs = append(img.DiffIDs, diffID)
	img.Layers = append(img.Layers, img.add(mediaType, blob))
	return nil
}

func compress(b []byte, c Compression) (blob []byte, suffix string, err error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case None:
		return b, "", nil
	case Gzip:
		w = gzip.NewWriter(&out)
	case Zstd:
		if w, err = zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1)); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", fmt.Errorf("unknown compression %q", c)
	}
	if _, err := w.Write(b); err != nil {
		return nil, "", err
	}
	if err := w.Close(); err != nil {
		return nil, "", err
	}
	return out.Bytes(), "+" + string(c), nil
}

// WriteLayout writes the image as an OCI layout into dir, tagged as given. A
// layout that is there already gets one more image.
func (img *Image) WriteLayout(dir, tag string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	for d, b := range img.Blobs {
		if err := os.WriteFile(filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded()), b, 0o644); err != nil {
			return err
		}
	}
	d := img.Descriptor
	if tag != "" {
		d.Annotations = map[string]string{v1.AnnotationRefName: tag}
	}
	return AddToLayout(dir, d)
}

// AddToLayout appends a descriptor to the index of a layout.
func AddToLayout(dir string, d v1.Descriptor) error {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	name := filepath.Join(dir, "index.json")
	if b, err := os.ReadFile(name); err == nil {
		if err := json.Unmarshal(b, &index); err != nil {
			return err
		}
	}
	index.Manifests = append(index.Manifests, d)
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// Source serves the image from memory. Fault, if set, may replace the raw bytes
// of a blob; they are verified behind it, as every source does.
type Source struct {
	Image *Image
	Fault func(d v1.Descriptor, r io.Reader) (io.Reader, error)

	mu    sync.Mutex
	reads map[digest.Digest]int
}

var _ oci.Source = (*Source)(nil)

// Resolve returns the manifest.
func (s *Source) Resolve(context.Context) (oci.Resolved, error) {
	return oci.Resolved{Manifest: s.Image.Manifest, Descriptor: s.Image.Descriptor, Reference: "test:image"}, nil
}

// Blob opens a blob.
func (s *Source) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, ok := s.Image.Blobs[d.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s: %w", d.Digest, os.ErrNotExist)
	}
	s.mu.Lock()
	if s.reads == nil {
		s.reads = map[digest.Digest]int{}
	}
	s.reads[d.Digest]++
	s.mu.Unlock()
	var r io.Reader = bytes.NewReader(b)
	if s.Fault != nil {
		var err error
		if r, err = s.Fault(d, r); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(oci.VerifyReader(r, "blob", d)), nil
}

// Reads returns how often a blob was opened.
func (s *Source) Reads(d digest.Digest) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[d]
}

// Close does nothing.
func (s *Source) Close() error { return nil }
