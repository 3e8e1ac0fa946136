package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"

	ocidigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// PullLayout copies an image, byte for byte, into the OCI layout directory dir
// under a tag: for a build host without fs-verity, from which only a User Mode
// Linux guest can install.
func (r *Registry) PullLayout(ctx context.Context, repository, digest, dir, tag string) error {
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	client, err := r.client()
	if err != nil {
		return err
	}
	client.Timeout = 0 // ctx limits
	get := func(kind, digest string) error {
		return r.fetch(ctx, client, fmt.Sprintf("https://127.0.0.1:%d/v2/%s/%s/%s", r.Relays[0].Port, repository, kind, digest), digest, blobs)
	}
	if err := get("manifests", digest); err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(blobs, digest[len("sha256:"):]))
	if err != nil {
		return err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", digest, err)
	}
	for _, d := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		if err := get("blobs", d.Digest.String()); err != nil {
			return err
		}
	}
	entry := v1.Descriptor{
		MediaType: manifest.MediaType, Digest: ocidigest.Digest(digest), Size: int64(len(raw)),
		Annotations: map[string]string{v1.AnnotationRefName: tag},
	}
	index, err := json.Marshal(v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: []v1.Descriptor{entry}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, v1.ImageIndexFile), index, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// fetch writes what an address gives to the file of its digest in dir.
func (r *Registry) fetch(ctx context.Context, client *http.Client, url, digest, dir string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth(user, r.password)
	req.Header.Set("Accept", v1.MediaTypeImageManifest)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: status %s", url, res.Status)
	}
	f, err := os.Create(filepath.Join(dir, digest[len("sha256:"):]))
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, h), res.Body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); err == nil && got != digest {
		err = fmt.Errorf("%s: got %s", url, got)
	}
	return err
}
