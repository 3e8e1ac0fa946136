// Package recipes makes the OCI images of vectors/oci/recipes.json: the same tar
// and config bytes as mkoci.py writes, with the image IDs that composefs-rs
// prints for them.
package recipes

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/cfsboot/cfsboot/internal/testutil/vectors"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// Refused stands in Expected for an input that composefs-rs refuses.
const Refused = "error"

// Expected is an entry of expected.json. Image IDs are by "sha256-v1" and so on.
type Expected struct {
	Plain   map[string]string `json:"plain"`
	Boot    map[string]string `json:"boot"`
	Config  digest.Digest     `json:"config"`
	DiffIDs []digest.Digest   `json:"diff_ids"`
	Intent  string            `json:"intent"`
}

// Case is one image.
type Case struct {
	Name  string
	Image *ocitest.Image
	Want  Expected
}

type recipe struct {
	Name        string    `json:"name"`
	Layers      [][]entry `json:"layers"`
	Compression *string   `json:"compression"`
}

type entry struct {
	Path   string   `json:"p"`
	Type   string   `json:"t"`
	Mode   string   `json:"m"`
	UID    int64    `json:"u"`
	GID    int64    `json:"g"`
	Mtime  any      `json:"s"`
	Size   int      `json:"n"`
	Text   *string  `json:"c"`
	Hex    *string  `json:"x"`
	To     string   `json:"to"`
	Dev    [2]int64 `json:"dev"`
	Xattrs xattrs   `json:"xa"`
}

// xattrs keeps the order of the file, which is that of the PAX records.
type xattrs []struct{ name, value string }

func (x *xattrs) UnmarshalJSON(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if _, err := dec.Token(); err != nil {
		return err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return err
		}
		value, err := dec.Token()
		if err != nil {
			return err
		}
		*x = append(*x, struct{ name, value string }{fmt.Sprint(name), fmt.Sprint(value)})
	}
	return nil
}

// All returns every recipe, and the one with fractions of seconds on the
// directories that the boot transform looks at.
func All(tb testing.TB) []Case {
	tb.Helper()
	var in struct {
		Cases []recipe `json:"cases"`
	}
	vectors.JSON(tb, "oci/recipes.json", &in)
	var want struct {
		Cases map[string]Expected `json:"cases"`
	}
	vectors.JSON(tb, "oci/expected.json", &want)
	in.Cases = append(in.Cases, nsec)
	want.Cases[nsec.Name] = nsecWant
	cases := make([]Case, 0, len(in.Cases))
	for _, r := range in.Cases {
		c := Case{Name: r.Name, Want: want.Cases[r.Name]}
		img, err := r.build()
		if err != nil {
			tb.Fatalf("%s: %v", r.Name, err)
		}
		if c.Want.Config != "" && img.Descriptor.Digest != "" {
			if got := digest.FromBytes(img.Config); got != c.Want.Config {
				tb.Fatalf("recipe %s: config %s, want %s", r.Name, got, c.Want.Config)
			}
		}
		c.Image = img
		cases = append(cases, c)
	}
	return cases
}

// build writes the config as mkoci.py does: sorted keys, no blanks.
func (r *recipe) build() (*ocitest.Image, error) {
	s := ocitest.Spec{}
	for _, layer := range r.Layers {
		l := ocitest.Layer{Compression: ocitest.Gzip}
		if r.Compression != nil {
			l.Compression = ocitest.Compression(strings.TrimPrefix(*r.Compression, "none"))
		}
		for _, e := range layer {
			b, err := e.tar()
			if err != nil {
				return nil, fmt.Errorf("%q: %w", e.Path, err)
			}
			l.Tar = append(l.Tar, b...)
		}
		l.Tar = append(l.Tar, make([]byte, 1024)...)
		s.Layers = append(s.Layers, l)
	}
	img, err := ocitest.Build(s)
	if err != nil {
		return nil, err
	}
	quoted := make([]string, len(img.DiffIDs))
	for i, d := range img.DiffIDs {
		quoted[i] = strconv.Quote(d.String())
	}
	config := fmt.Sprintf(`{"architecture":"amd64","config":{"Labels":{}},"os":"linux","rootfs":{"diff_ids":[%s],"type":"layers"}}`, strings.Join(quoted, ","))
	return img, img.SetConfig([]byte(config))
}

var typeflags = map[string]byte{"": '0', "f": '0', "h": '1', "l": '2', "c": '3', "b": '4', "d": '5', "p": '6'}

func (e *entry) tar() ([]byte, error) {
	typ, ok := typeflags[e.Type]
	if !ok {
		return nil, fmt.Errorf("type %q", e.Type)
	}
	var body []byte
	if typ == '0' {
		var err error
		if body, err = e.content(); err != nil {
			return nil, err
		}
	}
	var records bytes.Buffer
	if len(e.Path) > 100 {
		record(&records, "path", e.Path)
	}
	if len(e.To) > 100 {
		record(&records, "linkpath", e.To)
	}
	mtime := int64(1700000000)
	switch s := e.Mtime.(type) {
	case float64:
		mtime = int64(s)
	case string:
		record(&records, "mtime", s)
		whole, _, _ := strings.Cut(s, ".")
		var err error
		if mtime, err = strconv.ParseInt(whole, 10, 64); err != nil {
			return nil, err
		}
	}
	for _, x := range e.Xattrs {
		value, err := hex.DecodeString(x.value)
		if err != nil {
			return nil, err
		}
		record(&records, "SCHILY.xattr."+x.name, string(value))
	}
	var out []byte
	if records.Len() > 0 {
		out = append(block(header{name: "PaxHeaders/x", mode: 0o644, size: int64(records.Len()), typ: 'x'}), pad(records.Bytes())...)
	}
	mode := map[string]int64{"d": 0o755, "l": 0o777}[e.Type]
	if mode == 0 {
		mode = 0o644
	}
	if e.Mode != "" {
		var err error
		if mode, err = strconv.ParseInt(e.Mode, 8, 64); err != nil {
			return nil, err
		}
	}
	out = append(out, block(header{e.Path, mode, e.UID, e.GID, int64(len(body)), mtime, typ, e.To, e.Dev})...)
	return append(out, pad(body)...), nil
}

func (e *entry) content() ([]byte, error) {
	switch {
	case e.Text != nil:
		return []byte(*e.Text), nil
	case e.Hex != nil:
		return hex.DecodeString(*e.Hex)
	}
	b := make([]byte, e.Size)
	for i := range b {
		b[i] = byte((i%251*31 + 7) % 251)
	}
	return b, nil
}

func record(b *bytes.Buffer, key, value string) {
	body := " " + key + "=" + value + "\n"
	n := len(body)
	for len(strconv.Itoa(n))+len(body) != n {
		n = len(strconv.Itoa(n)) + len(body)
	}
	b.WriteString(strconv.Itoa(n) + body)
}

type header struct {
	name                        string
	mode, uid, gid, size, mtime int64
	typ                         byte
	link                        string
	dev                         [2]int64
}

func block(h header) []byte {
	b := make([]byte, 512)
	copy(b[:100], h.name)
	number(b[100:108], h.mode)
	number(b[108:116], h.uid)
	number(b[116:124], h.gid)
	number(b[124:136], h.size)
	number(b[136:148], h.mtime)
	copy(b[148:156], "        ")
	b[156] = h.typ
	copy(b[157:257], h.link)
	copy(b[257:265], "ustar\x0000")
	number(b[329:337], h.dev[0])
	number(b[337:345], h.dev[1])
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// number writes octal, or base-256 if that does not fit.
func number(b []byte, v int64) {
	if s := fmt.Sprintf("%0*o", len(b)-1, v); len(s) < len(b) {
		copy(b, s)
		return
	}
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte(v)
		v >>= 8
	}
	b[0] |= 0x80
}

func pad(b []byte) []byte { return append(b[:len(b):len(b)], make([]byte, -len(b)&511)...) }

// nsec is the recipe that docs/design/oci.md quotes.
var nsec = recipe{
	Name: "nsec", Compression: new(string),
	Layers: [][]entry{{
		{Path: "usr/", Type: "d", Mtime: "1700000001.25"}, {Path: "usr/bin/", Type: "d"}, {Path: "etc/", Type: "d"},
		{Path: "run/", Type: "d", Mtime: "3.75"}, {Path: "boot/", Type: "d", Mtime: "5.5"}, {Path: "boot/x", Text: ptr("k")},
		{Path: "sysroot/", Type: "d", Mtime: "6.000000001"}, {Path: "usr/bin/sh", Mode: "755", Size: 5000},
	}},
}

// nsecWant is what cfsctl 0.9.4 prints for nsec.
var nsecWant = Expected{
	Config: "sha256:1f9d1678a8ce1f402bfe5bf60756f8cb59283518d10702acce66a4f897bc270a",
	Plain:  map[string]string{"sha256-v1": "482bbc06a485fa127078f429f40894d1466e0e18639223f3bd856637b75c9caf"},
	Boot: map[string]string{
		"sha256-v2": "0cdf7c16c7da69e8a5333ed9897cc8c42821ce57b19df1a5c37bf7aff826792b",
		"sha256-v1": "395815b0e24f2f7d63a91ea53e7aac0a5bbb97c3399c0ed384c401cce04626a5",
		"sha512-v1": "7bd2cb532e7a025a9b08f955f3d41d89bb270e5a0a70544f14b21d631182a04c0f541767bce4ec8c5c68839c49558bca89ac98fc3d3d810a5d9a6b89ba7cb9ec",
	},
	Intent: "fractions of seconds on /usr, /boot and /sysroot",
}

func ptr(s string) *string { return &s }
