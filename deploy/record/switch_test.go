package record_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// TestJournalSwitch: a switch stages as an upgrade does, and makes no entry itself.
func TestJournalSwitch(t *testing.T) {
	d := disk{}
	s := d.play(t, slices.Concat(install, bless1, []ev{
		{Kind: record.EventBegin, Transaction: "t2", Op: record.OpSwitch, Reference: "docker://r/other:1"},
		{Kind: record.EventTarget, Transaction: "t2", Deployment: id2, BootDigest: bd2},
	})...)
	if _, err := s.Apply(ev{Kind: record.EventArmed, Deployment: id2, Entry: 2}, start); err == nil {
		t.Error("a switch arms without being staged")
	}
	s = d.play(t, ev{Kind: record.EventPrepared, Transaction: "t2"})
	if s.Transaction != nil || s.Staged == nil || s.Staged.Deployment != id2 || s.Staged.DownloadOnly {
		t.Errorf("after the switch: %+v, staged %+v", s, s.Staged)
	}
	s = d.play(t, ev{Kind: record.EventReference, Deployment: id1, Reference: "docker://r/other:1"})
	if s.Staged == nil || s.Newest().Deployment != id1 {
		t.Errorf("another reference changes the state: %+v", s)
	}
	for name, e := range map[string]ev{
		"reference of what is not known": {Kind: record.EventReference, Deployment: id3, Reference: "x"},
		"no reference":                   {Kind: record.EventReference, Deployment: id1},
	} {
		var bad *record.TransitionError
		if _, err := s.Apply(e, start); !errors.As(err, &bad) {
			t.Errorf("%s: %v, want a *TransitionError", name, err)
		}
	}
	if _, err := s.Apply(ev{Kind: record.EventBegin, Transaction: "t9", Op: "edit"}, start); err == nil {
		t.Error("an unknown operation was accepted")
	}
}

// TestJournalDownloadOnly: the mark comes with prepared, goes with an event of
// its own, and does not outlive the stage.
func TestJournalDownloadOnly(t *testing.T) {
	d := disk{}
	d.play(t, slices.Concat(install, bless1)...)
	up := slices.Clone(upgrade)
	up[2].DownloadOnly = true
	s := d.play(t, up...)
	if !s.Staged.DownloadOnly {
		t.Fatal("prepared forgets that it is download-only")
	}
	if _, err := s.Apply(ev{Kind: record.EventDownloadOnly, Deployment: id1}, start); err == nil {
		t.Error("what is not staged was marked")
	}
	if s = d.play(t, ev{Kind: record.EventDownloadOnly, Deployment: id2}); s.Staged.DownloadOnly {
		t.Error("the mark stays")
	}
	if s = d.play(t, ev{Kind: record.EventDownloadOnly, Deployment: id2, DownloadOnly: true}); !s.Staged.DownloadOnly {
		t.Error("the mark does not come back")
	}
	s = d.play(t, ev{Kind: record.EventDropped, Deployment: id2})
	if s.Staged != nil {
		t.Errorf("after drop: %+v", s.Staged)
	}
}
