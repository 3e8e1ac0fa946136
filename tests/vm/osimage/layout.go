package osimage

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
)

// PullLayout copies an image of the registry, byte for byte, into the OCI layout
// directory dir under a tag: for a build host without fs-verity, from which only
// a User Mode Linux guest can install.
func PullLayout(ctx context.Context, reg *registry.Registry, digest, dir, tag string) error {
	auth, err := reg.AuthFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	authFile := filepath.Join(dir, "auth.json")
	if err := os.WriteFile(authFile, auth, 0o600); err != nil {
		return err
	}
	defer os.Remove(authFile)
	src, err := remote.Open(ctx, reg.HostReference(Repository+"@"+digest), remote.Options{CAFile: reg.CAFile(), AuthFile: authFile})
	if err != nil {
		return err
	}
	defer src.Close()
	resolved, err := src.Resolve(ctx)
	if err != nil {
		return err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(resolved.Manifest, &manifest); err != nil {
		return fmt.Errorf("manifest %s: %w", digest, err)
	}
	for _, d := range append([]v1.Descriptor{manifest.Config}, manifest.Layers...) {
		if err := copyBlob(ctx, src, d, dir); err != nil {
			return err
		}
	}
	blob := func(d v1.Descriptor) string {
		return filepath.Join(dir, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	if err := os.WriteFile(blob(resolved.Descriptor), resolved.Manifest, 0o644); err != nil {
		return err
	}
	entry := v1.Descriptor{
		MediaType: resolved.Descriptor.MediaType, Digest: resolved.Descriptor.Digest, Size: resolved.Descriptor.Size,
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

func copyBlob(ctx context.Context, src oci.Source, d v1.Descriptor, dir string) error {
	r, err := src.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(dir, "blobs", d.Digest.Algorithm().String(), d.Digest.Encoded()))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, oci.VerifyReader(r, "blob "+d.Digest.String(), d))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
