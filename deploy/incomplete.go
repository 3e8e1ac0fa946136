package deploy

import (
	"context"
	"errors"
	"fmt"

	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/efivar"
)

// BootFailureReport is what RecordFailure found and did.
type BootFailureReport struct {
	Deployment string   `json:"deployment"`
	Entry      uint64   `json:"entry"`    // sequence number of the boot entry, 0 if unknown
	Stage      string   `json:"stage"`    // "health" or "timeout"
	Reason     string   `json:"reason"`   // for people
	Units      []string `json:"units"`    // never null
	Action     string   `json:"action"`   // "reboot" or "stay"
	Why        string   `json:"why"`      // why that
	Warnings   []string `json:"warnings"` // never null
}

// What follows a boot that did not become complete.
const (
	AfterReboot = "reboot"
	AfterStay   = "stay"
)

// RecordFailure is called in a boot that does not become complete: a unit that it
// requires has failed, or its time is up. It writes down why and reboots, so that
// the loader comes to another try or to another release; if it would come to
// neither, the machine stays up. It takes no lock: a command that runs at this
// moment may be what hangs.
//
// What cannot be read or written is a warning: the error is not nil only if the
// machine was not booted by cfsboot or does not begin to reboot.
func RecordFailure(ctx context.Context, o Options) (*BootFailureReport, error) {
	r := statusReader{Options: o.withDefaults()}
	booted, err := ReadBooted(r.Root)
	if err != nil {
		return nil, err
	}
	r.in.Booted = booted
	r.readTop()
	r.readEntries()
	report := &BootFailureReport{Deployment: booted.Digest, Units: []string{}, Warnings: []string{}}
	warn := func(what string, err error) {
		if err != nil {
			report.Warnings = append(report.Warnings, what+": "+firstLine(err))
		}
	}
	for _, p := range r.in.Problems {
		report.Warnings = append(report.Warnings, p.Message)
	}
	report.Entry = runningEntry(r.in.Facts, r.Vars)
	units, err := r.Evidence.Units(ctx)
	warn("ask for the units", err)
	stage, reason, names := describeIncomplete(units)
	report.Stage, report.Reason, report.Units = string(stage), reason, append(report.Units, names...)
	next := decideIncomplete(r.in.Facts, report.Entry, r.counted(report.Entry), r.in.EntriesRead)
	report.Action, report.Why = AfterStay, next.Why
	if next.Reboot {
		report.Action = AfterReboot
	}
	log, err := r.Evidence.LastLog(ctx, "0", logLines)
	warn("read the log", err)
	warn("write down the failure", r.keep(record.BootFailure{
		BootID: r.bootID(), Time: r.Clock.Now(), Stage: stage, Deployment: booted.Digest, Entry: report.Entry,
		Reason: reason, Units: report.Units, Action: report.Action,
	}, log))
	if !next.Reboot {
		return report, nil
	}
	if err := r.Systemd.Systemctl(context.WithoutCancel(ctx), "--no-block", "reboot"); err != nil {
		return report, fmt.Errorf("reboot after the failed boot (%s): %w", reason, err)
	}
	return report, nil
}

// runningEntry is the sequence number of the entry that runs: the one that the
// loader says it selected, else the newest of the running deployment. 0: unknown.
func runningEntry(f Facts, vars interface {
	Loader(name string) (string, error)
}) uint64 {
	if id, err := vars.Loader(efivar.LoaderEntrySelected); err == nil {
		if seq, ok := record.SeqOfEntryID(id, f.State.Token); ok {
			return seq
		}
	}
	if a := f.State.LatestOf(f.BootedID()); a != nil {
		return a.Seq
	}
	return 0
}

// counted tells whether the loader counts the boots of the entry that runs. The
// loader says so itself; if it says nothing at all, the file's name has a counter
// and the loader is one that counts.
func (r *statusReader) counted(seq uint64) bool {
	if _, err := r.Vars.Loader(efivar.LoaderBootCountPath); err == nil {
		return true
	}
	if _, err := r.Vars.Loader(efivar.LoaderEntrySelected); err == nil {
		return false
	}
	e := r.in.EntryOf(seq)
	if e == nil || e.Err != nil || !e.Name.Counter.Present {
		return false
	}
	key, _, err := e.Entry.Kind()
	return err == nil && uncountedBy(r.in.Loaders, key) == ""
}

// keep writes a record below the physical root, which the running system has
// mounted read-only.
func (r *statusReader) keep(f record.BootFailure, log []string) (err error) {
	m := &machine{Options: r.Options}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := m.openTop(); err != nil {
		return err
	}
	return writeBootFailure(m.top, f, log)
}
