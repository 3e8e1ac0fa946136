package randtree

import (
	"fmt"
	"math/rand/v2"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
)

// Large returns a tree of about n entries that looks like an operating system:
// one directory, one symlink and one small file in ten, the rest in objects, some
// of them twice. It is always the same.
func Large(n int) *tree.Node {
	rng := rand.New(rand.NewPCG(1, 2))
	root := tree.NewDir(tree.Meta{Mode: 0o755, MtimeSec: 1_700_000_000})
	dirs, depths := []*tree.Node{root}, []int{0}
	var last *tree.Node // the file made last
	for i := range n - 1 {
		meta := tree.Meta{Mode: 0o644, MtimeSec: 1_600_000_000 + int64(rng.IntN(100_000_000))}
		if i%500 == 0 {
			meta.Xattrs = []tree.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}}
		}
		at := len(dirs) - 1 - rng.IntN(min(len(dirs), 40))
		parent := dirs[at]
		name := fmt.Sprintf("%s-%d", words[rng.IntN(len(words))], i)
		node := &tree.Node{Meta: meta}
		switch {
		case i%10 == 0:
			meta.Mode = 0o755
			node = tree.NewDir(meta)
			if depths[at] == 9 { // deep enough: begin again near the root
				at = rng.IntN(min(len(dirs), 20))
				parent = dirs[at]
			}
			dirs, depths = append(dirs, node), append(depths, depths[at]+1)
		case i%10 == 1:
			node.Kind, node.Mode, node.Target = tree.Symlink, 0o777, "../lib/"+words[rng.IntN(len(words))]+".so.1"
		case i%10 == 2:
			node = tree.NewInline(meta, []byte(words[rng.IntN(len(words))]))
		case i%1000 == 3 && last != nil:
			node = last // a hard link
		default:
			node = tree.NewExternal(meta, randomDigest(rng), 65+int64(rng.IntN(200_000)))
			if last != nil && i%50 == 4 {
				node.Digest, node.Size = last.Digest, last.Size
			}
			last = node
		}
		parent.Set(name, node)
	}
	return root
}

var words = []string{"libexample", "locale", "module", "python3-dist-packages", "README", "terminfo", "zoneinfo", "kernel-driver", "systemd-unit", "icons-hicolor-scalable", "translation", "x"}

func randomDigest(rng *rand.Rand) fsverity.Digest {
	var b [32]byte
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	d, err := fsverity.NewDigest(fsverity.SHA256, b[:])
	if err != nil {
		panic(err)
	}
	return d
}
