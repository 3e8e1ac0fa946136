package bls_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// The vectors of boot.md 4.3.
func TestCompareVersions(t *testing.T) {
	chains := [][]string{
		{"122.1", "123~rc1-1", "123", "123-a", "123-a.1", "123-1", "123-1.1", "123^post1", "123.a-1", "123.1-1", "123a-1", "124-1"},
		{"bar-123", "foo-123"},
		{"123.a", "123a"},
		{"B", "a"},
		{"0", "0."},
		{"0", "0.0"},
		{"1_", "1.2"},
		{"1.3.3", "1_2_3"},
		{"1.2.3", "1.2.3+4"},
		{"1.0~rc1", "1.0", "1.0-1", "1.0^git1"},
		{"cfs-2.efi", "cfs-10.efi"},
		{"B", "0"},
		{"~", "", "0"},
	}
	for _, chain := range chains {
		for i, a := range chain {
			for j, b := range chain {
				want := 0
				if i < j {
					want = -1
				} else if i > j {
					want = 1
				}
				if got := bls.CompareVersions(a, b); got != want {
					t.Errorf("%q and %q: got %d, want %d", a, b, got, want)
				}
			}
		}
	}
	for _, equal := range [][2]string{{"11", "11"}, {"1_", "1"}, {"007", "7"}, {"", ""}, {"a", "a"}, {"é1", "1"}, {"_", ""}} {
		if got := bls.CompareVersions(equal[0], equal[1]); got != 0 {
			t.Errorf("%q and %q: got %d, want 0", equal[0], equal[1], got)
		}
	}
}

// TestCompareVersionsOracle compares with systemd's own order.
func TestCompareVersionsOracle(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal(err)
		}
		t.Skip("systemd-analyze is not installed")
	}
	r := rand.New(rand.NewPCG(1, 2))
	random := func() string {
		const alphabet = "0012aB-^.~_+"
		b := make([]byte, r.IntN(7))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(b)
	}
	for range 120 {
		a, b := random(), random()
		// Exit status: 0 equal, 11 first newer, 12 second newer.
		err := exec.CommandContext(t.Context(), analyze, "compare-versions", "--", a, b).Run()
		code := 0
		if exit, ok := err.(*exec.ExitError); ok { //nolint:errorlint // the exit status itself is the answer
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		want, ok := map[int]int{0: 0, 11: 1, 12: -1}[code]
		if !ok {
			t.Skipf("systemd-analyze has no compare-versions (exit status %d)", code)
		}
		if got := bls.CompareVersions(a, b); got != want {
			t.Errorf("%q and %q: got %d, systemd says %d", a, b, got, want)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("123~rc1-1", "123^post1")
	f.Fuzz(func(t *testing.T, a, b string) {
		if x, y := bls.CompareVersions(a, b), bls.CompareVersions(b, a); x != -y {
			t.Error(fmt.Errorf("%q and %q: %d one way, %d the other", a, b, x, y))
		}
		if bls.CompareVersions(a, a) != 0 {
			t.Errorf("%q differs from itself", a)
		}
	})
}
