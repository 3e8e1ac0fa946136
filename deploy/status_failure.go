package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/systemd"
)

// BootFailure is one boot that failed, as status shows it.
type BootFailure struct {
	BootID     string   `json:"bootId"` // "" if unknown
	Time       string   `json:"time"`   // RFC 3339
	Deployment string   `json:"deployment"`
	Entry      uint64   `json:"entry"` // sequence number, 0 if unknown
	Stage      string   `json:"stage"` // "initramfs", "kernel", "health", "timeout" or "unknown"
	Code       string   `json:"code"`  // "CFS-B04", "" if there is none
	Reason     string   `json:"reason"`
	Units      []string `json:"units"`  // that failed or were late
	Action     string   `json:"action"` // what followed, "" if unknown
	Log        []string `json:"log"`    // the last messages that were kept, if they can be read
}

// BootLog are the messages that were kept of a failed boot.
type BootLog struct {
	Name  string // of the record
	Lines []string
}

// statusLines is how many messages of a failed boot status shows.
const statusLines = 10

func (r *statusReader) readBootFailures(top *durable.Dir) {
	list, problems := bootlog.Read(top)
	for _, err := range problems {
		r.problem(ProblemBootFailure, hintRoot(err), err)
	}
	r.in.BootFailures = list
	for _, x := range list {
		data, err := bootlog.ReadMessages(top, x)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
				r.problem(ProblemBootFailure, "", err)
			}
			continue
		}
		r.in.BootLogs = append(r.in.BootLogs, BootLog{x.Name(), tail(systemd.CleanLines(string(data)), statusLines)})
	}
}

func (b *statusBuilder) bootFailures() []BootFailure {
	out := []BootFailure{}
	for _, x := range slices.Backward(b.in.BootFailures) {
		f := BootFailure{
			BootID: x.BootID, Time: rfc3339(x.Time), Deployment: x.Deployment, Entry: x.Entry, Stage: string(x.Stage), Code: x.Code,
			Reason: x.Reason, Units: append([]string{}, x.Units...), Action: x.Action, Log: []string{},
		}
		for _, log := range b.in.BootLogs {
			if log.Name == x.Name() {
				f.Log = append(f.Log, log.Lines...)
			}
		}
		out = append(out, f)
	}
	return out
}

// fallbackProblems names the releases that did not boot, where the machine runs
// another one because of that.
func (b *statusBuilder) fallbackProblems() {
	s := b.in.State
	for _, a := range s.Entries {
		if !a.Failed || a.Deployment == b.booted || b.booted == "" || s.LatestOf(a.Deployment).Seq != a.Seq {
			continue
		}
		x := lastFailure(b.in.BootFailures, a)
		if a.Seq < latestSeq(s, b.booted) && !b.cameBy(x) {
			continue
		}
		reason, when := "unknown", time.Time{}
		if f := s.FailureOf(a.Deployment); f != nil {
			reason, when = f.Reason, f.Time
		}
		if x != nil {
			when = x.Time
		}
		b.problem(ProblemFallback, "`cfsboot upgrade` takes a newer image, this one is not tried again without --retry",
			"deployment %s did not boot, seen %s: %s; the machine fell back to %s", short(a.Deployment), rfc3339(when), reason, short(b.booted))
	}
}

// cameBy tells whether the running deployment was started in the place of one that
// failed as x says.
func (b *statusBuilder) cameBy(x *record.BootFailure) bool {
	if x == nil || x.OneShot == 0 {
		return false
	}
	target := b.in.State.Entry(x.OneShot)
	return target != nil && target.Deployment == b.booted
}

// failureLog are the last messages of the newest failed boot of a release that the
// machine fell back from.
func (s Status) failureLog() []string {
	if !slices.ContainsFunc(s.Cfsboot.Problems, func(p Problem) bool { return p.Code == ProblemFallback }) {
		return nil
	}
	for _, x := range s.Cfsboot.BootFailures {
		if len(x.Log) == 0 || s.Cfsboot.Booted != nil && x.Deployment == s.Cfsboot.Booted.ID {
			continue
		}
		out := []string{fmt.Sprintf("last messages of the boot of deployment %s that failed (%s, %s):", short(x.Deployment), x.Stage, x.Time)}
		for _, line := range x.Log {
			out = append(out, "  "+line)
		}
		return out
	}
	return nil
}
