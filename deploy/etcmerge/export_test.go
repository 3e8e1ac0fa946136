package etcmerge

import (
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// Footprint is footprint.
var Footprint = footprint

// Fits says whether so many bytes and inodes fit.
var Fits = fits

// FingerprintAt is Fingerprint with another clock.
func FingerprintAt(t testing.TB, dir *durable.Dir, now time.Time) string {
	t.Helper()
	f := newFingerprinter()
	f.start = now
	if err := f.walk(t.Context(), dir, ".", 0); err != nil {
		t.Fatal(err)
	}
	return f.sum()
}

// ScanAt is Scan with another clock.
func ScanAt(t testing.TB, dir *durable.Dir, a fsverity.Algorithm, now time.Time) *Live {
	t.Helper()
	live, err := scanAt(t.Context(), dir, a, now)
	if err != nil {
		t.Fatal(err)
	}
	return live
}
