package deploy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// pullMakingRoom is pullImage, which compares what is missing with what is free
// before it fetches anything. Where the repository has no room it removes garbage
// and, if that is not enough, old deployments, as few as will do, and pulls again.
// If all of them would not do, or the boot partition would have no room then,
// nothing is removed.
func (m *machine) pullMakingRoom(ctx context.Context, src oci.Source, f following) (*image, error) {
	r := objectRoom{machine: m, src: src, following: f}
	for rounds := len(m.facts.State.Entries) + 2; ; rounds-- {
		img, err := m.pullImage(ctx, src, f.reference, f.PullOptions)
		var space *durable.SpaceError
		if !errors.As(err, &space) || space.Where != m.repo.Path() || rounds == 0 {
			return img, err
		}
		if err := r.make(ctx, err, space); err != nil {
			return nil, err
		}
	}
}

// objectRoom makes room in the repository for one image.
type objectRoom struct {
	*machine
	following
	src      oci.Source
	surveyed bool // the image was looked into, and can be deployed
}

// make makes the bytes or inodes free that an error says are missing. If it cannot,
// the error wraps full.
func (m *objectRoom) make(ctx context.Context, full error, space *durable.SpaceError) error {
	missing := max(1, space.Need-space.Have)
	amount := func(n int64) string { return progress.FormatSize(n, 1) }
	if space.Inodes {
		missing = max(1, space.NeedFiles-space.HaveFiles)
		amount = func(n int64) string { return progress.Count(int(n), "file") }
	}
	ids := retirable(m.facts, "")
	var frees int64
	for n := range len(ids) + 1 {
		c, err := m.foreseeCollect(ctx, ids[:n])
		if err != nil {
			return errors.Join(full, err)
		}
		if frees = c.Bytes; space.Inodes {
			frees = int64(c.Objects)
		}
		if frees < missing {
			continue
		}
		if err := m.allow(ctx, ids[:n]); err != nil {
			return err
		}
		m.say("making room for %s in the repository", amount(missing))
		for _, id := range ids[:n] {
			if err := m.retire(ctx, id); err != nil {
				return errors.Join(full, err)
			}
			m.gone = append(m.gone, id)
		}
		if _, err := m.collectGarbage(ctx, false); err != nil {
			return errors.Join(full, err)
		}
		return nil
	}
	return fmt.Errorf("plan the repository (everything that may go, with %s, takes %s of the %s that are missing): %w", progress.Count(len(ids), "deployment"), amount(frees), amount(missing), full)
}

// allow refuses to let deployments go for an image that cannot be deployed, as far
// as that can be known. Before the one goes that rollback goes to, and where the boot
// partition may have no room, all of the image that is not here is read for it.
func (m *objectRoom) allow(ctx context.Context, ids []string) error {
	last := m.facts.rollbackTarget()
	switch {
	case len(ids) == 0:
		return nil
	case m.surveyed:
		return nil
	case last == nil || !slices.Contains(ids, last.Deployment):
		if ok, err := m.likelyFits(ctx, m.manifest); ok || err != nil {
			return err
		}
		m.say("the boot partition may have no room for the image: looking into it before a deployment is removed")
	default:
		m.say("no room but that of deployment %s, which `cfsboot rollback` goes to: looking into the image before that is removed", short(last.Deployment))
	}
	if err := m.survey(ctx, m.src, m.following); err != nil {
		return err
	}
	m.surveyed = true
	return nil
}

// wantedBySurvey are the files whose contents checkTree looks at.
func wantedBySurvey(path string) bool {
	return strings.HasSuffix(path, "lib/os-release") || strings.Contains(path, "/kargs.d/")
}

// survey reads an image without storing it, and refuses one that could not be
// deployed: as CheckBootable does, and if its payload does not fit.
func (m *machine) survey(ctx context.Context, src oci.Source, f following) error {
	root, err := pull.Survey(ctx, m.repo, src, pull.Options{
		Bootable: true, Platform: f.Platform, Progress: m.Progress, Logger: m.Logger,
	}, wantedBySurvey)
	if err != nil {
		return refuseImage(err)
	}
	res, err := checkTree(root, m.repo)
	if err != nil {
		return err
	}
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	files := []esp.Sum{{Name: payloadKernel, Size: res.Kernel.Image.Size}, {Name: payloadInitrd, Size: res.Kernel.Initrd.Size}}
	need := m.esp.NeedFor(strings.Repeat("0", 64), files, space.Cluster)
	for _, have := range m.facts.Payloads {
		// One with files of these sizes is it, most likely.
		if rest := m.esp.NeedFor(have, files, space.Cluster); rest == m.esp.NeedFor(have, nil, space.Cluster) {
			need = rest
		}
	}
	return m.checkRoom(need, space, "", "")
}

// likelyFits tells whether the boot partition has room for as much as the image is
// likely to need.
func (m *machine) likelyFits(ctx context.Context, manifest []byte) (bool, error) {
	space, err := m.space(m.esp)
	if err != nil {
		return false, err
	}
	err = m.checkRoom(4*space.Cluster+m.likelyPayload(ctx, manifest), space, "", "")
	var full *durable.SpaceError
	if errors.As(err, &full) {
		return false, nil
	}
	return err == nil, err
}

// likelyPayload is what the payload of an image with this manifest takes on the
// boot partition, as far as that can be told before it is there: as much as that of
// what runs, and nothing if layers are those of a deployment, whose kernel it may have.
func (m *machine) likelyPayload(ctx context.Context, manifest []byte) int64 {
	var next v1.Manifest
	a := m.facts.State.LatestOf(m.facts.BootedID())
	if a == nil || json.Unmarshal(manifest, &next) != nil {
		return 0
	}
	for _, d := range m.facts.Deployments {
		img, err := oci.OpenImage(ctx, m.repo, digest.Digest(d.ManifestDigest))
		if err != nil {
			continue // it says nothing, then
		}
		for _, l := range img.Manifest.Layers {
			if l.Size >= minShared && slices.ContainsFunc(next.Layers, func(x v1.Descriptor) bool { return x.Digest == l.Digest }) {
				return 0
			}
		}
	}
	space, err := m.space(m.esp)
	if err != nil {
		return 0
	}
	return m.esp.PayloadSize(a.BootDigest, space.Cluster)
}

// minShared is the size in bytes of the smallest layer that counts as shared: empty
// ones are in images that have nothing in common.
const minShared = 512

// without names the refs by which deployments hold what they need, and the tags
// that would go to another image with them.
func (m *machine) without(ids []string) []string {
	var out []string
	for _, id := range ids {
		out = append(out, refPath(repo.Images, id)+"/", refPath(repo.Streams, id))
		if tag, ok := m.tagOf(m.facts.Deployments[id]); ok {
			out = append(out, repo.Streams.String()+"/refs/"+oci.TagRef(tag))
		}
	}
	return out
}
