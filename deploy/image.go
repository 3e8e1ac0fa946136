package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/kargs"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/pull"
)

// image is an image that was pulled and verified, and that can be booted.
type image struct {
	holdings
	pulled  *pull.Result
	tree    *tree.Node // of the boot image
	payload esp.Payload
	kargs   []kargs.File      // files of kernel arguments
	record  record.Deployment // all but Options, Kargs, Transaction, Created
}

// id is that of the deployment.
func (i *image) id() string { return i.Boot.Hex() }

// resolve asks the source what the reference stands for now.
func resolve(ctx context.Context, o PullOptions, reference string) (oci.Source, oci.Resolved, error) {
	src, err := o.OpenSource(ctx, reference)
	if err != nil {
		return nil, oci.Resolved{}, err
	}
	resolved, err := src.Resolve(ctx)
	if err != nil {
		return nil, oci.Resolved{}, errors.Join(err, src.Close())
	}
	return src, resolved, nil
}

// manifestOf reads the manifest that a reference stands for. size is what its
// layers take as they are sent. Errors: those of oci.ParseManifest.
func manifestOf(reference string, resolved oci.Resolved) (m v1.Manifest, size int64, err error) {
	where := "manifest of " + reference
	if m, err = oci.ParseManifest(where, resolved.Manifest); err != nil {
		return m, 0, err
	}
	for _, l := range m.Layers {
		if size > math.MaxInt64-l.Size {
			return m, 0, &oci.FormatError{Where: where, Detail: fmt.Sprintf("size %d of layer %s, with the other layers more than there are numbers", l.Size, l.Digest)}
		}
		size += l.Size
	}
	return m, size, nil
}

// pullImage brings an image into the repository and looks for what boots it. An
// image that cannot be booted is a *RefusedError.
func (m *machine) pullImage(ctx context.Context, src oci.Source, reference string, o PullOptions) (*image, error) {
	ref, err := record.ParseImageReference(reference)
	if err != nil {
		return nil, err
	}
	policy := o.Policy
	if policy == nil {
		policy = keyring.Computed{}
	}
	m.say("pulling %s", reference)
	// No name yet: an image that is refused below must not keep one.
	pulled, err := pull.Pull(ctx, m.repo, src, pull.Options{
		Bootable: true, Policy: policy, Platform: o.Platform, Progress: m.Progress, Logger: m.Logger, Parallel: o.Parallel,
	})
	if err != nil {
		return nil, refuseImage(err)
	}
	img := &image{pulled: pulled}
	img.Tag, img.ManifestDigest = tagOf(reference), pulled.ManifestDigest
	var ok bool
	if img.Boot, ok = pulled.Verified.Digest(keyring.Boot); !ok {
		return nil, refuse(CodeImage, "image %s has no verified boot image", reference)
	}
	if img.Plain, ok = pulled.Verified.Digest(keyring.Plain); !ok {
		return nil, refuse(CodeImage, "image %s has no verified plain image", reference)
	}
	res, err := m.bootFiles(ctx, img)
	if err != nil {
		return nil, err
	}
	if err := checkRelease(res); err != nil {
		return nil, err
	}
	if img.tree, err = readImage(ctx, m.repo, img.Boot); err != nil {
		return nil, err
	}
	m.describe(img, res)
	img.record.Reference = ref.String()
	return img, nil
}

// refuseImage makes what is wrong with an image, rather than with its bytes or
// with the way here, a *RefusedError.
func refuseImage(err error) error {
	var (
		damaged  *fsverity.MismatchError
		missing  *tree.RequiredError
		resource *bootimage.ResourceError
		file     *bootimage.FileError
		platform *oci.PlatformError
		selinux  *bootimage.SELinuxError
	)
	switch {
	case errors.As(err, &damaged):
		return err
	case errors.As(err, &missing), errors.As(err, &resource), errors.As(err, &file), errors.As(err, &platform), errors.As(err, &selinux):
		return &RefusedError{Code: CodeImage, Detail: "the image cannot be booted here", Err: err}
	}
	return err
}

// bootFiles finds kernel, initrd and os-release in the plain image, which holds
// /boot as well.
func (m *machine) bootFiles(ctx context.Context, img *image) (*bootimage.Resources, error) {
	plain, err := readImage(ctx, m.repo, img.Plain)
	if err != nil {
		return nil, err
	}
	res, err := bootimage.FindResources(plain, m.repo)
	if err != nil {
		return nil, refuseImage(err)
	}
	if img.kargs, err = imageKargs(plain, m.repo, kargs.BootcDir, kargs.ImageDir); err != nil {
		return nil, err
	}
	img.payload, err = esp.NewPayload(ctx, []esp.Content{
		m.content(payloadKernel, res.Kernel.Image), m.content(payloadInitrd, res.Kernel.Initrd),
	})
	return res, err
}

func bootFiles(p esp.Payload) []record.BootFile {
	var out []record.BootFile
	for _, x := range p.Files {
		out = append(out, record.BootFile{Name: x.Name, Size: x.Size})
	}
	return out
}

// CheckBootable looks into the plain image of a pulled image for what a
// deployment needs: one kernel with its initrd, os-release, and kernel arguments
// that can be used. What is missing or wrong is a *RefusedError.
func CheckBootable(ctx context.Context, r *repo.Repository, plain fsverity.Digest) error {
	root, err := readImage(ctx, r, plain)
	if err != nil {
		return err
	}
	_, err = checkTree(root, r)
	return err
}

// checkTree is CheckBootable for the tree of a plain image.
func checkTree(root *tree.Node, r bootimage.ObjectOpener) (*bootimage.Resources, error) {
	res, err := bootimage.FindResources(root, r)
	if err != nil {
		return nil, refuseImage(err)
	}
	if err := checkRelease(res); err != nil {
		return nil, err
	}
	files, err := imageKargs(root, r, kargs.BootcDir, kargs.ImageDir)
	if err != nil {
		return nil, err
	}
	_, err = kargs.Compose(kargs.Input{Image: files})
	return res, refuseKargs(err)
}

// checkRelease refuses an image that systemd would not switch to.
func checkRelease(res *bootimage.Resources) error {
	if res.OSRelease == nil {
		return refuse(CodeImage, "the image has no /usr/lib/os-release, without which systemd takes no root")
	}
	return nil
}

// describe fills in what is written down about a deployment.
func (m *machine) describe(img *image, res *bootimage.Resources) {
	p, os := img.pulled, res.OSRelease
	img.record = record.Deployment{
		ID: img.id(), PlainID: img.Plain.Hex(),
		ManifestDigest: string(p.ManifestDigest), IndexDigest: string(p.IndexDigest), ConfigDigest: string(p.ConfigDigest),
		Architecture: p.Architecture, ImageVersion: p.Version, ImageCreated: p.Created,
		OSID: os.ID(), OSVersion: os.Version(), Title: os.Title(), Kernel: res.Kernel.Version,
		BootType: "bls", BootDigest: img.payload.Digest, BootFiles: bootFiles(img.payload), Insecure: !m.repo.Secure(),
	}
}

// content makes a node of an image something to place.
func (m *machine) content(name string, node *tree.Node) esp.Content {
	return esp.Content{Sum: esp.Sum{Name: name}, Open: func() (io.ReadCloser, error) { return bootimage.Open(node, m.repo) }}
}
