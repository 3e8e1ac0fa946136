package registry

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"

	ocidigest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Append makes an image out of another one and one more layer, without an image
// builder: so cheap that a test can have a release for each thing that it wants
// to go wrong. layer is an uncompressed tar; labels are added to those of the
// image. The new manifest stands in the repository `to` and has no tag. The same
// input gives the same digest, which is returned.
func (r *Registry) Append(ctx context.Context, from, digest, to string, layer []byte, labels map[string]string) (string, error) {
	client, err := r.client()
	if err != nil {
		return "", err
	}
	client.Timeout = 0 // ctx limits
	c := api{r, client}
	raw, err := c.get(ctx, from+"/manifests/"+digest, v1.MediaTypeImageManifest)
	if err != nil {
		return "", err
	}
	var manifest v1.Manifest
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return "", fmt.Errorf("manifest %s: %w", digest, err)
	}
	if raw, err = c.get(ctx, from+"/blobs/"+manifest.Config.Digest.String(), ""); err != nil {
		return "", err
	}
	var config v1.Image
	if err := json.Unmarshal(raw, &config); err != nil {
		return "", fmt.Errorf("config %s: %w", manifest.Config.Digest, err)
	}
	if to != from {
		for _, l := range manifest.Layers {
			if err := c.mount(ctx, from, to, l.Digest.String()); err != nil {
				return "", err
			}
		}
	}

	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
	if err != nil {
		return "", err
	}
	_, err = z.Write(layer)
	if err = errors.Join(err, z.Close()); err != nil {
		return "", err
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, ocidigest.FromBytes(layer))
	config.History = append(config.History, v1.History{CreatedBy: "the lab"})
	config.Config.Labels = maps.Clone(config.Config.Labels)
	if config.Config.Labels == nil {
		config.Config.Labels = map[string]string{}
	}
	maps.Copy(config.Config.Labels, labels)
	newConfig, err := json.Marshal(config)
	if err != nil {
		return "", err
	}
	put := func(data []byte, mediaType string) (v1.Descriptor, error) {
		d := v1.Descriptor{MediaType: mediaType, Digest: ocidigest.FromBytes(data), Size: int64(len(data))}
		return d, c.putBlob(ctx, to, d.Digest.String(), data)
	}
	last, err := put(packed.Bytes(), v1.MediaTypeImageLayerGzip)
	if err != nil {
		return "", err
	}
	if manifest.Config, err = put(newConfig, v1.MediaTypeImageConfig); err != nil {
		return "", err
	}
	manifest.Layers = append(manifest.Layers, last)
	if raw, err = json.Marshal(manifest); err != nil {
		return "", err
	}
	name := ocidigest.FromBytes(raw).String()
	_, err = c.do(ctx, http.MethodPut, c.url(to+"/manifests/"+name), v1.MediaTypeImageManifest, raw)
	return name, err
}

// api speaks to the registry as clients do.
type api struct {
	r      *Registry
	client *http.Client
}

func (c api) url(path string) string {
	return fmt.Sprintf("https://127.0.0.1:%d/v2/%s", c.r.Relays[0].Port, path)
}

func (c api) get(ctx context.Context, path, accept string) ([]byte, error) {
	res, err := c.request(ctx, http.MethodGet, c.url(path), map[string]string{"Accept": accept}, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	return io.ReadAll(res.Body)
}

// do sends data and returns the answer's Location.
func (c api) do(ctx context.Context, method, address, mediaType string, data []byte) (string, error) {
	res, err := c.request(ctx, method, address, map[string]string{"Content-Type": mediaType}, data)
	if err != nil {
		return "", err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	return res.Header.Get("Location"), res.Body.Close()
}

func (c api) request(ctx context.Context, method, address string, header map[string]string, data []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(user, c.r.password)
	for k, v := range header {
		if v != "" {
			req.Header.Set(k, v)
		}
	}
	res, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode/100 != 2 {
		_ = res.Body.Close()
		return nil, fmt.Errorf("%s %s: status %s", method, address, res.Status)
	}
	return res, nil
}

// mount makes a blob of one repository known in another one.
func (c api) mount(ctx context.Context, from, to, digest string) error {
	q := url.Values{"mount": {digest}, "from": {from}}
	_, err := c.do(ctx, http.MethodPost, c.url(to+"/blobs/uploads/?"+q.Encode()), "", nil)
	return err
}

// putBlob uploads a blob that is not there.
func (c api) putBlob(ctx context.Context, to, digest string, data []byte) error {
	if _, err := c.do(ctx, http.MethodHead, c.url(to+"/blobs/"+digest), "", nil); err == nil {
		return nil
	}
	location, err := c.do(ctx, http.MethodPost, c.url(to+"/blobs/uploads/"), "", nil)
	if err != nil {
		return err
	}
	base, err := url.Parse(c.url(""))
	if err != nil {
		return err
	}
	address, err := base.Parse(location)
	if err != nil {
		return fmt.Errorf("location of an upload: %w", err)
	}
	q := address.Query()
	q.Set("digest", digest)
	address.RawQuery = q.Encode()
	_, err = c.do(ctx, http.MethodPut, address.String(), "application/octet-stream", data)
	return err
}
