package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// JournalDir is where the records lie, below the root file system's top.
const JournalDir = "state/cfsboot/journal"

// JournalFormat is the only format number of journal records.
const JournalFormat = 1

const (
	whatJournal   = "journal record"
	journalSuffix = ".json"

	// MaxRecordSize bounds one journal record, in bytes.
	MaxRecordSize = 512 << 10

	// KeepRecords is how many records Prunable leaves: the history of some
	// hundred upgrades.
	KeepRecords = 1000
	// KeepFewRecords is how many stay on a disk without room for another one. The
	// newest complete one says everything.
	KeepFewRecords = 4
)

// Record is one journal record: an event and the state after it.
type Record struct {
	Format int       `json:"format"` // JournalFormat
	Seq    uint64    `json:"seq"`    // of the record, not of a boot entry
	Time   time.Time `json:"time"`   // UTC, whole seconds
	BootID string    `json:"boot_id"`
	Event  Event     `json:"event"`
	State  State     `json:"state"`
}

// envelope is the file: the checksum covers the bytes of the record as they
// stand there.
type envelope struct {
	Checksum string          `json:"checksum"` // "sha256:<hex>"
	Record   json.RawMessage `json:"record"`
}

// FileName is the file name of record seq: 10 digits and ".json", so that
// names sort as numbers.
func FileName(seq uint64) string { return fmt.Sprintf("%0*d%s", seqDigits, seq, journalSuffix) }

// ParseRecordName is the inverse of FileName; ok is false for other names.
func ParseRecordName(name string) (seq uint64, ok bool) {
	digits, ok := strings.CutSuffix(name, journalSuffix)
	if !ok {
		return 0, false
	}
	return parseSeq(digits)
}

// Name is the file name of the record.
func (r Record) Name() string { return FileName(r.Seq) }

// Encode gives the bytes of the file, or a *FormatError if ParseRecord would
// refuse them.
func (r Record) Encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, &FormatError{What: whatJournal, Detail: err.Error()}
	}
	data, err := json.Marshal(envelope{checksum(body), body})
	if err != nil {
		return nil, &FormatError{What: whatJournal, Detail: err.Error()}
	}
	if len(data) >= MaxRecordSize {
		return nil, &FormatError{What: whatJournal, Detail: fmt.Sprintf("%d bytes, want less than %d", len(data), MaxRecordSize)}
	}
	return append(data, '\n'), nil
}

func checksum(body []byte) string {
	sum := sha256.Sum256(body)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// ErrIncomplete is wrapped by the error of a record whose bytes are not those
// that were written: cut off or with a wrong checksum. An older record counts
// then. Any other error means a complete record that this program does not
// understand, and no older one may be used in its place.
var ErrIncomplete = errors.New("incomplete record")

// ParseRecord reads the record with number seq. The kind of its event may be one
// that only a newer program knows: the state says everything. Errors are
// *FormatError, some of them joined with ErrIncomplete.
func ParseRecord(seq uint64, data []byte) (Record, error) {
	var env envelope
	if err := decodeJSON(whatJournal, data, MaxRecordSize, &env); err != nil {
		return Record{}, errors.Join(ErrIncomplete, err)
	}
	body := bytes.TrimSpace(env.Record)
	if got := checksum(body); got != env.Checksum {
		return Record{}, errors.Join(ErrIncomplete, &FormatError{whatJournal, "checksum", fmt.Sprintf("got %s, want %q", got, env.Checksum)})
	}
	// The number of the format before anything else: the rest of another format
	// need not even have the same types.
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return Record{}, &FormatError{What: whatJournal, Detail: err.Error()}
	}
	if head.Format != JournalFormat {
		return Record{}, &FormatError{whatJournal, "format", fmt.Sprintf("%d, want %d", head.Format, JournalFormat)}
	}
	var r Record
	if err := decodeJSON(whatJournal, body, MaxRecordSize, &r); err != nil {
		return Record{}, err
	}
	if r.Seq != seq {
		return Record{}, &FormatError{whatJournal, "seq", fmt.Sprintf("%d in file %s", r.Seq, FileName(seq))}
	}
	return r, r.check()
}

func (r Record) check() error {
	fail := func(field, format string, args ...any) error {
		return &FormatError{whatJournal, field, fmt.Sprintf(format, args...)}
	}
	switch {
	case r.Format != JournalFormat:
		return fail("format", "%d, want %d", r.Format, JournalFormat)
	case r.Seq == 0 || r.Seq > MaxEntrySeq:
		return fail("seq", "%d, want 1 to %d", r.Seq, uint64(MaxEntrySeq))
	case r.Time.IsZero():
		return fail("time", "missing")
	case !r.Event.Kind.named():
		return fail("event.kind", "%q, want 1 to %d of a-z, 0-9 and -", r.Event.Kind, maxEventKind)
	}
	if field, detail := r.State.check(); field != "" {
		return fail("state."+field, "%s", detail)
	}
	return nil
}

// Journal is the journal as it was read. The zero value is that of a new
// installation.
type Journal struct {
	last    Record
	highest uint64 // record number in use, damaged records included
	damaged []error
}

// ErrNoJournal says that there is no record at all: not a machine of cfsboot,
// or one whose install did not begin.
var ErrNoJournal = fmt.Errorf("no journal: %w", fs.ErrNotExist)

// ReadJournal finds the last complete record. Names are the file names in the
// journal's directory (others than records are ignored), read gives the content
// of one and is called for the newest first. Without any record the error is
// ErrNoJournal; if the newest complete record is of another format, or there are
// records but no complete one, the error wraps a *FormatError.
func ReadJournal(names []string, read func(name string) ([]byte, error)) (*Journal, error) {
	var seqs []uint64
	for _, name := range names {
		if seq, ok := ParseRecordName(name); ok {
			seqs = append(seqs, seq)
		}
	}
	if len(seqs) == 0 {
		return nil, ErrNoJournal
	}
	slices.Sort(seqs)
	slices.Reverse(seqs)
	j := &Journal{highest: seqs[0]}
	for _, seq := range seqs {
		name := FileName(seq)
		data, err := read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // pruned meanwhile
		}
		if err != nil {
			return nil, err
		}
		r, err := ParseRecord(seq, data)
		if err == nil {
			j.last = r
			return j, nil
		}
		err = fmt.Errorf("%s: %w", name, err)
		if !errors.Is(err, ErrIncomplete) {
			return nil, err
		}
		j.damaged = append(j.damaged, err)
	}
	return nil, fmt.Errorf("journal has %d records, none of them complete: %w", len(seqs), errors.Join(j.damaged...))
}

// State is the state after the last complete record.
func (j *Journal) State() State { return j.last.State }

// Time is that of the last complete record, zero if there is none.
func (j *Journal) Time() time.Time { return j.last.Time }

// Damaged are the errors of newer records that are incomplete.
func (j *Journal) Damaged() []error { return j.damaged }

// Next makes the record of an event without changing the journal. The caller
// writes it durably under its name and then calls Wrote. BootID is that of the
// running kernel. Errors are *TransitionError.
func (j *Journal) Next(e Event, now time.Time, bootID string) (Record, error) {
	e.Reason = clip(e.Reason)
	state, err := j.last.State.Apply(e, now)
	if err != nil {
		return Record{}, err
	}
	return Record{
		Format: JournalFormat,
		Seq:    max(j.last.Seq, j.highest) + 1,
		Time:   now.UTC().Truncate(time.Second),
		BootID: bootID,
		Event:  e,
		State:  state,
	}, nil
}

// Wrote makes r, which is on the disk now, the last record.
func (j *Journal) Wrote(r Record) {
	j.last, j.highest = r, max(r.Seq, j.highest)
}

// Prunable lists the names of records that are old enough to be removed, given
// the names in the directory: all but the keep newest.
func Prunable(names []string, keep int) []string {
	var out []string
	for _, name := range names {
		if _, ok := ParseRecordName(name); ok {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out[:max(0, len(out)-keep)]
}
