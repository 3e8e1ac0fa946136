package bootimage_test

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/vectors"
)

// recipe is one image of oci/recipes.json; oci/mkoci.py documents the fields.
type recipe struct {
	Name   string
	Layers [][]member
}

type member struct {
	P   string
	T   string
	M   string
	U   uint32
	G   uint32
	S   json.RawMessage
	N   int
	C   *string
	X   *string
	To  string
	Dev [2]uint32
	XA  map[string]string
}

// entry makes the tree entry that the tar member of the recipe stands for.
func (m *member) entry(t *testing.T, o objects) tree.Entry {
	t.Helper()
	meta := tree.Meta{UID: m.U, GID: m.G, MtimeSec: 1700000000, Mode: 0o644}
	switch m.T {
	case "d":
		meta.Mode = 0o755
	case "l":
		meta.Mode = 0o777
	}
	if m.M != "" {
		v, err := strconv.ParseUint(m.M, 8, 12)
		if err != nil {
			t.Fatal(err)
		}
		meta.Mode = uint16(v)
	}
	if len(m.S) > 0 {
		sec, frac, _ := strings.Cut(strings.Trim(string(m.S), `"`), ".")
		v, err := strconv.ParseInt(sec, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		nsec, err := strconv.ParseUint((frac + "000000000")[:9], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		meta.MtimeSec, meta.MtimeNsec = v, uint32(nsec)
	}
	for name, value := range m.XA {
		b, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		meta.Xattrs = append(meta.Xattrs, tree.Xattr{Name: name, Value: string(b)})
	}
	slices.SortFunc(meta.Xattrs, func(a, b tree.Xattr) int { return strings.Compare(a.Name, b.Name) })
	n := &tree.Node{Meta: meta, Rdev: m.Dev[1]&0xff | m.Dev[0]<<8 | m.Dev[1]&^0xff<<12}
	switch m.T {
	case "d":
		n = tree.NewDir(meta)
	case "l":
		n.Kind, n.Target = tree.Symlink, m.To
	case "h":
		return tree.Entry{Path: m.P, HardLink: m.To}
	case "c":
		n.Kind = tree.CharDevice
	case "b":
		n.Kind = tree.BlockDevice
	case "p":
		n.Kind = tree.Fifo
	default:
		n = m.file(t, meta, o)
	}
	return tree.Entry{Path: m.P, Node: n}
}

func (m *member) file(t *testing.T, meta tree.Meta, o objects) *tree.Node {
	t.Helper()
	data := make([]byte, m.N)
	for i := range data {
		data[i] = byte((i%251*31 + 7) % 251)
	}
	if m.C != nil {
		data = []byte(*m.C)
	}
	if m.X != nil {
		var err error
		if data, err = hex.DecodeString(*m.X); err != nil {
			t.Fatal(err)
		}
	}
	if len(data) <= 64 {
		return tree.NewInline(meta, data)
	}
	n := o.put(t, string(data))
	n.Meta = meta
	return n
}

// nsec is the recipe of peer-0.9.4.md F1: directories with fractional times. The
// IDs are those that cfsctl 0.9.4 prints.
const nsec = `{"name":"nsec","compression":"none","layers":[[{"p":"usr/","t":"d","s":"1700000001.25"},{"p":"usr/bin/","t":"d"},
 {"p":"etc/","t":"d"},{"p":"run/","t":"d","s":"3.75"},{"p":"boot/","t":"d","s":"5.5"},{"p":"boot/x","c":"k"},
 {"p":"sysroot/","t":"d","s":"6.000000001"},{"p":"usr/bin/sh","m":"755","n":5000}]]}`

// TestRecipes builds the layouts of oci/recipes.json without the archives between
// and compares the plain and boot IDs with those that cfsctl 0.9.4 prints.
func TestRecipes(t *testing.T) {
	var recipes struct{ Cases []recipe }
	vectors.JSON(t, "oci/recipes.json", &recipes)
	type ids map[string]string
	var expected struct {
		Cases map[string]struct{ Plain, Boot ids }
	}
	vectors.JSON(t, "oci/expected.json", &expected)
	var more recipe
	if err := json.Unmarshal([]byte(nsec), &more); err != nil {
		t.Fatal(err)
	}
	recipes.Cases = append(recipes.Cases, more)
	expected.Cases["nsec"] = struct{ Plain, Boot ids }{
		ids{"sha256-v1": "482bbc06a485fa127078f429f40894d1466e0e18639223f3bd856637b75c9caf"},
		ids{
			"sha256-v2": "0cdf7c16c7da69e8a5333ed9897cc8c42821ce57b19df1a5c37bf7aff826792b",
			"sha256-v1": "395815b0e24f2f7d63a91ea53e7aac0a5bbb97c3399c0ed384c401cce04626a5",
			"sha512-v1": "7bd2cb532e7a025a9b08f955f3d41d89bb270e5a0a70544f14b21d631182a04c0f541767bce4ec8c5c68839c49558bca89ac98fc3d3d810a5d9a6b89ba7cb9ec",
		},
	}
	if len(recipes.Cases) != 23 {
		t.Errorf("got %d recipes, want 23", len(recipes.Cases))
	}
	for _, r := range recipes.Cases {
		t.Run(r.Name, func(t *testing.T) {
			want, ok := expected.Cases[r.Name]
			if !ok {
				t.Fatal("no expected IDs")
			}
			for _, alg := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
				key := alg.Name() + "-v1" // what is refused is refused in all formats
				o := objects{t.TempDir()}
				root, err := build(t, r, alg, o)
				if want.Plain[key] == "error" {
					if err == nil {
						t.Errorf("%s: accepted, want an error", key)
					}
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				checkIDs(t, "plain image", root, alg, want.Plain)
				switch err := bootimage.Transform(root, o); {
				case want.Boot[key] == "error":
					if err == nil {
						t.Error("boot image made, want an error")
					}
				case err != nil:
					t.Error(err)
				default:
					checkIDs(t, "boot image", root, alg, want.Boot)
				}
			}
		})
	}
}

// checkIDs compares the images of root in formats 1 and 2 with those that are
// wanted, by "sha256-v1" and so on.
func checkIDs(t *testing.T, what string, root *tree.Node, alg fsverity.Algorithm, want map[string]string) {
	t.Helper()
	for _, v := range []erofs.Version{erofs.V1, erofs.V2} {
		key := fmt.Sprintf("%s-v%d", alg.Name(), v)
		if w := want[key]; w != "" && imageID(t, root, alg, v) != w {
			t.Errorf("%s %s: got %s, want %s", key, what, imageID(t, root, alg, v), w)
		}
	}
}

// build stacks the layers of r with objects in alg, which it puts into o.
func build(t *testing.T, r recipe, alg fsverity.Algorithm, o objects) (*tree.Node, error) {
	t.Helper()
	b := tree.NewBuilder()
	for _, layer := range r.Layers {
		for i := range layer {
			e := layer[i].entry(t, o)
			if alg == fsverity.SHA512 && e.Node != nil && e.Node.IsExternal() {
				e.Node.Digest = o.in512(t, e.Node)
			}
			if err := b.Apply(e); err != nil {
				return nil, err
			}
		}
	}
	return b.Root(), tree.TransformOCI(b.Root(), tree.AllowlistOnly)
}

// in512 stores what n holds under its SHA-512 digest too, and returns that.
func (o objects) in512(t *testing.T, n *tree.Node) fsverity.Digest {
	t.Helper()
	f, err := o.OpenObject(n.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, _, err := fsverity.SumReader(fsverity.SHA512, f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(f.Name(), filepath.Join(o.dir, d.Hex())); err != nil && !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	return d
}
