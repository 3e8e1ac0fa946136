package bls_test

import (
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// TestP6WholeKeys: a flag replaces a parameter with exactly its key, never one that begins like it (boot.md 0.4), and
// every "options" line of an entry counts.
func TestP6WholeKeys(t *testing.T) {
	c := bls.ParseCmdline("root=UUID=x rwfoo quietly=1 console=ttyS0")
	for _, flag := range []string{"ro", "rw", "quiet", "con"} {
		before := c.String()
		if c = c.Set(flag); c.String() != before+" "+flag {
			t.Errorf("set %s: %q became %q", flag, before, c)
		}
	}
	e, err := bls.ParseEntry([]byte("title x\noptions root=UUID=x quiet\noptions ro\nlinux /vmlinuz\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := e.Options().Set("ro").String(); got != "root=UUID=x quiet ro" {
		t.Errorf("two options lines: %q", got)
	}
}
