package remote

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
)

// fetcher reads verified manifests and blobs.
type fetcher interface {
	fetchManifest(ctx context.Context, d v1.Descriptor) ([]byte, error)
	Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
}

const (
	maxPlatforms = 10  // that an error lists
	maxOpened    = 256 // manifests of an index that are read to find out their platform
)

// document is what manifests and indexes have in common.
type document struct {
	MediaType string           `json:"mediaType"`
	Manifests *[]v1.Descriptor `json:"manifests"`
	Config    *v1.Descriptor   `json:"config"`
}

// mediaTypeOf finds out what a document is: its own word, then what the source
// says, then what it looks like.
func mediaTypeOf(where string, b []byte, told string) (string, document, error) {
	var doc document
	if err := json.Unmarshal(b, &doc); err != nil {
		return "", doc, &oci.FormatError{Where: where, Detail: "not a JSON object of a manifest or index", Err: err}
	}
	switch {
	case doc.MediaType != "":
		return doc.MediaType, doc, nil
	case isManifest(told) || isIndex(told):
		return told, doc, nil
	case doc.Manifests != nil:
		return v1.MediaTypeImageIndex, doc, nil
	case doc.Config != nil:
		return v1.MediaTypeImageManifest, doc, nil
	}
	return told, doc, nil
}

func isIndex(mediaType string) bool {
	return mediaType == v1.MediaTypeImageIndex || mediaType == mediaTypeDockerManifestList
}

func isManifest(mediaType string) bool {
	return mediaType == v1.MediaTypeImageManifest || mediaType == mediaTypeDockerManifest
}

// resolve turns what a reference stands for into one manifest. b was verified.
func resolve(ctx context.Context, f fetcher, typed string, top v1.Descriptor, b []byte, want Platform) (oci.Resolved, error) {
	where := typed
	mediaType, doc, err := mediaTypeOf(where, b, top.MediaType)
	if err != nil {
		return oci.Resolved{}, err
	}
	res := oci.Resolved{Manifest: b, Descriptor: top, Reference: typed}
	if isIndex(mediaType) {
		if doc.Manifests == nil || doc.Config != nil {
			return oci.Resolved{}, &oci.FormatError{Where: where, Detail: "an index must have \"manifests\" and no \"config\""}
		}
		c := chooser{f: f, where: where, want: want}
		found, ok, err := c.choose(ctx, *doc.Manifests, false)
		if err != nil {
			return oci.Resolved{}, err
		}
		if !ok {
			return oci.Resolved{}, c.noMatch()
		}
		res.IndexDigest, res.Descriptor, res.Manifest = top.Digest, found.desc, found.manifest
		mediaType = found.desc.MediaType
	} else if doc.Manifests != nil {
		return oci.Resolved{}, &oci.FormatError{Where: where, Detail: "a manifest must not have \"manifests\""}
	}
	if mediaType != v1.MediaTypeImageManifest {
		return oci.Resolved{}, &oci.MediaTypeError{Where: where, Got: mediaType, Want: "an OCI image manifest or index"}
	}
	res.Descriptor = v1.Descriptor{MediaType: mediaType, Digest: res.Descriptor.Digest, Size: int64(len(res.Manifest))}
	return res, nil
}

// found is a chosen manifest.
type found struct {
	desc     v1.Descriptor
	manifest []byte
	index    digest.Digest // of a nested index
}

// chooser picks the first manifest for a platform.
type chooser struct {
	f         fetcher
	where     string
	want      Platform
	opened    int      // manifests that were read
	available []string // platforms that were seen
	skipped   string   // media type that is neither manifest nor index
}

// choose looks through descriptors in order. Nested indexes are opened one level
// deep, if nested is set.
func (c *chooser) choose(ctx context.Context, list []v1.Descriptor, nested bool) (found, bool, error) {
	for _, d := range list {
		switch {
		case isManifest(d.MediaType):
			f, ok, err := c.match(ctx, d)
			if ok || err != nil {
				return f, ok, err
			}
		case isIndex(d.MediaType) && nested:
			f, ok, err := c.chooseNested(ctx, d)
			if ok || err != nil {
				return f, ok, err
			}
		case isIndex(d.MediaType):
			return found{}, false, &oci.FormatError{Where: c.where, Detail: fmt.Sprintf("index %s lies inside another index", d.Digest)}
		default:
			c.skipped = d.MediaType
		}
	}
	return found{}, false, nil
}

func (c *chooser) chooseNested(ctx context.Context, d v1.Descriptor) (found, bool, error) {
	b, err := c.f.fetchManifest(ctx, d)
	if err != nil {
		return found{}, false, err
	}
	var index v1.Index
	if err := json.Unmarshal(b, &index); err != nil {
		return found{}, false, &oci.FormatError{Where: "index " + d.Digest.String(), Detail: "not an image index", Err: err}
	}
	f, ok, err := c.choose(ctx, index.Manifests, false)
	f.index = d.Digest
	return f, ok, err
}

// match compares platforms; a descriptor without one is asked for its config.
func (c *chooser) match(ctx context.Context, d v1.Descriptor) (found, bool, error) {
	if d.Platform != nil && !c.matches(*d.Platform) {
		return found{}, false, nil
	}
	if c.opened++; c.opened > maxOpened {
		return found{}, false, &oci.FormatError{Where: c.where, Detail: fmt.Sprintf("more than %d manifests without a platform: name one by its tag or digest", maxOpened)}
	}
	b, err := c.f.fetchManifest(ctx, d)
	if err != nil {
		return found{}, false, err
	}
	if d.Platform != nil {
		return found{desc: d, manifest: b}, true, nil
	}
	var m v1.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return found{}, false, &oci.FormatError{Where: "manifest " + d.Digest.String(), Detail: "not an image manifest", Err: err}
	}
	if m.Config.MediaType != v1.MediaTypeImageConfig {
		c.skipped = m.Config.MediaType
		return found{}, false, nil
	}
	where := "config " + m.Config.Digest.String()
	cfg, err := readBlob(ctx, c.f, "config of "+c.where, m.Config)
	if err != nil {
		return found{}, false, err
	}
	var p Platform
	if err := json.Unmarshal(cfg, &p); err != nil {
		return found{}, false, &oci.FormatError{Where: where, Detail: "not an image config", Err: err}
	}
	if !c.matches(p) {
		return found{}, false, nil
	}
	return found{desc: d, manifest: b}, true, nil
}

func (c *chooser) matches(p Platform) bool {
	if oci.MatchPlatform(c.want, p) {
		return true
	}
	if len(c.available) < maxPlatforms {
		c.available = append(c.available, oci.FormatPlatform(p))
	}
	return false
}

func (c *chooser) noMatch() error {
	if len(c.available) == 0 {
		if c.skipped != "" {
			return &oci.MediaTypeError{Where: c.where, Got: c.skipped, Want: "a container image"}
		}
		return &oci.FormatError{Where: c.where, Detail: "the index is empty"}
	}
	return &oci.PlatformError{Where: c.where, Want: oci.FormatPlatform(c.want), Available: c.available}
}

func readBlob(ctx context.Context, f fetcher, where string, d v1.Descriptor) ([]byte, error) {
	if err := oci.CheckDescriptor(where, d); err != nil {
		return nil, err
	}
	if d.Size > oci.MaxConfigSize {
		return nil, &oci.FormatError{Where: where, Detail: fmt.Sprintf("%d bytes, limit %d bytes", d.Size, oci.MaxConfigSize)}
	}
	r, err := f.Blob(ctx, d)
	if err != nil {
		return nil, oci.NameBlob(err, where)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	return b, oci.NameBlob(err, where)
}
