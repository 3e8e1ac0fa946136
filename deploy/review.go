package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// BootReview is what ReviewBoots found and did.
type BootReview struct {
	Booted   string   `json:"booted"`
	Failed   []string `json:"failed"`   // deployments that the loader gave up, as far as the journal knows; never null
	Findings []string `json:"findings"` // for people, what was written down by this run; never null
	Armed    uint64   `json:"armed"`    // the entry that was made because the default cannot boot, 0: none
	Warnings []string `json:"warnings"` // never null
}

// ReviewBoots is called once in every boot that reaches a running system. It looks
// for what boots that left no record have left otherwise, brings the journal up to
// date, ends the count of failed boots in a row, and, if this release runs only
// because the default one could not be mounted, makes it the default.
func ReviewBoots(ctx context.Context, o Options) (_ *BootReview, err error) {
	m, err := openLocked(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	review := &BootReview{Booted: m.facts.BootedID(), Failed: []string{}, Findings: []string{}, Warnings: []string{}}
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
	if err := bootlog.EndStreak(m.top); err != nil {
		review.Warnings = append(review.Warnings, "end the count of failed boots: "+firstLine(err))
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
	texts, err := readPstore(m.path("/"))
	if err != nil {
		review.Warnings = append(review.Warnings, "read what the kernel left: "+firstLine(err))
	}
	for _, t := range texts {
		if t.Time.Before(a.Armed) {
			continue
		}
		if line := panicLine(t.Lines); line != "" {
			x.Time, x.Stage, x.Reason = t.Time, record.StageKernel, line
			return x, tail(t.Lines, logLines)
		}
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
	if line := panicLine(kernel); line != "" {
		x.Stage, x.Reason = record.StageKernel, line
		return x, tail(kernel, logLines)
	}
	log, err := m.Evidence.LastLog(ctx, boot, logLines)
	if err != nil {
		review.Warnings = append(review.Warnings, "read the log of an earlier boot: "+firstLine(err))
		log = tail(kernel, logLines)
	}
	x.Reason = "the log of its last boot ends without a reason"
	if n := len(log); n > 0 {
		x.Reason += ": " + log[n-1]
	}
	return x, log
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

// panicLine is the line with which the kernel says why it stops, "" if there is
// none: the panic, or, where that is not the cause, what came before it.
func panicLine(lines []string) string {
	cause := ""
	for _, line := range lines {
		text := strings.TrimSpace(line)
		for _, word := range []string{"BUG: ", "Oops: ", "Unable to mount root", "sysrq: Trigger a crash", "soft lockup"} {
			if cause == "" && strings.Contains(text, word) {
				cause = text
			}
		}
		if i := strings.Index(text, "Kernel panic - not syncing: "); i >= 0 {
			text = text[i:]
			if cause != "" && !strings.Contains(cause, "Kernel panic") {
				text += " (" + cause + ")"
			}
			return text
		}
	}
	return ""
}

func tail(lines []string, n int) []string { return lines[max(0, len(lines)-n):] }

// oneShotWay is the record of a boot after which the initramfs told the loader to
// start the running deployment, once, because the default could not be mounted. nil:
// this boot has come about otherwise, or the default is another one by now.
func oneShotWay(f Facts) *record.BootFailure {
	var first *record.ArmedEntry
	for _, e := range f.Entries {
		if e.Err != nil {
			continue
		}
		if e.Ours && e.Name.Token == f.State.Token {
			first = f.State.Entry(e.Name.Seq)
		}
		break
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

// pstoreText is one message of a kernel that died.
type pstoreText struct {
	Time  time.Time
	Lines []string
}

// pstoreDirs are where the messages lie: as the kernel shows them, and where
// systemd-pstore.service moves them to.
var pstoreDirs = []string{"sys/fs/pstore", "var/lib/systemd/pstore"}

const (
	maxPstoreFiles = 200
	maxPstoreFile  = 256 << 10
)

// readPstore reads what kernels left below root, newest first.
func readPstore(root string) ([]pstoreText, error) {
	top, err := durable.OpenDir(root)
	if err != nil {
		return nil, err
	}
	defer top.Close() //nolint:errcheck // nothing was written
	var out []pstoreText
	var errs []error
	for _, name := range pstoreDirs {
		texts, err := readPstoreDir(top, name, 2)
		out, errs = append(out, texts...), append(errs, err)
	}
	slices.SortStableFunc(out, func(a, b pstoreText) int { return b.Time.Compare(a.Time) })
	return out, errors.Join(errs...)
}

// readPstoreDir reads files named dmesg… in a directory and those below it.
func readPstoreDir(top *durable.Dir, name string, depth int) ([]pstoreText, error) {
	list, err := top.ReadSubDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []pstoreText
	var errs []error
	for _, x := range list[:min(len(list), maxPstoreFiles)] {
		path := name + "/" + x.Name
		if x.IsDir() && depth > 0 {
			texts, err := readPstoreDir(top, path, depth-1)
			out, errs = append(out, texts...), append(errs, err)
			continue
		}
		if !x.IsRegular() || !strings.HasPrefix(x.Name, "dmesg") {
			continue
		}
		st, err := top.Lstat(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		data, err := top.ReadFile(path, maxPstoreFile)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, pstoreText{time.Unix(st.Mtim.Unix()).UTC(), cleanLines(string(data))})
	}
	return out, errors.Join(errs...)
}

// cleanLines makes lines of text that can be kept, without the kernel's priority.
func cleanLines(text string) []string {
	var out []string
	for line := range strings.Lines(strings.ToValidUTF8(text, "?")) {
		line = strings.TrimRight(line, "\r\n")
		if len(line) > 3 && line[0] == '<' {
			if i := strings.IndexByte(line[:min(len(line), 6)], '>'); i > 0 {
				line = line[i+1:]
			}
		}
		out = append(out, line)
	}
	return out
}
