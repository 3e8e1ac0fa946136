package pull

import (
	"context"
	"errors"
	"fmt"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// build imports the layers, makes the images and publishes everything but the
// tag.
func (p *puller) build(ctx context.Context) (keyring.Verified, error) {
	layers, err := p.layers(ctx)
	if err != nil {
		return keyring.Verified{}, err
	}
	p.img.Layers = make([]oci.LayerRef, len(layers))
	for i, l := range layers {
		p.img.Layers[i] = oci.LayerRef{DiffID: l.DiffID, Stream: l.Stream}
	}
	images, err := p.images(ctx, layers)
	if err != nil {
		return keyring.Verified{}, err
	}
	verified, err := p.opts.Policy.VerifyImages(images)
	if err != nil {
		return keyring.Verified{}, err
	}
	return verified, p.publish(ctx, images)
}

// images makes the EROFS images of the stacked layers: objects without names.
func (p *puller) images(ctx context.Context, layers []*oci.Layer) (keyring.Images, error) {
	var images keyring.Images
	b := tree.NewBuilder()
	for i, l := range layers {
		if err := oci.Stack(b, l, i, len(layers)); err != nil {
			return images, err
		}
		layers[i] = nil
		if err := ctx.Err(); err != nil {
			return images, context.Cause(ctx)
		}
	}
	root := b.Root()
	if err := tree.TransformOCI(root, tree.AllowlistOnly); err != nil {
		return images, fmt.Errorf("make plain image: %w", err)
	}
	var err error
	if images.Plain, err = p.encode(ctx, "plain image", root); err != nil || !p.opts.Bootable {
		return images, err
	}
	if err := refuseAboot(root, p.r); err != nil {
		return images, fmt.Errorf("make boot image: %w", err)
	}
	if err := bootimage.Transform(root, p.r); err != nil {
		return images, fmt.Errorf("make boot image: %w", err)
	}
	images.Boot, err = p.encode(ctx, "boot image", root)
	return images, err
}

// refuseAboot refuses a payload in /boot that boots in a way that this program
// does not know, as composefs-rs refuses what it cannot read there. Whether there
// is a kernel that can be deployed is asked when something is deployed.
func refuseAboot(root *tree.Node, o bootimage.ObjectOpener) error {
	_, err := bootimage.FindResources(root, o)
	var unusable *bootimage.ResourceError
	if errors.As(err, &unusable) && unusable.Reason == bootimage.Aboot {
		return err
	}
	return nil
}

func (p *puller) encode(ctx context.Context, name string, root *tree.Node) (d fsverity.Digest, err error) {
	progress.Report(p.opts.Progress, progress.Start{Component: name, Unit: progress.Bytes})
	var size int64
	defer func() {
		progress.Report(p.opts.Progress, progress.Advance{Component: name, Done: size})
		progress.Report(p.opts.Progress, progress.End{Component: name, Err: err})
	}()
	w, err := p.r.NewObject(ctx)
	if err != nil {
		return d, err
	}
	if err := erofs.Encode(w, root, p.format); err != nil {
		err = errors.Join(err, w.Abort())
		var unfit *erofs.TreeError
		if errors.As(err, &unfit) { // a layer has what no image of this format can have
			return d, &oci.FormatError{Where: "image " + p.reference, Detail: "make " + name, Err: err}
		}
		return d, fmt.Errorf("make %s: %w", name, err)
	}
	d, size, err = w.Commit()
	return d, err
}

// publish stores config and manifest with references to the images, then makes
// all names. Images in other formats or modes that an earlier pull or another
// tool listed stay listed.
func (p *puller) publish(ctx context.Context, images keyring.Images) error {
	listed, err := oci.ConfigImages(ctx, p.r, p.img.ConfigDigest)
	if err != nil {
		p.opts.Logger.Warn("stored config is replaced", "config", p.img.ConfigDigest, "error", err)
	}
	p.img.Images = map[string]fsverity.Digest{}
	for key, d := range listed {
		if ok, err := p.r.HasObject(d); err != nil {
			return err
		} else if ok {
			p.img.Images[key] = d
		}
	}
	computed, err := p.computed(images)
	if err != nil {
		return err
	}
	p.img.Images[oci.ImageKey(p.format)] = images.Plain
	if !images.Boot.IsZero() {
		p.img.Images[oci.BootKey(p.format)] = images.Boot
	}
	if err := oci.StoreImage(ctx, p.r, p.img); err != nil {
		return err
	}
	if err := p.r.PublishImage(ctx, images.Plain); err != nil {
		return err
	}
	if !images.Boot.IsZero() {
		if err := p.r.PublishImage(ctx, images.Boot); err != nil {
			return err
		}
	}
	if err := oci.PublishImage(ctx, p.r, p.img); err != nil {
		return err
	}
	return oci.MarkComputed(ctx, p.r, p.img.ManifestDigest, computed)
}

// computed is what to record about the images. A boot image that an earlier pull
// made of the same plain image stays recorded.
func (p *puller) computed(images keyring.Images) (oci.Computed, error) {
	c := oci.Computed{Plain: images.Plain, Boot: images.Boot}
	if !c.Boot.IsZero() {
		return c, nil
	}
	old, ok, err := oci.FindComputed(p.r, p.img.ManifestDigest)
	if ok && old.Plain == c.Plain {
		c.Boot = old.Boot
	}
	return c, err
}
