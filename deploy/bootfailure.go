package deploy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

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

// readBootFailures reads the records of failed boots, oldest first.
func readBootFailures(top *durable.Dir) ([]record.BootFailure, []error) {
	list, err := top.ReadSubDir(record.BootFailureDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{err}
	}
	var out []record.BootFailure
	var problems []error
	for _, x := range list {
		if !strings.HasSuffix(x.Name, ".json") || !x.IsRegular() {
			continue
		}
		name := record.BootFailureDir + "/" + x.Name
		data, err := top.ReadFile(name, record.MaxBootFailure)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		f, err := record.ParseBootFailure(data)
		if err != nil {
			problems = append(problems, fmt.Errorf("read %q: %w", name, err))
			continue
		}
		out = append(out, f)
	}
	slices.SortStableFunc(out, func(a, b record.BootFailure) int { return a.Time.Compare(b.Time) })
	return out, problems
}

// writeBootFailure keeps a record and the messages that go with it, which only
// root may read, and forgets the oldest ones.
func writeBootFailure(top *durable.Dir, f record.BootFailure, log []string) error {
	data, err := f.Encode()
	if err != nil {
		return err
	}
	dir, err := openBootFailures(top)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // every file was synced
	names, err := newestFirst(dir)
	if err != nil {
		return err
	}
	for _, name := range record.PrunableBootFailures(names) {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	if len(log) > 0 {
		text := strings.Join(log, "\n") + "\n"
		text = text[max(0, len(text)-record.MaxBootLog):]
		if err := dir.WriteFile(f.Name()+".log", []byte(text), 0o600); err != nil {
			return err
		}
	}
	return dir.WriteFile(f.Name()+".json", data, stateFilePerm)
}

// openBootFailures opens the directory of the records, which it makes durably if it
// is not there.
func openBootFailures(top *durable.Dir) (*durable.Dir, error) {
	parent, base := splitName(record.BootFailureDir)
	state, err := top.Sub(parent)
	if err != nil {
		return nil, err
	}
	defer state.Close() //nolint:errcheck // synced where it was changed
	err = state.Mkdir(base, stateDirPerm)
	if err == nil {
		err = state.Sync()
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	return state.Sub(base)
}

// newestFirst lists the files of a directory by the time of their last change.
func newestFirst(dir *durable.Dir) ([]string, error) {
	list, err := dir.ReadDir()
	if err != nil {
		return nil, err
	}
	times := map[string]unix.Timespec{}
	var names []string
	for _, x := range list {
		st, err := dir.Lstat(x.Name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		times[x.Name] = st.Mtim
		names = append(names, x.Name)
	}
	slices.SortStableFunc(names, func(a, b string) int {
		x, y := times[a], times[b]
		return cmp.Or(cmp.Compare(y.Sec, x.Sec), cmp.Compare(y.Nsec, x.Nsec))
	})
	return names, nil
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
