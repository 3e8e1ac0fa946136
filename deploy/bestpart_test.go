package deploy

import (
	"testing"

	"golang.org/x/sys/unix"
)

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
