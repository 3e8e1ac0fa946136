package esp_test

import (
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
)

// TestP7NeverInPlace: kernel, initrd and entry are new files that are synced; nothing is written over or renamed, and
// after a power cut the entry has its whole payload (boot.md 0.4; every single fault is TestPlaceSurvivesEveryFault).
func TestP7NeverInPlace(t *testing.T) {
	fat := durabletest.NewFAT(t)
	p := payload(t, "kernel", "initrd")
	e := esp.New(fat.Dir())
	const name = "cfsboot_aa-0000000007+3-0.conf"
	text := strings.ReplaceAll(entryText(t, "aa", 7), strings.Repeat("ab", 32), p.Digest)
	if err := e.Place(t.Context(), p, false); err != nil {
		t.Fatal(err)
	}
	if err := e.WriteEntry(name, []byte(text)); err != nil {
		t.Fatal(err)
	}
	if fat.Count() < 8 {
		t.Fatalf("only %d calls were seen", fat.Count())
	}
	synced := 0
	for n := range fat.Count() {
		op := fat.Op(n)
		for _, word := range []string{"rename", "exchange", "truncate", "unlink"} {
			if strings.Contains(op, word) {
				t.Errorf("call %d: %s", n, op)
			}
		}
		if strings.Contains(op, "sync") {
			synced++
		}
	}
	if synced < 3 {
		t.Errorf("%d syncs for three files", synced)
	}
	after := esp.New(fat.PowerLoss().Dir())
	if err := after.CheckEntry(name, []byte(text)); err != nil {
		t.Error(err)
	}
	if err := after.CheckDigest(t.Context(), p.Digest); err != nil {
		t.Error(err)
	}
	if err := after.WriteEntry(name, []byte(text)); err == nil {
		t.Error("an entry was written over")
	}
}
