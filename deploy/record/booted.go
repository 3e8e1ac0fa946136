package record

import (
	"encoding/json"
	"fmt"
)

// BootedPath is where the initramfs leaves its record for the running system.
const BootedPath = "/run/cfsboot/booted.json"

// BootedVersion is the only version of booted.json.
const BootedVersion = 1

const (
	maxBooted = 64 << 10
	maxTried  = 64
)

// Booted is /run/cfsboot/booted.json: what the initramfs mounted and how. It is
// written before switch-root and is never on a disk. Source: boot.md 1.10.
type Booted struct {
	Version       int           `json:"version"`        // BootedVersion
	Digest        string        `json:"digest"`         // ID of the boot image, lower-case hex
	Algorithm     string        `json:"algorithm"`      // "sha512-12" or "sha256-12"
	Karg          string        `json:"karg"`           // the token that selected the image
	Secure        bool          `json:"secure"`         // fs-verity is enforced for image and objects
	Gate          string        `json:"gate"`           // "digest", "signature" or "digest+signature"
	Signer        *string       `json:"signer"`         // who signed the image, null in pinned mode
	EntrySequence *uint64       `json:"entry_sequence"` // sequence number of the boot entry if known
	ImageVersion  *string       `json:"image_version"`  // version in the boot statement, null in pinned mode
	Sysroot       BootedSysroot `json:"sysroot"`
	Etc           string        `json:"etc"`    // "bind", "overlay", "transient" or "none"
	Var           string        `json:"var"`    // as Etc
	Root          string        `json:"root"`   // "ro" or "transient"
	Erofs         string        `json:"erofs"`  // "file" or "loop"
	Kernel        string        `json:"kernel"` // release of the running kernel
	Tried         []BootedTry   `json:"tried"`  // images named before the mounted one, never null
	DurationMS    int64         `json:"duration_ms"`
}

// BootedSysroot names the file system that holds the repository.
type BootedSysroot struct {
	Dev  string `json:"dev"`  // "major:minor"
	UUID string `json:"uuid"` // of the file system, "" if unknown
}

// BootedTry is one image of the command line that was not mounted.
type BootedTry struct {
	Digest string `json:"digest"`
	Result string `json:"result"` // "missing"
}

// Encode gives the bytes of the file, or a *FormatError if the record would be
// refused by ParseBooted. A Version of 0 becomes BootedVersion.
func (b Booted) Encode() ([]byte, error) {
	if b.Version == 0 {
		b.Version = BootedVersion
	}
	if b.Tried == nil {
		b.Tried = []BootedTry{}
	}
	if err := b.check(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(b)
	if err != nil {
		return nil, &FormatError{What: whatBooted, Detail: err.Error()}
	}
	return append(data, '\n'), nil
}

const whatBooted = "booted.json"

// ParseBooted reads the file. Errors are *FormatError.
func ParseBooted(data []byte) (Booted, error) {
	var b Booted
	if err := decodeJSON(whatBooted, data, maxBooted, &b); err != nil {
		return Booted{}, err
	}
	if b.Tried == nil {
		b.Tried = []BootedTry{}
	}
	return b, b.check()
}

func (b Booted) check() error {
	fail := func(field, format string, args ...any) error {
		return &FormatError{whatBooted, field, fmt.Sprintf(format, args...)}
	}
	switch {
	case b.Version != BootedVersion:
		return fail("version", "%d, want %d", b.Version, BootedVersion)
	case !isDigest(b.Digest):
		return fail("digest", "%q, want 64 or 128 lower-case hex digits", b.Digest)
	case len(b.Digest) == 64 && b.Algorithm != "sha256-12", len(b.Digest) == 128 && b.Algorithm != "sha512-12":
		return fail("algorithm", "%q for a digest of %d hex digits", b.Algorithm, len(b.Digest))
	case b.EntrySequence != nil && (*b.EntrySequence == 0 || *b.EntrySequence > MaxEntrySeq):
		return fail("entry_sequence", "%d, want 1 to %d", *b.EntrySequence, uint64(MaxEntrySeq))
	case len(b.Tried) > maxTried:
		return fail("tried", "%d images, want at most %d", len(b.Tried), maxTried)
	case b.DurationMS < 0:
		return fail("duration_ms", "%d, want at least 0", b.DurationMS)
	}
	return nil
}
