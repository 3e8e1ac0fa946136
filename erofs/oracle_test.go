package erofs_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/internal/testutil/randtree"
	"github.com/cfsboot/cfsboot/internal/testutil/vectors"
)

// oracle returns the path of a program that tests compare with. Without it the
// test is skipped, unless CFSBOOT_REQUIRE_ORACLES=1.
func oracle(t *testing.T, name string, more ...string) string {
	t.Helper()
	for _, path := range append([]string{name}, more...) {
		if found, err := exec.LookPath(path); err == nil {
			return found
		}
	}
	if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("%s is not installed", name)
	return ""
}

func mkcomposefs(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	return oracle(t, "mkcomposefs", filepath.Join(cache, "cfsboot/mkcomposefs/bin/mkcomposefs"))
}

// randomDumps writes n random trees as dumpfiles into dir and returns our image
// IDs of them in format v, by number.
func randomDumps(t *testing.T, dir string, n int, seed uint64, alg fsverity.Algorithm, v erofs.Version, change func(*tree.Node)) []string {
	t.Helper()
	ids := make([]string, n)
	for i := range ids {
		root := randtree.New(rand.New(rand.NewPCG(seed, uint64(i))), randtree.Options{Algorithm: alg})
		change(root)
		if err := os.WriteFile(dumpName(dir, i), []byte(dumpOf(t, root)), 0o600); err != nil {
			t.Fatal(err)
		}
		h := fsverity.NewHasher(alg)
		if err := erofs.Encode(h, root, v); err != nil {
			t.Fatal(err)
		}
		ids[i] = h.Sum().Hex()
	}
	return ids
}

func dumpName(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("%d.dump", i)) }

// TestOracleReferenceEncoder compares random trees with the reference encoder.
func TestOracleReferenceEncoder(t *testing.T) {
	python := oracle(t, "python3")
	script := vectors.File(t, "refenc.py")
	const driver = `
import sys
sys.path.insert(0, sys.argv[1])
import refenc
for name in sys.argv[4:]:
    print(refenc.fsverity(refenc.encode(open(name, "rb").read(), int(sys.argv[3]), sys.argv[2]), sys.argv[2]))
`
	for _, alg := range []fsverity.Algorithm{fsverity.SHA256, fsverity.SHA512} {
		for _, v := range formats {
			t.Run(fmt.Sprintf("%s/%d", alg.Name(), v), func(t *testing.T) {
				dir := t.TempDir()
				ids := randomDumps(t, dir, 40, 100+uint64(alg), alg, v, func(*tree.Node) {})
				args := []string{"-B", "-c", driver, filepath.Dir(script), alg.Name(), fmt.Sprint(v)}
				for i := range ids {
					args = append(args, dumpName(dir, i))
				}
				out, err := exec.CommandContext(t.Context(), python, args...).CombinedOutput()
				if err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				got := strings.Fields(string(out))
				if len(got) != len(ids) {
					t.Fatalf("%d digests for %d dumps", len(got), len(ids))
				}
				for i, want := range got {
					if ids[i] != want {
						t.Errorf("tree %d: got %s, the reference encoder says %s", i, ids[i], want)
					}
				}
			})
		}
	}
}

// TestOracleMkcomposefs compares random trees with C mkcomposefs. Directories with
// whiteouts have no attributes like the marks that they get: mkcomposefs fails to
// replace long values ("Numerical result out of range").
func TestOracleMkcomposefs(t *testing.T) {
	program := mkcomposefs(t)
	for _, v := range []erofs.Version{erofs.V0, erofs.V1} {
		compareMkcomposefs(t, program, v, func(root *tree.Node) { dropMarks(root, erofs.V1) })
	}
}

// TestOracleMkcomposefsOfCfsctl compares random trees with composefs-rs, which calls
// itself mkcomposefs if its name is that. It writes names twice where a mark
// replaces an attribute.
func TestOracleMkcomposefsOfCfsctl(t *testing.T) {
	program := filepath.Join(t.TempDir(), "mkcomposefs")
	if err := os.Symlink(cfsctl.Find(t), program); err != nil {
		t.Fatal(err)
	}
	for _, v := range []erofs.Version{erofs.V0, erofs.V1} {
		compareMkcomposefs(t, program, v, func(root *tree.Node) { dropMarks(root, erofs.V1) })
	}
}

func compareMkcomposefs(t *testing.T, program string, v erofs.Version, change func(*tree.Node)) {
	t.Helper()
	dir := t.TempDir()
	for i, id := range randomDumps(t, dir, 60, 7, fsverity.SHA256, v, change) {
		cmd := exec.CommandContext(t.Context(), program, fmt.Sprintf("--min-version=%d", v), fmt.Sprintf("--max-version=%d", v), "--print-digest-only", "--from-file", dumpName(dir, i))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("format %d, tree %d: %v: %s", v, i, err, &stderr)
		}
		if got := strings.TrimSpace(string(out)); got != id {
			t.Errorf("format %d, tree %d: got %s, %s says %s", v, i, id, program, got)
		}
	}
}

// TestOracleFsckErofs: the images are file systems to the tool of the EROFS project.
func TestOracleFsckErofs(t *testing.T) {
	program := oracle(t, "fsck.erofs")
	dir := t.TempDir()
	for name, c := range vectors.Load(t).Images {
		for _, v := range formats {
			if v == erofs.V2 && (unfitV2[name] || name == "external-multichunk") { // files above 8 TiB
				continue
			}
			image, _, _ := imageIn(t, readDump(t, vectors.Read(t, c.Dump)), v)
			path := filepath.Join(dir, fmt.Sprintf("%s.%d", name, v))
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.CommandContext(t.Context(), program, path).CombinedOutput(); err != nil {
				t.Errorf("%s in format %d: %v\n%s", name, v, err, out)
			}
		}
	}
}
