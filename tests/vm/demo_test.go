package vm_test

import (
	"bytes"
	"testing"

	"github.com/cfsboot/cfsboot/tests/vm/demo"
)

// TestVMDemo boots, upgrades, boots, rolls back and boots: see package demo.
func TestVMDemo(t *testing.T) {
	t.Parallel()
	l := openLab(t)
	var transcript bytes.Buffer
	err := demo.Run(t.Context(), l, &transcript)
	t.Logf("console logs: %s\n%s", l.Logs, transcript.String())
	if err != nil {
		t.Fatal(err)
	}
}
