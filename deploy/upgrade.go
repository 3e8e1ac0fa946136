package deploy

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/systemd"
)

// UpgradeOptions are those of Upgrade.
type UpgradeOptions struct {
	Options
	PullOptions
	// Retry allows a deployment that did not boot before.
	Retry bool
	// DownloadOnly stages what finalize leaves alone, until a command comes
	// without it or with FromDownloaded.
	DownloadOnly bool
	// FromDownloaded lets finalize take what is staged. Nothing is pulled, and
	// PullOptions are not used.
	FromDownloaded bool
	// Apply reboots if the next boot starts another deployment than the running one.
	Apply bool
}

// Change is what a command did to the machine. Its fields are printed.
type Change struct {
	// Action is "staged", "armed", "dropped", "reference" or "none".
	Action         string   `json:"action"`
	Deployment     string   `json:"deployment"` // that the action is about, "" for none
	Booted         string   `json:"booted"`     // the running one, "" at an installation
	Dropped        string   `json:"dropped"`    // a staged deployment that was given up, or ""
	Reference      string   `json:"reference"`
	ManifestDigest string   `json:"manifest_digest"`
	Title          string   `json:"title"`
	Version        string   `json:"version"`
	Kernel         string   `json:"kernel"`
	Entry          uint64   `json:"entry"`    // sequence number of the boot entry, 0 if none was made yet
	Warnings       []string `json:"warnings"` // never null

	DownloadOnly bool       `json:"download_only"` // finalize leaves the staged deployment alone
	Reboot       bool       `json:"reboot"`        // a reboot was started
	Repaired     []Repaired `json:"repaired"`      // what an interrupted command had left; never null

	notStarted error // why the shutdown unit does not run
}

// The actions of a Change.
const (
	ActionStaged    = "staged"    // finalize makes it the default at shutdown
	ActionArmed     = "armed"     // it is the default of the next boot
	ActionDropped   = "dropped"   // only a staged deployment was given up
	ActionReference = "reference" // only the reference that is followed has changed
	ActionNone      = "none"
)

func (m *machine) change(actionName, id string) *Change {
	d := m.facts.Deployments[id]
	var seq uint64 // of the entry that is to be the default
	if actionName == ActionStaged {
		seq = m.facts.State.Staged.Entry
	} else if a := m.facts.State.LatestOf(m.facts.nextID()); a != nil {
		seq = a.Seq
	}
	return &Change{
		Action: actionName, Deployment: id, Booted: m.facts.BootedID(), Reference: d.Reference, ManifestDigest: d.ManifestDigest,
		Title: d.Title, Version: d.OSVersion, Kernel: d.Kernel, Warnings: m.warnings(seq), Repaired: m.repairs(),
		DownloadOnly: actionName == ActionStaged && m.facts.State.Staged.DownloadOnly,
	}
}

// Upgrade brings the image that the tracked reference stands for now to the
// machine and stages it: the shutdown unit makes it the default. The running
// deployment, and on a failure the staged one too, stay as they are. A staged
// deployment of another image is replaced.
//
// If there is nothing newer the error is ErrNothingToDo and the Change says what
// is there. Other errors: *RefusedError, *ConflictError (/etc), *repo.LockedError,
// *durable.SpaceError, *RebootError (all but the reboot is done, and the Change
// says what), and those of pull.Pull and the source.
func Upgrade(ctx context.Context, o UpgradeOptions) (*Change, error) {
	c, err := upgrade(ctx, o)
	if o.Apply {
		return apply(ctx, o.Options, c, err)
	}
	return c, err
}

func upgrade(ctx context.Context, o UpgradeOptions) (_ *Change, err error) {
	m, err := openMachine(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if o.FromDownloaded {
		return m.fromDownloaded(ctx)
	}
	reference, err := tracked(m.facts)
	if err != nil {
		return nil, err
	}
	return m.follow(ctx, following{PullOptions: o.PullOptions, op: record.OpUpgrade, reference: reference, retry: o.Retry, downloadOnly: o.DownloadOnly})
}

// drop gives the staged deployment up.
func (m *machine) drop(ctx context.Context) (*Change, error) {
	id := m.facts.State.Staged.Deployment
	if err := m.add(record.Event{Kind: record.EventDropped, Deployment: id}); err != nil {
		return nil, err
	}
	c := m.change(ActionDropped, m.facts.nextID())
	c.Dropped = id
	m.clean(ctx)
	return c, nil
}

// stage pulls and stages. Whatever fails, the journal says that the transaction
// is over, so that the next run starts clean.
func (m *machine) stage(ctx context.Context, src oci.Source, f following) (_ *Change, err error) {
	if err := checkSequence(m.facts); err != nil {
		return nil, err
	}
	// The payload may be there already, whatever the layers are: only the image tells.
	if err := m.checkEntrySpace(); err != nil {
		return nil, err
	}
	if _, err := m.liveKargs(); err != nil {
		return nil, err
	}
	tx := newTransaction()
	if err := m.add(record.Event{Kind: record.EventBegin, Transaction: tx, Op: f.op, Reference: f.reference}); err != nil {
		return nil, err
	}
	defer func() {
		if m.facts.State.Transaction == nil {
			return
		}
		m.discard(err)
		m.abort(ctx, tx, err)
		err = m.withGone(err)
	}()
	img, err := m.pullMakingRoom(ctx, src, f)
	if err != nil {
		return nil, err
	}
	before := m.facts.Deployments[img.id()].Reference
	if same, err := m.sameContent(ctx, img); err != nil {
		return nil, err
	} else if same {
		m.abort(ctx, tx, ErrNothingToDo)
		act, err := decideUpgrade(m.facts, img.record.ManifestDigest, f.retry)
		if err != nil {
			return nil, err
		}
		return m.settle(ctx, act, f, before != f.reference)
	}
	if err := refuseFailed(m.facts.State, img.id(), f.retry); err != nil {
		return nil, err
	}
	warnings, err := m.checkSELinux(img, f)
	if err != nil {
		return nil, err
	}
	if a := m.facts.State.LatestOf(img.id()); a != nil && a.Retiring {
		// What is left of it would take the new one along.
		if err := m.finishRetire(ctx, img.id()); err != nil {
			return nil, err
		}
	}
	d := img.record
	d.Kargs, d.Transaction, d.Created = m.baseKargs(), tx, m.Clock.Now()
	if err := m.checkKargs(d, img); err != nil {
		return nil, err
	}
	if err := m.checkPayloadSpace(img); err != nil {
		return nil, err
	}
	m.say("staging deployment %s", short(img.id()))
	res, err := m.mergeEtc(ctx, img.tree)
	if err != nil {
		return nil, err
	}
	if err := m.add(record.Event{Kind: record.EventTarget, Transaction: tx, Deployment: img.id(), BootDigest: img.payload.Digest}); err != nil {
		return nil, err
	}
	if err := m.hold(ctx, img.id(), img.holdings); err != nil {
		return nil, err
	}
	if err := m.stageEtc(ctx, stagedOf(d.ID), d, img, res); err != nil {
		return nil, err
	}
	if err := m.placePayload(ctx, img); err != nil {
		return nil, err
	}
	dropped := ""
	if st := m.facts.State.Staged; st != nil {
		dropped = st.Deployment
	}
	if err := m.add(record.Event{Kind: record.EventPrepared, Transaction: tx, DownloadOnly: f.downloadOnly}); err != nil {
		return nil, err
	}
	if err := m.look(); err != nil {
		return nil, err
	}
	c := m.change(ActionStaged, d.ID)
	if dropped != d.ID {
		c.Dropped = dropped
	}
	if !f.downloadOnly {
		m.startFinalize(ctx, c)
	}
	c.Warnings = append(c.Warnings, slices.Concat(warnings, m.loaderWarnings(), imageLoaderWarnings(img.tree))...)
	m.clean(ctx)
	return c, nil
}

// sameContent handles an image whose boot image is staged, the default or running
// already, under another manifest: what is written down about it changes, and the
// upgrade is decided again. Nothing else may be done to the state of what runs.
func (m *machine) sameContent(ctx context.Context, img *image) (bool, error) {
	id := img.id()
	name := stateOf(id)
	switch st := m.facts.State.Staged; {
	case st != nil && st.Deployment == id:
		var err error
		if name, err = m.stagedState(*st); err != nil {
			return false, err
		}
	case m.facts.BootedID() != id && (m.facts.nextID() != id || m.facts.broken(id)):
		return false, nil
	}
	d, ok := m.facts.Deployments[id]
	if !ok && id != m.facts.BootedID() {
		return false, nil // its state is damaged or gone: it is staged anew
	}
	if !ok {
		return false, noRecord(id)
	}
	next := d
	next.Reference, next.ManifestDigest, next.IndexDigest, next.ConfigDigest = img.record.Reference, img.record.ManifestDigest, img.record.IndexDigest, img.record.ConfigDigest
	next.ImageVersion, next.ImageCreated, next.PlainID = img.record.ImageVersion, img.record.ImageCreated, img.record.PlainID
	return true, m.rename(ctx, name, d, next, img.holdings)
}

// placePayload puts kernel and initrd on the boot partition, after making room.
func (m *machine) placePayload(ctx context.Context, img *image) error {
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	need := m.esp.NeedFor(img.payload.Digest, img.payload.Sums(), space.Cluster)
	if err := m.makeRoom(ctx, need, img.id(), img.payload.Digest); err != nil {
		return err
	}
	return inTheWay(m.esp.Place(ctx, img.payload, m.payloadInUse(img.payload.Digest)))
}

// checkPayloadSpace refuses a payload for which no room can be made, before
// anything of its deployment is made.
func (m *machine) checkPayloadSpace(img *image) error {
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	return m.checkRoom(m.esp.NeedFor(img.payload.Digest, img.payload.Sums(), space.Cluster), space, img.id(), img.payload.Digest)
}

// checkRoom tells whether need bytes could be made free, next to a deployment and
// a payload that stay.
func (m *machine) checkRoom(need int64, space esp.Space, keepID, keepPayload string) error {
	var all []candidate
	for _, digest := range stalePayloads(m.facts, keepPayload) {
		all = append(all, candidate{[]string{digest}, m.esp.PayloadSize(digest, space.Cluster)})
	}
	_, err := planRoom(m.esp.Dir().Path(), need, space, append(all, m.candidates(keepID, space.Cluster)...))
	if err != nil {
		return m.roomError(err, space)
	}
	return nil
}

// roomError adds what uses the boot partition.
func (m *machine) roomError(err error, space esp.Space) error {
	own := m.payloadBytes(space.Cluster)
	why := ""
	unread := slices.DeleteFunc(slices.Clone(m.facts.Entries), func(e esp.Entry) bool { return !e.Unread() })
	if len(unread) > 0 {
		why = "; no kernel can be removed as long as nobody knows what is named by a file: " + unreadText(unread)
	}
	return fmt.Errorf("plan the boot partition (of %d bytes %d are used, %d of them by %d kernels with their initrds%s): %w", space.Total, space.Total-space.Free, own, len(m.facts.Payloads), why, err)
}

// unreadText names the files in loader/entries of which nobody knows what they name,
// one of them with the reason.
func unreadText(list []esp.Entry) string {
	text := fmt.Sprintf("the file %q cannot be read: %v", esp.EntryDir+"/"+list[0].File, list[0].Err)
	if n := len(list) - 1; n > 0 {
		text = fmt.Sprintf("%s (and %s more)", text, progress.Count(n, "file"))
	}
	return text
}

// payloadInUse tells whether an entry on the boot partition names a payload.
func (m *machine) payloadInUse(digest string) bool {
	for _, e := range m.facts.Entries {
		if e.Err == nil && e.MayName(digest) {
			return true
		}
	}
	return false
}

// checkEntrySpace refuses before the pull what cannot work: a partition without
// room for one more entry.
func (m *machine) checkEntrySpace() error {
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	return m.checkRoom(m.esp.NeedFor("", nil, space.Cluster), space, "", "")
}

// discard lets the clean-up remove what was pulled of an image that cannot be
// deployed: the same command would find out the same again. What a conflict, a cut
// line or an interrupt has left stays for the next try.
func (m *machine) discard(err error) {
	var refused *RefusedError
	var space *durable.SpaceError
	if !errors.As(err, &refused) && (!errors.As(err, &space) || space.Where != m.esp.Dir().Path()) {
		return
	}
	if err := m.notePending(); err != nil {
		m.Logger.Warn("what was pulled stays", "error", err)
	}
}

// withGone adds to the error of a command what it has removed to make room.
func (m *machine) withGone(err error) error {
	if err == nil || len(m.gone) == 0 {
		return err
	}
	var ids []string
	for _, id := range m.gone {
		ids = append(ids, short(id))
	}
	return fmt.Errorf("%w (removed for room before that: deployment %s)", err, strings.Join(ids, ", "))
}

// abort closes a transaction that failed, and takes the entry away that it may
// have made already. The reason goes into the journal; if even that cannot be
// written, the next run closes it.
func (m *machine) abort(ctx context.Context, tx string, reason error) {
	ctx = context.WithoutCancel(ctx)
	text := "nothing to do"
	if reason != nil && !isNothing(reason) {
		text = publicReason(reason)
	}
	if err := m.removeUnfinishedEntry(); err != nil {
		m.Logger.Warn("remove the entry of the transaction", "error", err)
		return
	}
	if err := m.add(record.Event{Kind: record.EventAborted, Transaction: tx, Reason: text}); err != nil {
		m.Logger.Warn("close the transaction", "error", err)
		return
	}
	m.tidy(ctx)
}

// removeUnfinishedEntry removes the entry of the open transaction. One that
// stages makes none: finalize does.
func (m *machine) removeUnfinishedEntry() error {
	t := m.facts.State.Transaction
	if t.Op.Stages() || t.Entry == 0 {
		return nil
	}
	if err := m.look(); err != nil {
		return err
	}
	e := m.facts.EntryOf(t.Entry)
	if e == nil || !isEntryOf(e, t.Deployment, t.BootDigest) && fileOfTorn(e) == "" {
		return nil
	}
	return m.esp.RemoveEntry(e.File)
}

// startFinalize makes sure that the shutdown unit runs. A machine without it
// keeps the staged deployment; the user is told.
func (m *machine) startFinalize(ctx context.Context, c *Change) {
	if err := systemd.StartFinalize(ctx, m.Systemd); err != nil {
		m.Logger.Warn("start the shutdown unit", "error", err)
		c.notStarted = err
		c.Warnings = append(c.Warnings, err.Error()+"; run `cfsboot finalize` before the reboot")
	}
}

// newTransaction returns a fresh id: 16 lower-case letters and digits.
func newTransaction() string { return strings.ToLower(rand.Text()[:16]) }
