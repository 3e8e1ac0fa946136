// Package pull is the one way of an image into a repository, behind `oci pull`
// and behind every deployment: fetch what is missing, compare every layer with
// its diff_id, build the tree once, make the plain image and, for a bootable
// image, the boot image of the same tree, ask the trust policy, and only then
// make names, the tag last.
//
// The result is a keyring.Verified: what is mounted or deployed is named by it,
// never by looking the tag up again.
//
// A pull that fails leaves no name for anything incomplete, and the objects that
// it stored and to which no name leads are removed again, unless another process
// uses the repository. Layers that were complete keep their names if there was
// time to make them durable, and the next pull does not fetch them again; not so
// where the file system is full, because they would keep it full. Layers that
// another tool imported are compared with their diff_id before they are used.
//
// Where space is short, everything in the repository goes that has no name, and
// layers that no image needs: what pulls have left that were killed, or could not
// have the exclusive lock. A pull that this makes room for goes on.
//
// What a pull finds, images and the streams of layers, it verifies, and makes or
// fetches it again if it is damaged.
//
// Several pulls may run at the same time, on one repository too.
package pull

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// Options says what to do with an image.
type Options struct {
	Name     string         // the tag to set at the end; empty: none, then only refs of the caller keep the image
	Bootable bool           // make the boot image too
	Policy   keyring.Policy // decides about the computed images; nil accepts none
	Platform v1.Platform    // that the image must be for; zero: that of this program
	Progress progress.Reporter
	Logger   *slog.Logger // nil: silent
	Parallel int          // layers at a time; 0: the number of CPUs, at most 4
}

// Result is a pulled image.
type Result struct {
	ManifestDigest digest.Digest
	ConfigDigest   digest.Digest
	IndexDigest    digest.Digest // of the index that named the manifest, or empty
	Tag            string
	Version        string // label org.opencontainers.image.version, or empty
	Created        string // RFC 3339, or empty
	Architecture   string
	Verified       keyring.Verified // plain and, if asked for, boot
	Stats          Stats
}

// Stats counts what a pull did.
type Stats struct {
	LayersFetched  int   `json:"layers_fetched"`
	LayersPresent  int   `json:"layers_present"`
	BytesFetched   int64 `json:"fetched_bytes"` // compressed
	ObjectsNew     int64 `json:"objects_new"`
	BytesNew       int64 `json:"new_bytes"`
	ObjectsPresent int64 `json:"objects_present"`
	BytesInlined   int64 `json:"inlined_bytes"` // of the fetched layers, what is not in objects of its own
}

// String says what was stored, as composefs-rs does.
func (s Stats) String() string {
	return fmt.Sprintf("%d new + %d already present objects; %s stored, %s inlined",
		s.ObjectsNew, s.ObjectsPresent, progress.FormatSize(s.BytesNew, 2), progress.FormatSize(s.BytesInlined, 2))
}

// Pull brings the image of src into r. See the package comment for what holds
// when it fails.
//
// Errors, beside those of repo and of the source: *oci.DigestError,
// *oci.FormatError, *oci.MediaTypeError, *oci.PlatformError for what the source
// delivers; *tree.RequiredError and those of bootimage.Transform for an image
// that cannot be made (nothing is tagged then); *keyring.PolicyError;
// *durable.SpaceError, where possible before anything is fetched. Around any of
// them there may be a *LeftError.
//
// Objects must not be stored through r from elsewhere meanwhile, but by other
// pulls.
func Pull(ctx context.Context, r *repo.Repository, src oci.Source, opts Options) (*Result, error) {
	for again := false; ; again = true {
		p, err := newPuller(r, src, opts)
		if err != nil {
			return nil, err
		}
		p.work = r.Begin()
		res, err := p.pull(ctx)
		room, err := p.end(context.WithoutCancel(ctx), err)
		if again || !room || ctx.Err() != nil {
			return res, err
		}
		p.say("there is more room now: the pull begins again")
	}
}

func (p *puller) pull(ctx context.Context) (*Result, error) {
	r := p.r
	before := r.Stats()
	if err := p.resolve(ctx); err != nil {
		return nil, err
	}
	verified, err := p.reuse(ctx)
	if err != nil {
		return nil, err
	}
	if verified == (keyring.Verified{}) {
		if verified, err = p.build(ctx); err != nil {
			return nil, err
		}
	}
	if p.opts.Name != "" {
		if err := oci.Tag(ctx, r, p.img.ManifestDigest, p.opts.Name); err != nil {
			return nil, err
		}
	}
	if err := r.Sync(ctx); err != nil {
		return nil, err
	}
	after := r.Stats()
	return &Result{
		ManifestDigest: p.img.ManifestDigest, ConfigDigest: p.img.ConfigDigest, IndexDigest: p.index, Tag: p.opts.Name,
		Version: p.img.Version(), Created: p.img.Created(), Architecture: p.img.Config.Architecture, Verified: verified,
		Stats: Stats{
			LayersFetched: p.fetched, LayersPresent: p.present, BytesFetched: p.bytes.Load(),
			ObjectsNew: after.ObjectsCopied - before.ObjectsCopied, BytesNew: after.BytesCopied - before.BytesCopied,
			ObjectsPresent: after.ObjectsPresent - before.ObjectsPresent, BytesInlined: p.inline.Load(),
		},
	}, nil
}

// puller is one pull.
type puller struct {
	r       *repo.Repository
	src     oci.Source
	work    *repo.Run
	opts    Options
	format  erofs.Version
	img     *oci.Image // filled in step by step
	index   digest.Digest
	fetched int
	// reference is the image as the user named it.
	reference string
	present   int
	bytes     atomic.Int64
	inline    atomic.Int64 // bytes of fetched layers in splitstreams
	memory    atomic.Int64 // bytes that the entries of all layers take
	// named are the streams of layers that had none before this pull, with their
	// diff_ids. It belongs to the publisher while there is one.
	named   map[string]digest.Digest
	failing atomic.Bool // a layer has failed
	started bool        // space was enough to begin with
	left    error       // why room could not be made before
}

// newPuller checks everything that needs no source.
func newPuller(r *repo.Repository, src oci.Source, opts Options) (*puller, error) {
	if opts.Name != "" {
		if err := oci.CheckTag(opts.Name); err != nil {
			return nil, err
		}
	}
	opts = opts.withDefaults()
	if err := r.Writable(); err != nil {
		return nil, err // it names the repository
	}
	p := &puller{r: r, src: src, opts: opts, format: oci.DefaultFormat(r), named: map[string]digest.Digest{}}
	for _, extra := range r.Formats()[1:] {
		opts.Logger.Warn("images of this format are not made", "format", extra)
	}
	return p, nil
}

func (opts Options) withDefaults() Options {
	if opts.Policy == nil {
		opts.Policy = keyring.Pinned{}
	}
	if opts.Platform.OS == "" && opts.Platform.Architecture == "" {
		opts.Platform = oci.HostPlatform()
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Parallel <= 0 {
		opts.Parallel = min(4, runtime.GOMAXPROCS(0))
	}
	return opts
}

// resolve finds out which image it is and reads its config.
func (p *puller) resolve(ctx context.Context) error {
	res, err := p.src.Resolve(ctx)
	if err != nil {
		return err
	}
	d := res.Descriptor.Digest
	where := "manifest " + d.String()
	p.reference = res.Reference
	if err := oci.VerifyBytes("manifest of "+res.Reference, res.Manifest, d); err != nil {
		return err
	}
	p.index = res.IndexDigest
	p.img = &oci.Image{ManifestDigest: d, ManifestJSON: res.Manifest}
	if p.img.Manifest, err = oci.ParseManifest(where, res.Manifest); err != nil {
		return err
	}
	if err := p.config(ctx); err != nil {
		return err
	}
	if got := p.img.Config.Platform; !oci.MatchPlatform(p.opts.Platform, got) {
		return &oci.PlatformError{Where: "image " + res.Reference, Want: oci.FormatPlatform(p.opts.Platform), Available: []string{oci.FormatPlatform(got)}}
	}
	p.opts.Logger.Debug("pull", "reference", res.Reference, "manifest", d, "config", p.img.ConfigDigest, "layers", len(p.img.Manifest.Layers))
	return nil
}

// config takes the config from the repository or from the source.
func (p *puller) config(ctx context.Context) error {
	if p.r != nil {
		stored, err := oci.OpenImage(ctx, p.r, p.img.ManifestDigest)
		if err == nil {
			p.img = stored
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Whatever is wrong with what is stored, a fresh import replaces it.
		if !errors.Is(err, repo.ErrNotFound) {
			p.opts.Logger.Warn("stored image is not usable", "manifest", p.img.ManifestDigest, "error", err)
		}
	}
	var err error
	desc := p.img.Manifest.Config
	where := "config " + desc.Digest.String()
	if p.img.ConfigJSON, err = oci.ReadBlob(ctx, p.src, "config of "+p.reference, desc, oci.MaxConfigSize); err != nil {
		return err
	}
	p.img.ConfigDigest = desc.Digest
	p.img.Config, err = oci.ParseConfig(where, p.img.ConfigJSON, &p.img.Manifest)
	return err
}

// reuse returns the images of an earlier pull by this program, if they are all
// there, else the zero Verified.
func (p *puller) reuse(ctx context.Context) (keyring.Verified, error) {
	if len(p.img.Layers) == 0 { // not stored
		return keyring.Verified{}, nil
	}
	c, ok, err := oci.FindComputed(p.r, p.img.ManifestDigest)
	if !ok || err != nil {
		return keyring.Verified{}, err
	}
	plain, boot := p.img.Default(p.r)
	if c.Plain != plain || (p.opts.Bootable && (boot.IsZero() || c.Boot != boot)) {
		return keyring.Verified{}, nil
	}
	images := keyring.Images{Plain: plain}
	if p.opts.Bootable {
		images.Boot = boot
	}
	if ok, err := p.complete(ctx, images); !ok || err != nil {
		return keyring.Verified{}, err
	}
	verified, err := p.opts.Policy.VerifyImages(images)
	if err != nil {
		return keyring.Verified{}, err
	}
	p.present = len(p.img.Layers)
	p.opts.Logger.Debug("everything is there", "manifest", p.img.ManifestDigest, "plain", plain, "boot", boot)
	return verified, ctx.Err()
}

// complete looks whether images and layers are where their names say, and are what
// their digests say.
func (p *puller) complete(ctx context.Context, images keyring.Images) (bool, error) {
	for _, l := range p.img.Layers {
		if ok, err := oci.IsVerified(p.r, l.DiffID, l.Stream); !ok || err != nil {
			return false, err
		}
		s, err := p.r.OpenAnyStreamByID(ctx, l.Stream)
		if err == nil {
			err = s.Close()
		}
		if err != nil {
			return false, p.unusable(ctx, "layer", l.DiffID.String(), err)
		}
	}
	for _, d := range []fsverity.Digest{images.Plain, images.Boot} {
		if d.IsZero() {
			continue
		}
		f, err := p.r.OpenImage(ctx, d)
		if err == nil {
			err = f.Close()
		}
		if err != nil {
			return false, p.unusable(ctx, "image", d.String(), err)
		}
	}
	return true, nil
}

// unusable tells that something which is stored is damaged, if it is. The error is
// that of the context.
func (p *puller) unusable(ctx context.Context, what, name string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if !errors.Is(err, repo.ErrNotFound) {
		p.opts.Logger.Warn("what is stored is damaged, and made anew", what, name, "error", err)
	}
	return nil
}
