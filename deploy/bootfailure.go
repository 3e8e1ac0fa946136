package deploy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/systemd"
)

// Evidence is what systemd and its log know about boots. systemd.Exec satisfies
// it.
type Evidence interface {
	// Units are those that failed or are late in this boot.
	Units(ctx context.Context) (systemd.Units, error)
	// Boots are those that the log knows, oldest first.
	Boots(ctx context.Context) ([]systemd.Boot, error)
	// KernelLog are the kernel's messages of a boot.
	KernelLog(ctx context.Context, bootID string) ([]string, error)
	// LastLog are the last n messages of a boot.
	LastLog(ctx context.Context, bootID string, n int) ([]string, error)
}

// logLines is how many messages of a failed boot are kept.
const logLines = 100

// writeBootFailure keeps a record and the messages that go with it.
func writeBootFailure(top *durable.Dir, f record.BootFailure, lines []string) (err error) {
	log, err := bootlog.Open(top)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	var messages []byte
	for _, line := range lines {
		messages = append(append(messages, line...), '\n')
	}
	return log.Write(f, messages)
}

// ofEntry tells whether a record is about a boot of this entry.
func ofEntry(x record.BootFailure, a record.ArmedEntry) bool {
	return x.Entry == a.Seq || x.Entry == 0 && x.Deployment == a.Deployment
}

// lastFailure is the newest record about an entry, nil if there is none. A record
// that knows a reason counts more than one that does not.
func lastFailure(list []record.BootFailure, a record.ArmedEntry) *record.BootFailure {
	var found *record.BootFailure
	for i := range list {
		x := &list[i]
		if ofEntry(*x, a) && (found == nil || x.Stage != record.StageUnknown || found.Stage == record.StageUnknown) {
			found = x
		}
	}
	return found
}

// failedReason is why the loader gave an entry up.
func failedReason(f Facts, a record.ArmedEntry, tries uint) string {
	text := fmt.Sprintf("the boot loader gave up after %d tries", tries)
	if x := lastFailure(f.BootFailures, a); x != nil {
		text += ": " + x.Text()
	}
	return text
}

// afterFailure is what follows a boot that did not become complete.
type afterFailure struct {
	Reboot bool
	Why    string // for people
}

// decideIncomplete tells whether a reboot leads anywhere: to another try of an
// entry that the loader counts, or to another deployment. seq is the entry that
// runs, 0 if unknown; counted tells that the loader has counted this boot.
// entriesRead tells whether f.Entries is what the boot partition has.
func decideIncomplete(f Facts, seq uint64, counted, entriesRead bool) afterFailure {
	if !counted {
		return afterFailure{false, "this boot is not counted: a reboot would start the same release again"}
	}
	if !entriesRead {
		return afterFailure{true, "the boot loader decides what it starts next"}
	}
	e := f.EntryOf(seq)
	if e != nil && e.Name.Counter.Left > 0 {
		return afterFailure{true, fmt.Sprintf("%d tries left", e.Name.Counter.Left)}
	}
	for i := range f.Entries {
		x := &f.Entries[i]
		if f.ours(*x) && x.Err == nil && x.Name.Seq != seq && !x.Name.Counter.Bad() && x.ImageID() != "" {
			return afterFailure{true, fmt.Sprintf("no tries left, next is deployment %s", short(x.ImageID()))}
		}
	}
	return afterFailure{false, "no tries left, and there is no other release to go back to"}
}

// describeIncomplete says what kept a boot from becoming complete.
func describeIncomplete(u systemd.Units) (stage record.Stage, reason string, units []string) {
	var required, others []string
	for _, name := range u.Failed {
		if slices.Contains(u.Required, name) {
			required = append(required, name)
		} else {
			others = append(others, name)
		}
	}
	if len(required) > 0 {
		return record.StageHealth, "failed, and boot-complete.target requires it: " + strings.Join(required, ", "), required
	}
	reason = "boot-complete.target was not reached"
	if len(u.Waiting) > 0 {
		reason += " in time; still starting: " + strings.Join(u.Waiting, ", ")
	}
	if len(others) > 0 {
		reason += "; failed: " + strings.Join(others, ", ")
	}
	return record.StageTimeout, reason, append(slices.Clone(u.Waiting), others...)
}
