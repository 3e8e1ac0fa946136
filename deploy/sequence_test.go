package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// TestSequenceFarAhead: an entry with our token that nobody recorded and that every new one would come after is named as a conflict
// before anything is done; one that is a little ahead is overtaken. The machine boots all the while.
func TestSequenceFarAhead(t *testing.T) {
	for ahead, conflict := range map[uint64]bool{2: false, 5: false, 5000000000: true, record.MaxEntrySeq: true} {
		t.Run(fmt.Sprint(ahead), func(t *testing.T) {
			w := newWorld(t)
			one := w.releases(release(t, "1"))[0]
			must(t, settled(w.upgrade(w.tag)))
			first := entriesOf(t, w)[0]
			name := first.Name
			name.Seq = ahead
			path := filepath.Join(w.fat.Path(), esp.EntryDir, name.String())
			data, err := os.ReadFile(filepath.Join(w.fat.Path(), esp.EntryDir, first.File))
			must(t, err)
			must(t, os.WriteFile(path, []byte(strings.Replace(string(data), "version 0000000001", fmt.Sprintf("version %010d", ahead), 1)), 0o644))
			w.changed()
			if got := w.boot(); got != one {
				t.Fatalf("booted %s", got)
			}
			if !slices.ContainsFunc(w.status().Cfsboot.Problems, func(p deploy.Problem) bool {
				return p.Code == deploy.ProblemUnknown && strings.Contains(p.Message, name.String())
			}) {
				t.Errorf("status does not name %s", name)
			}
			n := len(w.records())
			err = settled(w.upgrade(release(t, "2")))
			var named *deploy.ConflictError
			if errors.As(err, &named) != conflict || conflict && (!slices.Equal(named.Paths, []string{esp.EntryDir + "/" + name.String()}) || len(w.records()) != n) || !conflict && err != nil {
				t.Fatalf("got %v, want a conflict that names the file: %v", err, conflict)
			}
			if conflict {
				if strings.Contains(err.Error(), "\n") || w.boot() != one {
					t.Errorf("booted %s after %v", w.booted(), err)
				}
				must(t, os.Remove(path))
				w.changed()
				must(t, settled(w.upgrade(w.tag)))
			}
			must(t, settled(w.finalize()))
			if got := w.boot(); got == one {
				t.Error("the upgrade does not boot")
			}
		})
	}
}

// TestSequenceUsedUp: without numbers for new entries a command is refused with the numbers before it does anything.
func TestSequenceUsedUp(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	must(t, settled(w.upgrade(w.tag)))
	records := w.records()
	last := filepath.Join(w.root.Path(), record.JournalDir, records[len(records)-1])
	data, err := os.ReadFile(last)
	must(t, err)
	var seq uint64
	if _, err := fmt.Sscanf(records[len(records)-1], "%d.json", &seq); err != nil {
		t.Fatal(err)
	}
	r, err := record.ParseRecord(seq, data)
	must(t, err)
	r.State.NextEntry = record.MaxEntrySeq - 3
	data, err = r.Encode()
	must(t, err)
	must(t, os.WriteFile(last, data, 0o644))
	w.changed()
	var refused *deploy.RefusedError
	if _, err := w.upgrade(release(t, "2")); !errors.As(err, &refused) || refused.Code != deploy.CodeSequence || !strings.Contains(err.Error(), fmt.Sprint(uint64(record.MaxEntrySeq-3))) {
		t.Errorf("got %v, want a refusal with the number", err)
	}
	if len(w.records()) != len(records) {
		t.Error("the refusal comes after the beginning")
	}
	if got := w.boot(); got != one {
		t.Errorf("booted %s", got)
	}
}
