package systemd_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/systemd"
)

func TestParseUnits(t *testing.T) {
	const text = "app.service          loaded failed failed My app\n● bad\\x2dname.mount loaded failed failed /x\n\nnothing here\n0 loaded units listed.\n"
	if diff := cmp.Diff([]string{"app.service", `bad\x2dname.mount`}, systemd.ParseUnits(text)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

// TestParseJobs: only what is being started is late; what waits for it, and our own unit, are not.
func TestParseJobs(t *testing.T) {
	const text = "  95 hang.service                   start running\n   1 multi-user.target              start waiting\n 200 cfsboot-boot-incomplete.service start running\n 201 old.service stop running\nNo jobs running.\n"
	if diff := cmp.Diff([]string{"hang.service"}, systemd.ParseJobs(text)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func TestParseBoots(t *testing.T) {
	const text = "IDX BOOT ID                          FIRST ENTRY                 LAST ENTRY\n" +
		" -1 0123456789abcdef0123456789abcdef Wed 2026-11-25 10:00:00 UTC Wed 2026-11-25 10:05:00 UTC\n" +
		"  0 fedcba9876543210fedcba9876543210 Wed 2026-11-25 10:06:00 UTC—Wed 2026-11-25 10:07:00 UTC\n-2 short x\n"
	want := []systemd.Boot{{Offset: -1, ID: "0123456789abcdef0123456789abcdef"}, {Offset: 0, ID: "fedcba9876543210fedcba9876543210"}}
	if got := systemd.ParseBoots(text); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
