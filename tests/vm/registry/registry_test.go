package registry

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	ocidigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// source serves size bytes to every connection, after it has read one byte.
func source(t *testing.T, size int) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err == nil {
					_, _ = c.Write(bytes.Repeat([]byte("x"), size))
				}
			}()
		}
	}()
	return l.Addr().String()
}

func relayTo(t *testing.T, backend string) (*Relay, string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := newRelay(l, backend)
	t.Cleanup(func() { _ = r.Close() })
	return r, l.Addr().String()
}

func fetch(t *testing.T, addr string) (int64, time.Duration, error) {
	t.Helper()
	start := time.Now()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, c)
	return n, time.Since(start), err
}

func TestRelayCountsAndLimits(t *testing.T) {
	const size = 256 << 10
	r, addr := relayTo(t, source(t, size))
	if n, _, err := fetch(t, addr); n != size || err != nil {
		t.Fatalf("got %d bytes, error %v, want %d", n, err, size)
	}
	if r.Sent() != size {
		t.Errorf("sent %d, want %d", r.Sent(), size)
	}
	r.SetRate(size * 4) // a quarter of a second
	if n, d, err := fetch(t, addr); n != size || err != nil || d < 200*time.Millisecond {
		t.Errorf("limited: %d bytes in %v, error %v", n, d, err)
	}
}

func TestRelayCuts(t *testing.T) {
	const size = 64 << 20
	r, addr := relayTo(t, source(t, size))
	r.SetRate(1 << 20)
	go func() {
		for r.Sent() < 64<<10 {
			time.Sleep(time.Millisecond)
		}
		r.Cut()
	}()
	if n, _, _ := fetch(t, addr); n == 0 || n >= size {
		t.Errorf("got %d of %d bytes, want a part", n, size)
	}
}

func TestVMRegistry(t *testing.T) {
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("starts docker-registry: CFSBOOT_VM_TESTS is not 1")
	}
	var ports [2][]int
	for i := range ports {
		r, err := Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d, err := r.Digest(t.Context(), "no/such", "image"); d != "" || err != nil {
			t.Errorf("missing image: digest %q, error %v", d, err)
		}
		for _, relay := range r.Relays {
			ports[i] = append(ports[i], relay.Port)
		}
		auth, err := r.AuthFile()
		if err != nil || !json.Valid(auth) {
			t.Errorf("auth file %q, error %v", auth, err)
		}
		appends(t, r)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(ports[0]) != relays || !slices.Equal(ports[0], ports[1]) {
		t.Errorf("ports %v, want the same ones twice", ports)
	}
}

// appends makes images of one layer more, in the same repository and in another
// one, and reads them back.
func appends(t *testing.T, r *Registry) {
	t.Helper()
	client, err := r.client()
	if err != nil {
		t.Fatal(err)
	}
	c := api{r, client}
	put := func(data []byte, mediaType string) v1.Descriptor {
		d := v1.Descriptor{MediaType: mediaType, Digest: ocidigest.FromBytes(data), Size: int64(len(data))}
		if err := c.putBlob(t.Context(), "test/one", d.Digest.String(), data); err != nil {
			t.Fatal(err)
		}
		return d
	}
	first := []byte("not really a layer")
	config := put([]byte(`{"architecture":"amd64","os":"linux","config":{"Labels":{"kept":"1","new":"1"}},"rootfs":{"type":"layers","diff_ids":["`+ocidigest.FromBytes(first).String()+`"]}}`), v1.MediaTypeImageConfig)
	base, err := json.Marshal(v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: config, Layers: []v1.Descriptor{put(first, v1.MediaTypeImageLayer)},
	})
	if err != nil {
		t.Fatal(err)
	}
	from := ocidigest.FromBytes(base).String()
	if _, err := c.do(t.Context(), http.MethodPut, c.url("test/one/manifests/"+from), v1.MediaTypeImageManifest, base); err != nil {
		t.Fatal(err)
	}
	layer := bytes.Repeat([]byte("layer "), 1000)
	for _, to := range []string{"test/one", "test/two"} {
		var digests [2]string
		for i := range digests {
			if digests[i], err = r.Append(t.Context(), "test/one", from, to, layer, map[string]string{"new": "2"}); err != nil {
				t.Fatal(err)
			}
		}
		if digests[0] != digests[1] {
			t.Errorf("%s: the same image twice: %s", to, digests)
		}
		dir := t.TempDir()
		if err := r.PullLayout(t.Context(), to, digests[0], dir, "image"); err != nil {
			t.Fatal(err)
		}
		read := func(d ocidigest.Digest) []byte {
			b, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", d.Encoded()))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		var m v1.Manifest
		var image v1.Image
		if err := json.Unmarshal(read(ocidigest.Digest(digests[0])), &m); err != nil || len(m.Layers) != 2 {
			t.Fatalf("%s: manifest with %d layers, want 2, error %v", to, len(m.Layers), err)
		}
		if err := json.Unmarshal(read(m.Config.Digest), &image); err != nil || len(image.RootFS.DiffIDs) != 2 || image.RootFS.DiffIDs[1] != ocidigest.FromBytes(layer) {
			t.Errorf("%s: diff ids %v, error %v", to, image.RootFS.DiffIDs, err)
		}
		if l := image.Config.Labels; l["kept"] != "1" || l["new"] != "2" {
			t.Errorf("%s: labels %v", to, l)
		}
		z, err := gzip.NewReader(bytes.NewReader(read(m.Layers[1].Digest)))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, layer) {
			t.Errorf("%s: the layer came back as %d bytes, error %v", to, len(got), err)
		}
	}
}
