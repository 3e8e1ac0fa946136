package record

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// BootFailureDir holds what is written down about boots that failed, below the
// root file system's top: for each a record, NAME.json, and the messages that were
// saved, NAME.log. Initramfs and running system write there.
const BootFailureDir = "state/boot-failures"

const (
	// BootFailureFormat is the only format number of records and of the streak.
	BootFailureFormat = 1

	// KeepBootFailures is how many failed boots are remembered.
	KeepBootFailures = 20

	// MaxBootFailure bounds a record, in bytes.
	MaxBootFailure = 64 << 10

	// MaxBootLog bounds the messages that are kept of a failed boot, in bytes.
	MaxBootLog = 64 << 10

	// StreakName is the file that counts failed boots in a row.
	StreakName = "streak"

	whatFailure = "boot failure record"
	whatStreak  = "boot failure streak"
	maxUnits    = 64
)

// Stage is how far a boot came that failed.
type Stage string

// The stages.
const (
	StageInitramfs Stage = "initramfs" // the root was not assembled
	StageKernel    Stage = "kernel"    // the kernel gave up; pstore or the system's log has its messages
	StageHealth    Stage = "health"    // a unit that boot-complete.target requires failed
	StageTimeout   Stage = "timeout"   // boot-complete.target was not reached in time
	StageUnknown   Stage = "unknown"   // nothing but the loader's counter tells of it
)

// BootFailure is the record of one boot that failed.
type BootFailure struct {
	Format     int       `json:"format"`  // BootFailureFormat
	BootID     string    `json:"boot_id"` // of the kernel that failed, "" if unknown
	Time       time.Time `json:"time"`    // UTC, whole seconds, by the clock of the one who wrote it
	Stage      Stage     `json:"stage"`
	Deployment string    `json:"deployment"` // id, "" if unknown
	Entry      uint64    `json:"entry"`      // sequence number of the boot entry, 0 if unknown
	Code       string    `json:"code"`       // "CFS-B04", "" if there is none
	Reason     string    `json:"reason"`     // for people, one line
	Units      []string  `json:"units"`      // that failed or were late, never null
	Action     string    `json:"action"`     // what followed: "reboot", "poweroff", "shell", "stay", or "" if unknown
	OneShot    uint64    `json:"one_shot"`   // entry that the loader was told to start once, 0: none
}

// Encode gives the bytes of the file, or a *FormatError if ParseBootFailure would
// refuse them. Format 0 becomes BootFailureFormat; Reason and Units are cut to what
// a record takes.
func (f BootFailure) Encode() ([]byte, error) {
	if f.Format == 0 {
		f.Format = BootFailureFormat
	}
	f.Time = f.Time.UTC().Truncate(time.Second)
	f.Reason = clip(strings.Join(strings.Fields(f.Reason), " "))
	f.Units = append([]string{}, f.Units[:min(len(f.Units), maxUnits)]...)
	if err := f.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(f)
	if err != nil {
		return nil, &FormatError{What: whatFailure, Detail: err.Error()}
	}
	return append(data, '\n'), nil
}

// ParseBootFailure reads the file. Errors are *FormatError.
func ParseBootFailure(data []byte) (BootFailure, error) {
	var f BootFailure
	if err := decodeJSON(whatFailure, data, MaxBootFailure, &f); err != nil {
		return BootFailure{}, err
	}
	if f.Units == nil {
		f.Units = []string{}
	}
	return f, f.check()
}

func (f BootFailure) check() error {
	fail := func(field, format string, args ...any) error {
		return &FormatError{whatFailure, field, fmt.Sprintf(format, args...)}
	}
	stages := []Stage{StageInitramfs, StageKernel, StageHealth, StageTimeout, StageUnknown}
	switch {
	case f.Format != BootFailureFormat:
		return fail("format", "%d, want %d", f.Format, BootFailureFormat)
	case f.BootID != "" && !isBootID(f.BootID):
		return fail("boot_id", "%q, want a boot ID as the kernel writes it", f.BootID)
	case !slices.Contains(stages, f.Stage):
		return fail("stage", "%q, want one of %q", f.Stage, stages)
	case f.Deployment != "" && !isDigest(f.Deployment):
		return fail("deployment", "%s", badDigest(f.Deployment))
	case f.Entry > MaxEntrySeq:
		return fail("entry", "%d, want at most %d", f.Entry, uint64(MaxEntrySeq))
	case f.OneShot > MaxEntrySeq:
		return fail("one_shot", "%d, want at most %d", f.OneShot, uint64(MaxEntrySeq))
	case len(f.Reason) > maxReason:
		return fail("reason", "%d bytes, want at most %d", len(f.Reason), maxReason)
	case len(f.Units) > maxUnits:
		return fail("units", "%d, want at most %d", len(f.Units), maxUnits)
	}
	return nil
}

// isBootID tells whether s is a boot ID as the kernel writes it.
func isBootID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !isLowerHex(s[i:i+1]) {
			return false
		}
	}
	return true
}

// BootIDOf writes a boot ID in the groups of /proc/sys/kernel/random/boot_id, which
// systemd's log has as 32 digits. Other texts stay as they are.
func BootIDOf(s string) string {
	if len(s) != 32 || !isLowerHex(s) {
		return s
	}
	return strings.Join([]string{s[:8], s[8:12], s[12:16], s[16:20], s[20:]}, "-")
}

// Name is the name of the record's files without suffix: the boot ID, or the entry
// where no boot is known.
func (f BootFailure) Name() string {
	if f.BootID != "" {
		return f.BootID
	}
	return fmt.Sprintf("entry-%0*d", seqDigits, f.Entry)
}

// Text is the record in one line.
func (f BootFailure) Text() string {
	text := f.Reason
	if text == "" {
		text = "no reason is known"
	}
	if f.Code != "" && !strings.HasPrefix(text, f.Code) {
		text = f.Code + ": " + text
	}
	return text
}

// Streak counts failed boots in a row, by deployment. Who reaches a running system
// removes the file, so that it does not depend on clocks.
type Streak struct {
	Format int           `json:"format"` // BootFailureFormat
	Boots  []StreakCount `json:"boots"`  // the last one failed last; never null
}

// StreakCount is how often one deployment failed.
type StreakCount struct {
	Deployment string `json:"deployment"` // id
	Count      int    `json:"count"`      // 1 or more
}

// ParseStreak reads the file. Errors are *FormatError.
func ParseStreak(data []byte) (Streak, error) {
	var s Streak
	if err := decodeJSON(whatStreak, data, MaxBootFailure, &s); err != nil {
		return Streak{}, err
	}
	if s.Format != BootFailureFormat {
		return Streak{}, &FormatError{whatStreak, "format", fmt.Sprintf("%d, want %d", s.Format, BootFailureFormat)}
	}
	for i, b := range s.Boots {
		if !isDigest(b.Deployment) || b.Count < 1 {
			return Streak{}, &FormatError{whatStreak, fmt.Sprintf("boots[%d]", i), fmt.Sprintf("%d failures of %q", b.Count, b.Deployment)}
		}
	}
	return s, nil
}

// Encode gives the bytes of the file.
func (s Streak) Encode() ([]byte, error) {
	s.Format = BootFailureFormat
	s.Boots = append([]StreakCount{}, s.Boots...)
	data, err := json.Marshal(s)
	if err != nil {
		return nil, &FormatError{What: whatStreak, Detail: err.Error()}
	}
	return append(data, '\n'), nil
}

// Count is how often the deployment has failed in a row.
func (s Streak) Count(deployment string) int {
	for _, b := range s.Boots {
		if b.Deployment == deployment {
			return b.Count
		}
	}
	return 0
}

// Add returns the streak with one failure more of the deployment, which stands last.
// The counts of at most KeepBootFailures deployments are kept.
func (s Streak) Add(deployment string) Streak {
	n := s.Count(deployment) + 1
	boots := slices.DeleteFunc(slices.Clone(s.Boots), func(b StreakCount) bool { return b.Deployment == deployment })
	boots = append(boots, StreakCount{deployment, n})
	return Streak{Format: BootFailureFormat, Boots: boots[max(0, len(boots)-KeepBootFailures):]}
}

// PrunableBootFailures lists the files to be removed so that room is made for one
// record more. Names are the files in the directory, newest first; records and
// their messages count as one.
func PrunableBootFailures(names []string) []string {
	var kept, out []string
	for _, name := range names {
		stem, ok := strings.CutSuffix(name, ".json")
		if !ok {
			if stem, ok = strings.CutSuffix(name, ".log"); !ok {
				continue
			}
		}
		switch {
		case slices.Contains(kept, stem):
		case len(kept) < KeepBootFailures-1:
			kept = append(kept, stem)
		default:
			out = append(out, name)
		}
	}
	return out
}

// SeqOfEntryID returns the sequence number of an entry of cfsboot by what the loader
// calls it in LoaderEntrySelected: the file name without counter. token is the
// installation's, "" for any.
func SeqOfEntryID(id, token string) (uint64, bool) {
	n, ok := ParseEntryName(id)
	if !ok || token != "" && n.Token != token {
		return 0, false
	}
	return n.Seq, true
}
