package bls_test

import (
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// TestP6WholeKeys: the composefs parameter takes the place of a parameter with exactly its key, never of one that begins
// like it (boot.md 0.4), and every "options" line of an entry counts.
func TestP6WholeKeys(t *testing.T) {
	e, err := bls.ParseEntry([]byte("title x\noptions composefsx=1 compose=2\noptions root=UUID=x composefs.digest=old ro\nlinux /vmlinuz\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := e.Options().SetComposefs("NEW").String(), "composefsx=1 compose=2 root=UUID=x NEW ro"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
