package pull

import (
	"context"
	"fmt"

	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// Survey looks into the image of src and stores nothing: it reads the layers that
// are not in r to their ends, so a Pull that follows fetches them once more. The
// tree is that of the plain image, except that files of these layers have sizes
// and no contents, but for small ones and those whose paths keep wants.
//
// Where r is nil, none is. Errors: those of Pull that have to do with the image or
// the source.
func Survey(ctx context.Context, r *repo.Repository, src oci.Source, opts Options, keep func(path string) bool) (*tree.Node, error) {
	p := surveyor(r, src, opts)
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	b := tree.NewBuilder()
	count := len(p.img.Config.RootFS.DiffIDs)
	for i := range count {
		l, err := p.skim(ctx, i, keep)
		if err == nil {
			err = p.fits(l)
		}
		if err != nil {
			return nil, p.layerError(i, err)
		}
		if err := oci.Stack(b, l, i, count); err != nil {
			return nil, err
		}
	}
	root := b.Root()
	if err := tree.TransformOCI(root, tree.AllowlistOnly); err != nil {
		return nil, fmt.Errorf("make plain image: %w", err)
	}
	return root, nil
}

// Check reads manifest and config of the image of src and finds out whether a Pull
// would take it. Errors: those of Pull that have to do with them.
func Check(ctx context.Context, src oci.Source, opts Options) error {
	return surveyor(nil, src, opts).resolve(ctx)
}

func surveyor(r *repo.Repository, src oci.Source, opts Options) *puller {
	return &puller{r: r, src: src, opts: opts.withDefaults()}
}

// skim reads the entries of a layer, from the repository if it is there.
func (p *puller) skim(ctx context.Context, i int, keep func(path string) bool) (*oci.Layer, error) {
	diffID := p.img.Config.RootFS.DiffIDs[i]
	if p.r == nil {
		return p.skimBlob(ctx, i, keep)
	}
	if stream, err := p.r.LookupStream(oci.LayerStream(diffID)); err == nil {
		if l, err := oci.LoadLayer(ctx, p.r, diffID, stream); err == nil {
			return l, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return p.skimBlob(ctx, i, keep)
}

// skimBlob reads the entries of a layer from the source.
func (p *puller) skimBlob(ctx context.Context, i int, keep func(path string) bool) (*oci.Layer, error) {
	diffID, desc := p.img.Config.RootFS.DiffIDs[i], p.img.Manifest.Layers[i]
	name := fmt.Sprintf("looking into layer %d of %d %.12s", i+1, len(p.img.Manifest.Layers), diffID.Encoded())
	counter := progress.NewCounter(p.opts.Progress, progress.Start{Component: name, Unit: progress.Bytes, Total: desc.Size}, progressStep)
	blob, err := p.src.Blob(oci.WithComponent(ctx, name), desc)
	if err != nil {
		counter.End(err)
		return nil, err
	}
	defer blob.Close()
	l, err := oci.SkimLayer(ctx, &countingReader{r: blob, counter: counter, quiet: &p.failing}, diffID, keep)
	counter.End(ended(ctx, err))
	return l, err
}
