package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/systemd"
)

// BootReview is what ReviewBoots found and did.
type BootReview struct {
	Booted   string   `json:"booted"`
	Failed   []string `json:"failed"`   // deployments that the loader gave up, as far as the journal knows; never null
	Findings []string `json:"findings"` // for people, what was written down by this run; never null
	Armed    uint64   `json:"armed"`    // the entry that was made because the default cannot boot, 0: none
	Warnings []string `json:"warnings"` // never null
}

// ReviewBoots is called once in every boot that reaches a running system. It ends
// the count of failed boots in a row, whatever follows; looks for what boots that
// left no record have left otherwise; brings the journal up to date; and, if this
// release runs only because the default one could not be mounted, makes it the
// default.
func ReviewBoots(ctx context.Context, o Options) (_ *BootReview, err error) {
	review := &BootReview{Failed: []string{}, Findings: []string{}, Warnings: []string{}}
	if serr := endStreak(o); serr != nil {
		serr = fmt.Errorf("end the count of failed boots: %w", serr)
		review.Warnings = append(review.Warnings, firstLine(serr))
		defer func() {
			if err != nil {
				err = errors.Join(err, serr)
			}
		}()
	}
	m, err := openLocked(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	review.Booted = m.facts.BootedID()
	if err := m.look(); err != nil {
		return nil, err
	}
	// Before the journal is brought up to date: it takes the reasons from here.
	for _, a := range unexplained(m.facts) {
		x, log := m.explain(ctx, a, review)
		if err := writeBootFailure(m.top, x, log); err != nil {
			review.Warnings = append(review.Warnings, "write down a failed boot: "+firstLine(err))
			continue
		}
		review.Findings = append(review.Findings, fmt.Sprintf("deployment %s: %s", short(a.Deployment), x.Text()))
	}
	if err := m.noteBoots(); err != nil {
		return nil, err
	}
	if x := oneShotWay(m.facts); x != nil {
		if err := m.recover(); err != nil { // an entry can be made only when nothing else is unfinished
			return nil, err
		}
		if review.Armed, err = m.settleOneShot(ctx, *x); err != nil {
			return nil, err
		}
		review.Findings = append(review.Findings, fmt.Sprintf("deployment %s: %s; this release is the default now", short(x.Deployment), x.Text()))
	}
	for _, x := range m.facts.State.Failed {
		review.Failed = append(review.Failed, x.Deployment)
	}
	return review, nil
}

// endStreak forgets the failed boots in a row: this one has come to a running
// system. It needs neither the lock nor the boot partition nor the journal, since a
// count that grows over boots that came up would end in a machine that is switched
// off.
func endStreak(o Options) (err error) {
	m := &machine{Options: o.withDefaults()}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.openTop(); err != nil {
		return err
	}
	return bootlog.EndStreak(m.top)
}

// noteBoots brings the journal up to date with what the loader and
// systemd-bless-boot did, and with nothing else: an interrupted command is for a
// person to know of and to repeat.
func (m *machine) noteBoots() error {
	if err := m.look(); err != nil { // the records that were just written
		return err
	}
	for {
		f := m.facts
		f.State.Transaction, f.State.Staged = nil, nil
		r, ok := nextRepair(f)
		if !ok || r.Event.Kind != record.EventBlessed && r.Event.Kind != record.EventFailed {
			return nil
		}
		if err := m.add(r.Event); err != nil {
			return err
		}
		if err := m.look(); err != nil {
			return err
		}
	}
}

// unexplained lists the entries that the loader gave up, or that the newest one is,
// without a record of a boot of theirs that tells more than that.
func unexplained(f Facts) []record.ArmedEntry {
	var out []record.ArmedEntry
	for i, a := range f.State.Entries {
		e := f.EntryOf(a.Seq)
		gone := e != nil && e.Err == nil && e.Name.Counter.Bad() && !a.Failed
		told := a.Failed && i == len(f.State.Entries)-1 // by a command that ran before
		if (gone || told) && f.Booted != nil && a.Deployment != f.BootedID() && lastFailure(f.BootFailures, a) == nil {
			out = append(out, a)
		}
	}
	return out
}

// explain looks for the traces of the boots of an entry: what the kernel left in
// pstore, then what the system's log has.
func (m *machine) explain(ctx context.Context, a record.ArmedEntry, review *BootReview) (record.BootFailure, []string) {
	x := record.BootFailure{Time: m.Clock.Now(), Stage: record.StageUnknown, Deployment: a.Deployment, Entry: a.Seq}
	texts, err := systemd.ReadPstore(m.path("/"))
	if err != nil {
		review.Warnings = append(review.Warnings, "read what the kernel left: "+firstLine(err))
	}
	if t := panicOf(texts, a, m.facts.State.Deployments()); t != nil {
		x.Time, x.Stage, x.Reason = t.Time, record.StageKernel, systemd.PanicLine(t.Lines)
		return x, tail(t.Lines, logLines)
	}
	boot, kernel, err := m.bootOf(ctx, a.Deployment)
	if err != nil {
		review.Warnings = append(review.Warnings, "search the log of earlier boots: "+firstLine(err))
	}
	if boot == "" {
		x.Reason = "its boots left no trace: the kernel did not start, stopped before there was a log, or the log is not kept"
		return x, nil
	}
	x.BootID = record.BootIDOf(boot)
	if slices.ContainsFunc(m.facts.BootFailures, func(f record.BootFailure) bool { return f.BootID == x.BootID }) {
		x.BootID = "" // that record says less about this entry
	}
	if line := systemd.PanicLine(kernel); line != "" {
		x.Stage, x.Reason = record.StageKernel, line
		return x, tail(kernel, logLines)
	}
	log, err := m.Evidence.LastLog(ctx, boot, logLines)
	if err != nil {
		review.Warnings = append(review.Warnings, "read the log of an earlier boot: "+firstLine(err))
		log = tail(kernel, logLines)
	}
	// No line of it here: the record is for everybody, the messages for root.
	x.Reason = "the log of its last boot ends without a reason"
	return x, log
}

// panicOf chooses the newest text of a panic after the entry was made that tells by
// its command line that the entry's deployment ran, or else the newest one that does
// not tell which did. Texts are newest first, known are the ids of deployments.
func panicOf(texts []systemd.PstoreText, a record.ArmedEntry, known []string) *systemd.PstoreText {
	var found *systemd.PstoreText
	for i := range texts {
		t := &texts[i]
		if t.Time.Before(a.Armed) || systemd.PanicLine(t.Lines) == "" {
			continue
		}
		names := func(word string) bool {
			return slices.ContainsFunc(t.Lines, func(line string) bool { return strings.Contains(line, word) })
		}
		switch {
		case names(a.Deployment):
			return t
		case found == nil && !names("composefs.digest=") && !names("composefs=") && !slices.ContainsFunc(known, names):
			found = t
		}
	}
	return found
}

// maxBoots is how many earlier boots are searched.
const maxBoots = 10

// bootOf finds the last earlier boot of a deployment in the system's log, by the
// command line that the kernel prints. "": there is none.
func (m *machine) bootOf(ctx context.Context, id string) (bootID string, kernel []string, err error) {
	boots, err := m.Evidence.Boots(ctx)
	if err != nil {
		return "", nil, err
	}
	n := 0
	for _, b := range slices.Backward(boots) {
		if b.Offset >= 0 {
			continue
		}
		if n++; n > maxBoots {
			break
		}
		lines, err := m.Evidence.KernelLog(ctx, b.ID)
		if err != nil {
			return "", nil, err
		}
		if slices.ContainsFunc(lines, func(l string) bool { return strings.Contains(l, "ommand line:") && strings.Contains(l, id) }) {
			return b.ID, lines, nil
		}
	}
	return "", nil, nil
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

// oneShotWay is the record of a boot after which the initramfs told the loader to
// start the running deployment, once, because the default could not be mounted. nil:
// this boot has come about otherwise, or the default is another one by now.
func oneShotWay(f Facts) *record.BootFailure {
	var first *record.ArmedEntry
	for _, e := range f.Entries {
		if e.Err == nil {
			first = f.known(e)
			break
		}
	}
	if first == nil || first.Deployment == f.BootedID() {
		return nil
	}
	for i := len(f.BootFailures) - 1; i >= 0; i-- {
		x := &f.BootFailures[i]
		if target := f.State.Entry(x.OneShot); target != nil && x.Entry == first.Seq && target.Deployment == f.BootedID() {
			return x
		}
	}
	return nil
}

// settleOneShot makes the running deployment the default in the place of one that
// cannot be mounted any more. It can be repeated at every step.
func (m *machine) settleOneShot(ctx context.Context, x record.BootFailure) (uint64, error) {
	for _, a := range slices.Clone(m.facts.State.Entries) {
		if a.Deployment != x.Deployment || a.Failed || a.Retiring {
			continue
		}
		if err := m.add(record.Event{Kind: record.EventFailed, Entry: a.Seq, Reason: "it booted before and does not any more: " + x.Text()}); err != nil {
			return 0, err
		}
	}
	target := m.facts.State.LatestOf(m.facts.BootedID())
	if target == nil {
		return 0, fmt.Errorf("the running deployment %s has no boot entry in the journal", short(m.facts.BootedID()))
	}
	plan := rollbackPlan{Target: *target}
	if !target.Blessed {
		plan.Tries = record.DefaultTries
	}
	c, err := m.publish(ctx, plan)
	if err != nil {
		return 0, fmt.Errorf("make the running deployment %s the default: %w", short(target.Deployment), err)
	}
	return c.Entry, nil
}
