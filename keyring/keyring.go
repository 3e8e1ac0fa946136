// Package keyring decides which images this machine may mount and deploy.
//
// A composefs image is named by the fs-verity digest of its EROFS file. Every
// tree has two of them, told apart by [Role]: the plain image and the boot
// image, which is mounted as root. A policy looks at digests that were measured
// or computed locally and returns a [Verified]. That type has no constructor
// outside this package, so a function that takes a Verified cannot be handed an
// image that no policy has seen.
//
// Verification takes values only: no file, no network, no clock. Every refusal
// is a [*PolicyError], and a policy without rules refuses everything.
//
// Words: sealing.md 3, style.md 4. Values of this package are immutable and may
// be shared between goroutines.
package keyring

import (
	"fmt"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
)

// Role says which of the images made from one tree a digest names.
type Role uint8

// The roles. The zero value is none of them.
const (
	Plain Role = iota + 1 // the image as the OCI layers describe it
	Boot                  // the boot-transformed image: the root file system
)

// String returns "plain", "boot" or "role N".
func (r Role) String() string {
	switch r {
	case Plain:
		return "plain"
	case Boot:
		return "boot"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// Images are the image IDs of one tree, as measured or computed on this
// machine. A zero digest means that there is no image of that role.
type Images struct {
	Plain fsverity.Digest
	Boot  fsverity.Digest
}

// Verified says that a policy accepts images. The zero value accepts none.
type Verified struct {
	images Images
	rule   string
}

// Digest returns the image ID of a role, and whether this role was verified.
func (v Verified) Digest(role Role) (fsverity.Digest, bool) {
	var d fsverity.Digest
	switch role {
	case Plain:
		d = v.images.Plain
	case Boot:
		d = v.images.Boot
	}
	return d, !d.IsZero()
}

// Rule names the rule that accepted the images, for records and messages:
// "pinned" or "computed". It is empty for the zero value.
func (v Verified) Rule() string { return v.rule }

// Policy accepts or refuses the images of one tree. Every error is a
// [*PolicyError].
type Policy interface {
	VerifyImages(images Images) (Verified, error)
}

var (
	_ Policy = Pinned{}
	_ Policy = Computed{}
)

// Codes of PolicyError.
const (
	CodeNotPinned = "not-pinned" // the digest is not in the list
	CodeNoPin     = "no-pin"     // the list is empty
	CodeNoImage   = "no-image"   // there is no image of the required role
)

// PolicyError says why an image may not be used.
type PolicyError struct {
	Code string            // one of the Code constants
	Role Role              // of the image that was refused
	Rule string            // "pinned" or "computed"
	Got  fsverity.Digest   // zero if there was none
	Want []fsverity.Digest // the digests that would have been accepted
}

// Error names the rule, the image and what the rule would have accepted.
func (e *PolicyError) Error() string {
	switch e.Code {
	case CodeNoPin:
		return fmt.Sprintf("refuse %s image %s: the policy pins no digest", e.Role, e.Got)
	case CodeNoImage:
		return fmt.Sprintf("refuse image: there is no %s image", e.Role)
	}
	want := make([]string, len(e.Want))
	for i, d := range e.Want {
		want[i] = d.String()
	}
	return fmt.Sprintf("refuse %s image: got %s, want %s", e.Role, e.Got, strings.Join(want, " or "))
}

// Pinned is the policy that accepts the digests that someone named before, for
// example the signed kernel command line.
type Pinned struct {
	Digests []fsverity.Digest
}

// Verify accepts measured, the digest of an image of the given role, if it is
// pinned. The result holds this role only. Every error is a *PolicyError.
func (p Pinned) Verify(role Role, measured fsverity.Digest) (Verified, error) {
	if measured.IsZero() || (role != Plain && role != Boot) {
		return Verified{}, &PolicyError{Code: CodeNoImage, Role: role, Rule: "pinned", Want: p.Digests}
	}
	if len(p.Digests) == 0 {
		return Verified{}, &PolicyError{Code: CodeNoPin, Role: role, Rule: "pinned", Got: measured}
	}
	for _, d := range p.Digests {
		if d == measured {
			v := Verified{rule: "pinned"}
			if role == Plain {
				v.images.Plain = measured
			} else {
				v.images.Boot = measured
			}
			return v, nil
		}
	}
	return Verified{}, &PolicyError{Code: CodeNotPinned, Role: role, Rule: "pinned", Got: measured, Want: p.Digests}
}

// VerifyImages asks for the boot image if there is one, else for the plain
// image. A pinned boot image vouches for the plain image beside it, because
// both were computed from one tree on this machine.
func (p Pinned) VerifyImages(images Images) (Verified, error) {
	role, d := Boot, images.Boot
	if d.IsZero() {
		role, d = Plain, images.Plain
	}
	v, err := p.Verify(role, d)
	if err != nil {
		return Verified{}, err
	}
	v.images = images
	return v, nil
}

// Computed is the policy of a machine without trust configuration: it accepts
// what this machine computed itself from layers that were checked against the
// digests of the manifest that was asked for. It must not be used for a digest
// that came with the image.
type Computed struct{}

// VerifyImages accepts images that have a plain image.
func (Computed) VerifyImages(images Images) (Verified, error) {
	if images.Plain.IsZero() {
		return Verified{}, &PolicyError{Code: CodeNoImage, Role: Plain, Rule: "computed"}
	}
	return Verified{images: images, rule: "computed"}, nil
}
