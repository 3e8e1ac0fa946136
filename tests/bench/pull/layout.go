package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
)

// makeLayout writes the image that the options ask for into an OCI layout.
func (o *options) makeLayout(ctx context.Context, dir string) error {
	if o.tree != "" {
		return treeLayout(dir, o.tree, o.size<<20)
	}
	return osLayout(ctx, dir)
}

// osLayout writes release 1 of the lab's OS image.
func osLayout(ctx context.Context, dir string) (err error) {
	reg, err := registry.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reg.Close()) }()
	images, err := osimage.BuildAndPush(ctx, reg, func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return fmt.Errorf("OS image (use -layout or -tree without the lab): %w", err)
	}
	return reg.PullLayout(ctx, images.Repository, images.Digest1, dir, "os")
}

const layerCount = 4

// layoutWriter collects an image.
type layoutWriter struct {
	dir     string
	layers  []v1.Descriptor
	diffIDs []digest.Digest

	tw     *tar.Writer
	finish func() error
	size   int64 // of the open layer, uncompressed
}

// treeLayout writes a bootable image with up to size bytes of the files below
// root, which become /usr, in four gzip layers.
func treeLayout(dir, root string, size int64) error {
	l := &layoutWriter{dir: dir}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	for i, name := range []string{"boot", "etc", "run", "sysroot", "usr", "var"} {
		if err := l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(1700000000+int64(i), 0)}); err != nil {
			return err
		}
	}
	total := int64(0)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		n, err := l.add(path, filepath.Join("usr", strings.TrimPrefix(path, root)), e)
		if total += n; total >= size {
			return fs.SkipAll
		}
		if err == nil && l.size >= size/layerCount && len(l.layers) < layerCount-1 {
			if err = l.close(); err == nil {
				err = l.open()
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := l.close(); err != nil {
		return err
	}
	return l.index()
}

// add writes one file, without owner names and with whole seconds, as image
// builders do. Devices and sockets are left out.
func (l *layoutWriter) add(path, name string, e fs.DirEntry) (int64, error) {
	info, err := e.Info()
	if err != nil {
		return 0, err
	}
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(path); err != nil {
			return 0, err
		}
	case !info.IsDir() && !info.Mode().IsRegular():
		return 0, nil
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return 0, err
	}
	h.Name, h.Uname, h.Gname, h.ModTime = name, "", "", info.ModTime().Truncate(time.Second)
	h.AccessTime, h.ChangeTime, h.Format = time.Time{}, time.Time{}, tar.FormatPAX
	if info.IsDir() {
		h.Name += "/"
	}
	if err := l.tw.WriteHeader(h); err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := io.Copy(l.tw, f)
	l.size += n
	return n, err
}

func (l *layoutWriter) open() error {
	f, err := os.CreateTemp(l.dir, "layer-")
	if err != nil {
		return err
	}
	blob, diff := sha256.New(), sha256.New()
	gz := gzip.NewWriter(io.MultiWriter(f, blob))
	l.tw, l.size = tar.NewWriter(io.MultiWriter(gz, diff)), 0
	l.finish = func() error {
		if err := l.tw.Close(); err != nil {
			return err
		}
		if err := gz.Close(); err != nil {
			return err
		}
		st, err := f.Stat()
		if err != nil {
			return err
		}
		d := digest.NewDigest(digest.SHA256, blob)
		l.layers = append(l.layers, v1.Descriptor{MediaType: v1.MediaTypeImageLayerGzip, Digest: d, Size: st.Size()})
		l.diffIDs = append(l.diffIDs, digest.NewDigest(digest.SHA256, diff))
		if err := f.Close(); err != nil {
			return err
		}
		return os.Rename(f.Name(), l.path(d))
	}
	return nil
}

func (l *layoutWriter) close() error { return l.finish() }

func (l *layoutWriter) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func (l *layoutWriter) blob(mediaType string, v any) (v1.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	return d, os.WriteFile(l.path(d.Digest), b, 0o644)
}

func (l *layoutWriter) index() error {
	config, err := l.blob(v1.MediaTypeImageConfig, v1.Image{
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH}, RootFS: v1.RootFS{Type: "layers", DiffIDs: l.diffIDs},
	})
	if err != nil {
		return err
	}
	two := specs.Versioned{SchemaVersion: 2}
	manifest, err := l.blob(v1.MediaTypeImageManifest, v1.Manifest{Versioned: two, MediaType: v1.MediaTypeImageManifest, Config: config, Layers: l.layers})
	if err != nil {
		return err
	}
	b, err := json.Marshal(v1.Index{Versioned: two, Manifests: []v1.Descriptor{manifest}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(l.dir, "index.json"), b, 0o644); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "layout of %d layers in %s\n", len(l.layers), l.dir)
	return os.WriteFile(filepath.Join(l.dir, v1.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}
