package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// Names of streams. The digests are in text form, "sha256:…".
const (
	manifestPrefix = "oci-manifest-"
	configPrefix   = "oci-config-"
	layerPrefix    = "oci-layer-"
	configRef      = "config:" // key of a manifest stream, followed by the config digest
	imageKey       = "composefs.image"
	bootKey        = "composefs.image.boot"
)

// ManifestStream returns the name of the stream of a manifest.
func ManifestStream(d digest.Digest) string { return manifestPrefix + d.String() }

// ConfigStream returns the name of the stream of a config.
func ConfigStream(d digest.Digest) string { return configPrefix + d.String() }

// LayerStream returns the name of the stream of a layer.
func LayerStream(diffID digest.Digest) string { return layerPrefix + diffID.String() }

// LayerOf returns the diff_id of the layer that a stream of this name is; ok is
// false for other streams.
func LayerOf(stream string) (diffID digest.Digest, ok bool) {
	text, ok := strings.CutPrefix(stream, layerPrefix)
	return digest.Digest(text), ok && digest.Digest(text).Validate() == nil
}

// ImageKey returns the key on the config stream under which the plain image of a
// format is listed.
func ImageKey(v erofs.Version) string { return imageKey + versionSuffix(v) }

// BootKey returns the same for the boot image in the default mode of extended
// attributes.
func BootKey(v erofs.Version) string { return bootKey + versionSuffix(v) }

// Format 2 came first in composefs-rs and has no suffix; 0 and 1 share a key.
func versionSuffix(v erofs.Version) string {
	if v == 2 {
		return ""
	}
	return ".v1"
}

// LayerRef is a layer of an image in the repository.
type LayerRef struct {
	DiffID digest.Digest
	Stream fsverity.Digest
}

// Image is a container image in a repository.
type Image struct {
	ManifestDigest digest.Digest
	Manifest       v1.Manifest
	ManifestJSON   []byte
	ManifestStream fsverity.Digest
	ConfigDigest   digest.Digest
	Config         v1.Image
	ConfigJSON     []byte
	ConfigStream   fsverity.Digest
	Layers         []LayerRef                 // in order, the base first; equal layers are listed as often as they occur
	Images         map[string]fsverity.Digest // EROFS images by their key: ImageKey, BootKey and others
}

// ParseManifest checks the parts of an image manifest that this package uses.
// Errors: *FormatError, *MediaTypeError.
func ParseManifest(where string, b []byte) (v1.Manifest, error) {
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return m, &FormatError{Where: where, Detail: "not an image manifest", Err: err}
	}
	if m.MediaType != "" && m.MediaType != v1.MediaTypeImageManifest {
		return m, &MediaTypeError{Where: where, Got: m.MediaType, Want: "an OCI image manifest"}
	}
	if m.SchemaVersion != 2 {
		return m, &FormatError{Where: where, Detail: fmt.Sprintf("schemaVersion %d, want 2", m.SchemaVersion)}
	}
	if m.Config.MediaType != v1.MediaTypeImageConfig {
		return m, &MediaTypeError{Where: where + ", config", Got: m.Config.MediaType, Want: "a container image (" + v1.MediaTypeImageConfig + ")"}
	}
	for i, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		what := "config"
		if i > 0 {
			what = fmt.Sprintf("layer %d of %d", i, len(m.Layers))
			if !isLayer(d.MediaType) {
				return m, &MediaTypeError{Where: where + ", " + what, Got: d.MediaType, Want: "a tar layer"}
			}
		}
		if err := CheckDescriptor(where+", "+what, d); err != nil {
			return m, err
		}
	}
	if len(m.Layers) == 0 {
		return m, &FormatError{Where: where, Detail: "no layers"}
	}
	return m, nil
}

// isLayer knows the media types of tar layers, docker's too. Encrypted ones are
// none.
func isLayer(mediaType string) bool {
	base, suffix, _ := strings.Cut(mediaType, "+")
	switch base {
	case v1.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar":
		return suffix == "" || suffix == "gzip" || suffix == "zstd"
	}
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.diff.tar.gzip",
		"application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return true
	}
	return false
}

// ParseConfig checks the parts of an image config that this package uses; m is
// the manifest that names it. The error is a *FormatError.
func ParseConfig(where string, b []byte, m *v1.Manifest) (v1.Image, error) {
	var c v1.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return c, &FormatError{Where: where, Detail: "not an image config", Err: err}
	}
	if c.RootFS.Type != "layers" {
		return c, &FormatError{Where: where, Detail: fmt.Sprintf("rootfs.type %q, want \"layers\"", c.RootFS.Type)}
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return c, &FormatError{Where: where, Detail: fmt.Sprintf("%d diff_ids for %d layers", len(c.RootFS.DiffIDs), len(m.Layers))}
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return c, &FormatError{Where: where, Detail: fmt.Sprintf("diff_id %d, %q", i+1, d), Err: err}
		}
	}
	return c, nil
}

// OpenImage reads manifest and config of an image and the references of both.
// The JSON is checked against its digests, layers and images are not opened. If
// there is no such manifest the error is fs.ErrNotExist.
func OpenImage(ctx context.Context, r *repo.Repository, manifest digest.Digest) (*Image, error) {
	img := &Image{ManifestDigest: manifest}
	refs, err := img.openManifest(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", manifest, err)
	}
	if err := img.openConfig(ctx, r, refs); err != nil {
		return nil, fmt.Errorf("open image %s: %w", manifest, err)
	}
	return img, nil
}

func (img *Image) openManifest(ctx context.Context, r *repo.Repository) (refs map[string]fsverity.Digest, err error) {
	where := "manifest " + img.ManifestDigest.String()
	if err := img.ManifestDigest.Validate(); err != nil {
		return nil, &FormatError{Where: where, Detail: "digest", Err: err}
	}
	if img.ManifestStream, err = r.LookupStream(ManifestStream(img.ManifestDigest)); err != nil {
		return nil, err
	}
	if img.ManifestJSON, refs, err = readJSON(ctx, r, img.ManifestStream, splitstream.Manifest, MaxManifestSize); err != nil {
		return nil, err
	}
	if err := VerifyBytes(where, img.ManifestJSON, img.ManifestDigest); err != nil {
		return nil, err
	}
	img.Manifest, err = ParseManifest(where, img.ManifestJSON)
	img.ConfigDigest = img.Manifest.Config.Digest
	return refs, err
}

func (img *Image) openConfig(ctx context.Context, r *repo.Repository, refs map[string]fsverity.Digest) (err error) {
	where := "config " + img.ConfigDigest.String()
	var ok bool
	if img.ConfigStream, ok = refs[configRef+img.ConfigDigest.String()]; !ok {
		return &FormatError{Where: "stream " + ManifestStream(img.ManifestDigest), Detail: "no reference to its config"}
	}
	var named map[string]fsverity.Digest
	if img.ConfigJSON, named, err = readJSON(ctx, r, img.ConfigStream, splitstream.Config, MaxConfigSize); err != nil {
		return err
	}
	if err := VerifyBytes(where, img.ConfigJSON, img.ConfigDigest); err != nil {
		return err
	}
	if img.Config, err = ParseConfig(where, img.ConfigJSON, &img.Manifest); err != nil {
		return err
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		stream, ok := named[d.String()]
		if !ok {
			return &FormatError{Where: "stream " + ConfigStream(img.ConfigDigest), Detail: fmt.Sprintf("no reference to layer %s", d)}
		}
		img.Layers = append(img.Layers, LayerRef{d, stream})
	}
	img.Images = imageRefs(named)
	return nil
}

// imageRefs picks the references to EROFS images.
func imageRefs(named map[string]fsverity.Digest) map[string]fsverity.Digest {
	images := map[string]fsverity.Digest{}
	for key, d := range named {
		if key == imageKey || strings.HasPrefix(key, imageKey+".") {
			images[key] = d
		}
	}
	return images
}

// readJSON reads the single object of a manifest or config stream.
func readJSON(ctx context.Context, r *repo.Repository, id fsverity.Digest, t splitstream.ContentType, limit int64) (_ []byte, refs map[string]fsverity.Digest, err error) {
	s, err := r.OpenStreamByID(ctx, id, t)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	b, err := s.ReadSingle(ctx, limit)
	if err != nil {
		return nil, nil, err
	}
	refs = map[string]fsverity.Digest{}
	for _, n := range s.NamedRefs() {
		refs[n.Name] = n.Digest
	}
	return b, refs, nil
}

// ConfigImages returns the EROFS images that the config stream of this name
// lists, by key; none if there is no such stream. It is for rewriting a config
// without losing what others put there.
func ConfigImages(ctx context.Context, r *repo.Repository, config digest.Digest) (map[string]fsverity.Digest, error) {
	id, err := r.LookupStream(ConfigStream(config))
	if errors.Is(err, repo.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	_, named, err := readJSON(ctx, r, id, splitstream.Config, MaxConfigSize)
	if err != nil {
		return nil, err
	}
	return imageRefs(named), nil
}

// StoreImage stores the streams of config and manifest, around their bytes as
// they are, with references to the layers and to img.Images. It reads
// ManifestDigest, ManifestJSON, ConfigDigest, ConfigJSON, Layers and Images, and
// sets the two stream IDs. Everything that is referred to must be stored. No name
// is made: for that see PublishImage.
func StoreImage(ctx context.Context, r *repo.Repository, img *Image) error {
	refs := make([]splitstream.NamedRef, 0, len(img.Layers)+len(img.Images)+1)
	for _, l := range img.Layers {
		refs = append(refs, splitstream.NamedRef{Name: l.DiffID.String(), Digest: l.Stream})
	}
	config := refs
	for _, key := range sortedKeys(img.Images) {
		config = append(config, splitstream.NamedRef{Name: key, Digest: img.Images[key]})
	}
	var err error
	if img.ConfigStream, err = storeJSON(ctx, r, splitstream.Config, img.ConfigJSON, config); err != nil {
		return fmt.Errorf("store config %s: %w", img.ConfigDigest, err)
	}
	manifest := append([]splitstream.NamedRef{{Name: configRef + img.ConfigDigest.String(), Digest: img.ConfigStream}}, refs...)
	if img.ManifestStream, err = storeJSON(ctx, r, splitstream.Manifest, img.ManifestJSON, manifest); err != nil {
		return fmt.Errorf("store manifest %s: %w", img.ManifestDigest, err)
	}
	return nil
}

// PublishImage gives the streams that StoreImage stored their names. Names that
// exist are replaced. Everything that was stored before is durable first.
func PublishImage(ctx context.Context, r *repo.Repository, img *Image) error {
	if err := r.PublishStream(ctx, ConfigStream(img.ConfigDigest), img.ConfigStream); err != nil {
		return fmt.Errorf("publish config %s: %w", img.ConfigDigest, err)
	}
	if err := r.PublishStream(ctx, ManifestStream(img.ManifestDigest), img.ManifestStream); err != nil {
		return fmt.Errorf("publish manifest %s: %w", img.ManifestDigest, err)
	}
	return nil
}

// storeJSON stores a document as one external object in a stream. The order of
// refs is that of the table in the file.
func storeJSON(ctx context.Context, r *repo.Repository, t splitstream.ContentType, b []byte, refs []splitstream.NamedRef) (_ fsverity.Digest, err error) {
	object, err := r.PutObject(ctx, b)
	if err != nil {
		return fsverity.Digest{}, err
	}
	w, err := r.NewStream(ctx, t)
	if err != nil {
		return fsverity.Digest{}, err
	}
	defer func() { err = errors.Join(err, w.Abort()) }()
	for _, n := range refs {
		if err := w.Named(n.Name, n.Digest); err != nil {
			return fsverity.Digest{}, err
		}
	}
	if err := w.External(object, int64(len(b))); err != nil {
		return fsverity.Digest{}, err
	}
	return w.Commit(ctx)
}

// Stack applies the entries of a layer, the index-th of count from 0, and drops
// them from it. The error is a *FormatError around a *tree.EntryError.
func Stack(b *tree.Builder, l *Layer, index, count int) error {
	for i := range l.Entries {
		if err := b.Apply(l.Entries[i]); err != nil {
			return &FormatError{Where: fmt.Sprintf("layer %d of %d, %s", index+1, count, l.DiffID), Err: err}
		}
		l.Entries[i] = tree.Entry{}
	}
	l.Entries = nil
	return nil
}
