// Package fsverity names files by their fs-verity digest: the digest type, the
// Merkle hash computed in user space, and the two ioctls that let the kernel
// enforce it.
//
// Words: an fs-verity digest is the hash of the 256-byte descriptor that holds
// the Merkle root of a file's 4096-byte blocks; it is not a plain hash of the
// contents. Block size is always 4096, there is never a salt. The numbers match
// the kernel (fs/verity) and composefs-rs. The format is described in
// docs/design/erofs.md, section "Image ID".
//
// The package is a leaf: everything else in the project may import it. Values
// are immutable and safe for concurrent use, a Hasher is not.
package fsverity

import (
	"fmt"
	"strconv"
	"strings"
)

// BlockSize is the Merkle block size in bytes, for both algorithms.
const BlockSize = 4096

// Algorithm is the hash of a Merkle tree, numbered as in the kernel
// (FS_VERITY_HASH_ALG_*).
type Algorithm uint8

// The two algorithms that composefs uses.
const (
	SHA256 Algorithm = 1
	SHA512 Algorithm = 2
)

// Valid reports whether a is SHA256 or SHA512.
func (a Algorithm) Valid() bool { return a == SHA256 || a == SHA512 }

// Size returns the digest length in bytes: 32 or 64, and 0 for an unknown
// algorithm.
func (a Algorithm) Size() int {
	switch a {
	case SHA256:
		return 32
	case SHA512:
		return 64
	}
	return 0
}

// Name returns the bare hash name, "sha256" or "sha512".
func (a Algorithm) Name() string {
	switch a {
	case SHA256:
		return "sha256"
	case SHA512:
		return "sha512"
	}
	return "algorithm-" + strconv.Itoa(int(a))
}

// String returns the repository's name of the algorithm with the logarithm of
// the block size, "fsverity-sha512-12".
func (a Algorithm) String() string { return "fsverity-" + a.Name() + "-12" }

// ParseError reports text that is not an algorithm, a digest or an object path.
type ParseError struct {
	What   string // "algorithm", "fs-verity digest" or "object path"
	Input  string // the text, cut if it is long
	Reason string // what is wrong with it
}

func (e *ParseError) Error() string {
	return fmt.Sprintf("parse %s %q: %s", e.What, e.Input, e.Reason)
}

func parseError(what, input, format string, args ...any) error {
	const limit = 160
	if len(input) > limit {
		input = input[:limit] + "..."
	}
	return &ParseError{What: what, Input: input, Reason: fmt.Sprintf(format, args...)}
}

// ParseAlgorithm reads the form that String writes. Every error is a
// *ParseError.
func ParseAlgorithm(s string) (Algorithm, error) {
	rest, ok := strings.CutPrefix(s, "fsverity-")
	if !ok {
		return 0, parseError("algorithm", s, "missing prefix \"fsverity-\"")
	}
	name, bits, ok := strings.Cut(rest, "-")
	if !ok {
		return 0, parseError("algorithm", s, "missing separator before the block size")
	}
	a, ok := algorithmByName(name)
	if !ok {
		return 0, parseError("algorithm", s, "unknown hash %q, want sha256 or sha512", name)
	}
	n, err := strconv.ParseUint(bits, 10, 8)
	if err != nil {
		return 0, parseError("algorithm", s, "bad block size %q, want a decimal logarithm", bits)
	}
	if n != 12 || bits != "12" {
		return 0, parseError("algorithm", s, "unsupported block size 2^%s, want 12", bits)
	}
	return a, nil
}

func algorithmByName(name string) (Algorithm, bool) {
	switch name {
	case "sha256":
		return SHA256, true
	case "sha512":
		return SHA512, true
	}
	return 0, false
}
