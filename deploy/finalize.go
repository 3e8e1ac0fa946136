package deploy

import (
	"context"
	"errors"
	"fmt"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
)

// Finalize makes the staged deployment the default of the next boot: it merges
// /etc again if that has changed, moves the state into place, and makes the boot
// entry, which is the commit point. Without a staged deployment the error is
// ErrNothingToDo. On any other error the deployment stays staged, the journal
// says why, and the running deployment stays the default.
func Finalize(ctx context.Context, o Options) (_ *Change, err error) {
	m, err := open(ctx, o, (*machine).recover, (*machine).noteNotOpened)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	m.hurry = true
	st := m.facts.State.Staged
	if st == nil || st.DownloadOnly {
		m.tidy(ctx)
		c := m.change(ActionNone, m.facts.nextID())
		if st != nil {
			c.Warnings = append(c.Warnings, fmt.Sprintf("deployment %s was only downloaded: `cfsboot upgrade --from-downloaded` lets the next shutdown take it", short(st.Deployment)))
		}
		return c, ErrNothingToDo
	}
	seq, err := m.arm(ctx, *st)
	if err != nil {
		err = fmt.Errorf("finalize deployment %s: %w", short(st.Deployment), err)
		return nil, errors.Join(err, m.noteFailure(st.Deployment, err))
	}
	c := m.change(ActionArmed, st.Deployment)
	c.Entry = seq
	m.clean(ctx)
	return c, nil
}

// noteNotOpened is noteFailure for what ends finalize before it has looked.
func (m *machine) noteNotOpened(reason error) error {
	m.facts.State = m.journal.State()
	if st := m.facts.State.Staged; st != nil && !st.DownloadOnly {
		return m.noteFailure(st.Deployment, reason)
	}
	return nil
}

// noteFailure leaves the reason where status finds it after the reboot.
func (m *machine) noteFailure(id string, reason error) error {
	if st := m.facts.State.Staged; st == nil || st.Deployment != id {
		return nil // it was armed, only the rest failed
	}
	return m.add(record.Event{Kind: record.EventFinalizeFailed, Deployment: id, Reason: publicReason(reason)})
}

// arm takes the staged deployment to the commit point. Each step finds out what
// a killed run has done of it already.
func (m *machine) arm(ctx context.Context, st record.Staged) (uint64, error) {
	if err := checkSequence(m.facts); err != nil {
		return 0, err
	}
	name, err := m.stagedState(st)
	if err != nil {
		return 0, err
	}
	if err := m.refreshEtc(ctx, name, st.Deployment); err != nil {
		return 0, err
	}
	parent, _ := splitName(name)
	d, err := readDeployment(m.top, parent, st.Deployment) // after the merge, which may have changed kernel arguments
	if err != nil {
		return 0, err
	}
	if name == stagedOf(st.Deployment) {
		if err := m.moveState(st.Deployment); err != nil {
			return 0, err
		}
	}
	if err := m.checkImage(ctx, st.Deployment); err != nil {
		return 0, err
	}
	if err := m.ensurePayload(ctx, st.Deployment, st.BootDigest); err != nil {
		return 0, err
	}
	seq, err := m.writeEntry(d, st.Entry, record.DefaultTries)
	if err != nil {
		return 0, err
	}
	if err := m.add(record.Event{Kind: record.EventArmed, Deployment: st.Deployment, Entry: seq, Tries: record.DefaultTries}); err != nil {
		return 0, err
	}
	if err := m.look(); err != nil {
		return 0, err
	}
	return seq, checkFirst(m.facts, seq)
}

// stagedState returns where the state of the staged deployment is: a killed
// finalize may have moved it into place already. The transaction in the record
// tells it from an older state of the same deployment.
func (m *machine) stagedState(st record.Staged) (string, error) {
	if d, err := readDeployment(m.top, record.StateDir, st.Deployment); err == nil && d.Transaction == st.Transaction {
		return stateOf(st.Deployment), nil
	}
	name := stagedOf(st.Deployment)
	ok, err := m.top.Exists(name)
	if err == nil && !ok {
		err = fmt.Errorf("the staged state %q is gone; run `cfsboot upgrade` again", name)
	}
	return name, err
}

// moveState moves the staged state into place, durably. An older state of the
// same deployment, whose entry stays bootable with the new one, changes places
// with it and is removed by clean.
func (m *machine) moveState(id string) error {
	old, err := m.top.Exists(stateOf(id))
	if err != nil {
		return err
	}
	parent, err := m.top.MkdirAll(record.StateDir, stateDirPerm)
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // synced below
	staged, err := m.top.Sub(stagedDir)
	if err != nil {
		return err
	}
	defer staged.Close() //nolint:errcheck // synced below
	if old {
		err = staged.Exchange(id, parent, id)
	} else {
		err = staged.Rename(id, parent, id)
	}
	if err != nil {
		return err
	}
	return parent.SyncFS()
}

// checkImage opens the boot image, which measures it.
func (m *machine) checkImage(ctx context.Context, id string) error {
	d, err := fsverity.ParseHex(id)
	if err != nil {
		return err
	}
	f, err := m.repo.OpenImage(ctx, d)
	if err != nil {
		return fmt.Errorf("check the boot image: %w", err)
	}
	return f.Close()
}

// ensurePayload reads the payload back from the medium. Between staging and
// shutdown there may have been a power cut and a file system check, so one that
// is not whole is placed again; of one that an entry names only what is not there.
func (m *machine) ensurePayload(ctx context.Context, id, digest string) error {
	err := m.esp.CheckDigest(ctx, digest)
	var bad *esp.VerifyError
	if !errors.As(err, &bad) || m.payloadInUse(digest) && !bad.Missing() {
		return inTheWay(err)
	}
	m.Logger.Warn("the payload on the boot partition is damaged, placing it again", "error", err)
	img := &image{}
	if img.Boot, err = fsverity.ParseHex(id); err != nil {
		return err
	}
	d := m.facts.Deployments[id]
	if img.Plain, err = fsverity.ParseHex(d.PlainID); err != nil {
		return err
	}
	if _, err := m.bootFiles(ctx, img); err != nil {
		return err
	}
	if got := img.payload.Digest; got != digest {
		return fmt.Errorf("kernel and initrd of image %s: got boot digest %s, want %s; run `cfsboot upgrade` again", short(d.PlainID), got, digest)
	}
	return m.placePayload(ctx, img)
}
