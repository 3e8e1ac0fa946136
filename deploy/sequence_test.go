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
