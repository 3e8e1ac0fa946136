package bls_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/fsverity"
)

const (
	hexA = "8b7df143d91c716ecfa5fc1730022f6b421b05cedee8fd52b1fc65a96030ad52"
	hexB = "6f06b5e82420abec546d6e6d3ddd612c50cfa9b707c129345b7ec16f456b92fe35df68999b042e1a6a70dfe75f2fed8cf9f67afd0bf08d2374678d75e2f65a02"
)

var hexa = strings.Repeat("a", 64)

func digest(t testing.TB, hex string) fsverity.Digest {
	t.Helper()
	d, err := fsverity.ParseHex(hex)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// show prints images in a form that does not depend on the code under test.
func show(images []bls.KargImage) []string {
	out := []string{}
	for _, k := range images {
		mark := "secure"
		if k.Insecure {
			mark = "insecure"
		}
		out = append(out, k.Digest.Hex()+" "+mark+" v"+string(rune('0'+k.Version)))
	}
	return out
}

// The vectors of boot.md 1.2.
func TestParseKargs(t *testing.T) {
	for _, tc := range []struct {
		name, line string
		want       []string
		fails      bool
	}{
		{name: "empty"},
		{name: "other", line: "foo"},
		{name: "key without value", line: "composefs"},
		{name: "none", line: "root=UUID=abc quiet"},
		{name: "not hex, old", line: "composefs=foo", fails: true},
		{name: "not hex, new", line: "composefs.digest=v1-sha256-12:notahex", fails: true},
		{name: "old", line: "composefs=" + hexA, want: []string{hexA + " secure v2"}},
		{name: "old insecure", line: "composefs=?" + hexA, want: []string{hexA + " insecure v2"}},
		{name: "three in order", line: "composefs.digest=v1-sha256-12:" + hexA + " composefs.digest=v1-sha512-12:" + hexB + " composefs=" + hexa,
			want: []string{hexA + " secure v1", hexB + " secure v1", hexa + " secure v2"}},
		{name: "order of the line", line: "composefs=" + hexa + " composefs.digest=v1-sha512-12:" + hexB,
			want: []string{hexa + " secure v2", hexB + " secure v1"}},
		{name: "mixed marks", line: "composefs.digest=?v1-sha256-12:" + hexA + " composefs.digest=v1-sha512-12:" + hexB,
			want: []string{hexA + " insecure v1", hexB + " secure v1"}},
		{name: "version", line: "composefs.digest=v3-sha256-12:" + hexA, fails: true},
		{name: "block size 8", line: "composefs.digest=v1-sha256-8:" + hexA, fails: true},
		{name: "block size 99", line: "composefs.digest=v1-sha512-99:" + hexB, fails: true},
		{name: "no descriptor", line: "composefs.digest=" + hexA, fails: true},
		{name: "v2", line: "composefs.digest=v2-sha256-12:" + hexA, want: []string{hexA + " secure v2"}},
		{name: "length", line: "composefs=" + hexB[:126], fails: true},
		{name: "wrong algorithm for length", line: "composefs.digest=v1-sha512-12:" + hexA, fails: true},
		{name: "bad after good", line: "composefs=" + hexA + " composefs.digest=x", fails: true},
		{name: "empty value", line: "composefs=", fails: true},
		{name: "only mark", line: "composefs=?", fails: true},
		{name: "mark twice", line: "composefs=??" + hexA, fails: true},
		{name: "mark after descriptor", line: "composefs.digest=v1-sha256-12:?" + hexA, fails: true},
		{name: "quoted token", line: `"composefs=` + hexA + `"`, want: []string{hexA + " secure v2"}},
		{name: "quoted value", line: `composefs="` + hexA + `"`, want: []string{hexA + " secure v2"}},
		{name: "inside quotes of another", line: `foo="composefs=` + hexA + `"`},
		{name: "inside quotes after a blank", line: `foo="x composefs=` + hexA + `"`},
		{name: "longer key", line: "composefs.digests=x composefsx=y xcomposefs=z"},
		{name: "white space", line: "\tquiet\n\f  composefs=" + hexA + "\r", want: []string{hexA + " secure v2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := bls.ParseKargs(tc.line)
			if (err != nil) != tc.fails {
				t.Fatalf("error %v, want one: %v", err, tc.fails)
			}
			if err != nil {
				var ke *bls.KargError
				if !errors.As(err, &ke) || !strings.Contains(tc.line, ke.Token) {
					t.Fatalf("%v is no *KargError that names the token", err)
				}
				return
			}
			if tc.want == nil {
				tc.want = []string{}
			}
			if diff := cmp.Diff(tc.want, show(got)); diff != "" {
				t.Errorf("mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKargString(t *testing.T) {
	a, b := digest(t, hexA), digest(t, hexB)
	for want, got := range map[string]string{
		"composefs.digest=v1-sha256-12:" + hexA:  bls.KargImage{Digest: a}.String(),
		"composefs.digest=v1-sha512-12:" + hexB:  bls.KargImage{Digest: b, Version: 1}.String(),
		"composefs=" + hexB:                      bls.KargImage{Digest: b, Version: 2}.String(),
		"composefs=?" + hexA:                     bls.KargImage{Digest: a, Insecure: true, Version: 2}.String(),
		"composefs.digest=?v1-sha256-12:" + hexA: bls.KargImage{Digest: a, Insecure: true, Version: 1}.String(),
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestCheckSealed(t *testing.T) {
	four := strings.Repeat("composefs="+hexA+" ", 4)
	for line, ok := range map[string]bool{
		"":                         true,
		four:                       true,
		four + "composefs=" + hexA: false,
		"composefs=?" + hexA:       false,
		"composefs=" + hexA + " composefs.digest=?v1-sha512-12:" + hexB: false,
	} {
		images, err := bls.ParseKargs(line)
		if err != nil {
			t.Fatal(err)
		}
		if err := bls.CheckSealed(images); (err == nil) != ok {
			t.Errorf("%q: error %v, want ok: %v", line, err, ok)
		}
	}
}

func FuzzParseKargs(f *testing.F) {
	f.Add("composefs.digest=?v1-sha256-12:" + hexA + ` quiet "composefs=` + hexB + `"`)
	f.Add("composefs=" + hexa + " root=x  y\t\"z")
	f.Fuzz(func(t *testing.T, line string) {
		images, err := bls.ParseKargs(line)
		if err != nil {
			return
		}
		// What was accepted reads the same when it is written again.
		var again []string
		for _, k := range images {
			again = append(again, k.String())
		}
		got, err := bls.ParseKargs(strings.Join(again, " "))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(show(images), show(got)); diff != "" {
			t.Errorf("mismatch (-want +got):\n%s", diff)
		}
		if c := bls.ParseCmdline(line); c.String() != bls.ParseCmdline(c.String()).String() {
			t.Errorf("splitting %q is not stable", line)
		}
	})
}
