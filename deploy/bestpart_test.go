package deploy

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// TestOldCopyOfPartition: another partition holds more entries of this installation
// than the one that is used, but none that the journal knows.
func TestOldCopyOfPartition(t *testing.T) {
	state := record.State{Token: "abcd1234", NextEntry: 7, Entries: []record.ArmedEntry{{Seq: 5}, {Seq: 6}}}
	for _, tc := range []struct {
		name string
		list [][]uint64 // numbers of the entries of each partition
		want int
	}{
		{"the loader's lost one", [][]uint64{{6}, {1, 2, 3}}, 0},
		{"the other way round", [][]uint64{{1, 2, 3}, {6}}, 1},
		{"one of the journal on the copy", [][]uint64{{5, 6}, {1, 2, 3, 5}}, 0},
		{"nothing that the journal knows", [][]uint64{{1}, {2, 3}}, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var list []esp.Device
			for _, numbers := range tc.list {
				dir := t.TempDir()
				if err := os.MkdirAll(filepath.Join(dir, esp.EntryDir), 0o755); err != nil {
					t.Fatal(err)
				}
				for _, n := range numbers {
					if err := os.WriteFile(filepath.Join(dir, esp.EntryDir, record.EntryName{Token: state.Token, Seq: n}.String()), []byte("x"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				list = append(list, esp.Device{Path: dir, Why: fmt.Sprintf("entries %d", numbers)})
			}
			dir, dev, err := chooseBoot(list, state, func(d esp.Device) (*durable.Dir, error) { return durable.OpenDir(d.Path) })
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if dev != list[tc.want] {
				t.Errorf("chose that with %s, want that with %s", dev.Why, list[tc.want].Why)
			}
		})
	}
}

// TestBestPartition: what a partition holds decides, then the order; what cannot be
// looked at is not passed over for one that holds nothing.
func TestBestPartition(t *testing.T) {
	noFAT := &RefusedError{Code: CodeBadESP, Err: errNoFAT}
	damaged := refuseDamaged("/dev/x", unix.EIO)
	for _, tc := range []struct {
		name string
		all  []partition
		want int
	}{
		{"one", []partition{{}}, 0},
		{"nothing anywhere", []partition{{}, {}}, 0},
		{"entries on the second", []partition{{}, {entries: 1}}, 1},
		{"more entries", []partition{{entries: 1}, {entries: 3}, {entries: 2}}, 1},
		{"entries on both", []partition{{entries: 2}, {entries: 2}}, 0},
		{"names", []partition{{names: 1}, {names: 3}, {names: 2}}, 1},
		{"an old copy", []partition{{entries: 1, names: 1}, {names: 3}}, 0},
		{"the right one is damaged, and there is an old copy", []partition{{err: damaged}, {names: 3}}, 0},
		{"an old copy, and another is damaged", []partition{{names: 3}, {err: damaged}}, 1},
		{"the past, and a foreign ext4", []partition{{err: noFAT}, {names: 3}}, 1},
		{"an old copy that has more payloads", []partition{{names: 3, payloads: 2}, {entries: 1, names: 1}}, 1},
		{"payloads before names", []partition{{names: 3}, {payloads: 1}}, 1},
		{"entries before payloads", []partition{{payloads: 3}, {entries: 1}}, 1},
		{"payloads", []partition{{}, {payloads: 1}}, 1},
		{"a foreign ext4", []partition{{}, {err: noFAT}}, 0},
		{"a foreign ext4, and nothing of ours", []partition{{err: noFAT}, {}}, 0},
		{"the first is damaged", []partition{{err: damaged}, {}}, 0},
		{"the first is damaged, the other has the entries", []partition{{err: damaged}, {entries: 1}}, 1},
		{"the second is damaged", []partition{{}, {err: damaged}}, 1},
		{"the second is damaged, the first has the entries", []partition{{entries: 1}, {err: damaged}}, 0},
	} {
		if got := bestPartition(tc.all); got != tc.want {
			t.Errorf("%s: got %d, want %d", tc.name, got, tc.want)
		}
	}
}
