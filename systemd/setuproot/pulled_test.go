package setuproot_test

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/systemd/setuproot"
)

// pullImage pulls an image of the given release into the machine's repository and returns its boot image.
func pullImage(t *testing.T, m *machine, r *repo.Repository, release string) fsverity.Digest {
	t.Helper()
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	at := map[string]*tree.Node{"": root}
	for _, name := range []string{"boot", "etc", "run", "sysroot", "usr", "usr/bin", "usr/lib", "usr/sbin", "var"} {
		n := tree.NewDir(tree.Meta{Mode: 0o755, MtimeSec: 1700000000})
		dir, base := "", name
		if i := strings.LastIndexByte(name, '/'); i >= 0 {
			dir, base = name[:i], name[i+1:]
		}
		at[dir].Set(base, n)
		at[name] = n
	}
	root.Set("sbin", tree.NewSymlink(tree.Meta{Mode: 0o777}, "usr/sbin"))
	at["usr/lib"].Set("os-release", tree.NewInline(tree.Meta{Mode: 0o644}, []byte("ID=test\n")))
	at["usr/sbin"].Set("init", tree.NewInline(tree.Meta{Mode: 0o755}, bytes.Repeat([]byte("init "+release+"\n"), 2000)))
	at["usr/bin"].Set("data", tree.NewInline(tree.Meta{Mode: 0o755}, bytes.Repeat([]byte("data "+release+"\n"), 5000)))
	at["boot"].Set("old", tree.NewInline(tree.Meta{Mode: 0o644}, []byte("not in the boot image")))
	var layer bytes.Buffer
	must(t, ocitest.WriteTar(&layer, root))
	img, err := ocitest.Build(ocitest.Spec{Layers: []ocitest.Layer{{Tar: layer.Bytes(), Compression: ocitest.Gzip}}})
	must(t, err)
	layout := t.TempDir()
	must(t, img.WriteLayout(layout, release))
	platform := v1.Platform{OS: "linux", Architecture: "amd64"}
	src, err := remote.Open(t.Context(), "oci:"+layout+":"+release, remote.Options{Platform: platform})
	must(t, err)
	defer src.Close()
	res, err := pull.Pull(t.Context(), r, src, pull.Options{Name: "os", Bootable: true, Policy: keyring.Computed{}, Platform: platform})
	must(t, err)
	d, ok := res.Verified.Digest(keyring.Boot)
	if !ok {
		t.Fatal("the pull verified no boot image")
	}
	return d
}

// TestRootPulledFormats boots what pulls stored in repositories of each format, named on the command line as composefs-rs
// names images of that format.
func TestRootPulledFormats(t *testing.T) {
	needKernel(t)
	for _, v := range []erofs.Version{erofs.V0, erofs.V1, erofs.V2} {
		t.Run(fmt.Sprint(v), func(t *testing.T) {
			m := newMachine(t)
			must(t, os.RemoveAll(m.path("composefs")))
			dir, err := repo.MakeDir(m.path("composefs"))
			must(t, err)
			must(t, repo.Init(t.Context(), dir, repo.InitOptions{Algorithm: fsverity.SHA512, Formats: &repo.Formats{Default: v}}))
			r, err := repo.Open(t.Context(), dir, repo.Options{})
			must(t, err)
			m.image = pullImage(t, m, r, "1")
			must(t, r.Close())
			must(t, dir.Close())
			m.addState(m.image)
			cmdline := karg(m.image)
			if v == erofs.V2 {
				cmdline = "composefs=" + m.image.Hex()
			}
			m.boot(m.options(cmdline))
			if s := readFile(t, m.path("usr/bin/data")); len(s) != 5000*7 {
				t.Errorf("/usr/bin/data has %d bytes", len(s))
			}
			if s := readFile(t, m.path("usr/lib/os-release")); s != "ID=test\n" {
				t.Errorf("os-release: %q", s)
			}
		})
	}
}

// TestRootPulledImage boots what a pull stored in a repository of our own, and attacks exactly that.
func TestRootPulledImage(t *testing.T) {
	needKernel(t)
	m := newMachine(t)
	must(t, os.RemoveAll(m.path("composefs")))
	dir, err := repo.MakeDir(m.path("composefs"))
	must(t, err)
	must(t, repo.Init(t.Context(), dir, repo.InitOptions{Algorithm: fsverity.SHA512}))
	must(t, dir.Close())
	open := func() *repo.Repository {
		t.Helper()
		dir, err := durable.OpenDir(m.path("composefs"))
		must(t, err)
		r, err := repo.Open(t.Context(), dir, repo.Options{})
		must(t, err)
		return r
	}
	r := open()
	if !r.Secure() {
		t.Fatal("the repository is not secure")
	}
	m.image = pullImage(t, m, r, "1")
	other := pullImage(t, m, r, "2")
	must(t, r.SetRef(t.Context(), repo.Images, "cfsboot/"+m.image.Hex()+"/boot", m.image.Hex()))
	must(t, r.Close())
	m.addState(m.image)
	m.addState(other)

	m.boot(m.options(karg(m.image)))
	if s := readFile(t, m.path("usr/bin/data")); len(s) != 5000*7 {
		t.Errorf("/usr/bin/data has %d bytes", len(s))
	}
	if names, err := os.ReadDir(m.path("boot")); err != nil || len(names) != 0 {
		t.Errorf("/boot of the boot image: %v, %v", names, err)
	}
	m.reset()

	// P1 and P2 at once on the real thing: the image is gone, a ref of its name leads to another good image, and
	// meta.json says nothing any more.
	r = open()
	must(t, r.SetRef(t.Context(), repo.Images, m.image.Hex(), other.Hex()))
	must(t, r.Close())
	m.remove("composefs/meta.json", "composefs/images/"+m.image.Hex(), objectName(m.image))
	m.refuse(m.options(karg(m.image)), setuproot.CodeMissing, karg(m.image), m.image.String())
	m.boot(m.options(karg(other)))
}
