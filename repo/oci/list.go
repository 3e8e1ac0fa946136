package oci

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
)

// Summary is one tagged image. The JSON names are those of cfsctl.
type Summary struct {
	Name           string        `json:"name"`
	ManifestDigest digest.Digest `json:"manifest_digest"`
	IsContainer    bool          `json:"is_container"`
	Architecture   string        `json:"architecture"`
	OS             string        `json:"os"`
	Created        string        `json:"created"` // RFC 3339 as the config has it, or empty
	LayerCount     int           `json:"layer_count"`
	ReferrerCount  int           `json:"referrer_count"`

	Version string `json:"version"` // label org.opencontainers.image.version, or empty
	Plain   string `json:"composefs_erofs"`
	Boot    string `json:"composefs_boot_erofs"`
}

// Problem is a tag that cannot be listed.
type Problem struct {
	Name string
	Err  error
}

// Images lists the tagged images in byte order of their encoded names. What
// cannot be read is a problem and does not hide the others.
func Images(ctx context.Context, r *repo.Repository) ([]Summary, []Problem, error) {
	list, problems := []Summary{}, []Problem(nil)
	for ref, err := range r.Refs(repo.Streams, tagRefs) {
		if cerr := ctx.Err(); cerr != nil {
			return nil, nil, context.Cause(ctx)
		}
		name := DecodeTag(path.Base(ref.Name))
		if err != nil {
			problems = append(problems, Problem{name, err})
			continue
		}
		s, err := summarize(ctx, r, name, ref.Target)
		if err != nil {
			problems = append(problems, Problem{name, err})
			continue
		}
		list = append(list, s)
	}
	return list, problems, nil
}

func summarize(ctx context.Context, r *repo.Repository, name, target string) (Summary, error) {
	manifest, err := manifestOf(name, target)
	if err != nil {
		return Summary{}, err
	}
	img, err := OpenImage(ctx, r, manifest)
	var artifact *MediaTypeError
	if errors.As(err, &artifact) {
		referrers, err := Referrers(r, manifest)
		return Summary{Name: name, ManifestDigest: manifest, ReferrerCount: len(referrers)}, err
	}
	if err != nil {
		return Summary{}, err
	}
	referrers, err := Referrers(r, manifest)
	s := Summary{
		Name: name, ManifestDigest: manifest, IsContainer: true, Architecture: img.Config.Architecture, OS: img.Config.OS,
		Created: img.Created(), LayerCount: len(img.Layers), ReferrerCount: len(referrers), Version: img.Version(),
	}
	plain, boot := img.Default(r)
	s.Plain, s.Boot = plain.Hex(), boot.Hex()
	return s, err
}

// Created returns the time of the config in RFC 3339, or "".
func (img *Image) Created() string {
	if img.Config.Created == nil {
		return ""
	}
	return img.Config.Created.UTC().Format(time.RFC3339Nano)
}

// Version returns the version label of the image, or "".
func (img *Image) Version() string { return img.Config.Config.Labels[v1.AnnotationVersion] }

// Default returns the plain and the boot image in the default format of the
// repository, zero if there is none.
func (img *Image) Default(r *repo.Repository) (plain, boot fsverity.Digest) {
	v := DefaultFormat(r)
	return img.Images[ImageKey(v)], img.Images[BootKey(v)]
}

// DefaultFormat returns the format that a repository lists images in.
func DefaultFormat(r *repo.Repository) erofs.Version { return r.Formats()[0] }

// Referrers lists the artifacts that refer to a manifest.
func Referrers(r *repo.Repository, manifest digest.Digest) ([]digest.Digest, error) {
	list := []digest.Digest{}
	for ref, err := range r.Refs(repo.Streams, path.Join("oci-referrers", EncodeTag(manifest.String()))) {
		if err != nil {
			return nil, err
		}
		d := digest.Digest(DecodeTag(path.Base(ref.Name)))
		if ref.Target != ManifestStream(d) {
			continue // name and target disagree: no entry
		}
		if _, err := r.LookupStream(ref.Target); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		list = append(list, d)
	}
	return list, nil
}

// Inspection is everything about one image. The first five JSON names are those
// of cfsctl.
type Inspection struct {
	Manifest  string           `json:"manifest"` // JSON as it is stored
	Config    string           `json:"config"`   // likewise
	Referrers []digest.Digest  `json:"referrers"`
	Plain     *fsverity.Digest `json:"composefs_erofs"`
	Boot      *fsverity.Digest `json:"composefs_boot_erofs"`

	Schema         string            `json:"schema"`
	Name           string            `json:"name"`
	ManifestDigest digest.Digest     `json:"manifest_digest"`
	ConfigDigest   digest.Digest     `json:"config_digest"`
	Architecture   string            `json:"architecture"`
	OS             string            `json:"os"`
	Created        string            `json:"created"`
	Version        string            `json:"version"`
	Layers         []InspectedLayer  `json:"layers"`
	Images         map[string]string `json:"images"` // all EROFS images: key on the config stream to image ID
}

// InspectedLayer is one layer of an Inspection.
type InspectedLayer struct {
	Digest    digest.Digest `json:"digest"`
	DiffID    digest.Digest `json:"diff_id"`
	MediaType string        `json:"media_type"`
	Size      int64         `json:"size_bytes"` // of the blob
	Verified  bool          `json:"verified"`   // this program compared the stored layer with its diff_id
}

// Inspect describes the image that name stands for; see Resolve.
func Inspect(ctx context.Context, r *repo.Repository, name string) (*Inspection, error) {
	manifest, err := Resolve(r, name)
	if err != nil {
		return nil, err
	}
	img, err := OpenImage(ctx, r, manifest)
	if err != nil {
		return nil, err
	}
	out := &Inspection{
		Schema: "cfsboot.oci-inspect/1", Name: name, Manifest: string(img.ManifestJSON), Config: string(img.ConfigJSON),
		ManifestDigest: manifest, ConfigDigest: img.ConfigDigest, Architecture: img.Config.Architecture, OS: img.Config.OS,
		Created: img.Created(), Version: img.Version(), Images: map[string]string{},
	}
	if out.Referrers, err = Referrers(r, manifest); err != nil {
		return nil, err
	}
	for key, d := range img.Images {
		out.Images[key] = d.Hex()
	}
	plain, boot := img.Default(r)
	for d, to := range map[*fsverity.Digest]**fsverity.Digest{&plain: &out.Plain, &boot: &out.Boot} {
		if !d.IsZero() {
			*to = d
		}
	}
	for i, l := range img.Layers {
		d := img.Manifest.Layers[i]
		verified, err := IsVerified(r, l.DiffID, l.Stream)
		if err != nil {
			return nil, err
		}
		out.Layers = append(out.Layers, InspectedLayer{Digest: d.Digest, DiffID: l.DiffID, MediaType: d.MediaType, Size: d.Size, Verified: verified})
	}
	return out, nil
}
