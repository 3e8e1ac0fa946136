package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// RollbackOptions are those of Rollback.
type RollbackOptions struct {
	Options
	// ID is the deployment to go to, or the first digits of its id; "" means the
	// previous one that is known to be good.
	ID string
}

// Rollback makes another deployment the default of the next boot, at once: it
// publishes a new boot entry for it with a higher number and gives a staged
// deployment up. Its /etc is the one it had. A deployment that has booted well
// before is not counted. If it is the default already the error is
// ErrNothingToDo. Other errors: *RefusedError, *repo.LockedError,
// *esp.VerifyError (its kernel is damaged), *durable.SpaceError.
func Rollback(ctx context.Context, o RollbackOptions) (_ *Change, err error) {
	m, err := openMachine(ctx, o.Options)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return m.rollback(ctx, o.ID)
}

func (m *machine) rollback(ctx context.Context, id string) (_ *Change, err error) {
	plan, err := decideRollback(m.facts, id)
	if isNothing(err) {
		m.tidy(ctx)
		return m.change(ActionNone, plan.Target.Deployment), err
	}
	if err != nil {
		return nil, err
	}
	if plan.Default {
		return m.drop(ctx)
	}
	return m.publish(ctx, plan)
}

// publish makes the plan's target the default: a new entry for it with a higher
// number.
func (m *machine) publish(ctx context.Context, plan rollbackPlan) (_ *Change, err error) {
	if err := checkSequence(m.facts); err != nil {
		return nil, err
	}
	target := plan.Target
	d, err := m.rollbackRecord(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("roll back to deployment %s: %w", short(target.Deployment), err)
	}
	tx := newTransaction()
	if err := m.add(record.Event{Kind: record.EventBegin, Transaction: tx, Op: record.OpRollback, Reference: d.Reference}); err != nil {
		return nil, err
	}
	defer func() {
		if m.facts.State.Transaction != nil {
			m.abort(ctx, tx, err)
		}
	}()
	if err := m.add(record.Event{Kind: record.EventTarget, Transaction: tx, Deployment: d.ID, BootDigest: d.BootDigest}); err != nil {
		return nil, err
	}
	seq, err := m.writeEntry(d, m.facts.State.Transaction.Entry, plan.Tries)
	if err != nil {
		return nil, err
	}
	if err := m.add(record.Event{Kind: record.EventArmed, Deployment: d.ID, Entry: seq, Tries: plan.Tries}); err != nil {
		return nil, err
	}
	// Last, so that a rollback that fails gives nothing up. Between the two, the
	// staged one has a lower number and would not become the default.
	if plan.Drop != "" {
		if err := m.add(record.Event{Kind: record.EventDropped, Deployment: plan.Drop}); err != nil {
			return nil, err
		}
	}
	if err := m.look(); err != nil {
		return nil, err
	}
	if err := checkFirst(m.facts, seq); err != nil {
		return nil, err
	}
	c := m.change(ActionArmed, d.ID)
	c.Entry, c.Dropped = seq, plan.Drop
	m.clean(ctx)
	return c, nil
}

// rollbackRecord checks that everything that the target needs is there, and
// returns what its new entry says: what the old one says, if it can be read.
func (m *machine) rollbackRecord(ctx context.Context, target record.ArmedEntry) (record.Deployment, error) {
	d, err := readDeployment(m.top, record.StateDir, target.Deployment)
	if errors.Is(err, fs.ErrNotExist) {
		return d, noState("", target.Deployment, stateOf(target.Deployment)+"/"+record.DeploymentName)
	}
	if err != nil {
		return d, err
	}
	for _, x := range stateDefects(m.top, d.ID, true) {
		return d, refuse(CodeNoState, "deployment %s cannot boot: %s", short(d.ID), x.Detail)
	}
	if err := m.checkImage(ctx, d.ID); err != nil {
		return d, err
	}
	if err := m.esp.CheckDigest(ctx, d.BootDigest); err != nil {
		return d, inTheWay(err)
	}
	if e := m.facts.EntryOf(target.Seq); e != nil && e.Err == nil && e.ImageID() == d.ID {
		d.Options = e.Entry.Options().String()
	}
	if bls.ParseCmdline(d.Options).String() == "" {
		return d, fmt.Errorf("its kernel command line is not known")
	}
	return d, nil
}
