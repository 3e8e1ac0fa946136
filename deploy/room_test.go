package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// ownTree is release n with a kernel of about 100 KiB and so many bytes that no
// other release has.
func ownTree(n, own int) map[string]string {
	files := osTree(fmt.Sprint("k", n))
	files["usr/lib/own"] = noise(n, own)
	files["usr/lib/modules/6.12/vmlinuz"] = strings.Repeat(fmt.Sprintf("kernel %d ", n), 10_000)
	return files
}

// upgradeFrom is upgrade with a source that can be asked what was read of it.
func (w *world) upgradeFrom(src *ocitest.Source) error {
	o := deploy.UpgradeOptions{Options: w.options(), PullOptions: w.pull()}
	o.OpenSource = func(context.Context, string) (oci.Source, error) { return src, nil }
	return settled(deploy.Upgrade(w.t.Context(), o))
}

// reads is how often a layer of the image was opened.
func reads(src *ocitest.Source) (n int) {
	for _, l := range src.Image.Layers {
		n += src.Reads(l.Digest)
	}
	return n
}

// TestNothingGoesInVain: a small disk on which the next image finds room only if all
// deployments go but the running one. Where that image cannot be deployed they
// stay, the one that rollback goes to as well, and nothing of the image is left.
func TestNothingGoesInVain(t *testing.T) {
	const own = 3 << 20
	for name, tc := range map[string]struct {
		change func(files map[string]string)
		limit  bool // the boot partition is full, too
		want   func(err error) bool
	}{
		"a kernel too large for the boot partition": {func(files map[string]string) { files["usr/lib/modules/6.12/vmlinuz"] = noise(78, 2<<20) }, true, func(err error) bool {
			var space *durable.SpaceError
			return errors.As(err, &space) && strings.Contains(err.Error(), "boot partition") && space.Need > 2<<20
		}},
		"no kernel":     {func(files map[string]string) { delete(files, "usr/lib/modules/6.12/vmlinuz") }, false, refusedFor(deploy.CodeImage)},
		"no initrd":     {func(files map[string]string) { delete(files, "usr/lib/modules/6.12/initramfs.img") }, false, refusedFor(deploy.CodeImage)},
		"no os-release": {func(files map[string]string) { delete(files, "usr/lib/os-release") }, false, refusedFor(deploy.CodeImage)},
		"a kernel argument that cannot be": {func(files map[string]string) {
			files["usr/lib/bootc/"], files["usr/lib/bootc/kargs.d/"] = "", ""
			files["usr/lib/bootc/kargs.d/x.toml"] = "# " + strings.Repeat("long ", 50) + "\nkargs = [\"composefs=x\"]\n"
		}, false, refusedFor(deploy.CodeKarg)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(buildImage(t, ownTree(0, own)), buildImage(t, ownTree(1, own)), buildImage(t, ownTree(2, own)))
			one := used(filepath.Join(w.root.Path(), "composefs")) / 3
			w.disk = (used(w.root.Path()) + 16<<20 + one/2) * 8 / 7
			if tc.limit {
				w.limit = used(w.fat.Path())*8/7 + 8*cluster
			}
			before, objects := w.state().Deployments(), filesOf(t, filepath.Join(w.root.Path(), "composefs/objects"))
			files := ownTree(9, own+own*9/10)
			tc.change(files)
			err := w.upgradeFrom(&ocitest.Source{Image: buildImage(t, files)})
			if !tc.want(err) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("got %v", err)
			}
			t.Log(err)
			if after := w.state().Deployments(); !slices.Equal(before, after) {
				t.Errorf("%d deployments became %d", len(before), len(after))
			}
			if after := filesOf(t, filepath.Join(w.root.Path(), "composefs/objects")); !slices.Equal(objects, after) {
				t.Errorf("%d objects became %d", len(objects), len(after))
			}
			checkQuiet(t, w)
			must(t, settled(w.rollback("")))
			if got := w.boot(); got != ids[1] {
				t.Errorf("booted %s, want %s", short(got), short(ids[1]))
			}
		})
	}
}

// TestRoomIsTold: deployments that went for an image that could not be deployed
// after all are named.
func TestRoomIsTold(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	ids := w.releases(buildImage(t, ownTree(0, 3<<20)), buildImage(t, ownTree(1, 3<<20)), buildImage(t, ownTree(2, 3<<20)))
	one := used(filepath.Join(w.root.Path(), "composefs")) / 3
	w.disk = (used(w.root.Path()) + 16<<20 + one/2) * 8 / 7
	files := ownTree(9, 3<<20)
	delete(files, "usr/lib/modules/6.12/vmlinuz")
	err := w.upgradeFrom(&ocitest.Source{Image: buildImage(t, files)})
	if !refusedFor(deploy.CodeImage)(err) || !strings.Contains(err.Error(), "deployment "+short(ids[0])) {
		t.Errorf("got %v, want that %s was removed", err, short(ids[0]))
	}
	if got := w.state().Deployments(); !slices.Equal(got, []string{ids[2], ids[1]}) && !slices.Equal(got, []string{ids[1], ids[2]}) {
		t.Errorf("%d deployments are left", len(got))
	}
	must(t, settled(w.rollback("")))
}

// TestRoomForTheSameKernel: a deployment goes for room in the repository though the
// boot partition has none for another kernel, if the image has the same one, without
// a layer in common. For an image with another one nothing goes.
func TestRoomForTheSameKernel(t *testing.T) {
	tree := func(n, kernel int) *ocitest.Image {
		files := ownTree(n, 3<<20)
		for _, name := range []string{"vmlinuz", "initramfs.img"} {
			files["usr/lib/modules/6.12/"+name] = ownTree(kernel, 0)["usr/lib/modules/6.12/"+name]
		}
		return buildImage(t, files)
	}
	base := newWorld(t)
	base.configure("keep = 9\n")
	ids := base.releases(tree(0, 0), tree(1, 0), tree(2, 0))
	one := used(filepath.Join(base.root.Path(), "composefs")) / 3
	base.disk = (used(base.root.Path()) + 16<<20 + one/2) * 8 / 7
	base.limit = (used(base.fat.Path())+4*cluster)*8/7 + 8

	w := base.copy()
	src := &ocitest.Source{Image: tree(9, 10)}
	err := w.upgradeFrom(src)
	var space *durable.SpaceError
	if !errors.As(err, &space) || space.Where != w.fat.Path() || reads(src) != 1 {
		t.Errorf("another kernel: %v, %d reads", err, reads(src))
	}
	if got := w.state().Deployments(); len(got) != len(ids) {
		t.Errorf("another kernel: %d deployments became %d", len(ids), len(got))
	}
	checkQuiet(t, w)

	w = base.copy()
	src.Image = tree(9, 0)
	if err := w.upgradeFrom(src); err != nil {
		t.Fatal(err)
	}
	if got := w.state().Deployments(); slices.Contains(got, ids[0]) || !slices.Contains(got, ids[1]) {
		t.Errorf("%d deployments became %d", len(ids), len(got))
	}
	must(t, settled(w.finalize()))
	if got := w.boot(); slices.Contains(ids, got) {
		t.Errorf("booted %s", short(got))
	}
}

// TestBootPartitionFirst: that the boot partition has no room is found out before
// anything of an image is fetched if it is certain, and else before anything of its
// deployment is made; nothing of the image is left.
func TestBootPartitionFirst(t *testing.T) {
	shared := ocitest.Layer{Tar: tarOf(t, map[string]string{"opt/": "", "opt/app": noise(5, 4096)})}
	layers := func(tree map[string]string, more ...ocitest.Layer) *ocitest.Image {
		img, err := ocitest.Build(ocitest.Spec{Layers: append(more, ocitest.Layer{Tar: tarOf(t, tree), Compression: ocitest.Gzip}), Platform: v1.Platform{}})
		must(t, err)
		return img
	}
	other := ownTree(1, 1000) // the kernel of release 0
	other["usr/lib/modules/6.12/vmlinuz"] = ownTree(0, 0)["usr/lib/modules/6.12/vmlinuz"]
	other["usr/lib/modules/6.12/initramfs.img"] = ownTree(0, 0)["usr/lib/modules/6.12/initramfs.img"]
	for _, tc := range []struct {
		name    string
		next    *ocitest.Image
		room    int64 // for so many clusters
		reads   int
		success bool
	}{
		{"no room for an entry", layers(ownTree(7, 1000)), 1, 0, false},
		{"no room for half a kernel", layers(ownTree(7, 1000)), 12, 1, false},
		{"room for half a kernel", layers(ownTree(7, 1000)), 18, 1, false},
		{"no layer that is there, and the same kernel", layers(other), 2, 1, true},
		{"layers that are there, and another kernel", layers(ownTree(7, 1000), shared), 8, 1, false},
		{"layers that are there, and the same kernel", layers(other, shared), 8, 1, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			one := w.releases(layers(ownTree(0, 1000), shared))[0]
			w.limit = (used(w.fat.Path())+tc.room*cluster)*8/7 + 8
			objects := filesOf(t, filepath.Join(w.root.Path(), "composefs/objects"))
			src := &ocitest.Source{Image: tc.next}
			err := w.upgradeFrom(src)
			if got := reads(src); got != tc.reads {
				t.Errorf("%d layers were read, want %d (%v)", got, tc.reads, err)
			}
			if tc.success {
				must(t, err)
				must(t, settled(w.finalize()))
				if got := w.boot(); got == one {
					t.Error("the next release does not boot")
				}
				return
			}
			var space *durable.SpaceError
			if !errors.As(err, &space) || space.Where != w.fat.Path() || space.Need <= space.Have {
				t.Fatalf("got %v, want a SpaceError of the boot partition", err)
			}
			if after := filesOf(t, filepath.Join(w.root.Path(), "composefs/objects")); !slices.Equal(objects, after) {
				t.Errorf("%d objects became %d", len(objects), len(after))
			}
			checkQuiet(t, w)
			w.limit = 0
			must(t, w.upgradeFrom(src))
			must(t, settled(w.finalize()))
			if got := w.boot(); got == one {
				t.Error("the next release does not boot")
			}
		})
	}
}
