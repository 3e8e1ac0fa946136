package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// Outcomes of a Repaired.
const (
	OutcomeFinished = "finished" // what was interrupted is done
	OutcomeUndone   = "undone"   // it is as if it had not begun
)

// Repaired is something that an interrupted command had left and that was put
// right.
type Repaired struct {
	Operation  string `json:"operation"` // "install", "upgrade", "switch", "rollback", "finalize" or "retire"
	Outcome    string `json:"outcome"`   // OutcomeFinished or OutcomeUndone
	Deployment string `json:"deployment"`
	Message    string `json:"message"` // one line
}

// Resumed is what Resume has found and done. Its fields are printed.
type Resumed struct {
	Repaired []Repaired `json:"repaired"` // never null
	Booted   string     `json:"booted"`   // ids; "": none
	Default  string     `json:"default"`  // that the next boot starts
	Staged   string     `json:"staged"`
}

// Resume finishes or undoes what an interrupted command has left, as every
// command does before its own work, and removes what is left over. It needs no
// network. If nothing was interrupted the error is ErrNothingToDo.
func Resume(ctx context.Context, o Options) (_ *Resumed, err error) {
	m, err := openFreeing(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.tidyNow(ctx); err != nil {
		return nil, fmt.Errorf("remove what is left over: %w", err)
	}
	r := &Resumed{Repaired: m.repairs(), Booted: m.facts.BootedID(), Default: m.facts.nextID()}
	if st := m.facts.State.Staged; st != nil {
		r.Staged = st.Deployment
		if !st.DownloadOnly {
			var c Change
			m.startFinalize(ctx, &c)
		}
	}
	if len(r.Repaired) == 0 {
		return r, ErrNothingToDo
	}
	return r, nil
}

// repairs lists what was put right so far.
func (m *machine) repairs() []Repaired { return append([]Repaired{}, m.repaired...) }

// note remembers, and says, what was put right.
func (m *machine) note(r Repaired) {
	if slices.Contains(m.repaired, r) {
		return
	}
	m.repaired = append(m.repaired, r)
	m.Logger.Warn(r.Message, "deployment", r.Deployment)
}

// asRepaired puts a repair of an interrupted command into words. ok is false for
// what loader and systemd did, which nothing has interrupted.
func asRepaired(before record.State, e record.Event) (r Repaired, ok bool) {
	r = Repaired{Deployment: e.Deployment}
	t := before.Transaction
	switch {
	case e.Kind == record.EventAborted && t != nil:
		r.Operation, r.Outcome, r.Deployment = string(t.Op), OutcomeUndone, t.Deployment
		what := string(t.Op)
		if t.Reference != "" {
			what += " of " + t.Reference
		}
		r.Message = fmt.Sprintf("an interrupted %s, begun at %s, was undone", what, t.Started.Format(time.RFC3339))
	case e.Kind == record.EventArmed && t != nil:
		r.Operation, r.Outcome = string(t.Op), OutcomeFinished
		r.Message = fmt.Sprintf("an interrupted %s, begun at %s, was finished: deployment %s is the default of the next boot", t.Op, t.Started.Format(time.RFC3339), short(e.Deployment))
	case e.Kind == record.EventArmed:
		r.Operation, r.Outcome = "finalize", OutcomeFinished
		r.Message = fmt.Sprintf("an interrupted finalize was finished: deployment %s is the default of the next boot", short(e.Deployment))
	case e.Kind == record.EventRenumber:
		r.Operation, r.Outcome = "finalize", OutcomeUndone
		r.Message = fmt.Sprintf("an interrupted finalize was undone: deployment %s is staged", short(e.Deployment))
	case e.Kind == record.EventDropped:
		r.Operation, r.Outcome = string(record.OpUpgrade), OutcomeUndone
		r.Message = fmt.Sprintf("the staged deployment %s is given up: %s", short(e.Deployment), e.Reason)
	case e.Kind == record.EventUnretire:
		r.Operation, r.Outcome = "retire", OutcomeUndone
		r.Message = fmt.Sprintf("the interrupted removal of deployment %s was undone: it is running", short(e.Deployment))
	case e.Kind == record.EventRetired:
		r.Operation, r.Outcome = "retire", OutcomeFinished
		r.Message = fmt.Sprintf("the interrupted removal of deployment %s was finished", short(e.Deployment))
	default:
		return r, false
	}
	return r, true
}
