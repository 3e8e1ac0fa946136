package pull_test

import (
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	ggcrremote "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/registry"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
)

// TestPushedImage: an image that go-containerregistry pushed to its registry is
// the same as from the layout.
func TestPushedImage(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	img := bootable(t)
	dir := t.TempDir()
	if err := img.WriteLayout(dir, "v"); err != nil {
		t.Fatal(err)
	}
	push(t, server.Client().Transport, dir, host+"/team/os:1")
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	r := repotest.New(t, fsverity.SHA512)
	var results []*pull.Result
	for _, ref := range []string{"docker://" + host + "/team/os:1", host + "/team/os@" + img.Descriptor.Digest.String(), "oci:" + dir + ":v"} {
		src, err := remote.Open(t.Context(), ref, remote.Options{CAFile: ca, Platform: amd64, RetryDelay: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		res, err := pull.Pull(t.Context(), r, src, options("os", true))
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, res)
	}
	for _, res := range results[1:] {
		if res.Verified != results[0].Verified || res.ManifestDigest != img.Descriptor.Digest || res.Stats.LayersFetched != 0 {
			t.Errorf("pulls differ: %+v, %+v", results[0], res)
		}
	}
}

func push(t *testing.T, transport http.RoundTripper, dir, to string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := ggcrremote.Write(ref, image, ggcrremote.WithTransport(transport)); err != nil {
		t.Fatal(err)
	}
}

// TestRegistryFaults: a whole pull from a registry that misbehaves gives one error
// line and no name, or gets through.
func TestRegistryFaults(t *testing.T) {
	t.Parallel()
	layer := bootable(t).Layers[1].Digest.String()
	on := func(kind string, times int, f registry.Fault) func(string, string, int, *http.Request) *registry.Fault {
		return func(k, id string, n int, _ *http.Request) *registry.Fault {
			if k == kind && (kind != "blob" || id == layer) && n < times {
				return &f
			}
			return nil
		}
	}
	const always = 1 << 30
	for _, tc := range []struct {
		name  string
		fault func(kind, id string, n int, r *http.Request) *registry.Fault
		want  any // nil: the pull succeeds
		text  string
	}{
		{"401", on("manifest", always, registry.Fault{Status: 401}), new(*remote.Error), "credentials file"},
		{"404", on("manifest", always, registry.Fault{Status: 404}), new(*remote.Error), "404 Not Found"},
		{"429", on("manifest", always, registry.Fault{Status: 429}), new(*remote.Error), "429 Too Many Requests"},
		{"429 once", on("manifest", 1, registry.Fault{Status: 429}), nil, ""},
		{"500", on("blob", always, registry.Fault{Status: 500}), new(*remote.Error), "500 Internal Server Error"},
		{"500 twice", on("blob", 2, registry.Fault{Status: 500}), nil, ""},
		{"hangs", on("blob", always, registry.Fault{Hang: true}), new(*remote.Error), "timeout"},
		{"stalls", on("blob", always, registry.Fault{HangAfter: 100}), new(*remote.Error), "no data arrives"},
		{"cuts", on("blob", always, registry.Fault{CutAfter: 1}), new(*remote.Error), "connection broke off"},
		{"cuts once", on("blob", 1, registry.Fault{CutAfter: 9999}), nil, ""},
		{"short", on("blob", always, registry.Fault{Replace: []byte("short")}), new(*oci.DigestError), "got 5 bytes"},
		{"long", on("blob", always, registry.Fault{ExtraBytes: 1, NoLength: true}), new(*oci.DigestError), "at least"},
		{"other bytes", on("blob", always, registry.Fault{Replace: make([]byte, bootable(t).Layers[1].Size)}), nil, "layer 2 of 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			img := bootable(t)
			server := serve(t, img)
			server.OnRequest = tc.fault
			r := repotest.New(t, fsverity.SHA256)
			res, err := pullFrom(t, r, server)
			if tc.want == nil && tc.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, ok := res.Verified.Digest(keyring.Boot); !ok {
					t.Error("no boot image")
				}
				return
			}
			if err == nil || (tc.want != nil && !errors.As(err, tc.want)) || !strings.Contains(err.Error(), tc.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line, %T, with %q", err, tc.want, tc.text)
			}
			t.Log(err)
			noImageNames(t, r)
			server.Heal()
			if _, err := pullFrom(t, r, server); err != nil {
				t.Errorf("repeated pull: %v", err)
			}
			repotest.Check(t, r)
		})
	}
}

func serve(t *testing.T, img *ocitest.Image) *registry.Registry {
	t.Helper()
	server := registry.New(t, false)
	server.AddManifest("team/os", "1", img.Descriptor.Digest.String(), img.Descriptor.MediaType, img.Manifest)
	for d, b := range img.Blobs {
		server.AddBlob(d.String(), b)
	}
	return server
}

func pullFrom(t *testing.T, r *repo.Repository, server *registry.Registry) (*pull.Result, error) {
	t.Helper()
	src, err := remote.Open(t.Context(), "docker://"+server.Host()+"/team/os:1", remote.Options{
		Platform: amd64, InsecureHTTP: true, AuthFile: emptyAuth(t), RetryDelay: time.Millisecond,
		HeaderTimeout: 300 * time.Millisecond, StallTimeout: 300 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	return pull.Pull(t.Context(), r, src, options("os", true))
}

func emptyAuth(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(name, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
