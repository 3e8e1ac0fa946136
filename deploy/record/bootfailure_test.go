package record_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy/record"
)

const bootID = "01234567-89ab-4cde-8f01-23456789abcd"

func failure() record.BootFailure {
	return record.BootFailure{
		BootID: bootID, Time: start, Stage: record.StageInitramfs, Deployment: id1, Entry: 7, Code: "CFS-B04",
		Reason: "image missing", Units: []string{"a.service"}, Action: "reboot", OneShot: 3,
	}
}

func TestBootFailure(t *testing.T) {
	data, err := failure().Encode()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"format":1,"boot_id":"` + bootID + `","time":"2026-11-25T10:00:00Z","stage":"initramfs","deployment":"` + id1 +
		`","entry":7,"code":"CFS-B04","reason":"image missing","units":["a.service"],"action":"reboot","one_shot":3}` + "\n"
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	got, err := record.ParseBootFailure(data)
	if err != nil {
		t.Fatal(err)
	}
	f := failure()
	f.Format = record.BootFailureFormat
	if diff := cmp.Diff(f, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	if got.Name() != bootID || got.Text() != "CFS-B04: image missing" {
		t.Errorf("name %q, text %q", got.Name(), got.Text())
	}
	f = record.BootFailure{Entry: 7, Stage: record.StageUnknown}
	if f.Name() != "entry-0000000007" || f.Text() != "no reason is known" {
		t.Errorf("name %q, text %q", f.Name(), f.Text())
	}
}

// TestBootFailureCuts: texts of any size and kind become a record that can be read.
func TestBootFailureCuts(t *testing.T) {
	f := failure()
	f.Reason = "two\nlines\t and " + strings.Repeat("ä\xff", 5000)
	f.Units = slices.Repeat([]string{"x.service"}, 1000)
	data, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.ParseBootFailure(data)
	if err != nil || !strings.HasPrefix(got.Reason, "two lines and ä?") || len(got.Units) != 64 {
		t.Errorf("got %.60q, %d units, %v", got.Reason, len(got.Units), err)
	}
}

func TestBootFailureRejected(t *testing.T) {
	good, err := failure().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][3]string{
		"format":     {`"format":1`, `"format":2`, "format"},
		"boot id":    {`"` + bootID + `"`, `"../../etc/passwd"`, "boot_id"},
		"upper case": {`"` + bootID + `"`, `"` + strings.ToUpper(bootID) + `"`, "boot_id"},
		"stage":      {`"initramfs"`, `"later"`, "stage"},
		"deployment": {id1, "1a", "deployment"},
		"entry":      {`"entry":7`, `"entry":10000000000`, "entry"},
		"one-shot":   {`"one_shot":3`, `"one_shot":10000000000`, "one_shot"},
		"reason":     {"image missing", strings.Repeat("x", 4097), "reason"},
		"units":      {`["a.service"]`, `["` + strings.Repeat(`a","`, 64) + `"]`, "units"},
		"time":       {`"2026-11-25T10:00:00Z"`, `"yesterday"`, ""},
		"torn":       {`,"one_shot":3}`, ``, ""},
		"two":        {`"one_shot":3}`, `"one_shot":3}{}`, ""},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		_, err := record.ParseBootFailure([]byte(bad))
		var fe *record.FormatError
		if bad == string(good) || !errors.As(err, &fe) || fe.Field != change[2] {
			t.Errorf("%s: %v, want a FormatError of %q", name, err, change[2])
		}
	}
}

func TestStreak(t *testing.T) {
	var s record.Streak
	for range 3 {
		s = s.Add(id1)
	}
	s = s.Add(id2)
	data, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"format":1,"boots":[{"deployment":"` + id1 + `","count":3},{"deployment":"` + id2 + `","count":1}]}` + "\n"; string(data) != want {
		t.Errorf("got %s", data)
	}
	got, err := record.ParseStreak(data)
	if err != nil || got.Count(id1) != 3 || got.Count(id2) != 1 || got.Count(id3) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	for i := range 100 {
		s = s.Add(fmt.Sprintf("%064x", i))
	}
	if len(s.Boots) != record.KeepBootFailures || s.Count(fmt.Sprintf("%064x", 99)) != 1 {
		t.Errorf("%d deployments are counted", len(s.Boots))
	}
	for _, bad := range []string{"", "{}", `{"format":1,"boots":[{"deployment":"x","count":1}]}`, `{"format":1,"boots":[{"deployment":"` + id1 + `","count":0}]}`} {
		if _, err := record.ParseStreak([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestPrunableBootFailures(t *testing.T) {
	var names []string
	for i := range 25 {
		names = append(names, fmt.Sprintf("b%02d.json", i), fmt.Sprintf("b%02d.log", i))
	}
	got := record.PrunableBootFailures(append([]string{record.StreakName, "foreign"}, names...))
	if len(got) != 12 || got[0] != "b19.json" || got[11] != "b24.log" {
		t.Errorf("got %q", got)
	}
	if got := record.PrunableBootFailures(names[:38]); got != nil {
		t.Errorf("room for one more, got %q", got)
	}
}

func TestBootIDOf(t *testing.T) {
	for in, want := range map[string]string{strings.ReplaceAll(bootID, "-", ""): bootID, bootID: bootID, "": "", "x": "x"} {
		if got := record.BootIDOf(in); got != want {
			t.Errorf("%q: got %q", in, got)
		}
	}
}

func TestSeqOfEntryID(t *testing.T) {
	for _, c := range []struct {
		id, token string
		seq       uint64
	}{
		{"cfsboot_0123abcd-0000000042.conf", "0123abcd", 42},
		{"cfsboot_0123abcd-0000000042.conf", "", 42},
		{"cfsboot_0123abcd-0000000042.conf", "other", 0},
		{"CFSBOOT_0123ABCD-0000000042.CONF", "0123abcd", 42},
		{"auto-windows", "", 0},
	} {
		if seq, ok := record.SeqOfEntryID(c.id, c.token); seq != c.seq || ok != (c.seq > 0) {
			t.Errorf("%q, %q: got %d, %v", c.id, c.token, seq, ok)
		}
	}
}

func FuzzParseBootFailure(f *testing.F) {
	data, err := failure().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := record.ParseBootFailure(data)
		if err != nil {
			return
		}
		if strings.ContainsAny(x.Name(), "/\x00") {
			t.Errorf("name %q", x.Name())
		}
		again, err := x.Encode()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := record.ParseBootFailure(again); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
	})
}

func FuzzParseStreak(f *testing.F) {
	f.Add([]byte(`{"format":1,"boots":[{"deployment":"` + id1 + `","count":3}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := record.ParseStreak(data)
		if err != nil {
			return
		}
		again, err := s.Add(id2).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := record.ParseStreak(again); err != nil || got.Count(id2) != s.Count(id2)+1 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}
