package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// publishInterval is how often layers that are complete get their names while
// others are still on their way. Each time costs a sync of the file system, so a
// short pull does it once, at the end. Tests shorten it.
var publishInterval = 5 * time.Second

// maxMetadata is oci.MaxMetadata for all layers together. Tests lower it.
var maxMetadata int64 = oci.MaxMetadata

const (
	// progressStep is how many bytes make an event.
	progressStep = 256 << 10
	// reserve is what an import needs beside the layers: images, streams,
	// directories.
	reserve = 16 << 20
	// reserveFiles is how many files it makes at least, beside one for each layer:
	// manifest, configuration, two images.
	reserveFiles = 4
)

// job is one distinct layer.
type job struct {
	index  int // of its first occurrence
	diffID digest.Digest
	desc   v1.Descriptor
	layer  *oci.Layer
}

// layers brings all layers into the repository and returns them in order.
func (p *puller) layers(ctx context.Context) ([]*oci.Layer, error) {
	diffIDs := p.img.Config.RootFS.DiffIDs
	var jobs []*job
	byID := map[digest.Digest]*job{}
	for i, d := range diffIDs {
		if byID[d] == nil {
			byID[d] = &job{index: i, diffID: d, desc: p.img.Manifest.Layers[i]}
			jobs = append(jobs, byID[d])
		}
	}
	if err := p.space(ctx, jobs); err != nil {
		return nil, err
	}
	if err := p.run(ctx, jobs); err != nil {
		return nil, err
	}
	list := make([]*oci.Layer, len(diffIDs))
	for i, d := range diffIDs {
		j := byID[d]
		if j.index == i {
			list[i] = j.layer
			continue
		}
		// The same layer again: its entries become other nodes.
		var err error
		if list[i], err = oci.LoadLayer(ctx, p.r, d, j.layer.Stream); err == nil {
			err = p.fits(list[i])
		}
		if err != nil {
			return nil, p.layerError(i, err)
		}
	}
	return list, nil
}

// fits adds up what the entries of the layers take in memory.
func (p *puller) fits(l *oci.Layer) error {
	if p.memory.Add(l.Memory) > maxMetadata {
		return &oci.FormatError{Where: "layer " + l.DiffID.String(), Detail: fmt.Sprintf(
			"with the other layers, the names and attributes of the files take more than %d bytes", maxMetadata)}
	}
	return nil
}

// space refuses to begin what cannot be finished, after making room if it can.
func (p *puller) space(ctx context.Context, jobs []*job) error {
	err := p.need(jobs)
	var space *durable.SpaceError
	if errors.As(err, &space) && p.makeRoom(ctx) {
		err = p.need(jobs)
	}
	p.started = err == nil
	return err
}

// need asks whether there is room: uncompressed layers are not smaller than their
// blobs. A pull that fetches none only makes anew what is missing or damaged: it may
// begin with any room, because what is damaged stands in the way of making more.
func (p *puller) need(jobs []*job) error {
	need, files := int64(0), int64(0)
	for _, j := range jobs {
		if _, err := p.r.LookupStream(oci.LayerStream(j.diffID)); err != nil {
			need += min(j.desc.Size, math.MaxInt64-reserve-need)
			files++
		}
	}
	if need > 0 {
		need += reserve
		files += reserveFiles
	}
	return p.r.Need(need, files)
}

// run imports the jobs, the largest first, so that the last one to end is short.
func (p *puller) run(ctx context.Context, jobs []*job) error {
	order := slices.Clone(jobs)
	slices.SortStableFunc(order, func(a, b *job) int {
		switch {
		case a.desc.Size > b.desc.Size:
			return -1
		case a.desc.Size < b.desc.Size:
			return 1
		}
		return 0
	})
	pub := &publisher{p: p, last: time.Now()}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.opts.Parallel)
	for _, j := range order {
		g.Go(func() error {
			if gctx.Err() != nil {
				return nil // another job says why
			}
			fetched, err := p.layer(gctx, j)
			if err == nil {
				err = p.fits(j.layer)
			}
			if err != nil {
				return p.layerError(j.index, err)
			}
			if fetched {
				p.inline.Add(j.layer.Inline)
			}
			return pub.done(gctx, j.layer, fetched)
		})
	}
	err := g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		// What is complete need not be fetched again. That it cannot be published
		// now is no news: there is an error already.
		var space *durable.SpaceError
		if errors.As(err, &space) {
			return err // no room to keep them
		}
		if perr := pub.publish(context.WithoutCancel(ctx)); perr != nil {
			p.opts.Logger.Debug("complete layers get no name", "error", perr)
		}
		return err
	}
	p.fetched, p.present = pub.fetched, len(jobs)-pub.fetched
	return pub.publish(ctx)
}

func (p *puller) layerError(index int, err error) error {
	return fmt.Errorf("layer %d of %d: %w", index+1, len(p.img.Manifest.Layers), err)
}

// layer finds or fetches one layer.
func (p *puller) layer(ctx context.Context, j *job) (fetched bool, err error) {
	stream, ok, err := oci.FindLayer(ctx, p.r, j.diffID, func() {
		progress.Report(p.opts.Progress, progress.Message{Text: fmt.Sprintf(
			"layer %d of %d was stored by another program: comparing it with its digest", j.index+1, len(p.img.Manifest.Layers))})
	})
	if err != nil {
		return false, err
	}
	if ok {
		if j.layer, err = oci.LoadLayer(ctx, p.r, j.diffID, stream); err == nil {
			return false, nil
		}
		if err := p.unusable(ctx, "layer", j.diffID.String(), err); err != nil {
			return false, err
		}
	}
	name := fmt.Sprintf("layer %d of %d %.12s", j.index+1, len(p.img.Manifest.Layers), j.diffID.Encoded())
	counter := progress.NewCounter(p.opts.Progress, progress.Start{Component: name, Unit: progress.Bytes, Total: j.desc.Size}, progressStep)
	defer func() {
		if err != nil {
			p.failing.Store(true)
		}
		counter.End(ended(ctx, err))
	}()
	blob, err := p.src.Blob(oci.WithComponent(ctx, name), j.desc)
	if err != nil {
		return false, err
	}
	defer blob.Close()
	r := &countingReader{r: blob, counter: counter, quiet: &p.failing}
	j.layer, err = oci.ImportLayer(ctx, p.r, r, j.diffID)
	p.bytes.Add(counter.Done())
	return true, err
}

// ended is what is said about a layer that did not come to its end: nothing but
// that it was stopped, if another layer is to blame.
func ended(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Canceled
	}
	return err
}

type countingReader struct {
	r       io.Reader
	counter *progress.Counter
	quiet   *atomic.Bool // another layer has failed: nothing more is told
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if !c.quiet.Load() {
		c.counter.Add(int64(n))
	}
	return n, err
}

// publisher gives imported layers their names, several at a time.
type publisher struct {
	p       *puller
	mu      sync.Mutex
	waiting []*oci.Layer
	fetched int
	last    time.Time
}

// done takes a layer that is complete.
func (q *publisher) done(ctx context.Context, l *oci.Layer, fetched bool) error {
	if !fetched {
		return nil // it has its name
	}
	q.mu.Lock()
	q.fetched++
	q.waiting = append(q.waiting, l)
	due := time.Since(q.last) >= publishInterval
	q.mu.Unlock()
	if due {
		return q.publish(ctx)
	}
	return nil
}

func (q *publisher) publish(ctx context.Context) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.waiting) > 0 {
		l := q.waiting[0]
		name := oci.LayerStream(l.DiffID)
		if _, err := q.p.r.LookupStream(name); errors.Is(err, repo.ErrNotFound) {
			q.p.named[name] = l.DiffID
		}
		if err := oci.PublishLayer(ctx, q.p.r, l); err != nil {
			return err
		}
		q.waiting = q.waiting[1:]
	}
	q.last = time.Now()
	return nil
}
