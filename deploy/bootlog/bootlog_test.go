package bootlog_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

var testTime = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// place is a physical root with our state.
func place(t *testing.T) *durabletest.FS {
	t.Helper()
	fsys := durabletest.New(t)
	must(t, os.MkdirAll(filepath.Join(fsys.Path(), "state"), 0o755))
	return durabletest.Over(t, fsys.Path())
}

// failure is the n-th failed boot.
func failure(n int) record.BootFailure {
	return record.BootFailure{
		Format: 1, BootID: fmt.Sprintf("01234567-89ab-4cde-8f01-2345678900%02d", n), Time: testTime.Add(time.Duration(n) * time.Minute),
		Stage: record.StageHealth, Entry: uint64(n), Reason: "x", Units: []string{},
	}
}

func write(t *testing.T, top *durable.Dir, f record.BootFailure, messages string) error {
	t.Helper()
	log, err := bootlog.Open(top)
	if err != nil {
		return err
	}
	defer log.Close()
	return log.Write(f, []byte(messages))
}

// TestWrite: what was written is read again after a power cut, records by everybody and messages by root.
func TestWrite(t *testing.T) {
	fsys := place(t)
	must(t, write(t, fsys.Open(), failure(2), "two\n"))
	must(t, write(t, fsys.Open(), failure(1), strings.Repeat("x", record.MaxBootLog)+"end"))
	must(t, write(t, fsys.Open(), failure(3), ""))
	after := fsys.PowerLoss()
	got, problems := bootlog.Read(after.Open())
	if diff := cmp.Diff([]record.BootFailure{failure(1), failure(2), failure(3)}, got); diff != "" || len(problems) > 0 {
		t.Errorf("mismatch (-want +got):\n%s%v", diff, problems)
	}
	for n, want := range map[int]string{1: strings.Repeat("x", record.MaxBootLog-3) + "end", 2: "two\n"} {
		if got, err := bootlog.ReadMessages(after.Open(), failure(n)); err != nil || string(got) != want {
			t.Errorf("messages of %d: %d bytes, %v, want %d", n, len(got), err, len(want))
		}
	}
	if _, err := bootlog.ReadMessages(after.Open(), failure(3)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("messages that were not kept: %v", err)
	}
	for name, want := range map[string]fs.FileMode{failure(2).Name() + ".json": 0o644, failure(2).Name() + ".log": 0o600} {
		st, err := os.Stat(filepath.Join(fsys.Path(), record.BootFailureDir, name))
		if err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", name, st, err, want)
		}
	}
	if err := write(t, fsys.Open(), record.BootFailure{BootID: "../x"}, "messages"); err == nil {
		t.Error("a record that nobody can read was written")
	}
	if _, err := bootlog.Open(durabletest.New(t).Open()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file system without our state: %v", err)
	}
}

// TestWriteForgets: the newest 20 are kept, and what is not ours stays and hinders nothing, whatever it is called.
func TestWriteForgets(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, record.BootFailureDir)
	must(t, os.MkdirAll(filepath.Join(dir, "x.json", "y"), 0o755))
	top, err := durable.OpenDir(root)
	must(t, err)
	defer top.Close()
	must(t, os.Symlink("/nowhere", filepath.Join(dir, "y.json")))
	must(t, os.Chtimes(filepath.Join(dir, "x.json"), testTime, testTime))
	for n := range 25 {
		must(t, write(t, top, failure(n), "log"))
		for _, suffix := range []string{".json", ".log"} {
			at := testTime.Add(time.Duration(n+1) * time.Minute)
			must(t, os.Chtimes(filepath.Join(dir, failure(n).Name()+suffix), at, at))
		}
	}
	got, problems := bootlog.Read(top)
	if len(got) != record.KeepBootFailures || got[0].Entry != 5 || len(problems) > 0 {
		t.Errorf("%d records, the first is %+v, %v", len(got), got[0], problems)
	}
	list, err := os.ReadDir(dir)
	if want := 2*record.KeepBootFailures + 2; err != nil || len(list) != want {
		t.Errorf("%d files, %v, want %d", len(list), err, want)
	}
}

// TestWriteFaults: a record does not depend on the removal of others, nor on its messages, and none is half written.
func TestWriteFaults(t *testing.T) {
	fsys := place(t)
	for n := range 20 {
		must(t, write(t, fsys.Open(), failure(n), "log"))
	}
	named := false // the record has its name before this fault
	for n := 0; ; n++ {
		c := fsys.PowerLoss()
		c.FailAt(n, unix.EIO)
		err := write(t, c.Open(), failure(20), "log")
		if !c.Triggered() {
			must(t, err)
			if !named {
				t.Fatalf("after %d mutating calls no record was seen", n)
			}
			return
		}
		if err == nil {
			t.Errorf("fault %d (%s) was swallowed", n, c.Op(n))
		}
		got, problems := bootlog.Read(c.PowerLoss().Open())
		written := len(got) > 0 && got[len(got)-1].Entry == 20
		wanted := strings.HasPrefix(c.Op(n), string(durable.OpUnlink)) || named && !strings.HasPrefix(c.Op(n), string(durable.OpSyncDir))
		if len(problems) > 0 || wanted && !written {
			t.Errorf("fault %d (%s): the new record is there: %v, problems %v", n, c.Op(n), written, problems)
		}
		named = named || strings.HasPrefix(c.Op(n), string(durable.OpLink)+" "+failure(20).Name()+".json")
	}
}

// TestStreak: counts are kept over boots until one comes up; a file that is none counts from the start.
func TestStreak(t *testing.T) {
	rel1, rel2 := strings.Repeat("11", 64), strings.Repeat("22", 64)
	fsys := place(t)
	add := func(id string) record.Streak {
		t.Helper()
		log, err := bootlog.Open(fsys.Open())
		must(t, err)
		defer log.Close()
		s, err := log.AddToStreak(id)
		must(t, err)
		return s
	}
	must(t, bootlog.EndStreak(fsys.Open())) // there is none
	add(rel1)
	add(rel2)
	fsys = fsys.PowerLoss()
	if s := add(rel1); s.Count(rel1) != 2 || s.Count(rel2) != 1 {
		t.Errorf("streak %+v", s)
	}
	if s := add(""); s.Count(rel1) != 2 || s.Count("") != 0 {
		t.Errorf("streak after a failure of nobody knows what: %+v", s)
	}
	must(t, bootlog.EndStreak(fsys.Open()))
	fsys = fsys.PowerLoss()
	if s := add(rel1); s.Count(rel1) != 1 || s.Count(rel2) != 0 {
		t.Errorf("streak after a boot that came up: %+v", s)
	}
	must(t, os.WriteFile(filepath.Join(fsys.Path(), record.BootFailureDir, record.StreakName), []byte("torn"), 0o600))
	if s := add(rel1); s.Count(rel1) != 1 {
		t.Errorf("damaged streak: %+v", s)
	}
}

// TestReadDamaged: one record that cannot be read does not hide the others.
func TestReadDamaged(t *testing.T) {
	fsys := place(t)
	if got, problems := bootlog.Read(fsys.Open()); len(got)+len(problems) > 0 {
		t.Errorf("without records: %v, %v", got, problems)
	}
	must(t, write(t, fsys.Open(), failure(1), ""))
	must(t, os.WriteFile(filepath.Join(fsys.Path(), record.BootFailureDir, "x.json"), []byte(`{"format":7}`), 0o644))
	got, problems := bootlog.Read(fsys.Open())
	if len(got) != 1 || len(problems) != 1 || !strings.Contains(problems[0].Error(), "x.json") {
		t.Errorf("%v, %v", got, problems)
	}
	if _, err := bootlog.ReadJournal(fsys.Open()); !errors.Is(err, record.ErrNoJournal) {
		t.Errorf("without a journal: %v", err)
	}
}
