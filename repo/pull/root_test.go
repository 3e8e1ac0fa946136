package pull_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/testutil/recipes"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// needKernel skips unless the test runs as root in a kernel with fs-verity, and
// returns a directory on a file system that has it.
func needKernel(t *testing.T) string {
	t.Helper()
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root and a kernel with fs-verity: CFSBOOT_ROOT_TESTS=1")
	}
	return t.TempDir()
}

// TestRootSecurePull: in a secure repository the kernel computes the same digests,
// every object has fs-verity, and content that was changed on the disk is refused.
func TestRootSecurePull(t *testing.T) {
	path := needKernel(t)
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := repo.Init(t.Context(), dir, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	r, err := repo.Open(t.Context(), dir, repo.Options{RequireVerity: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, c := range recipes.All(t) {
		if c.Want.Boot["sha512-v1"] == "" || c.Want.Boot["sha512-v1"] == recipes.Refused {
			continue
		}
		res, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: c.Image}, options(c.Name, true))
		if err != nil {
			t.Fatalf("%s: %v", c.Name, err)
		}
		if boot, _ := res.Verified.Digest(keyring.Boot); boot.Hex() != c.Want.Boot["sha512-v1"] {
			t.Errorf("%s: boot image %s, want %s", c.Name, boot.Hex(), c.Want.Boot["sha512-v1"])
		}
	}
	repotest.Check(t, r)
	n := 0
	err = filepath.WalkDir(filepath.Join(path, "objects"), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		got, err := fsverity.Measure(f)
		if want := filepath.Base(filepath.Dir(name)) + filepath.Base(name); err != nil || got.Hex() != want {
			t.Errorf("object %s measures %s, %v", want, got, err)
		}
		n++
		return nil
	})
	if err != nil || n < 50 {
		t.Errorf("%d objects, %v", n, err)
	}
}

// TestRootReadOnlyPull: on a read-only mount a pull fails before the source is
// asked, and says why.
func TestRootReadOnlyPull(t *testing.T) {
	path, target := needKernel(t), t.TempDir()
	dir, err := durable.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := repo.Init(t.Context(), dir, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	src := &flaky{Source: ocitest.Source{Image: bootable(t)}}
	_, err = pull.Pull(t.Context(), openDir(t, target), src, options("os", true))
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "read-only file system") || !strings.Contains(err.Error(), target) {
		t.Errorf("got %v, want one that names %s and says read-only file system", err, target)
	}
	t.Log(err)
	if src.resolved != 0 {
		t.Error("the source was asked")
	}
}

// TestRootFullDisk: a disk without room is seen before anything is fetched, and one
// that fills up on the way gives the same class of error and no name.
func TestRootFullDisk(t *testing.T) {
	at := needKernel(t)
	img := bootable(t)
	for _, size := range []string{"size=4m", "size=20m"} { // below the reserve; above it, but filled below
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, size+",mode=755"); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			}()
			dir, err := durable.OpenDir(at)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := repo.Init(t.Context(), dir, repo.InitOptions{Insecure: true}); err != nil {
				t.Fatal(err)
			}
			r, err := repo.Open(t.Context(), dir, repo.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			src := &ocitest.Source{Image: img}
			if size == "size=20m" {
				src.Fault = fillDisk(t, at)
			}
			_, err = pull.Pull(t.Context(), r, src, options("os", true))
			var space *durable.SpaceError
			if !errors.As(err, &space) || !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%s: got %v, want a *durable.SpaceError", size, err)
			}
			t.Log(err)
			if n := src.Reads(img.Layers[0].Digest) + src.Reads(img.Layers[1].Digest); size == "size=4m" && n != 0 {
				t.Errorf("%d layers were fetched", n)
			}
			if _, err := os.Stat(filepath.Join(at, "streams/refs/oci/os")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the tag is there: %v", err)
			}
		}()
	}
}

// fillDisk uses up the file system when a layer is read.
func fillDisk(t *testing.T, at string) func(v1.Descriptor, io.Reader) (io.Reader, error) {
	t.Helper()
	var once sync.Once
	return func(d v1.Descriptor, r io.Reader) (io.Reader, error) {
		if d.MediaType == v1.MediaTypeImageConfig {
			return r, nil
		}
		once.Do(func() {
			f, err := os.Create(filepath.Join(at, "filler"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for err == nil {
				_, err = f.Write(make([]byte, 4096))
			}
		})
		return r, nil
	}
}
