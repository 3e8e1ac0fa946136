package record_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/record"
)

var (
	id1 = strings.Repeat("1a", 64)
	id2 = strings.Repeat("2b", 64)
	id3 = strings.Repeat("3c", 64)
	bd1 = strings.Repeat("e1", 32)
	bd2 = strings.Repeat("e2", 32)

	start = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
)

// disk is a journal directory in memory.
type disk map[string][]byte

func (d disk) names() []string {
	var out []string
	for name := range d {
		out = append(out, name)
	}
	return out
}

func (d disk) read(name string) ([]byte, error) {
	data, ok := d[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return data, nil
}

func (d disk) journal(t testing.TB) *record.Journal {
	t.Helper()
	j, err := record.ReadJournal(d.names(), d.read)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// play records the events one after another, each by a program that reads the
// journal anew.
func (d disk) play(t testing.TB, events ...record.Event) record.State {
	t.Helper()
	var last record.State
	for _, e := range events {
		j := &record.Journal{}
		if len(d) > 0 {
			j = d.journal(t)
		}
		r, err := j.Next(e, start.Add(time.Duration(len(d))*time.Minute), "boot-1")
		if err != nil {
			t.Fatalf("event %+v: %v", e, err)
		}
		data, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, exists := d[r.Name()]; exists {
			t.Fatalf("record %s written twice", r.Name())
		}
		d[r.Name()] = data
		j.Wrote(r)
		last = j.State()
	}
	if diff := cmp.Diff(last, d.journal(t).State()); diff != "" {
		t.Errorf("state does not survive the disk (-want +got):\n%s", diff)
	}
	return last
}

type ev = record.Event

var (
	install = []ev{
		{Kind: record.EventInit, Token: "0123abcd"},
		{Kind: record.EventBegin, Transaction: "t1", Op: record.OpInstall, Reference: "docker://r/os:1"},
		{Kind: record.EventTarget, Transaction: "t1", Deployment: id1, BootDigest: bd1},
		{Kind: record.EventArmed, Deployment: id1, Entry: 1, Tries: 3},
	}
	bless1  = []ev{{Kind: record.EventBlessed, Entry: 1}}
	upgrade = []ev{
		{Kind: record.EventBegin, Transaction: "t2", Op: record.OpUpgrade},
		{Kind: record.EventTarget, Transaction: "t2", Deployment: id2, BootDigest: bd2},
		{Kind: record.EventPrepared, Transaction: "t2"},
	}
	finalize = []ev{{Kind: record.EventArmed, Deployment: id2, Entry: 2, Tries: 3}}
	rollback = []ev{
		{Kind: record.EventBegin, Transaction: "t3", Op: record.OpRollback},
		{Kind: record.EventTarget, Transaction: "t3", Deployment: id1, BootDigest: bd1},
		{Kind: record.EventArmed, Deployment: id1, Entry: 3},
	}
)

func TestJournalLife(t *testing.T) {
	d := disk{}
	s := d.play(t, install...)
	if s.Transaction != nil || s.Newest() == nil || s.Newest().Deployment != id1 || s.Newest().Blessed {
		t.Fatalf("after install: %+v", s)
	}
	if s.Rollback(id1) != nil {
		t.Error("rollback to the only deployment is offered")
	}
	d.play(t, bless1...)
	s = d.play(t, upgrade...)
	if s.Staged == nil || s.Staged.Deployment != id2 || s.Staged.Entry != 2 || s.Staged.BootDigest != bd2 {
		t.Fatalf("staged: %+v", s.Staged)
	}
	if s.Newest().Deployment != id1 {
		t.Error("a staged deployment is what boots next")
	}
	s = d.play(t, ev{Kind: record.EventFinalizeFailed, Deployment: id2, Reason: "no space"})
	if s.Staged == nil || s.Staged.Failure != "no space" {
		t.Fatalf("after failed finalize: %+v", s.Staged)
	}
	s = d.play(t, finalize...)
	if s.Staged != nil || s.Newest().Deployment != id2 {
		t.Fatalf("after finalize: %+v", s)
	}
	if got := s.Rollback(id2); got == nil || got.Deployment != id1 {
		t.Fatalf("rollback offers %+v, want %s", got, id1)
	}
	if s.Rollback(id1) != nil {
		t.Error("an entry that never booted is offered for rollback")
	}
	s = d.play(t, rollback...)
	if n := s.Newest(); n.Deployment != id1 || n.Seq != 3 || !n.Blessed {
		t.Fatalf("after rollback: %+v", n)
	}
	if diff := cmp.Diff([]string{id1, id2}, s.Deployments()); diff != "" {
		t.Errorf("deployments (-want +got):\n%s", diff)
	}
	s = d.play(t, ev{Kind: record.EventRetire, Deployment: id2}, ev{Kind: record.EventRetired, Deployment: id2})
	if diff := cmp.Diff([]string{id1}, s.Deployments()); diff != "" {
		t.Errorf("after retiring (-want +got):\n%s", diff)
	}
	if s.NextEntry != 4 {
		t.Errorf("next entry %d, want 4: numbers only grow", s.NextEntry)
	}
}

// TestJournalUnretire: what was being removed, and runs, is as if that had not begun.
func TestJournalUnretire(t *testing.T) {
	d := disk{}
	before := d.play(t, slices.Concat(install, bless1, upgrade, finalize, rollback)...)
	s := d.play(t, ev{Kind: record.EventRetire, Deployment: id1})
	if s.Newest().Deployment != id2 || s.Rollback(id2) != nil {
		t.Errorf("while it is removed: %+v", s)
	}
	if diff := cmp.Diff(before, d.play(t, ev{Kind: record.EventUnretire, Deployment: id1})); diff != "" {
		t.Errorf("taken back (-before +after):\n%s", diff)
	}
	s = d.play(t, ev{Kind: record.EventRetire, Deployment: id1}, ev{Kind: record.EventUnretire, Deployment: id1, Gone: []uint64{1}})
	if len(s.Entries) != 2 || s.Entry(1) != nil || s.Entry(3).Retiring || !s.Entry(3).Blessed {
		t.Errorf("taken back with one entry: %+v", s.Entries)
	}
}

func TestJournalFailure(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1, upgrade, finalize)...)
	s := d.play(t, ev{Kind: record.EventFailed, Entry: 2, Reason: "3 tries"})
	if f := s.FailureOf(id2); f == nil || f.Reason != "3 tries" {
		t.Fatalf("failure: %+v", f)
	}
	if s.Newest().Deployment != id1 {
		t.Error("the failed entry is still the newest")
	}
	if s.Rollback(id1) != nil {
		t.Error("rollback to a failed deployment is offered")
	}
	// It does boot after all: chosen by hand, for example.
	s = d.play(t, ev{Kind: record.EventBlessed, Entry: 2})
	if s.FailureOf(id2) != nil || s.Newest().Deployment != id2 {
		t.Errorf("after it booted: %+v", s)
	}
}

func TestJournalSupersedeAndAbort(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1, upgrade)...)
	s := d.play(t,
		ev{Kind: record.EventBegin, Transaction: "t4", Op: record.OpUpgrade},
		ev{Kind: record.EventTarget, Transaction: "t4", Deployment: id3, BootDigest: bd2},
		ev{Kind: record.EventPrepared, Transaction: "t4"})
	if s.Staged.Deployment != id3 || !slices.Equal(s.Orphans, []string{id2}) {
		t.Fatalf("staged %+v, orphans %q", s.Staged, s.Orphans)
	}
	// An aborted transaction leaves the stage alone; its half-made deployment is
	// an orphan.
	s = d.play(t,
		ev{Kind: record.EventRetired, Deployment: id2},
		ev{Kind: record.EventBegin, Transaction: "t5", Op: record.OpUpgrade},
		ev{Kind: record.EventTarget, Transaction: "t5", Deployment: id2, BootDigest: bd2},
		ev{Kind: record.EventAborted, Transaction: "t5", Reason: "interrupted"})
	if s.Transaction != nil || s.Staged.Deployment != id3 || !slices.Equal(s.Orphans, []string{id2}) {
		t.Fatalf("after abort: %+v", s)
	}
	s = d.play(t, ev{Kind: record.EventRenumber, Deployment: id3})
	if s.Staged.Entry != s.NextEntry-1 || s.Staged.Entry != 5 {
		t.Errorf("renumbered to %d, want 5", s.Staged.Entry)
	}
	s = d.play(t, ev{Kind: record.EventDropped, Deployment: id3, Reason: "rollback"})
	if s.Staged != nil || !slices.Equal(s.Orphans, []string{id2, id3}) {
		t.Errorf("after drop: %+v", s)
	}
	// Staging what is already there takes it out of the orphans.
	s = d.play(t, ev{Kind: record.EventBegin, Transaction: "t6", Op: record.OpUpgrade},
		ev{Kind: record.EventTarget, Transaction: "t6", Deployment: id2, BootDigest: bd2})
	if !slices.Equal(s.Orphans, []string{id3}) {
		t.Errorf("orphans %q", s.Orphans)
	}
}

func TestJournalRefusesWrongOrder(t *testing.T) {
	retire1 := slices.Concat(install, []ev{{Kind: record.EventRetire, Deployment: id1}})
	for _, tc := range []struct {
		name   string
		before []ev
		event  ev
	}{
		{"begin before init", nil, install[1]},
		{"init twice", install, install[0]},
		{"bad token", nil, ev{Kind: record.EventInit, Token: "A B"}},
		{"unknown event", install, ev{Kind: "later"}},
		{"begin twice", slices.Concat(install, upgrade[:1]), ev{Kind: record.EventBegin, Transaction: "t9", Op: record.OpUpgrade}},
		{"unknown operation", install, ev{Kind: record.EventBegin, Transaction: "t9", Op: "dance"}},
		{"transaction without id", install, ev{Kind: record.EventBegin, Op: record.OpUpgrade}},
		{"target of another transaction", slices.Concat(install, upgrade[:1]), ev{Kind: record.EventTarget, Transaction: "t9", Deployment: id2, BootDigest: bd2}},
		{"target twice", slices.Concat(install, upgrade[:2]), upgrade[1]},
		{"bad deployment", slices.Concat(install, upgrade[:1]), ev{Kind: record.EventTarget, Transaction: "t2", Deployment: "xyz", BootDigest: bd2}},
		{"upper case", slices.Concat(install, upgrade[:1]), ev{Kind: record.EventTarget, Transaction: "t2", Deployment: strings.ToUpper(id2), BootDigest: bd2}},
		{"bad boot digest", slices.Concat(install, upgrade[:1]), ev{Kind: record.EventTarget, Transaction: "t2", Deployment: id2, BootDigest: id2}},
		{"prepared without target", slices.Concat(install, upgrade[:1]), upgrade[2]},
		{"armed but not staged", install, finalize[0]},
		{"upgrade armed without being staged", slices.Concat(install, upgrade[:2]), finalize[0]},
		{"armed with another number", slices.Concat(install, upgrade), ev{Kind: record.EventArmed, Deployment: id2, Entry: 9, Tries: 3}},
		{"blessed unknown", install, ev{Kind: record.EventBlessed, Entry: 7}},
		{"failed unknown", install, ev{Kind: record.EventFailed, Entry: 7}},
		{"rollback to what is not there", slices.Concat(install, []ev{{Kind: record.EventBegin, Transaction: "t9", Op: record.OpRollback}}),
			ev{Kind: record.EventTarget, Transaction: "t9", Deployment: id3, BootDigest: bd1}},
		{"drop nothing", install, ev{Kind: record.EventDropped, Deployment: id2}},
		{"finalize failed for nothing", install, ev{Kind: record.EventFinalizeFailed, Deployment: id2}},
		{"renumber nothing", install, ev{Kind: record.EventRenumber}},
		{"retire the staged", slices.Concat(install, upgrade), ev{Kind: record.EventRetire, Deployment: id2}},
		{"retire the unknown", install, ev{Kind: record.EventRetire, Deployment: id2}},
		{"take back what was not announced", install, ev{Kind: record.EventUnretire, Deployment: id1}},
		{"take back all entries", retire1, ev{Kind: record.EventUnretire, Deployment: id1, Gone: []uint64{1}}},
		{"take back with an entry of another", slices.Concat(install, bless1, upgrade, finalize, retire1[len(install):]), ev{Kind: record.EventUnretire, Deployment: id1, Gone: []uint64{2}}},
		{"retired without announcement", install, ev{Kind: record.EventRetired, Deployment: id1}},
		{"abort nothing", install, ev{Kind: record.EventAborted, Transaction: "t2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := disk{}
			j := &record.Journal{}
			if tc.before != nil {
				d.play(t, tc.before...)
				j = d.journal(t)
			}
			before, err := json.Marshal(j.State())
			if err != nil {
				t.Fatal(err)
			}
			_, err = j.Next(tc.event, start, "b")
			var te *record.TransitionError
			if !errors.As(err, &te) || te.Event != tc.event.Kind {
				t.Errorf("got %v, want a *TransitionError of %s", err, tc.event.Kind)
			}
			after, err := json.Marshal(j.State())
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(before, after) {
				t.Errorf("the state changed from %s to %s", before, after)
			}
		})
	}
}

// TestJournalApplyCopies: states that were handed out do not change later.
// TestJournalIsFull: an operation is refused before it begins, not after it has
// made its entry.
func TestJournalIsFull(t *testing.T) {
	s := disk{}.play(t,
		record.Event{Kind: record.EventInit, Token: "tok"},
		record.Event{Kind: record.EventBegin, Transaction: "t0", Op: record.OpInstall},
		record.Event{Kind: record.EventTarget, Transaction: "t0", Deployment: id1, BootDigest: bd1},
		record.Event{Kind: record.EventArmed, Deployment: id1, Entry: 1},
	)
	apply := func(e record.Event) (err error) {
		next, err := s.Apply(e, start)
		if err == nil {
			s = next
		}
		return err
	}
	for n := 1; ; n++ {
		if err := apply(record.Event{Kind: record.EventBegin, Transaction: "r", Op: record.OpRollback}); err != nil {
			var te *record.TransitionError
			if !errors.As(err, &te) || n < 200 {
				t.Fatalf("rollback %d: %v", n, err)
			}
			return
		}
		for _, e := range []record.Event{
			{Kind: record.EventTarget, Transaction: "r", Deployment: id1, BootDigest: bd1},
			{Kind: record.EventArmed, Deployment: id1, Entry: s.NextEntry},
		} {
			if err := apply(e); err != nil {
				t.Fatalf("rollback %d: %v", n, err)
			}
		}
	}
}

func TestJournalApplyCopies(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1, upgrade)...)
	s := d.journal(t).State()
	before, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range []ev{
		finalize[0], {Kind: record.EventFailed, Entry: 1, Reason: "x"}, {Kind: record.EventRetire, Deployment: id1},
		{Kind: record.EventFinalizeFailed, Deployment: id2, Reason: "x"}, {Kind: record.EventDropped, Deployment: id2},
		{Kind: record.EventRenumber, Deployment: id2},
	} {
		if _, err := s.Apply(e, start); err != nil {
			t.Fatal(err)
		}
	}
	after, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Errorf("the state changed from %s to %s", before, after)
	}
}

// TestJournalTornRecord cuts the newest record at every byte: the one before
// it counts, and the next record does not take the torn one's name.
func TestJournalTornRecord(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1)...)
	want := d.journal(t).State()
	d.play(t, upgrade[0])
	newest := record.FileName(6)
	whole := d[newest]
	if len(whole) == 0 {
		t.Fatal("no record 6")
	}
	for n := range len(whole) - 1 { // without the final line feed it is complete
		d[newest] = whole[:n]
		j := d.journal(t)
		if diff := cmp.Diff(want, j.State()); diff != "" {
			t.Fatalf("cut to %d of %d bytes (-want +got):\n%s", n, len(whole), diff)
		}
		if len(j.Damaged()) != 1 {
			t.Fatalf("cut to %d bytes: damage %v", n, j.Damaged())
		}
		r, err := j.Next(upgrade[0], start, "b")
		if err != nil || r.Seq != 7 {
			t.Fatalf("next record is %d, %v, want 7", r.Seq, err)
		}
	}
	for at := range whole[:len(whole)-1] {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x04
		d[newest] = bad
		if diff := cmp.Diff(want, d.journal(t).State()); diff != "" {
			t.Fatalf("bit flipped in byte %d (-want +got):\n%s", at, diff)
		}
	}
}

// reseal changes the record inside a file and makes the checksum right again.
func reseal(t *testing.T, data []byte, change func(m map[string]any)) []byte {
	t.Helper()
	var env struct {
		Record map[string]any `json:"record"`
	}
	if err := json.Unmarshal(data, &env); err != nil {
		t.Fatal(err)
	}
	change(env.Record)
	return seal(t, env.Record)
}

func TestParseRecordRejects(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1, upgrade)...)
	seq := uint64(len(d))
	data := d[record.FileName(seq)]
	state := func(m map[string]any) map[string]any { return m["state"].(map[string]any) }
	staged := func(m map[string]any) map[string]any { return state(m)["staged"].(map[string]any) }
	entry := func(m map[string]any) map[string]any { return state(m)["entries"].([]any)[0].(map[string]any) }
	for _, tc := range []struct {
		field  string
		change func(m map[string]any)
	}{
		{"format", func(m map[string]any) { m["format"] = 2 }},
		{"format", func(m map[string]any) { m["format"] = 2; m["state"] = "not even an object" }},
		{"seq", func(m map[string]any) { m["seq"] = 99 }},
		{"time", func(m map[string]any) { delete(m, "time") }},
		{"event.kind", func(m map[string]any) { m["event"] = map[string]any{} }},
		{"event.kind", func(m map[string]any) { m["event"] = map[string]any{"kind": "a\nb"} }},
		{"event.kind", func(m map[string]any) { m["event"] = map[string]any{"kind": strings.Repeat("a", 65)} }},
		{"state.token", func(m map[string]any) { state(m)["token"] = "../x" }},
		{"state.next_entry", func(m map[string]any) { state(m)["next_entry"] = 0 }},
		{"state.next_entry", func(m map[string]any) { state(m)["next_entry"] = record.MaxEntrySeq + 1 }},
		{"state.staged.deployment", func(m map[string]any) { staged(m)["deployment"] = "../../etc" }},
		{"state.staged.boot_digest", func(m map[string]any) { staged(m)["boot_digest"] = "" }},
		{"state.staged.entry", func(m map[string]any) { staged(m)["entry"] = 77 }},
		{"state.entries[0].entry", func(m map[string]any) { entry(m)["seq"] = 3 }},
		{"state.entries[0].deployment", func(m map[string]any) { entry(m)["deployment"] = strings.ToUpper(id1) }},
		{"state.entries[1].seq", func(m map[string]any) {
			state(m)["entries"] = append(state(m)["entries"].([]any), entry(m))
		}},
		{"state.failed[0].deployment", func(m map[string]any) { state(m)["failed"] = []any{map[string]any{"deployment": "x"}} }},
		{"state.orphans[0]", func(m map[string]any) { state(m)["orphans"] = []any{"x"} }},
		{"state.entries", func(m map[string]any) { state(m)["orphans"] = make([]any, 300) }},
		{"state.transaction.op", func(m map[string]any) { state(m)["transaction"] = map[string]any{"id": "x", "op": "y"} }},
		{"state.transaction.id", func(m map[string]any) { state(m)["transaction"] = map[string]any{"id": "", "op": "upgrade"} }},
		{"state.transaction.deployment", func(m map[string]any) {
			state(m)["transaction"] = map[string]any{"id": "x", "op": "upgrade", "entry": 1}
		}},
		{"", func(m map[string]any) { state(m)["entries"] = "no list" }},
	} {
		t.Run(tc.field, func(t *testing.T) {
			_, err := record.ParseRecord(seq, reseal(t, data, tc.change))
			var fe *record.FormatError
			if !errors.As(err, &fe) || fe.Field != tc.field || errors.Is(err, record.ErrIncomplete) {
				t.Errorf("got %v, want a *FormatError of field %q for a complete record", err, tc.field)
			}
		})
	}
	// A complete record of the future must not be skipped.
	d[record.FileName(seq)] = reseal(t, data, func(m map[string]any) { m["format"] = 2 })
	if _, err := record.ReadJournal(d.names(), d.read); err == nil {
		t.Error("an older record was used in place of one of another format")
	}
	// Unknown fields are fine.
	if _, err := record.ParseRecord(seq, reseal(t, data, func(m map[string]any) { m["new"] = 1; state(m)["newer"] = 1 })); err != nil {
		t.Errorf("an added field is refused: %v", err)
	}
}

// TestFutureEvent: the state after an event counts, whatever the event was. A machine
// that rolls back runs a program that knows fewer kinds.
func TestFutureEvent(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1, upgrade)...)
	want := d.journal(t).State()
	name := record.FileName(uint64(len(d)))
	d[name] = reseal(t, d[name], func(m map[string]any) {
		m["event"] = map[string]any{"kind": "un-retire-2", "gone-for": []int{1}, "reason": "later"}
	})
	j := d.journal(t)
	if diff := cmp.Diff(want, j.State()); diff != "" || len(j.Damaged()) > 0 {
		t.Fatalf("damage %v, mismatch (-want +got):\n%s", j.Damaged(), diff)
	}
	s := d.play(t, finalize...)
	if s.Staged != nil || s.Newest().Deployment != id2 {
		t.Errorf("the next event: %+v", s)
	}
	// What is written is what this program knows.
	var te *record.TransitionError
	if _, err := d.journal(t).Next(ev{Kind: "un-retire-2"}, start, "b"); !errors.As(err, &te) {
		t.Errorf("got %v, want a *TransitionError", err)
	}
}

func TestReadJournal(t *testing.T) {
	if _, err := record.ReadJournal([]string{"README", "1.json", "0000000000.json"}, nil); !errors.Is(err, record.ErrNoJournal) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want ErrNoJournal", err)
	}
	bad := disk{record.FileName(1): nil, record.FileName(2): []byte("{}")}
	var fe *record.FormatError
	if _, err := record.ReadJournal(bad.names(), bad.read); !errors.As(err, &fe) || errors.Is(err, record.ErrNoJournal) {
		t.Errorf("got %v, want a *FormatError", err)
	}
	broken := errors.New("I/O error")
	if _, err := record.ReadJournal([]string{record.FileName(1)}, func(string) ([]byte, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want the read error", err)
	}
	d := disk{}
	d.play(t, install...)
	names := append(d.names(), record.FileName(9)) // listed, then gone
	if _, err := record.ReadJournal(names, d.read); err != nil {
		t.Error(err)
	}
}

func TestRecordNames(t *testing.T) {
	if got := record.FileName(42); got != "0000000042.json" {
		t.Errorf("got %s", got)
	}
	for name, want := range map[string]uint64{
		"0000000042.json": 42, "42.json": 0, "0000000000.json": 0, "0000000042.json.tmp": 0, "-000000042.json": 0, "00000000420.json": 0,
	} {
		if got, ok := record.ParseRecordName(name); got != want || ok != (want > 0) {
			t.Errorf("%s: got %d, %v", name, got, ok)
		}
	}
	names := []string{"x"}
	for i := range record.KeepRecords + 2 {
		names = append(names, record.FileName(uint64(i+1)))
	}
	if diff := cmp.Diff([]string{record.FileName(1), record.FileName(2)}, record.Prunable(names, record.KeepRecords)); diff != "" {
		t.Errorf("prunable (-want +got):\n%s", diff)
	}
	if got := record.Prunable(names[:5], record.KeepRecords); len(got) != 0 {
		t.Errorf("prunable: %q", got)
	}
}

func FuzzParseRecord(f *testing.F) {
	d := disk{}
	d.play(f, slices.Concat(install, bless1, upgrade)...)
	for i := range uint64(len(d)) {
		f.Add(i+1, d[record.FileName(i+1)], false)
	}
	f.Fuzz(func(t *testing.T, seq uint64, data []byte, sealed bool) {
		if sealed { // let the fuzzer get behind the checksum
			data = []byte(`{"checksum":"` + sum(data) + `","record":` + string(data) + `}`)
		}
		r, err := record.ParseRecord(seq, data)
		if err != nil {
			var fe *record.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("%T is no *FormatError", err)
			}
			return
		}
		again, err := r.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := record.ParseRecord(seq, again); err != nil {
			t.Fatal(err)
		}
	})
}
