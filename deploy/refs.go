package deploy

import (
	"context"
	"errors"
	"io/fs"
	"path"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// refPrefix begins the names of the refs by which deployments hold what they
// need in the repository, below images/refs and streams/refs.
const refPrefix = "cfsboot/"

// refPath is where the refs of a deployment lie in the repository: a directory of
// them for images, one link for the stream. "" is the directory of all.
func refPath(kind repo.Kind, id string) string {
	return path.Join(kind.String(), "refs", refPrefix, id)
}

// Names below refPrefix + id.
const (
	refBoot     = "/boot"  // the boot image
	refPlain    = "/plain" // the plain image
	refManifest = ""       // the stream of the OCI manifest
)

// holdings are what a deployment needs in the repository.
type holdings struct {
	Boot, Plain    fsverity.Digest
	ManifestDigest digest.Digest
	Tag            string // name of the image; or "": it cannot be one
}

// hold makes the refs of a deployment, durably, and lets the tag stand for its
// image: whoever comes here has found that the image can be deployed.
func (m *machine) hold(ctx context.Context, id string, h holdings) error {
	for _, r := range []struct {
		kind         repo.Kind
		name, target string
	}{
		{repo.Images, refBoot, h.Boot.Hex()},
		{repo.Images, refPlain, h.Plain.Hex()},
		{repo.Streams, refManifest, oci.ManifestStream(h.ManifestDigest)},
	} {
		if err := m.repo.SetRef(ctx, r.kind, refPrefix+id+r.name, r.target); err != nil {
			return err
		}
	}
	if h.Tag != "" {
		if err := oci.Tag(ctx, m.repo, h.ManifestDigest, h.Tag); err != nil {
			return err
		}
	}
	return m.repo.Sync(ctx)
}

// removeRefs gives the repository's content of a deployment up.
func (m *machine) removeRefs(ctx context.Context, id string) error {
	if err := m.notePending(); err != nil {
		return err
	}
	for _, r := range []struct {
		kind repo.Kind
		name string
	}{{repo.Streams, refManifest}, {repo.Images, refPlain}, {repo.Images, refBoot}} {
		if err := m.repo.RemoveRef(ctx, r.kind, refPrefix+id+r.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	// The directory of the image refs would stay for ever.
	if err := m.repo.Dir().Remove(refPath(repo.Images, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.Logger.Debug("remove the empty directory of refs", "error", err)
	}
	// Only the next pull of a layer would take longer, or shorter: no reason to fail.
	if err := oci.Forget(ctx, m.repo); err != nil {
		m.Logger.Warn("forget what is known about layers", "error", err)
	}
	return m.repo.Sync(ctx)
}

// untag takes the tag away from the image of a deployment that goes, or that no
// longer follows this reference: the newest one that stays and follows it gets the
// tag, else nobody. A tag that stands for another image is not touched.
func (m *machine) untag(ctx context.Context, d record.Deployment) error {
	tag, ok := m.tagOf(d)
	if !ok {
		return nil
	}
	for _, other := range m.facts.State.Deployments() {
		o, ok := m.facts.Deployments[other]
		if !ok || other == d.ID || o.Reference != d.Reference {
			continue
		}
		if o.ManifestDigest == d.ManifestDigest {
			return nil
		}
		err := oci.Tag(ctx, m.repo, digest.Digest(o.ManifestDigest), tag)
		if !errors.Is(err, repo.ErrNotFound) {
			return err
		}
	}
	return oci.Untag(ctx, m.repo, tag)
}

// tagOf returns the tag that stands for the image of a deployment, if one does. d is
// its record, or the zero value.
func (m *machine) tagOf(d record.Deployment) (string, bool) {
	tag := tagOf(d.Reference)
	if tag == "" {
		return "", false
	}
	now, err := oci.Resolve(m.repo, tag)
	return tag, err == nil && string(now) == d.ManifestDigest
}
