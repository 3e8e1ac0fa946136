package bootimage_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/dump"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/vectors"
)

// objects is an ObjectOpener over a folder of files named by digest.
type objects struct{ dir string }

func (o objects) OpenObject(d fsverity.Digest) (*os.File, error) {
	return os.Open(filepath.Join(o.dir, d.Hex()))
}

// put stores data and returns a file with these contents.
func (o objects) put(t *testing.T, data string) *tree.Node {
	t.Helper()
	d := fsverity.Sum(fsverity.SHA256, []byte(data))
	if err := os.WriteFile(filepath.Join(o.dir, d.Hex()), []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
	return tree.NewExternal(tree.Meta{Mode: 0o644}, d, int64(len(data)))
}

func imageID(t *testing.T, root *tree.Node, a fsverity.Algorithm, v erofs.Version) string {
	t.Helper()
	h := fsverity.NewHasher(a)
	if err := erofs.Encode(h, root, v); err != nil {
		t.Fatal(err)
	}
	return h.Sum().Hex()
}

func readDump(t *testing.T, text []byte) *tree.Node {
	t.Helper()
	root, err := dump.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func dumpOf(t *testing.T, root *tree.Node) string {
	t.Helper()
	var out bytes.Buffer
	if err := dump.Write(&out, root); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// TestVectors: boot trees, with a policy and without, have the recorded contents and
// IDs.
func TestVectors(t *testing.T) {
	seen := 0
	for _, v := range vectors.Load(t).Transforms {
		if v.Transform != "boot" {
			continue
		}
		seen++
		t.Run(v.Input, func(t *testing.T) {
			root := readDump(t, vectors.Read(t, v.Input))
			o := objects{t.TempDir()}
			if err := bootimage.Transform(root, o); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(vectors.Read(t, v.Output)), dumpOf(t, root)); diff != "" {
				t.Errorf("dump mismatch (-want +got):\n%s", diff)
			}
			for format, want := range map[erofs.Version]string{erofs.V1: v.OutputDigest["v1"], erofs.V2: v.OutputDigest["v2"]} {
				if id := imageID(t, root, fsverity.SHA256, format); id != want {
					t.Errorf("image ID in format %d: got %s, want %s", format, id, want)
				}
			}
		})
	}
	if seen != 3 {
		t.Errorf("got %d boot transforms, want 3", seen)
	}
}

// base is the smallest tree with a boot image.
func base() *tree.Node {
	root := tree.NewDir(tree.Meta{Mode: 0o755})
	for i, name := range []string{"usr", "boot", "sysroot", "etc"} {
		root.Set(name, tree.NewDir(tree.Meta{Mode: 0o755, MtimeSec: int64(i), MtimeNsec: uint32(i)}))
	}
	return root
}

// enter puts n at path and makes the directories above it.
func enter(root *tree.Node, path string, n *tree.Node) {
	dir, name := root, path
	for {
		first, rest, ok := strings.Cut(name, "/")
		if !ok {
			dir.Set(name, n)
			return
		}
		if dir.Lookup(first) == nil {
			dir.Set(first, tree.NewDir(tree.Meta{Mode: 0o755}))
		}
		dir, name = dir.Lookup(first), rest
	}
}

func inline(text string) *tree.Node { return tree.NewInline(tree.Meta{Mode: 0o644}, []byte(text)) }

func TestTransformRefuses(t *testing.T) {
	for _, missing := range []string{"usr", "boot", "sysroot"} {
		for _, n := range []*tree.Node{nil, tree.NewSymlink(tree.Meta{}, "x"), inline("x")} {
			root := base()
			root.Remove(missing)
			if n != nil {
				root.Set(missing, n)
			}
			var re *tree.RequiredError
			if err := bootimage.Transform(root, nil); !errors.As(err, &re) || re.Path != "/"+missing {
				t.Errorf("%s is %v: got %v, want a RequiredError", missing, n, err)
			}
		}
	}
}

func TestTransformStrips(t *testing.T) {
	list := []tree.Xattr{{Name: "security.capability", Value: "c"}, {Name: "security.selinux", Value: "s"}, {Name: "user.a", Value: "u"}}
	root := base()
	root.Xattrs = list
	enter(root, "usr/bin/f", tree.NewInline(tree.Meta{Xattrs: list}, nil))
	if err := bootimage.Transform(root, nil); err != nil {
		t.Fatal(err)
	}
	if text := dumpOf(t, root); strings.Contains(text, "selinux") || strings.Count(text, "security.capability=c user.a=u") != 2 {
		t.Errorf("labels are left, or more is gone:\n%s", text)
	}
	if len(list) != 3 || list[1].Name != "security.selinux" {
		t.Errorf("the shared list became %v", list)
	}
}

func TestOpenChecksSize(t *testing.T) {
	o := objects{t.TempDir()}
	for _, diff := range []int64{-1, 1} {
		n := o.put(t, strings.Repeat("k", 5000))
		n.Size += diff
		r, err := bootimage.Open(n, o)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err == nil {
			t.Errorf("size wrong by %d: read %d bytes without an error", diff, len(b))
		}
		r.Close()
	}
	n := o.put(t, "some contents")
	r, err := bootimage.Open(n, o)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || string(b) != "some contents" {
		t.Errorf("got %q, %v", b, err)
	}
	r.Close()
	if _, err := bootimage.Open(tree.NewDir(tree.Meta{}), o); err == nil {
		t.Error("opened a directory")
	}
	if _, err := bootimage.Open(&tree.Node{Kind: tree.Regular, Sparse: true, Size: 5}, o); err == nil {
		t.Error("opened a file without contents")
	}
	gone := tree.NewExternal(tree.Meta{}, fsverity.Sum(fsverity.SHA512, nil), 5)
	if _, err := bootimage.Open(gone, o); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
}

func TestFindResources(t *testing.T) {
	o := objects{t.TempDir()}
	const k = "usr/lib/modules/6.12.1/"
	root := base()
	image, initrd := o.put(t, strings.Repeat("k", 4000)), inline("initrd")
	enter(root, k+"vmlinuz", image)
	enter(root, k+"initramfs.img", initrd)
	enter(root, "usr/lib/modules/old/modules.dep", inline("x")) // left over, no kernel
	enter(root, "usr/lib/modules/README", inline("x"))
	enter(root, "usr/lib/os-release", o.put(t, "ID=test\nVERSION_ID=\"7\"\nPRETTY_NAME='Test OS'\n# "+strings.Repeat("x", 80)+"\n"))
	enter(root, "boot/EFI/Linux/x.efi", inline("uki")) // the kernel is preferred
	res, err := bootimage.FindResources(root, o)
	if err != nil {
		t.Fatal(err)
	}
	if res.Kernel.Version != "6.12.1" || res.Kernel.Image != image || res.Kernel.Initrd != initrd {
		t.Errorf("got %+v", res.Kernel)
	}
	if res.OSRelease.ID() != "test" || res.OSRelease.Title() != "Test OS" || res.OSRelease.Version() != "7" {
		t.Errorf("os-release: got %v", res.OSRelease)
	}
	root.Lookup("usr").Lookup("lib").Remove("os-release")
	if res, err = bootimage.FindResources(root, o); err != nil || res.OSRelease != nil {
		t.Errorf("without os-release: got %v, %v", res, err)
	}
}

func TestFindResourcesRefuses(t *testing.T) {
	const k = "usr/lib/modules/6.1/"
	type file struct {
		path string
		node *tree.Node
	}
	kernel, initrd := file{k + "vmlinuz", inline("k")}, file{k + "initramfs.img", inline("i")}
	for name, c := range map[string]struct {
		files []file
		want  string // Reason, or path of a FileError
	}{
		"nothing":                 {nil, "no kernel"},
		"modules only":            {[]file{{k + "modules.dep", inline("x")}, initrd}, "no kernel"},
		"no initrd":               {[]file{kernel}, "no initrd"},
		"two kernels":             {[]file{kernel, initrd, {"usr/lib/modules/6.2/vmlinuz", inline("k")}}, "several kernels"},
		"UKI in boot":             {[]file{{"boot/EFI/Linux/a/x.efi", inline("u")}}, "only unified kernel images"},
		"UKI beside the modules":  {[]file{{k + "x.efi", inline("u")}}, "only unified kernel images"},
		"add-on only":             {[]file{{"boot/EFI/Linux/x.addon.efi", inline("u")}}, "no kernel"},
		"aboot":                   {[]file{kernel, initrd, {"boot/aboot-6.1.img", inline("a")}}, "aboot image"},
		"vbmeta":                  {[]file{{"boot/vbmeta-6.1.img", inline("a")}}, "aboot image"},
		"kernel is a link":        {[]file{{k + "vmlinuz", tree.NewSymlink(tree.Meta{}, "x")}, initrd}, "/" + k + "vmlinuz"},
		"kernel is empty":         {[]file{{k + "vmlinuz", inline("")}, initrd}, "/" + k + "vmlinuz"},
		"initrd is a folder":      {[]file{kernel, {k + "initramfs.img", tree.NewDir(tree.Meta{})}}, "/" + k + "initramfs.img"},
		"initrd is zeros":         {[]file{kernel, {k + "initramfs.img", &tree.Node{Kind: tree.Regular, Sparse: true, Size: 5}}}, "/" + k + "initramfs.img"},
		"modules is a link":       {[]file{{"usr/lib/modules", tree.NewSymlink(tree.Meta{}, "x")}}, "/usr/lib/modules"},
		"version is not UTF-8":    {[]file{{"usr/lib/modules/\xff/vmlinuz", inline("k")}}, "/usr/lib/modules/\xff/vmlinuz"},
		"os-release is a link":    {[]file{kernel, initrd, {"usr/lib/os-release", tree.NewSymlink(tree.Meta{}, "x")}}, "/usr/lib/os-release"},
		"os-release is not there": {[]file{kernel, initrd, {"usr/lib/os-release", tree.NewExternal(tree.Meta{}, fsverity.Sum(fsverity.SHA256, nil), 70)}}, "/usr/lib/os-release"},
	} {
		t.Run(name, func(t *testing.T) {
			root := base()
			for _, f := range c.files {
				enter(root, f.path, f.node)
			}
			_, err := bootimage.FindResources(root, objects{t.TempDir()})
			var re *bootimage.ResourceError
			var fe *bootimage.FileError
			if strings.HasPrefix(c.want, "/") {
				if !errors.As(err, &fe) || fe.Path != c.want {
					t.Errorf("got %v, want a FileError for %s", err, c.want)
				}
			} else if !errors.As(err, &re) || string(re.Reason) != c.want {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err != nil && strings.Contains(fmt.Sprint(err), "\n") {
				t.Errorf("error of more than one line: %v", err)
			}
		})
	}
}
