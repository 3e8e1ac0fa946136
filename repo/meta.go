package repo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

const (
	metaName      = "meta.json"
	metaLimit     = 1 << 20
	formatVersion = 1
	// featureV1 is the read-only-compatible feature of repositories whose default
	// EROFS format is 1.
	featureV1 = "v1_erofs"
)

// Metadata is the content of meta.json.
type Metadata struct {
	Version   int
	Algorithm fsverity.Algorithm
	// Features, in the order of the file.
	Compatible         []string
	ReadOnlyCompatible []string
	Incompatible       []string
	// Formats is nil if the file does not say; see EffectiveFormats.
	Formats *Formats
}

// Formats says which EROFS formats a commit makes.
type Formats struct {
	Default erofs.Version   // its image claims the named reference
	Extra   []erofs.Version // ascending, without Default
}

// NewMetadata returns what a new repository has.
func NewMetadata(a fsverity.Algorithm, f Formats) Metadata {
	m := Metadata{Version: formatVersion, Algorithm: a}
	f.Extra = slices.Sorted(slices.Values(f.Extra))
	f.Extra = slices.DeleteFunc(slices.Compact(f.Extra), func(v erofs.Version) bool { return v == f.Default })
	m.Formats = &f
	if f.Default == 1 {
		m.ReadOnlyCompatible = []string{featureV1}
	}
	return m
}

// EffectiveFormats resolves the rules for files of older programs: without a
// statement the format is 2; format 2 alone together with the feature v1_erofs
// means 1.
func (m Metadata) EffectiveFormats() Formats {
	f := Formats{Default: 2}
	if m.Formats != nil {
		f = *m.Formats
	}
	if f.Default == 2 && len(f.Extra) == 0 && slices.Contains(m.ReadOnlyCompatible, featureV1) {
		return Formats{Default: 1}
	}
	return f
}

// All returns the formats to make, the default first.
func (f Formats) All() []erofs.Version {
	all := []erofs.Version{f.Default}
	for _, v := range slices.Sorted(slices.Values(f.Extra)) {
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// String describes the metadata in one line.
func (m Metadata) String() string {
	s := fmt.Sprintf("%s, EROFS format", m.Algorithm)
	for _, v := range m.EffectiveFormats().All() {
		s += fmt.Sprintf(" %d", v)
	}
	if f := slices.Concat(m.Compatible, m.ReadOnlyCompatible, m.Incompatible); len(f) > 0 {
		s += ", features " + strings.Join(f, " ")
	}
	return s
}

// Equal says whether two files say the same; features are compared in order.
func (m Metadata) Equal(o Metadata) bool {
	formats := func(m Metadata) Formats {
		if m.Formats == nil {
			return Formats{Default: 2}
		}
		return *m.Formats
	}
	a, b := formats(m), formats(o)
	return m.Version == o.Version && m.Algorithm == o.Algorithm &&
		slices.Equal(m.Compatible, o.Compatible) && slices.Equal(m.ReadOnlyCompatible, o.ReadOnlyCompatible) &&
		slices.Equal(m.Incompatible, o.Incompatible) && a.Default == b.Default && slices.Equal(a.Extra, b.Extra)
}

type metaJSON struct {
	Version   int          `json:"version"`
	Algorithm string       `json:"algorithm"`
	Features  featuresJSON `json:"features"`
	Formats   *formatsJSON `json:"erofs_formats,omitempty"`
}

type featuresJSON struct {
	Compatible         []string `json:"compatible"`
	ReadOnlyCompatible []string `json:"read-only-compatible"`
	Incompatible       []string `json:"incompatible"`
}

type formatsJSON struct {
	Default int   `json:"default"`
	Extra   []int `json:"extra,omitempty"`
}

// Marshal returns the bytes of meta.json: those that composefs-rs writes.
func (m Metadata) Marshal() ([]byte, error) {
	list := func(s []string) []string { return append([]string{}, s...) } // never null
	j := metaJSON{
		Version: m.Version, Algorithm: m.Algorithm.String(),
		Features: featuresJSON{list(m.Compatible), list(m.ReadOnlyCompatible), list(m.Incompatible)},
	}
	if m.Formats != nil {
		j.Formats = &formatsJSON{Default: int(m.Formats.Default)}
		for _, v := range slices.Sorted(slices.Values(m.Formats.Extra)) {
			j.Formats.Extra = append(j.Formats.Extra, int(v))
		}
	}
	b, err := json.MarshalIndent(j, "", "  ")
	return append(b, '\n'), err
}

// ParseMetadata decodes meta.json strictly as composefs-rs does: unknown fields
// are ignored, names are case-sensitive, null is not a list. The version and the
// features are not judged. The error says what is wrong.
func ParseMetadata(data []byte) (Metadata, error) {
	var m Metadata
	top, err := object(data)
	if err != nil {
		return m, err
	}
	if err := required(top, "version", &m.Version); err != nil {
		return m, err
	}
	var algorithm string
	if err := required(top, "algorithm", &algorithm); err != nil {
		return m, err
	}
	if m.Algorithm, err = fsverity.ParseAlgorithm(algorithm); err != nil {
		return m, err
	}
	if raw, ok := top["features"]; ok {
		if err := m.parseFeatures(raw); err != nil {
			return m, fmt.Errorf("features: %w", err)
		}
	}
	if raw, ok := top["erofs_formats"]; ok && string(raw) != "null" {
		if m.Formats, err = parseFormats(raw); err != nil {
			return m, fmt.Errorf("erofs_formats: %w", err)
		}
	}
	return m, nil
}

func (m *Metadata) parseFeatures(raw json.RawMessage) error {
	f, err := object(raw)
	if err != nil {
		return err
	}
	for name, list := range map[string]*[]string{
		"compatible": &m.Compatible, "read-only-compatible": &m.ReadOnlyCompatible, "incompatible": &m.Incompatible,
	} {
		if raw, ok := f[name]; ok {
			if err := field(raw, name, list); err != nil {
				return err
			}
		}
	}
	return nil
}

func parseFormats(raw json.RawMessage) (*Formats, error) {
	f, err := object(raw)
	if err != nil {
		return nil, err
	}
	var def int
	if err := required(f, "default", &def); err != nil {
		return nil, err
	}
	var extra []int
	if raw, ok := f["extra"]; ok {
		if err := field(raw, "extra", &extra); err != nil {
			return nil, err
		}
	}
	for _, v := range append([]int{def}, extra...) {
		if v < 0 || v > 2 {
			return nil, fmt.Errorf("EROFS format %d, want 0, 1 or 2", v)
		}
	}
	formats := &Formats{Default: erofs.Version(def)}
	for _, v := range extra {
		formats.Extra = append(formats.Extra, erofs.Version(v))
	}
	return formats, nil
}

// object decodes a JSON object, keeping its keys case-sensitive.
func object(data []byte) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, errors.New("null, want an object")
	}
	return m, nil
}

func required(m map[string]json.RawMessage, name string, v any) error {
	raw, ok := m[name]
	if !ok {
		return fmt.Errorf("field %q is missing", name)
	}
	return field(raw, name, v)
}

func field(raw json.RawMessage, name string, v any) error {
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return fmt.Errorf("field %q is null", name)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("field %q: %w", name, err)
	}
	return nil
}

// readMeta reads meta.json and says whether fs-verity protects it and whether
// the file system could.
func readMeta(dir *durable.Dir) (m Metadata, verity support, err error) {
	f, err := openRegular(dir, metaName)
	if errors.Is(err, fs.ErrNotExist) {
		old, err := dir.Exists("objects")
		if err != nil {
			return m, 0, err
		}
		return m, 0, &MetadataMissingError{Path: dir.Path(), OldFormat: old}
	}
	if err != nil {
		return m, 0, err
	}
	defer f.Close()
	data, err := readLimited(f, metaLimit)
	if err != nil {
		return m, 0, err
	}
	if m, err = ParseMetadata(data); err != nil {
		return m, 0, &MetadataError{Path: f.Name(), Detail: err.Error()}
	}
	d, err := fsverity.Measure(f)
	switch {
	case err == nil && d.Algorithm() != m.Algorithm:
		return m, 0, &AlgorithmError{Where: f.Name(), Got: d.Algorithm(), Want: m.Algorithm}
	case err == nil:
		return m, verityRequired, nil
	case errors.Is(err, fsverity.ErrNotEnabled):
		return m, verityPossible, nil
	case errors.Is(err, errors.ErrUnsupported):
		return m, verityNone, nil
	}
	return m, 0, err
}

// support says what the file system and the repository do about fs-verity.
type support int

const (
	verityNone     support = iota // the file system cannot
	verityPossible                // it can; objects get it, but it may be missing
	verityRequired                // secure repository
)

// unknown returns the features that are not in known.
func unknown(features []string, known ...string) []string {
	return slices.DeleteFunc(slices.Clone(features), func(f string) bool { return slices.Contains(known, f) })
}
