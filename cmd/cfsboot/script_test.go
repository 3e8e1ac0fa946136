package main

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cfsboot/cfsboot/internal/testutil/peimage"
	"github.com/cfsboot/cfsboot/internal/testutil/registry"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"cfsboot": func() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"layout":  func() { os.Exit(layoutCommand(os.Args[1:])) },
		"peimage": func() { os.Exit(peimageCommand(os.Args[1:])) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("ESC", "name\x1b[31m\nforged")
			server, err := serve(t)
			if err != nil {
				return err
			}
			env.Setenv("REGISTRY", server.Host())
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
			return os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), ca, 0o644)
		},
	})
}

// bootable describes an image with a kernel, as a composefs dump.
const bootable = `/ 0 40755 2 0 0 0 1700000000.0 - - -
/usr 0 40755 2 0 0 0 1700000001.0 - - -
/usr/lib 0 40755 2 0 0 0 1700000001.0 - - -
/usr/lib/os-release 21 100644 1 0 0 0 1700000001.0 - ID=test\nVERSION_ID=1\n -
/usr/lib/modules 0 40755 2 0 0 0 1700000001.0 - - -
/usr/lib/modules/6.1 0 40755 2 0 0 0 1700000001.0 - - -
/usr/lib/modules/6.1/vmlinuz 6 100644 1 0 0 0 1700000001.0 - kernel -
/usr/lib/modules/6.1/initramfs.img 6 100644 1 0 0 0 1700000001.0 - initrd -
/boot 0 40755 2 0 0 0 1700000002.0 - - -
/sysroot 0 40755 2 0 0 0 1700000002.0 - - -
`

// buildImage makes one of the images that scripts use. Faults: "diffid" (the layer is not what its diff ID says), "nousr", "arm64",
// "nokernel", and "escape" (what people look at has terminal sequences and line breaks in it).
func buildImage(fault string) (*ocitest.Image, error) {
	spec := ocitest.Spec{Layers: []ocitest.Layer{{Dump: bootable, Compression: ocitest.Gzip}}}
	switch fault {
	case "diffid":
		spec.Layers[0].DiffID = digest.FromString("another layer")
	case "nousr":
		spec.Layers[0].Dump = "/ 0 40755 2 0 0 0 1700000000.0 - - -\n/etc 0 40755 2 0 0 0 1700000001.0 - - -\n"
	case "arm64":
		spec.Platform = v1.Platform{OS: "linux", Architecture: "arm64"}
	case "kargs":
		spec.Layers[0].Dump += "/usr/lib/bootc 0 40755 2 0 0 0 1700000001.0 - - -\n/usr/lib/bootc/kargs.d 0 40755 2 0 0 0 1700000001.0 - - -\n" +
			"/usr/lib/bootc/kargs.d/10-x.toml 23 100644 1 0 0 0 1700000001.0 - kargs\\x20=\\x20[\"root=/dev/x\"] -\n"
	case "nokernel":
		spec.Layers[0].Dump = strings.Replace(bootable, "/usr/lib/modules/6.1/vmlinuz 6 100644 1 0 0 0 1700000001.0 - kernel -\n", "", 1)
	case "escape":
		spec.Labels = map[string]string{v1.AnnotationVersion: "1\x1b[31m\r\nforged  line\u202e"}
	}
	return ocitest.Build(spec)
}

// serve starts a registry that has the image os:1 and refuses everything below "private" without a password that no script has.
func serve(t *testing.T) (*registry.Registry, error) {
	server := registry.New(t, true)
	img, err := buildImage("")
	if err != nil {
		return nil, err
	}
	server.AddManifest("os", "1", img.Descriptor.Digest.String(), img.Descriptor.MediaType, img.Manifest)
	for d, b := range img.Blobs {
		server.AddBlob(d.String(), b)
	}
	server.OnRequest = func(kind, id string, _ int, r *http.Request) *registry.Fault {
		switch {
		case strings.Contains(r.URL.Path, "/private/"):
			return &registry.Fault{Status: http.StatusUnauthorized, Header: http.Header{"WWW-Authenticate": {`Basic realm="test"`}}}
		case strings.Contains(r.URL.Path, "/broken/"):
			return &registry.Fault{Status: http.StatusInternalServerError}
		}
		return nil
	}
	return server, nil
}

// writeMulti writes an index of an image for amd64 and one for arm64.
func writeMulti(dir, tag string) error {
	index := v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex}
	for _, fault := range []string{"", "arm64"} {
		img, err := buildImage(fault)
		if err == nil {
			err = img.WriteLayout(dir, "part-"+fault)
		}
		if err != nil {
			return err
		}
		d := img.Descriptor
		d.Platform = &v1.Platform{OS: "linux", Architecture: cmp.Or(fault, "amd64")}
		index.Manifests = append(index.Manifests, d)
	}
	b, err := json.Marshal(index)
	if err != nil {
		return err
	}
	d := v1.Descriptor{MediaType: v1.MediaTypeImageIndex, Digest: digest.FromBytes(b), Size: int64(len(b)), Annotations: map[string]string{v1.AnnotationRefName: tag}}
	if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", d.Digest.Encoded()), b, 0o644); err != nil {
		return err
	}
	return ocitest.AddToLayout(dir, d)
}

// peimageCommand is `peimage stub FILE`, `peimage kernel FILE RELEASE` or `peimage arm64 FILE`: it writes what a UKI is made of. `peimage profiles
// FILE` writes a UKI with two.
func peimageCommand(args []string) int {
	var data []byte
	switch args[0] {
	case "stub":
		data = peimage.Stub()
	case "kernel":
		data = peimage.Kernel(args[2], "", false)
	case "profiles":
		sections := []peimage.Section{{Name: ".linux", Data: []byte("x")}, {Name: ".osrel", Data: []byte("ID=x\nNAME='\\x1b'\n")}, {Name: ".profile", Data: []byte("ID=main\n")}, {Name: ".cmdline", Data: []byte("composefs=12")}}
		sections = append(sections, peimage.Section{Name: ".profile", Data: []byte("TITLE=Rescue\n")}, peimage.Section{Name: ".cmdline", Data: []byte("composefs=?" + strings.Repeat("ab", 32))})
		data = peimage.Image{Sections: sections}.Bytes()
	case "arm64":
		data = peimage.Image{Machine: 0xaa64, Sections: []peimage.Section{{Name: ".text", Data: []byte("x")}}}.Bytes()
	}
	if err := os.WriteFile(args[1], data, 0o644); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// layoutCommand is `layout [-fault NAME] DIR TAG`: it writes a test image into an OCI layout.
func layoutCommand(args []string) int {
	flags := flag.NewFlagSet("layout", flag.ExitOnError)
	fault := flags.String("fault", "", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 2 {
		return 2
	}
	var err error
	if *fault == "multi" {
		err = writeMulti(flags.Arg(0), flags.Arg(1))
	} else {
		var img *ocitest.Image
		if img, err = buildImage(*fault); err == nil {
			err = img.WriteLayout(flags.Arg(0), flags.Arg(1))
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
