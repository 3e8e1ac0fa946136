// Package vectors holds the fixed inputs and expected digests that several
// packages test against: dumpfiles with the image IDs of C mkcomposefs and
// composefs-rs (vectors.json), parser cases (dumpfile-cases.json), malformed
// images (malformed.json), recipes of OCI layouts with the IDs that cfsctl prints
// (oci/), and the reference encoder (refenc.py, Python 3).
package vectors

import (
	"embed"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// FS holds every file of this folder under its own name, oci/ included.
//
//go:embed *.dump *.json *.py oci
var FS embed.FS

// Read returns one file of FS.
func Read(tb testing.TB, name string) []byte {
	tb.Helper()
	b, err := FS.ReadFile(name)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// JSON decodes one file of FS into v.
func JSON(tb testing.TB, name string, v any) {
	tb.Helper()
	if err := json.Unmarshal(Read(tb, name), v); err != nil {
		tb.Fatalf("%s: %v", name, err)
	}
}

// File writes one file of FS, for example "refenc.py", to a temporary folder of
// the test and returns its path.
func File(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), filepath.Base(name))
	if err := os.WriteFile(path, Read(tb, name), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Case is one entry of images in vectors.json. Digests are lower-case hex of the
// fs-verity digest of the whole image.
type Case struct {
	Dump              string          `json:"dump"` // file name in FS
	Hash              string          `json:"hash"` // "sha256" or "sha512"
	Intent            string          `json:"intent"`
	C                 json.RawMessage `json:"c"`  // map option set -> digest, or {"error": …}
	RS                json.RawMessage `json:"rs"` // map "v0", "v1", "v2" -> digest, or {"error": …}
	ImageSHA256       json.RawMessage `json:"image_sha256"`
	ImageSize         json.RawMessage `json:"image_size"`
	ImageDigestSHA512 json.RawMessage `json:"image_digest_sha512"`
	RedumpSHA256      string          `json:"redump_sha256"`
	ImageDumpSHA256   json.RawMessage `json:"image_dump_sha256"`
	Canonical         bool            `json:"dump_is_canonical"`
}

// Transform is one entry of transforms in vectors.json.
type Transform struct {
	Input        string            `json:"input"`
	Transform    string            `json:"transform"` // "oci" or "boot"
	Xattrs       string            `json:"xattrs"`    // "allowlist-only" or "keep-user-xattrs"
	Intent       string            `json:"intent"`
	Output       string            `json:"output"`
	OutputDigest map[string]string `json:"output_digest"`       // "v1", "v2" -> hex
	OldDigest    map[string]string `json:"output_digest_0.9.0"` // the same by the rule of 0.9.0, where it differs
}

// Index is the content of vectors.json.
type Index struct {
	Images     map[string]Case `json:"images"`
	Transforms []Transform     `json:"transforms"`
}

// Load returns vectors.json.
func Load(tb testing.TB) Index {
	tb.Helper()
	var ix Index
	JSON(tb, "vectors.json", &ix)
	return ix
}
