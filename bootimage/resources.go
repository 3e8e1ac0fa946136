package bootimage

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Resources is what a deployment takes out of an image for the boot loader.
type Resources struct {
	Kernel    Kernel
	OSRelease bls.OSRelease // of /usr/lib/os-release; nil if there is none
}

// Kernel is a kernel with its initrd, from /usr/lib/modules/<Version>.
type Kernel struct {
	Version string     // name of the directory; UTF-8
	Image   *tree.Node // vmlinuz
	Initrd  *tree.Node // initramfs.img
}

// Reason says why an image cannot be booted by this program.
type Reason string

// The reasons.
const (
	NoKernel       Reason = "no kernel"
	SeveralKernels Reason = "several kernels"
	NoInitrd       Reason = "no initrd"
	OnlyUKI        Reason = "only unified kernel images"
	Aboot          Reason = "aboot image"
)

// ResourceError says that the image has no kernel, or none that can be used.
type ResourceError struct {
	Reason Reason
	Paths  []string // files of the image that are the matter
	Detail string
}

func (e *ResourceError) Error() string {
	if len(e.Paths) == 0 {
		return fmt.Sprintf("boot resources of the image: %s: %s", e.Reason, e.Detail)
	}
	return fmt.Sprintf("boot resources of the image: %s: %s: %s", e.Reason, strings.Join(e.Paths, ", "), e.Detail)
}

const (
	modulesDir   = "/usr/lib/modules"
	kernelName   = "vmlinuz"
	initrdName   = "initramfs.img"
	osRelease    = "/usr/lib/os-release"
	maxOSRelease = 1 << 20 // bytes
)

// FindResources finds the kernel of an image in the tree of its plain image. There
// must be exactly one, with its initrd beside it.
//
// Errors: *ResourceError; *FileError for a file or directory that is something
// else, is empty, or cannot be read through o.
func FindResources(plain *tree.Node, o ObjectOpener) (*Resources, error) {
	if err := refuseAboot(plain); err != nil {
		return nil, err
	}
	kernels, err := findKernels(plain)
	if err != nil {
		return nil, err
	}
	switch len(kernels) {
	case 0:
		if ukis := findUKIs(plain); len(ukis) > 0 {
			return nil, &ResourceError{OnlyUKI, ukis, "deploying them is not supported, the image needs a kernel and an initrd in " + modulesDir}
		}
		return nil, &ResourceError{Reason: NoKernel, Detail: fmt.Sprintf("want %s/<version>/%s and %s", modulesDir, kernelName, initrdName)}
	case 1:
	default:
		var paths []string
		for _, k := range kernels {
			paths = append(paths, kernelPath(k.Version, kernelName))
		}
		return nil, &ResourceError{SeveralKernels, paths, "want exactly one"}
	}
	k := kernels[0]
	if k.Initrd == nil {
		return nil, &ResourceError{NoInitrd, []string{kernelPath(k.Version, kernelName)}, "want " + initrdName + " beside it"}
	}
	res := &Resources{Kernel: k}
	if n, err := lookup(plain, osRelease, tree.Regular); err != nil {
		return nil, err
	} else if n != nil {
		text, err := readFile(n, o, osRelease, maxOSRelease)
		if err != nil {
			return nil, err
		}
		res.OSRelease = bls.ParseOSRelease(text)
	}
	return res, nil
}

func kernelPath(version, name string) string { return modulesDir + "/" + version + "/" + name }

// findKernels returns the kernels in byte order of their versions.
func findKernels(plain *tree.Node) ([]Kernel, error) {
	modules, err := lookup(plain, modulesDir, tree.Directory)
	if modules == nil || err != nil {
		return nil, err
	}
	var kernels []Kernel
	for version, dir := range modules.All() {
		if !dir.IsDir() {
			continue
		}
		image, err := bootFile(dir, version, kernelName)
		if err != nil {
			return nil, err
		}
		if image == nil {
			continue
		}
		if !utf8.ValidString(version) {
			return nil, &FileError{kernelPath(version, kernelName), fmt.Errorf("the version %q is not UTF-8", version)}
		}
		initrd, err := bootFile(dir, version, initrdName)
		if err != nil {
			return nil, err
		}
		kernels = append(kernels, Kernel{Version: version, Image: image, Initrd: initrd})
	}
	return kernels, nil
}

// bootFile returns a regular, non-empty file of dir, nil if it is absent.
func bootFile(dir *tree.Node, version, name string) (*tree.Node, error) {
	n := dir.Lookup(name)
	switch {
	case n == nil:
		return nil, nil
	case n.Kind != tree.Regular:
		return nil, &FileError{kernelPath(version, name), fmt.Errorf("a %s, want a regular file", n.Kind)}
	case n.Size == 0 || n.Sparse:
		return nil, &FileError{kernelPath(version, name), fmt.Errorf("no contents")}
	}
	return n, nil
}

// refuseAboot refuses images for machines whose firmware boots a partition: they
// need another way to deploy, and must not be mistaken for others.
func refuseAboot(plain *tree.Node) error {
	boot := plain.Lookup("boot")
	if boot == nil || !boot.IsDir() {
		return nil
	}
	var paths []string
	for name := range boot.All() {
		if (strings.HasPrefix(name, "aboot-") || strings.HasPrefix(name, "vbmeta-")) && strings.HasSuffix(name, ".img") {
			paths = append(paths, "/boot/"+name)
		}
	}
	if len(paths) > 0 {
		return &ResourceError{Aboot, paths, "aboot images are not supported"}
	}
	return nil
}

// findUKIs returns the paths of unified kernel images, for the message.
func findUKIs(plain *tree.Node) []string {
	var paths []string
	for _, start := range [...]string{"/boot/EFI/Linux", modulesDir} {
		dir, err := lookup(plain, start, tree.Directory)
		if dir == nil || err != nil {
			continue
		}
		type level struct {
			dir  *tree.Node
			path string
		}
		for stack := []level{{dir, start}}; len(stack) > 0; {
			top := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			for name, n := range top.dir.All() {
				path := top.path + "/" + name
				switch {
				case n.IsDir():
					stack = append(stack, level{n, path})
				case strings.HasSuffix(name, ".efi") && !strings.HasSuffix(name, ".addon.efi"):
					paths = append(paths, path)
				}
			}
		}
	}
	return paths
}
