package fsverity

import (
	"encoding/hex"
	"fmt"
)

// Digest is an fs-verity digest. It is comparable, a map key, and as large as a
// string header; the zero value means "none". The algorithm follows from the
// length.
type Digest struct {
	raw string // 0, 32 or 64 raw bytes
}

// NewDigest makes a digest of raw bytes, whose length must be a.Size(). The
// error is a *ParseError.
func NewDigest(a Algorithm, b []byte) (Digest, error) {
	if !a.Valid() {
		return Digest{}, parseError("fs-verity digest", hex.EncodeToString(b), "unknown algorithm %d", uint8(a))
	}
	if len(b) != a.Size() {
		return Digest{}, parseError("fs-verity digest", hex.EncodeToString(b), "%d bytes, want %d for %s", len(b), a.Size(), a.Name())
	}
	return Digest{raw: string(b)}, nil
}

// DigestFromRaw is NewDigest for a string of 32 or 64 raw bytes; the digest
// shares its memory. Parsers that keep many digests in one block use it.
func DigestFromRaw(raw string) (Digest, error) {
	if len(raw) != SHA256.Size() && len(raw) != SHA512.Size() {
		return Digest{}, parseError("fs-verity digest", hex.EncodeToString([]byte(raw)), "%d bytes, want 32 or 64", len(raw))
	}
	return Digest{raw: raw}, nil
}

// ParseHex reads 64 or 128 hexadecimal digits in either case; their number
// tells the algorithm. The error is a *ParseError.
func ParseHex(s string) (Digest, error) {
	if len(s) != 2*SHA256.Size() && len(s) != 2*SHA512.Size() {
		return Digest{}, parseError("fs-verity digest", s, "%d characters, want 64 or 128 hexadecimal digits", len(s))
	}
	var buf [64]byte
	n, err := hex.Decode(buf[:], []byte(s))
	if err != nil {
		return Digest{}, parseError("fs-verity digest", s, "not hexadecimal")
	}
	return Digest{raw: string(buf[:n])}, nil
}

// ParseObjectPath reads the path of an object below objects/: two hexadecimal
// digits, a slash and the other 62 or 126. Nothing may precede or follow. The
// error is a *ParseError.
func ParseObjectPath(s string) (Digest, error) {
	if len(s) != 2*SHA256.Size()+1 && len(s) != 2*SHA512.Size()+1 {
		return Digest{}, parseError("object path", s, "%d characters, want 65 or 129", len(s))
	}
	if s[2] != '/' {
		return Digest{}, parseError("object path", s, "no \"/\" after two digits")
	}
	d, err := ParseHex(s[:2] + s[3:])
	if err != nil {
		return Digest{}, parseError("object path", s, "not hexadecimal")
	}
	return d, nil
}

// Algorithm returns the digest's algorithm, 0 for the zero Digest.
func (d Digest) Algorithm() Algorithm {
	switch len(d.raw) {
	case 32:
		return SHA256
	case 64:
		return SHA512
	}
	return 0
}

// IsZero reports whether d is "none".
func (d Digest) IsZero() bool { return d.raw == "" }

// Bytes returns a copy of the raw digest, nil for the zero Digest.
func (d Digest) Bytes() []byte {
	if d.raw == "" {
		return nil
	}
	return []byte(d.raw)
}

// Raw returns the raw digest bytes as a string, without a copy.
func (d Digest) Raw() string { return d.raw }

const hexDigits = "0123456789abcdef"

// AppendHex appends the lower-case hexadecimal form to b.
func (d Digest) AppendHex(b []byte) []byte { return appendHex(b, d.raw) }

func appendHex(b []byte, raw string) []byte {
	for i := range len(raw) {
		b = append(b, hexDigits[raw[i]>>4], hexDigits[raw[i]&15])
	}
	return b
}

// AppendObjectPath appends the object path to b.
func (d Digest) AppendObjectPath(b []byte) []byte {
	if d.raw == "" {
		return b
	}
	b = appendHex(b, d.raw[:1])
	b = append(b, '/')
	return appendHex(b, d.raw[1:])
}

// Hex returns 64 or 128 lower-case hexadecimal digits, "" for the zero Digest.
func (d Digest) Hex() string { return string(d.AppendHex(make([]byte, 0, 128))) }

// ObjectPath returns the object's path below objects/: "ab/cdef…".
func (d Digest) ObjectPath() string { return string(d.AppendObjectPath(make([]byte, 0, 129))) }

// String returns "sha512:<hex>", or "none".
func (d Digest) String() string {
	if d.IsZero() {
		return "none"
	}
	return d.Algorithm().Name() + ":" + d.Hex()
}

// MarshalText writes Hex, for JSON records.
func (d Digest) MarshalText() ([]byte, error) { return d.AppendHex(nil), nil }

// UnmarshalText reads what MarshalText wrote; empty text is the zero Digest.
// The error is a *ParseError.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	v, err := ParseHex(string(text))
	if err != nil {
		return err
	}
	*d = v
	return nil
}

// MismatchError reports contents that do not have the digest under which they
// are known.
type MismatchError struct {
	Where     string // what was measured: a path, or words
	Got, Want Digest
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("fs-verity digest of %s: got %s, want %s", e.Where, e.Got, e.Want)
}
