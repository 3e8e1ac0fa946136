package deploy

import (
	"context"
	"errors"
	"path"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// CheckOptions are those of Check.
type CheckOptions struct {
	Options
	PullOptions
	// Retry: as for Upgrade.
	Retry bool
}

// Checked is what Check has found. Its fields are printed.
type Checked struct {
	Available      bool   `json:"available"` // `upgrade` would change what boots
	Action         string `json:"action"`    // what it would do: "stage", "drop", "rearm", "keep" or "nothing"
	Reference      string `json:"reference"` // that the machine follows
	ManifestDigest string `json:"manifest_digest"`
	IndexDigest    string `json:"index_digest"` // "" if the reference names no index
	Version        string `json:"version"`      // annotation of the manifest, "" if it has none
	Created        string `json:"created"`      // likewise
	Layers         int    `json:"layers"`
	SizeBytes      int64  `json:"size_bytes"` // of all layers as they are sent; what is there already is not sent
	Booted         string `json:"booted"`     // id
	BootedDigest   string `json:"booted_manifest_digest"`
	Staged         string `json:"staged"` // id, "" for none
}

// Check asks what the tracked reference stands for and says what Upgrade would do
// about it. It asks for the manifest only, takes no lock, and changes nothing but
// what `status` shows as cached update, below /run. If Upgrade had nothing to do
// the error is ErrNothingToDo. Errors: *RefusedError, as from Upgrade, and those
// of the source and of a manifest that a pull would refuse.
func Check(ctx context.Context, o CheckOptions) (*Checked, error) {
	f, err := readFacts(o.Options)
	if err != nil {
		return nil, err
	}
	reference, err := tracked(f)
	if err != nil {
		return nil, err
	}
	src, resolved, err := resolve(ctx, o.PullOptions, reference)
	if err != nil {
		return nil, err
	}
	if err := src.Close(); err != nil {
		return nil, err
	}
	act, err := decideUpgrade(f, string(resolved.Descriptor.Digest), o.Retry)
	if err != nil {
		return nil, err
	}
	c, err := newChecked(f, reference, resolved)
	if err != nil {
		return nil, err
	}
	c.Action = string(act)
	c.Available = act == actStage || act == actDrop || act == actRearm
	opts := o.withDefaults()
	if err := opts.saveUpdate(c, f.Deployments[f.BootedID()].Architecture); err != nil {
		opts.Logger.Debug("save what the check has found", "error", err)
	}
	if !c.Available {
		return c, ErrNothingToDo
	}
	return c, nil
}

// newChecked fills in what is known without a decision.
func newChecked(f Facts, reference string, resolved oci.Resolved) (*Checked, error) {
	m, size, err := manifestOf(reference, resolved)
	if err != nil {
		return nil, err
	}
	c := &Checked{
		Reference: reference, ManifestDigest: string(resolved.Descriptor.Digest), IndexDigest: string(resolved.IndexDigest),
		Version: m.Annotations[v1.AnnotationVersion], Created: m.Annotations[v1.AnnotationCreated], Layers: len(m.Layers), SizeBytes: size,
		Booted: f.BootedID(), BootedDigest: f.Deployments[f.BootedID()].ManifestDigest,
	}
	if st := f.State.Staged; st != nil {
		c.Staged = st.Deployment
	}
	return c, nil
}

// readFacts finds out what openMachine would, without a lock and without writing:
// the journal as the next command would bring it up to date.
func readFacts(o Options) (Facts, error) {
	r := statusReader{Options: o.withDefaults()}
	r.in.Now = r.Clock.Now()
	r.readBooted()
	if r.in.Booted == nil {
		return Facts{}, refuse(CodeNotManaged, "this machine was not booted by cfsboot: it has no %s%s", record.BootedPath, problemText(r.in.Problems))
	}
	r.readTop()
	if r.refused != nil {
		return Facts{}, r.refused
	}
	if !r.in.Journal {
		return Facts{}, refuse(CodeNotManaged, "the journal of this machine cannot be read%s", problemText(r.in.Problems))
	}
	r.readEntries()
	f := r.in.Facts
	f.State = (&statusBuilder{in: r.in}).current()
	return f, nil
}

func problemText(list []Problem) string {
	if len(list) == 0 {
		return ""
	}
	return ": " + list[0].Message
}

// saveUpdate leaves what was found where status looks for it.
func (o Options) saveUpdate(c *Checked, architecture string) (err error) {
	data, err := record.Update{
		Reference: c.Reference, ManifestDigest: c.ManifestDigest, IndexDigest: c.IndexDigest, Architecture: architecture,
		Version: c.Version, Created: c.Created, Checked: o.Clock.Now(),
	}.Encode()
	if err != nil {
		return err
	}
	dir, err := durable.OpenDir(o.path(path.Dir(record.UpdatePath)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	return dir.WriteFile(path.Base(record.UpdatePath), data, stateFilePerm)
}
