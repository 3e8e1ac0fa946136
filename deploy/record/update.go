package record

import (
	"encoding/json"
	"fmt"
	"time"
)

const (
	// UpdateSchema is the only schema of update.json.
	UpdateSchema = "cfsboot.update/1"

	// UpdatePath is where the last check for an update leaves what it has found.
	// It is gone after a reboot.
	UpdatePath = "/run/cfsboot/update.json"

	whatUpdate = "update.json"
	maxUpdate  = 64 << 10
)

// Update is update.json: what a reference stood for when it was last looked at.
// All strings but the first three may be "": they come from the annotations of
// the manifest, the only thing that a check asks for.
type Update struct {
	Schema         string    `json:"schema"` // UpdateSchema
	Reference      string    `json:"reference"`
	ManifestDigest string    `json:"manifest_digest"` // of the platform manifest
	IndexDigest    string    `json:"index_digest"`
	Architecture   string    `json:"architecture"` // of the running deployment
	Version        string    `json:"version"`
	Created        string    `json:"created"` // RFC 3339
	Checked        time.Time `json:"checked"` // UTC, whole seconds
}

// Encode gives the bytes of the file, or a *FormatError if ParseUpdate would
// refuse them. An empty Schema becomes UpdateSchema.
func (u Update) Encode() ([]byte, error) {
	if u.Schema == "" {
		u.Schema = UpdateSchema
	}
	u.Checked = u.Checked.UTC().Truncate(time.Second)
	if err := u.check(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return nil, &FormatError{What: whatUpdate, Detail: err.Error()}
	}
	if len(data) >= maxUpdate {
		return nil, &FormatError{What: whatUpdate, Detail: fmt.Sprintf("%d bytes, want less than %d", len(data), maxUpdate)}
	}
	return append(data, '\n'), nil
}

// ParseUpdate reads the file. Errors are *FormatError.
func ParseUpdate(data []byte) (Update, error) {
	var u Update
	if err := decodeJSON(whatUpdate, data, maxUpdate, &u); err != nil {
		return Update{}, err
	}
	return u, u.check()
}

func (u Update) check() error {
	fail := func(field, format string, args ...any) error {
		return &FormatError{whatUpdate, field, fmt.Sprintf(format, args...)}
	}
	switch {
	case u.Schema != UpdateSchema:
		return fail("schema", "%q, want %q", u.Schema, UpdateSchema)
	case !isOCIDigest(u.ManifestDigest):
		return fail("manifest_digest", "%q, want sha256:<64 hex digits>", u.ManifestDigest)
	case u.IndexDigest != "" && !isOCIDigest(u.IndexDigest):
		return fail("index_digest", "%q, want sha256:<64 hex digits>", u.IndexDigest)
	}
	if _, err := ParseImageReference(u.Reference); err != nil {
		return fail("reference", "%v", err)
	}
	return nil
}
