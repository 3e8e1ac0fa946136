package pull_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// mountAt mounts an empty file system that lives in memory.
func mountAt(t *testing.T, at, kind, options string) *repo.Repository {
	t.Helper()
	if err := unix.Mount(kind, at, kind, 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	dir, err := durable.OpenDir(at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return repotest.NewIn(t, dir, fsverity.SHA512)
}

// TestRootRoomBeforeTheFirstByte: a disk that a killed pull has left full does not
// refuse every later pull.
func TestRootRoomBeforeTheFirstByte(t *testing.T) {
	at := needKernel(t)
	r := mountAt(t, at, "tmpfs", "size=60m,mode=755")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	orphans(t, at, 45, 1<<20)
	r = openDir(t, at)
	other := openDir(t, at)
	defer pull.SetReclaimWait(300 * time.Millisecond)()
	src := &ocitest.Source{Image: bootable(t)}
	_, err := pull.Pull(t.Context(), r, src, options("os", true))
	var space *durable.SpaceError
	var left *pull.LeftError
	if !errors.As(err, &space) || !errors.As(err, &left) {
		t.Fatalf("while another handle is open: got %v, want a *LeftError around a *SpaceError", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	o := options("os", true)
	text := messages(&o)
	if _, err := pull.Pull(t.Context(), r, src, o); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.Join(*text, "\n"), "what nothing in the repository needs is removed: 45 objects, 45") {
		t.Errorf("messages %q", *text)
	}
	repotest.Check(t, r)
}

// TestRootNoSize: a file system that tells no size is not full.
func TestRootNoSize(t *testing.T) {
	at := needKernel(t)
	for kind, options := range map[string]string{"ramfs": "", "tmpfs": "size=0"} {
		t.Run(kind, func(t *testing.T) {
			r := mountAt(t, at, kind, options)
			if _, err := pull.Pull(t.Context(), r, &ocitest.Source{Image: bootable(t)}, pullOptions); err != nil {
				t.Error(err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

var pullOptions = options("os", true)

// TestRootPullRepairs: a copy of an image or of a stream without fs-verity is
// replaced by a pull, as everything is checked that a pull finds.
func TestRootPullRepairs(t *testing.T) {
	dir, err := durable.OpenDir(needKernel(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := repo.Init(t.Context(), dir, repo.InitOptions{}); err != nil {
		t.Fatal(err)
	}
	r := repotest.Open(t, dir)
	img := bootable(t)
	src := &ocitest.Source{Image: img}
	res, err := pull.Pull(t.Context(), r, src, pullOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"images/" + imageID(res, keyring.Plain), "images/" + imageID(res, keyring.Boot), "streams/" + oci.LayerStream(img.DiffIDs[1])} {
		damage(t, r, name, func(b []byte) []byte { return b })
		r = openDir(t, r.Path())
		if _, err := pull.Pull(t.Context(), r, src, pullOptions); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		repotest.Check(t, r)
	}
}
