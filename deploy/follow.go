package deploy

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// following is what an upgrade and a switch have in common: the image to bring to
// the machine.
type following struct {
	PullOptions
	op           record.Op
	reference    string
	retry        bool
	downloadOnly bool
	// allowNoSELinux: a switch may end SELinux on this machine.
	allowNoSELinux bool
	manifest       []byte // that the reference stands for now
}

// follow makes the machine follow a reference: what it stands for now is staged,
// unless it is there already.
func (m *machine) follow(ctx context.Context, f following) (_ *Change, err error) {
	m.say("looking for a newer image of %s", f.reference)
	src, resolved, err := resolve(ctx, f.PullOptions, f.reference)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	act, err := decideUpgrade(m.facts, string(resolved.Descriptor.Digest), f.retry)
	if err != nil {
		return nil, err
	}
	f.manifest = resolved.Manifest
	if act == actStage {
		return m.stage(ctx, src, f)
	}
	changed, err := m.retarget(ctx, m.idOf(act), f.reference, resolved.IndexDigest)
	if err != nil {
		return nil, err
	}
	return m.settle(ctx, act, f, changed)
}

// settle does what following an image comes down to when it is deployed already.
// changed tells that its reference was another one.
func (m *machine) settle(ctx context.Context, act action, f following, changed bool) (*Change, error) {
	switch {
	case act == actDrop:
		return m.drop(ctx)
	case act == actRearm && !f.downloadOnly:
		return m.rollback(ctx, m.facts.BootedID())
	case act == actKeep:
		return m.keep(ctx, f.downloadOnly, changed)
	}
	id := m.idOf(act)
	mended, err := m.mendPayload(ctx, id)
	if err != nil {
		return nil, err
	}
	m.clean(ctx)
	if changed {
		c := m.change(ActionReference, id)
		c.Warnings = append(c.Warnings, mended...)
		return c, nil
	}
	c := m.change(ActionNone, id)
	c.Warnings = append(c.Warnings, mended...)
	return c, ErrNothingToDo
}

// mendPayload places what is not there any more of the kernel and the initrd of a
// deployment that is the default already. It returns a warning if it did so.
func (m *machine) mendPayload(ctx context.Context, id string) ([]string, error) {
	a := m.facts.State.LatestOf(id)
	if a == nil || !slices.ContainsFunc(m.facts.defects[id], func(x defect) bool { return x.Code == ProblemPayload }) {
		return nil, nil
	}
	if err := m.ensurePayload(ctx, id, a.BootDigest); err != nil {
		return nil, fmt.Errorf("place kernel and initrd of deployment %s: %w", short(id), err)
	}
	return []string{fmt.Sprintf("kernel or initrd of deployment %s was gone from the boot partition and was placed again", short(id))}, m.look()
}

// keep leaves the staged deployment staged: for the next shutdown, or until
// another command lets it go.
func (m *machine) keep(ctx context.Context, downloadOnly, changed bool) (*Change, error) {
	st := m.facts.State.Staged
	if st.DownloadOnly != downloadOnly {
		if err := m.add(record.Event{Kind: record.EventDownloadOnly, Deployment: st.Deployment, DownloadOnly: downloadOnly}); err != nil {
			return nil, err
		}
		changed = true
	}
	c := m.change(ActionStaged, st.Deployment)
	if !downloadOnly {
		m.startFinalize(ctx, c)
	}
	m.clean(ctx)
	if changed {
		return c, nil
	}
	return c, ErrNothingToDo
}

// fromDownloaded lets finalize take what was only downloaded.
func (m *machine) fromDownloaded(ctx context.Context) (*Change, error) {
	if m.facts.State.Staged == nil {
		return nil, refuse(CodeNotStaged, "no deployment is staged")
	}
	return m.keep(ctx, false, false)
}

// idOf is the deployment that has the image already.
func (m *machine) idOf(act action) string {
	switch act {
	case actKeep:
		return m.facts.State.Staged.Deployment
	case actRearm:
		return m.facts.BootedID()
	}
	return m.facts.nextID()
}

// retarget lets a deployment that has the right image follow another reference.
// The record, replaced atomically, is what counts; the origin beside it is put
// right by clean if only one of the two was written.
func (m *machine) retarget(ctx context.Context, id, reference string, index digest.Digest) (bool, error) {
	d, ok := m.facts.Deployments[id]
	if !ok {
		return false, noRecord(id)
	}
	if d.Reference == reference {
		return false, nil
	}
	h := holdings{ManifestDigest: digest.Digest(d.ManifestDigest), Tag: tagOf(reference)}
	var err error
	if h.Boot, err = fsverity.ParseHex(d.ID); err != nil {
		return false, err
	}
	if h.Plain, err = fsverity.ParseHex(d.PlainID); err != nil {
		return false, err
	}
	name := stateOf(id)
	if st := m.facts.State.Staged; st != nil && st.Deployment == id {
		if name, err = m.stagedState(*st); err != nil {
			return false, err
		}
	}
	next := d
	next.Reference, next.IndexDigest = reference, string(index)
	return true, m.rename(ctx, name, d, next, h)
}

// rename makes the deployment whose state is at name follow another reference, or
// another manifest of the same files: the refs and the tag first, without which the
// records would be of an image that may go, then the records. The tag of the old
// reference goes before them, since a later run only looks at the new ones.
func (m *machine) rename(ctx context.Context, name string, old, next record.Deployment, h holdings) error {
	if err := m.hold(ctx, old.ID, h); err != nil {
		return err
	}
	moves := tagOf(old.Reference) != h.Tag
	_, had := m.tagOf(old)
	if err := m.notePending(); err != nil {
		return err
	}
	if moves {
		if err := m.untag(ctx, old); err != nil {
			return err
		}
	}
	if err := m.rewrite(name, old, next, record.Event{Kind: record.EventReference, Deployment: old.ID, Reference: next.Reference}); err != nil {
		if moves && had {
			err = errors.Join(err, oci.Tag(ctx, m.repo, digest.Digest(old.ManifestDigest), tagOf(old.Reference)), m.untag(ctx, next))
		}
		return err
	}
	return m.look()
}

// rewrite replaces the records of a deployment and notes it in the journal. If
// either fails the old ones come back, as far as the disk allows that.
func (m *machine) rewrite(name string, old, next record.Deployment, e record.Event) error {
	dir, err := m.top.Sub(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // writeRecords syncs
	if err = writeRecords(dir, next); err == nil {
		err = m.add(e)
	}
	if err != nil {
		return errors.Join(err, writeRecords(dir, old))
	}
	return nil
}

// tagOf is the name that the image of a reference gets in the repository, "" if
// it cannot be one: the refs of the deployment hold the image all the same.
func tagOf(reference string) string {
	ref, err := record.ParseImageReference(reference)
	if err != nil || oci.CheckTag(ref.Image) != nil {
		return ""
	}
	return ref.Image
}

// tracked is the reference that the machine follows: of what is staged, else of
// what boots next, else of what runs. One that is not in a registry cannot be
// followed: what it stands for, a directory or a file, was that of somebody who
// made an installation.
func tracked(f Facts) (string, error) {
	var ids []string
	if st := f.State.Staged; st != nil {
		ids = append(ids, st.Deployment)
	}
	if n := f.State.Newest(); n != nil {
		ids = append(ids, n.Deployment)
	}
	for _, id := range append(ids, f.BootedID()) {
		d, ok := f.Deployments[id]
		if !ok {
			continue
		}
		ref, err := record.ParseImageReference(d.Reference)
		if err != nil {
			return "", err
		}
		if ref.Transport != "registry" {
			return "", refuse(CodeNoRegistry, "deployment %s came from %s, so there is no registry to follow", short(id), ref)
		}
		return d.Reference, nil
	}
	return "", noRecord(f.BootedID())
}

// noRecord says that nobody knows what a deployment is.
func noRecord(id string) error {
	return refuse(CodeNoRecord, "deployment %s has no readable %q, so nobody knows its image", short(id), stateOf(id)+"/"+record.DeploymentName)
}

// SwitchOptions are those of Switch.
type SwitchOptions struct {
	Options
	PullOptions
	// Image is the reference that the machine follows from now on; required. A
	// relative path in it is one from the working directory.
	Image string
	// Retry, DownloadOnly and Apply: as for Upgrade.
	Retry, DownloadOnly, Apply bool
	// AllowNoSELinux allows an image without a SELinux policy on a machine where
	// SELinux is enforcing, which is CodeNoSELinux otherwise.
	AllowNoSELinux bool
}

// Switch makes the machine follow another reference, and stages the image that it
// stands for now as Upgrade does: /etc is merged, /var stays. The reference
// belongs to the deployment, so what runs, and what a failed switch leaves,
// follows the one it had. If the image is deployed already, under whatever
// reference, only the reference changes. Errors: those of Upgrade.
func Switch(ctx context.Context, o SwitchOptions) (*Change, error) {
	c, err := switchTo(ctx, o)
	if o.Apply {
		return apply(ctx, o.Options, c, err)
	}
	return c, err
}

func switchTo(ctx context.Context, o SwitchOptions) (_ *Change, err error) {
	ref, err := record.ParseImageReference(o.Image)
	if err != nil {
		return nil, refuse(CodeImage, "reference to switch to: %v", err)
	}
	if ref.Transport == "oci" && !filepath.IsAbs(ref.Image) {
		if ref.Image, err = filepath.Abs(ref.Image); err != nil {
			return nil, err
		}
	}
	m, err := openMachine(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return m.follow(ctx, following{
		PullOptions: o.PullOptions, op: record.OpSwitch, reference: ref.String(), retry: o.Retry, downloadOnly: o.DownloadOnly, allowNoSELinux: o.AllowNoSELinux,
	})
}
