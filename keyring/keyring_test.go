package keyring_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/keyring"
)

func digest(s string) fsverity.Digest { return fsverity.Sum(fsverity.SHA512, []byte(s)) }

func TestZeroVerifiedHasNoImage(t *testing.T) {
	t.Parallel()
	var v keyring.Verified
	for _, role := range []keyring.Role{keyring.Plain, keyring.Boot, 0, 9} {
		if d, ok := v.Digest(role); ok {
			t.Errorf("zero Verified has %s image %s", role, d)
		}
	}
}

func TestPinnedVerify(t *testing.T) {
	t.Parallel()
	a, b := digest("a"), digest("b")
	for _, tc := range []struct {
		name     string
		policy   keyring.Pinned
		role     keyring.Role
		measured fsverity.Digest
		code     string
	}{
		{"pinned", keyring.Pinned{Digests: []fsverity.Digest{a}}, keyring.Boot, a, ""},
		{"second pin", keyring.Pinned{Digests: []fsverity.Digest{b, a}}, keyring.Plain, a, ""},
		{"other digest", keyring.Pinned{Digests: []fsverity.Digest{a}}, keyring.Boot, b, keyring.CodeNotPinned},
		{"no pins", keyring.Pinned{}, keyring.Boot, a, keyring.CodeNoPin},
		{"nothing measured", keyring.Pinned{Digests: []fsverity.Digest{a}}, keyring.Boot, fsverity.Digest{}, keyring.CodeNoImage},
		{"zero pin, nothing measured", keyring.Pinned{Digests: []fsverity.Digest{{}}}, keyring.Boot, fsverity.Digest{}, keyring.CodeNoImage},
		{"no role", keyring.Pinned{Digests: []fsverity.Digest{a}}, 0, a, keyring.CodeNoImage},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v, err := tc.policy.Verify(tc.role, tc.measured)
			got, ok := v.Digest(tc.role)
			if tc.code == "" {
				if err != nil || !ok || got != tc.measured || v.Rule() != "pinned" {
					t.Fatalf("got %v, %v, %q, %v", got, ok, v.Rule(), err)
				}
				other := keyring.Plain + keyring.Boot - tc.role
				if d, ok := v.Digest(other); ok {
					t.Errorf("%s was verified too: %s", other, d)
				}
				return
			}
			var p *keyring.PolicyError
			if !errors.As(err, &p) || p.Code != tc.code {
				t.Fatalf("error %v, want code %s", err, tc.code)
			}
			if ok {
				t.Error("a refused image is verified")
			}
		})
	}
}

func TestVerifyImages(t *testing.T) {
	t.Parallel()
	plain, boot := digest("plain"), digest("boot")
	for _, tc := range []struct {
		name   string
		policy keyring.Policy
		images keyring.Images
		code   string
	}{
		{"computed", keyring.Computed{}, keyring.Images{Plain: plain, Boot: boot}, ""},
		{"computed, plain only", keyring.Computed{}, keyring.Images{Plain: plain}, ""},
		{"computed, nothing", keyring.Computed{}, keyring.Images{}, keyring.CodeNoImage},
		{"pinned boot", keyring.Pinned{Digests: []fsverity.Digest{boot}}, keyring.Images{Plain: plain, Boot: boot}, ""},
		{"pinned plain", keyring.Pinned{Digests: []fsverity.Digest{plain}}, keyring.Images{Plain: plain}, ""},
		{"plain pin does not vouch for boot", keyring.Pinned{Digests: []fsverity.Digest{plain}}, keyring.Images{Plain: plain, Boot: boot}, keyring.CodeNotPinned},
		{"pinned, nothing", keyring.Pinned{Digests: []fsverity.Digest{plain}}, keyring.Images{}, keyring.CodeNoImage},
		{"no pins", keyring.Pinned{}, keyring.Images{Plain: plain}, keyring.CodeNoPin},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v, err := tc.policy.VerifyImages(tc.images)
			if tc.code != "" {
				var p *keyring.PolicyError
				if !errors.As(err, &p) || p.Code != tc.code {
					t.Fatalf("error %v, want code %s", err, tc.code)
				}
				if v != (keyring.Verified{}) {
					t.Error("a refused image is verified")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if d, _ := v.Digest(keyring.Plain); d != tc.images.Plain {
				t.Errorf("plain %s, want %s", d, tc.images.Plain)
			}
			if d, _ := v.Digest(keyring.Boot); d != tc.images.Boot {
				t.Errorf("boot %s, want %s", d, tc.images.Boot)
			}
		})
	}
}

func TestPolicyErrorNamesDigests(t *testing.T) {
	t.Parallel()
	a, b := digest("a"), digest("b")
	_, err := keyring.Pinned{Digests: []fsverity.Digest{a}}.Verify(keyring.Boot, b)
	for _, want := range []string{"boot", a.Hex(), b.Hex()} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}
