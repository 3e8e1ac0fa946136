package deploy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// Deployments of the tests: a is the oldest.
var (
	idA   = strings.Repeat("a1", 64)
	idB   = strings.Repeat("b2", 64)
	idC   = strings.Repeat("c3", 64)
	idD   = strings.Repeat("d4", 64)
	bootA = strings.Repeat("a1", 32)
	bootB = strings.Repeat("b2", 32)
	bootC = strings.Repeat("c3", 32)
)

func bootOf(id string) string { return id[:64] }

var testTime = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)

// history applies events to a new journal.
func history(t *testing.T, events ...record.Event) record.State {
	t.Helper()
	s, err := record.State{}.Apply(record.Event{Kind: record.EventInit, Token: "tok"}, testTime)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range events {
		if s, err = s.Apply(e, testTime); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func installed(id string) []record.Event {
	return []record.Event{
		{Kind: record.EventBegin, Transaction: "t", Op: record.OpInstall},
		{Kind: record.EventTarget, Transaction: "t", Deployment: id, BootDigest: bootOf(id)},
		{Kind: record.EventArmed, Deployment: id, Entry: 1},
	}
}

func staged(id string) []record.Event {
	return []record.Event{
		{Kind: record.EventBegin, Transaction: "t", Op: record.OpUpgrade},
		{Kind: record.EventTarget, Transaction: "t", Deployment: id, BootDigest: bootOf(id)},
		{Kind: record.EventPrepared, Transaction: "t"},
	}
}

func armed(id string, seq uint64) []record.Event {
	return append(staged(id), record.Event{Kind: record.EventArmed, Deployment: id, Entry: seq, Tries: 3})
}

func blessed(seq uint64) record.Event { return record.Event{Kind: record.EventBlessed, Entry: seq} }
func retire(id string) record.Event   { return record.Event{Kind: record.EventRetire, Deployment: id} }
func failed(seq uint64) record.Event {
	return record.Event{Kind: record.EventFailed, Entry: seq, Reason: "why"}
}

func file(t *testing.T, seq uint64, counter, id string) esp.Entry {
	t.Helper()
	name := fmt.Sprintf("cfsboot_tok-%010d%s.conf", seq, counter)
	e := esp.Entry{File: name}
	var ok bool
	if e.Name, ok = record.ParseEntryName(name); !ok {
		t.Fatalf("bad name %q", name)
	}
	e.Ours = true
	var err error
	e.Entry, err = record.NewEntry(record.EntrySpec{
		Token: "tok", Seq: seq, Linux: "/" + esp.Path(bootOf(id), "vmlinuz"), Initrd: "/" + esp.Path(bootOf(id), "initrd"),
		Options: bls.ParseCmdline("rw composefs.digest=v1-sha512-12:" + id),
	})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, e)
}

// read gives an entry the content that it was read from.
func read(t *testing.T, e esp.Entry) esp.Entry {
	t.Helper()
	data, err := e.Entry.Format()
	if err != nil {
		t.Fatal(err)
	}
	e.Named = esp.NamesIn(data)
	return e
}

func torn(t *testing.T, seq uint64, counter string) esp.Entry {
	e := file(t, seq, counter, idA)
	e.Entry, e.Err, e.Named = bls.Entry{}, &bls.EntryError{Detail: "empty file"}, esp.NamesIn(nil)
	return e
}

// noEntry is a file of somebody else that can be read and is no entry.
func noEntry(text string) esp.Entry {
	return esp.Entry{File: "odd.conf", Err: errors.New("no entry"), Named: esp.NamesIn([]byte(text))}
}

// cut is an entry without its last line.
func cut(t *testing.T, seq uint64, counter, id string) esp.Entry {
	e := file(t, seq, counter, id)
	e.Entry.Set("linux")
	return read(t, e)
}

func booted(id string) *record.Booted { return &record.Booted{Digest: id} }

func manifests(ids ...string) map[string]record.Deployment {
	out := map[string]record.Deployment{}
	for _, id := range ids {
		out[id] = record.Deployment{ID: id, ManifestDigest: "sha256:" + bootOf(id)}
	}
	return out
}

func join(lists ...[]record.Event) []record.Event { return slices.Concat(lists...) }

// TestRepairStagedGone: a staged deployment without state is given up, unless its
// entry says that it is in place already.
func TestRepairStagedGone(t *testing.T) {
	s := history(t, join(installed(idA), []record.Event{blessed(1)}, staged(idB))...)
	f := Facts{Booted: booted(idA), State: s, Entries: []esp.Entry{file(t, 1, "", idA)}}
	if r, ok := nextRepair(f); ok {
		t.Errorf("it is there: %+v", r)
	}
	f.StagedGone = true
	if r, _ := nextRepair(f); r.Event.Kind != record.EventDropped || r.Event.Deployment != idB || r.RemoveEntry != "" {
		t.Errorf("it is gone: %+v", r)
	}
	f.Entries = append(f.Entries, file(t, 2, "+3-0", idB))
	if r, _ := nextRepair(f); r.Event.Kind != record.EventArmed {
		t.Errorf("it has its entry: %+v", r)
	}
}

// TestTracked: which reference a machine follows.
func TestTracked(t *testing.T) {
	three := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2))
	deployments := func(a, b, c string) map[string]record.Deployment {
		out := map[string]record.Deployment{}
		for id, ref := range map[string]string{idA: a, idB: b, idC: c} {
			if ref != "" {
				out[id] = record.Deployment{ID: id, Reference: ref}
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		events      []record.Event
		deployments map[string]record.Deployment
		want, code  string
	}{
		"staged":                     {join(three, staged(idC)), deployments("docker://r/a", "docker://r/b", "docker://r/c"), "docker://r/c", ""},
		"default":                    {three, deployments("docker://r/a", "docker://r/b", ""), "docker://r/b", ""},
		"running":                    {join(three, []record.Event{failed(2)}), deployments("docker://r/a", "docker://r/b", ""), "docker://r/a", ""},
		"staged, no record":          {join(three, staged(idC)), deployments("docker://r/a", "docker://r/b", ""), "docker://r/b", ""},
		"only the running has one":   {join(three, staged(idC)), deployments("docker://r/a", "", ""), "docker://r/a", ""},
		"nobody has one":             {three, nil, "", CodeNoRecord},
		"a directory":                {installed(idA), deployments("oci:/x:1", "", ""), "", CodeNoRegistry},
		"an archive":                 {installed(idA), deployments("oci-archive:/x.tar", "", ""), "", CodeNoRegistry},
		"a directory that is staged": {join(three, staged(idC)), deployments("docker://r/a", "docker://r/b", "oci:/x:1"), "", CodeNoRegistry},
	} {
		got, err := tracked(Facts{Booted: booted(idA), State: history(t, c.events...), Deployments: c.deployments})
		code := ""
		var refused *RefusedError
		if errors.As(err, &refused) {
			code = refused.Code
		}
		if got != c.want || code != c.code {
			t.Errorf("%s: got %q, %v, want %q, %q", name, got, err, c.want, c.code)
		}
	}
}

func TestNextRepair(t *testing.T) {
	begin := []record.Event{{Kind: record.EventBegin, Transaction: "u", Op: record.OpUpgrade}}
	target := append(slices.Clone(begin), record.Event{Kind: record.EventTarget, Transaction: "u", Deployment: idB, BootDigest: bootB})
	rollback := []record.Event{
		{Kind: record.EventBegin, Transaction: "r", Op: record.OpRollback},
		{Kind: record.EventTarget, Transaction: "r", Deployment: idA, BootDigest: bootA},
	}
	two := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2))
	tests := []struct {
		name    string
		events  []record.Event
		booted  string
		entries []esp.Entry
		want    record.Event // zero Kind: none
		remove  string
	}{
		{"quiet", installed(idA), idB, []esp.Entry{file(t, 1, "", idA)}, record.Event{}, ""},
		{"first boot after install", installed(idA), idA, []esp.Entry{file(t, 1, "", idA)}, blessed(1), ""},
		{"killed upgrade", join(installed(idA), begin), idA, nil,
			record.Event{Kind: record.EventAborted, Transaction: "u", Reason: "the program did not finish"}, ""},
		{"killed upgrade with target", join(installed(idA), target), idA, nil,
			record.Event{Kind: record.EventAborted, Transaction: "u", Reason: "the program did not finish"}, ""},
		{"killed rollback before its entry", join(two, rollback), idB, nil,
			record.Event{Kind: record.EventAborted, Transaction: "r", Reason: "the program did not finish"}, ""},
		{"killed rollback with an entry that has no kernel", join(two, rollback), idB, []esp.Entry{cut(t, 3, "", idA)},
			record.Event{Kind: record.EventAborted, Transaction: "r", Reason: "the program did not finish"}, "cfsboot_tok-0000000003.conf"},
		{"staged with an entry that has no kernel", join(installed(idA), []record.Event{blessed(1)}, staged(idB)), idA, []esp.Entry{cut(t, 2, "+3-0", idB)},
			record.Event{Kind: record.EventRenumber, Deployment: idB}, "cfsboot_tok-0000000002+3-0.conf"},
		{"killed switch", join(installed(idA), []record.Event{{Kind: record.EventBegin, Transaction: "s", Op: record.OpSwitch}}), idA, nil,
			record.Event{Kind: record.EventAborted, Transaction: "s", Reason: "the program did not finish"}, ""},
		{"killed rollback after its entry", join(two, rollback), idB, []esp.Entry{file(t, 3, "", idA)},
			record.Event{Kind: record.EventArmed, Deployment: idA, Entry: 3}, ""},
		{"killed counted rollback, tried once", join(two, rollback), idB, []esp.Entry{file(t, 3, "+2-1", idA)},
			record.Event{Kind: record.EventArmed, Deployment: idA, Entry: 3, Tries: 3}, ""},
		{"killed rollback, torn entry", join(two, rollback), idB, []esp.Entry{torn(t, 3, "")},
			record.Event{Kind: record.EventAborted, Transaction: "r", Reason: "the program did not finish"}, "cfsboot_tok-0000000003.conf"},
		{"staged only", join(installed(idA), staged(idB)), idB, nil, record.Event{}, ""},
		{"killed finalize after its entry", join(installed(idA), staged(idB)), idB, []esp.Entry{file(t, 2, "+2-1", idB)},
			record.Event{Kind: record.EventArmed, Deployment: idB, Entry: 2, Tries: 3}, ""},
		{"killed finalize, blessed meanwhile", join(installed(idA), staged(idB)), idB, []esp.Entry{file(t, 2, "", idB)},
			record.Event{Kind: record.EventArmed, Deployment: idB, Entry: 2, Tries: 3}, ""},
		{"killed finalize, torn entry", join(installed(idA), staged(idB)), idA, []esp.Entry{torn(t, 2, "+3-0")},
			record.Event{Kind: record.EventRenumber, Deployment: idB}, "cfsboot_tok-0000000002+3-0.conf"},
		{"entry of a lost journal", join(installed(idA), staged(idB)), idA, []esp.Entry{file(t, 2, "+3-0", idA)},
			record.Event{Kind: record.EventRenumber, Deployment: idB}, ""},
		{"killed rollback, entry of a lost journal", join(two, rollback), idB, []esp.Entry{file(t, 3, "", idC)},
			record.Event{Kind: record.EventAborted, Transaction: "r", Reason: "the program did not finish"}, ""},
		{"trial under way", two, idB, []esp.Entry{file(t, 2, "+2-1", idB)}, record.Event{}, ""},
		{"last trial under way", two, idB, []esp.Entry{file(t, 2, "+0-3", idB)}, record.Event{}, ""},
		{"blessed by systemd", two, idB, []esp.Entry{file(t, 2, "", idB)}, blessed(2), ""},
		{"given up", two, idA, []esp.Entry{file(t, 2, "+0-3", idB)},
			record.Event{Kind: record.EventFailed, Entry: 2, Reason: "the boot loader gave up after 3 tries"}, ""},
		{"given up, known", join(two, []record.Event{failed(2)}), idA, []esp.Entry{file(t, 2, "+0-3", idB)}, record.Event{}, ""},
		{"what runs is being retired", join(two, []record.Event{retire(idA)}), idA, []esp.Entry{file(t, 1, "", idA)},
			record.Event{Kind: record.EventUnretire, Deployment: idA}, ""},
		{"what runs is being retired, one entry is gone", join(two, rollback, []record.Event{{Kind: record.EventArmed, Deployment: idA, Entry: 3}, retire(idA)}), idA,
			[]esp.Entry{file(t, 3, "", idA)}, record.Event{Kind: record.EventUnretire, Deployment: idA, Gone: []uint64{1}}, ""},
		{"what runs is being retired, every entry is gone", join(two, []record.Event{retire(idA)}), idA, nil,
			record.Event{Kind: record.EventUnretire, Deployment: idA}, ""},
		{"another is being retired", join(two, []record.Event{retire(idA)}), idB, []esp.Entry{file(t, 1, "", idA), file(t, 2, "+2-1", idB)}, record.Event{}, ""},
		{"other booted, tries left", two, idA, []esp.Entry{file(t, 2, "+1-2", idB)}, record.Event{}, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := Facts{Booted: booted(tc.booted), State: history(t, tc.events...), Entries: tc.entries}
			got, ok := nextRepair(f)
			if ok != (tc.want.Kind != "") {
				t.Fatalf("got %+v, %v", got, ok)
			}
			if d := cmp.Diff(repair{tc.remove, tc.want}, got); d != "" {
				t.Fatalf("mismatch (-want +got):\n%s", d)
			}
			if !ok {
				return
			}
			// The journal must take it, and applying repairs must come to an end.
			for n := 0; ok; n++ {
				if n > 5 {
					t.Fatal("repairs do not end")
				}
				next, err := f.State.Apply(got.Event, testTime)
				if err != nil {
					t.Fatal(err)
				}
				f.State = next
				f.Entries = slices.DeleteFunc(f.Entries, func(e esp.Entry) bool { return e.File == got.RemoveEntry })
				got, ok = nextRepair(f)
			}
		})
	}
}

func TestDecideUpgrade(t *testing.T) {
	two := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2))
	tests := []struct {
		name   string
		events []record.Event
		booted string
		target string
		retry  bool
		want   action
		code   string
	}{
		{"newer", installed(idA), idA, idB, false, actStage, ""},
		{"the same", installed(idA), idA, idA, false, actNothing, ""},
		{"staged already", join(installed(idA), staged(idB)), idA, idB, false, actKeep, ""},
		{"another one than the staged", join(installed(idA), staged(idB)), idA, idC, false, actStage, ""},
		{"tag moved back while staged", join(installed(idA), staged(idB)), idA, idA, false, actDrop, ""},
		{"armed, not booted yet", two, idA, idB, false, actNothing, ""},
		{"tag moved back after arming", two, idA, idA, false, actRearm, ""},
		{"tag moved back after boot", join(two, []record.Event{blessed(2)}), idB, idA, false, actStage, ""},
		{"failed before", join(two, []record.Event{failed(2)}), idA, idB, false, actStage, CodeFailed},
		{"failed before, asked for", join(two, []record.Event{failed(2)}), idA, idB, true, actStage, ""},
		{"failed, and the tag is back", join(two, []record.Event{failed(2)}), idA, idA, false, actNothing, ""},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := Facts{Booted: booted(tc.booted), State: history(t, tc.events...), Deployments: manifests(idA, idB)}
			got, err := decideUpgrade(f, "sha256:"+bootOf(tc.target), tc.retry)
			var re *RefusedError
			if tc.code != "" {
				if !errors.As(err, &re) || re.Code != tc.code {
					t.Fatalf("got %v, want refusal %s", err, tc.code)
				}
				return
			}
			if got != tc.want || err != nil {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
		})
	}
}

func TestDecideRollback(t *testing.T) {
	one := join(installed(idA), []record.Event{blessed(1)})
	two := join(one, armed(idB, 2))
	good := join(two, []record.Event{blessed(2)})
	back := join(good, []record.Event{
		{Kind: record.EventBegin, Transaction: "r", Op: record.OpRollback},
		{Kind: record.EventTarget, Transaction: "r", Deployment: idA, BootDigest: bootA},
		{Kind: record.EventArmed, Deployment: idA, Entry: 3},
	})
	three := join(good, armed(idC, 3))
	tests := []struct {
		name       string
		events     []record.Event
		booted, id string
		want       rollbackPlan // Target: only Deployment counts
		code       string       // of the refusal, "nothing" for ErrNothingToDo
	}{
		{"to the older", good, idB, "", rollbackPlan{Target: record.ArmedEntry{Deployment: idA}}, ""},
		{"from an unblessed one", two, idB, "", rollbackPlan{Target: record.ArmedEntry{Deployment: idA}}, ""},
		{"nothing else", one, idA, "", rollbackPlan{}, CodeNoRollback},
		{"only a staged one else", join(one, staged(idB)), idA, "", rollbackPlan{Drop: idB}, CodeNoRollback},
		{"twice", back, idB, "", rollbackPlan{}, "nothing"},
		{"back and forth", back, idA, "", rollbackPlan{Target: record.ArmedEntry{Deployment: idB}}, ""},
		{"undo a queued one", back, idB, idB, rollbackPlan{Target: record.ArmedEntry{Deployment: idB}}, ""},
		{"armed but not booted", two, idA, "", rollbackPlan{Target: record.ArmedEntry{Deployment: idA}}, ""},
		{"drops the staged", join(good, staged(idC)), idB, "", rollbackPlan{Target: record.ArmedEntry{Deployment: idA}, Drop: idC}, ""},
		{"drops the staged, queued before", join(back, staged(idC)), idB, "",
			rollbackPlan{Target: record.ArmedEntry{Deployment: idA}, Drop: idC, Default: true}, ""},
		{"by prefix", three, idC, "A1A1", rollbackPlan{Target: record.ArmedEntry{Deployment: idA}}, ""},
		{"skips what failed", join(good, armed(idC, 3), []record.Event{blessed(3), failed(2)}), idC, "",
			rollbackPlan{Target: record.ArmedEntry{Deployment: idA}}, ""},
		{"an untried one by name", three, idB, idC, rollbackPlan{}, "nothing"},
		{"short prefix", three, idC, "a1", rollbackPlan{}, CodeUnknown},
		{"unknown", three, idC, "dddd", rollbackPlan{}, CodeUnknown},
		{"being removed", join(three, []record.Event{{Kind: record.EventRetire, Deployment: idA}}), idC, "a1a1", rollbackPlan{}, CodeUnknown},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			got, err := decideRollback(Facts{Booted: booted(tc.booted), State: history(t, tc.events...)}, tc.id)
			var re *RefusedError
			switch {
			case tc.code == "nothing":
				if !errors.Is(err, ErrNothingToDo) {
					t.Fatalf("got %+v, %v, want nothing to do", got, err)
				}
				return
			case tc.code != "":
				if !errors.As(err, &re) || re.Code != tc.code {
					t.Fatalf("got %+v, %v, want refusal %s", got, err, tc.code)
				}
				return
			case err != nil:
				t.Fatal(err)
			}
			got.Target = record.ArmedEntry{Deployment: got.Target.Deployment}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

// TestRetirableKeepsTheLastGood: V5, whatever is short of space.
func TestRetirableKeepsTheLastGood(t *testing.T) {
	three := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2), []record.Event{blessed(2)}, armed(idC, 3))
	for _, tc := range []struct {
		name   string
		events []record.Event
		booted string
		want   []string
	}{
		{"one", installed(idA), idA, nil},
		{"older than the rollback", join(three, []record.Event{blessed(3)}), idC, []string{idA}},
		{"trial of the newest", three, idC, []string{idA}},
		{"not the default", three, idB, nil}, // A is the rollback, C the default
		{"failed first", join(three, []record.Event{failed(3)}), idB, []string{idC}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := retirable(Facts{Booted: booted(tc.booted), State: history(t, tc.events...)}, "")
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

func TestPlanRetire(t *testing.T) {
	abc := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2), []record.Event{blessed(2)}, armed(idC, 3))
	good := join(abc, []record.Event{blessed(3)})
	for _, tc := range []struct {
		name   string
		events []record.Event
		booted string
		keep   int
		retire []string
		kept   []string // id and why
	}{
		{"old one goes", good, idC, 0, []string{idA}, []string{idC + WhyBooted, idB + WhyRollback}},
		{"one more stays", good, idC, 1, nil, []string{idC + WhyBooted, idB + WhyRollback, idA + WhyKeep}},
		{"trial", abc, idC, 0, []string{idA}, []string{idC + WhyBooted, idB + WhyRollback}},
		{"not booted yet", abc, idB, 0, nil, []string{idB + WhyBooted, idC + WhyDefault, idA + WhyRollback}},
		{"fell back", join(abc, []record.Event{failed(3)}), idB, 0, nil, []string{idB + WhyBooted, idA + WhyRollback, idC + WhyFailed}},
		{"a newer one after it", join(abc, []record.Event{failed(3)}, armed(idD, 4), []record.Event{blessed(4)}), idD, 0, []string{idC, idA}, []string{idD + WhyBooted, idB + WhyRollback}},
		{"staged", join(good, staged(idD)), idC, 0, []string{idA}, []string{idC + WhyBooted, idD + WhyStaged, idB + WhyRollback}},
		{"being removed", join(good, []record.Event{{Kind: record.EventRetire, Deployment: idA}}), idC, 1, nil, []string{idC + WhyBooted, idB + WhyRollback}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			retire, list := planRetire(Facts{Booted: booted(tc.booted), State: history(t, tc.events...)}, tc.keep)
			var kept []string
			for _, k := range list {
				kept = append(kept, k.Deployment+k.Why)
			}
			if d := cmp.Diff([][]string{tc.retire, tc.kept}, [][]string{retire, kept}); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

// TestRetirableAtLast: the one to go back to makes room only if nothing else does
// and the running one is known to be good.
func TestRetirableAtLast(t *testing.T) {
	abc := join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2), []record.Event{blessed(2)}, armed(idC, 3))
	entries := []esp.Entry{file(t, 3, "", idC), file(t, 2, "", idB), file(t, 1, "", idA)}
	f := Facts{Booted: booted(idC), State: history(t, abc...), Entries: entries}
	if got := retirable(f, ""); !slices.Equal(got, []string{idA}) {
		t.Errorf("on trial: %v", got)
	}
	f.State = history(t, join(abc, []record.Event{blessed(3)})...)
	if got := retirable(f, ""); !slices.Equal(got, []string{idA, idB}) {
		t.Errorf("got %v", got)
	}
	if got := retirable(f, idB); !slices.Equal(got, []string{idA}) {
		t.Errorf("wanted now: %v", got)
	}
	f.Entries = entries[1:]
	if got := retirable(f, ""); !slices.Equal(got, []string{idA}) {
		t.Errorf("without an entry: %v", got)
	}
}

// TestGroups: a payload is free when the last deployment goes that uses it.
func TestGroups(t *testing.T) {
	s := history(t, join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2), []record.Event{blessed(2)}, armed(idC, 3), []record.Event{blessed(3)})...)
	s.Entries[1].BootDigest = s.Entries[0].BootDigest
	size := func(digest string) int64 { return map[string]int64{bootA: 100, bootC: 30}[digest] }
	foreign := file(t, 9, "", idA)
	foreign.Ours = false
	other := file(t, 1, "", idA) // of another installation, with a number that ours has too
	other.Name.Token = "other"
	edited := file(t, 2, "", idC) // by hand: of b, and starts the kernel of c
	for _, tc := range []struct {
		name    string
		ids     []string
		entries []esp.Entry
		want    []candidate
	}{
		{"one of two", []string{idA}, nil, nil},
		{"both", []string{idB, idA}, nil, []candidate{{[]string{idB, idA}, 100}}},
		{"another between", []string{idA, idC, idB}, nil, []candidate{{[]string{idC}, 30}, {[]string{idA, idB}, 100}}},
		{"somebody else's entry", []string{idA, idB, idC}, []esp.Entry{foreign}, []candidate{{[]string{idC}, 30}}},
		{"an entry of another installation", []string{idA, idB, idC}, []esp.Entry{other}, []candidate{{[]string{idC}, 30}}},
		{"a file that is no entry", []string{idA, idB, idC}, []esp.Entry{noEntry("initrd /cfsboot/" + bootC + "/ini")}, []candidate{{[]string{idA, idB}, 100}}},
		{"a file that cannot be read", []string{idA, idB, idC}, []esp.Entry{{File: "x.conf", Err: errors.New("input/output error")}}, nil},
		{"an entry that was edited", []string{idC}, []esp.Entry{edited}, nil},
		{"an entry that was edited, and its deployment", []string{idC, idB, idA}, []esp.Entry{edited},
			[]candidate{{[]string{idC, idB}, 30}, {[]string{idB, idA}, 100}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if d := cmp.Diff(tc.want, groups(Facts{State: s, Entries: tc.entries}, tc.ids, size)); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

// TestCrowding: a machine that gets every release with the same kernel is never
// short of space on the boot partition, but the journal has an end.
func TestCrowding(t *testing.T) {
	s := history(t, join(installed(idA), []record.Event{blessed(1)}, armed(idB, 2), []record.Event{blessed(2)}, armed(idC, 3), []record.Event{blessed(3)})...)
	if got := crowding(Facts{Booted: booted(idC), State: s}, ""); len(got) > 0 {
		t.Errorf("three entries: %v", got)
	}
	for len(s.Entries) < maxEntries+2 { // many more of the running one
		e := s.Entries[len(s.Entries)-1]
		e.Seq++
		s.Entries = append(s.Entries, e)
	}
	if got := crowding(Facts{Booted: booted(idC), State: s}, ""); !slices.Equal(got, []string{idA}) {
		t.Errorf("got %v, want the oldest", got)
	}
}

func TestStalePayloads(t *testing.T) {
	s := history(t, join(installed(idA), staged(idB))...)
	all := []string{bootA, bootB, bootC}
	foreign := file(t, 9, "", idC)
	foreign.Ours = false
	for _, tc := range []struct {
		name    string
		entries []esp.Entry
		keep    string
		want    []string
	}{
		{"leftover", []esp.Entry{file(t, 1, "", idA)}, "", []string{bootC}},
		{"wanted now", nil, bootC, []string{}},
		{"named by a foreign entry", []esp.Entry{foreign}, "", []string{}},
		{"named by an entry of ours that was edited", []esp.Entry{file(t, 1, "", idC)}, "", []string{}},
		{"a torn entry", []esp.Entry{torn(t, 1, "")}, "", []string{bootC}},
		{"an entry cannot be read", []esp.Entry{{File: "x.conf", Err: errors.New("input/output error")}}, "", []string{}},
		{"a file that is no entry", []esp.Entry{noEntry("title x")}, "", []string{bootC}},
		{"a cut entry that names it", []esp.Entry{noEntry("linux /cfsboot/" + bootC + "/vml")}, "", []string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := stalePayloads(Facts{State: s, Entries: tc.entries, Payloads: all}, tc.keep)
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

func TestPlanRoom(t *testing.T) {
	const mib = 1 << 20
	space := esp.Space{Free: 50 * mib, Total: 400 * mib, Cluster: 4096} // reserve 4 MiB
	candidates := []candidate{{[]string{"a"}, 0}, {[]string{"b"}, 20 * mib}, {[]string{"c"}, 30 * mib}}
	for _, tc := range []struct {
		name string
		need int64
		want []string
		full bool
	}{
		{"fits", 46 * mib, nil, false},
		{"one goes", 46*mib + 1, []string{"b"}, false},
		{"two go", 80 * mib, []string{"b", "c"}, false},
		{"never fits", 96*mib + 1, nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := planRoom("esp", tc.need, space, candidates)
			var se *durable.SpaceError
			if errors.As(err, &se) != tc.full {
				t.Fatalf("got %v", err)
			}
			if tc.full && (se.Need != tc.need+4*mib || se.Have != 100*mib || se.Where != "esp") {
				t.Errorf("got %+v", se)
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("mismatch (-want +got):\n%s", d)
			}
		})
	}
}

func TestFactsDefault(t *testing.T) {
	s := history(t, join(installed(idA), armed(idB, 2))...)
	foreign := file(t, 9, "", idC)
	foreign.Ours = false
	for _, tc := range []struct {
		name    string
		entries []esp.Entry
		want    string
	}{
		{"none", nil, ""},
		{"first", []esp.Entry{file(t, 2, "+3-0", idB), file(t, 1, "", idA)}, idB},
		{"unreadable first", []esp.Entry{torn(t, 3, "+3-0"), file(t, 1, "", idA)}, idA},
		{"not in the journal", []esp.Entry{file(t, 7, "", idC)}, idC},
		{"foreign", []esp.Entry{foreign, file(t, 1, "", idA)}, ""},
	} {
		if got := (Facts{State: s, Entries: tc.entries}).DefaultID(); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}
