package remote_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/internal/testutil/registry"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
)

const (
	user     = "alice"
	password = "correct-horse-battery"
)

var amd64 = v1.Platform{OS: "linux", Architecture: "amd64"}

// blobs of the test image: big spans several reads.
var big = bytes.Repeat([]byte("0123456789abcdef"), 40_000)

// serve starts a registry with one image of one layer, tagged team/os:1.
func serve(t *testing.T, secure bool) (*registry.Registry, v1.Manifest) {
	t.Helper()
	r := registry.New(t, secure)
	m := addImage(t, r, "1", amd64)
	return r, m
}

func addImage(t *testing.T, r *registry.Registry, tag string, p v1.Platform) v1.Manifest {
	t.Helper()
	config := mustJSON(t, v1.Image{Platform: p, RootFS: v1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(big)}}})
	m := v1.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageManifest,
		Config: describe(v1.MediaTypeImageConfig, config), Layers: []v1.Descriptor{describe(v1.MediaTypeImageLayer, big)},
	}
	r.AddBlob(m.Config.Digest.String(), config)
	r.AddBlob(m.Layers[0].Digest.String(), big)
	b := mustJSON(t, m)
	r.AddManifest("team/os", tag, digest.FromBytes(b).String(), v1.MediaTypeImageManifest, b)
	return m
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func describe(mediaType string, b []byte) v1.Descriptor {
	return v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// options are fast time-outs, an empty environment and the test's certificate.
func options(t *testing.T, r *registry.Registry) remote.Options {
	t.Helper()
	o := remote.Options{
		ConnectTimeout: 5 * time.Second, HeaderTimeout: 300 * time.Millisecond, StallTimeout: 300 * time.Millisecond,
		RetryDelay: time.Millisecond, Platform: amd64,
	}
	o.SetEnvironment(fakeEnv{root: t.TempDir(), uid: 1})
	if cert := r.Certificate(); cert != nil {
		o.CAFile = filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(o.CAFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		o.InsecureHTTP = true
	}
	return o
}

func open(t *testing.T, ref string, o remote.Options) oci.Source {
	t.Helper()
	s, err := remote.Open(t.Context(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// pull reads the manifest and all blobs.
func pull(ctx context.Context, s oci.Source) (oci.Resolved, error) {
	res, err := s.Resolve(ctx)
	if err != nil {
		return res, err
	}
	var m v1.Manifest
	if err := json.Unmarshal(res.Manifest, &m); err != nil {
		return res, err
	}
	if _, err := oci.ReadBlob(ctx, s, "config", m.Config, 1<<20); err != nil {
		return res, err
	}
	for _, l := range m.Layers {
		b, err := oci.ReadBlob(ctx, s, "layer", l, 1<<30)
		if err != nil {
			return res, err
		}
		if !bytes.Equal(b, big) {
			return res, fmt.Errorf("layer differs: %d bytes, want %d", len(b), len(big))
		}
	}
	return res, nil
}

func TestPullFromRegistry(t *testing.T) {
	t.Parallel()
	for _, secure := range []bool{true, false} {
		for _, auth := range []string{"none", "basic", "token"} {
			t.Run(fmt.Sprintf("secure=%v/%s", secure, auth), func(t *testing.T) {
				t.Parallel()
				r, _ := serve(t, secure)
				o := options(t, r)
				if auth != "none" {
					r.User, r.Password, r.Token = user, password, auth == "token"
					o.AuthFile = writeAuth(t, r.Host()+"/team", user, password)
				}
				var log bytes.Buffer
				o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
				res, err := pull(t.Context(), open(t, "docker://"+r.Host()+"/team/os:1", o))
				if err != nil {
					t.Fatal(err)
				}
				if res.Descriptor.Digest != digest.FromBytes(res.Manifest) || res.Descriptor.MediaType != v1.MediaTypeImageManifest || res.Reference != "docker://"+r.Host()+"/team/os:1" {
					t.Errorf("resolved %+v", res)
				}
				noSecrets(t, log.String())
			})
		}
	}
}

func writeAuth(t *testing.T, key, user, password string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "auth.json")
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	if err := os.WriteFile(name, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, key, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func noSecrets(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{password, base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), "issued-bearer-token", "X-Signature"} {
		if strings.Contains(text, s) {
			t.Errorf("%q is shown in: %s", s, text)
		}
	}
}

func TestPlainHTTPIsRefused(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, false)
	o := options(t, r)
	o.InsecureHTTP = false
	_, err := open(t, r.Host()+"/team/os:1", o).Resolve(t.Context())
	var e *remote.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "plain HTTP is not allowed") || !errors.Is(err, remote.ErrPlainHTTP) {
		t.Fatalf("got %v", err)
	}
	for _, line := range r.Log() {
		t.Errorf("a request was sent: %s", line)
	}
}

func TestUnknownCertificateIsRefused(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	o := options(t, r)
	o.CAFile = ""
	start := time.Now()
	_, err := open(t, r.Host()+"/team/os:1", o).Resolve(t.Context())
	var e *remote.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "certificate") || e.Temporary {
		t.Fatalf("got %v", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v: a bad certificate must not be retried", d)
	}
}

func TestDigestReference(t *testing.T) {
	t.Parallel()
	r, m := serve(t, true)
	o := options(t, r)
	good := digest.FromBytes(mustJSON(t, m))
	if _, err := pull(t.Context(), open(t, r.Host()+"/team/os@"+good.String(), o)); err != nil {
		t.Error(err)
	}
	if _, err := pull(t.Context(), open(t, r.Host()+"/team/os:ignored@"+good.String(), o)); err != nil {
		t.Error(err)
	}
	evil := digest.FromString("evil")
	b := mustJSON(t, m)
	r.AddManifest("team/os", "", evil.String(), v1.MediaTypeImageManifest, b)
	_, err := open(t, r.Host()+"/team/os@"+evil.String(), o).Resolve(t.Context())
	var d *oci.DigestError
	if !errors.As(err, &d) || d.Want != evil || d.Got != digest.FromBytes(b) {
		t.Errorf("other bytes under a digest: %v", err)
	}
}

// TestFaults breaks one request in every way.
func TestFaults(t *testing.T) {
	t.Parallel()
	layer := digest.FromBytes(big).String()
	always := func(kind, id string, f registry.Fault) func(string, string, int, *http.Request) *registry.Fault {
		return func(k, i string, _ int, _ *http.Request) *registry.Fault {
			if k == kind && (id == "" || i == id) {
				return &f
			}
			return nil
		}
	}
	first := func(kind, id string, times int, f registry.Fault) func(string, string, int, *http.Request) *registry.Fault {
		return func(k, i string, n int, _ *http.Request) *registry.Fault {
			if k == kind && (id == "" || i == id) && n < times {
				return &f
			}
			return nil
		}
	}
	type check func(t *testing.T, r *registry.Registry, err error)
	status := func(code int, temporary bool) check {
		return func(t *testing.T, _ *registry.Registry, err error) {
			t.Helper()
			var e *remote.Error
			if !errors.As(err, &e) || e.Status != code || e.Temporary != temporary {
				t.Errorf("got %v, want status %d, temporary %v", err, code, temporary)
			}
		}
	}
	sizes := func(got, want int64) check {
		return func(t *testing.T, _ *registry.Registry, err error) {
			t.Helper()
			var d *oci.DigestError
			if !errors.As(err, &d) || d.GotSize != got || d.WantSize != want {
				t.Errorf("got %v, want %d of %d bytes", err, got, want)
			}
		}
	}
	ok := func(requests int) check {
		return func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			if err != nil {
				t.Error(err)
			}
			if n := r.Count("blob", layer); n != requests {
				t.Errorf("%d requests for the layer, want %d:\n%s", n, requests, strings.Join(r.Log(), "\n"))
			}
		}
	}
	requests := func(kind, id string, want int) check {
		return func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			if n := r.Count(kind, id); n != want || err == nil {
				t.Errorf("%d requests, want %d; %v", n, want, err)
			}
		}
	}
	text := func(parts ...string) check {
		return func(t *testing.T, _ *registry.Registry, err error) {
			t.Helper()
			var e *remote.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want a *remote.Error", err)
			}
			for _, p := range parts {
				if !strings.Contains(err.Error(), p) {
					t.Errorf("error %q lacks %q", err, p)
				}
			}
		}
	}
	size := int64(len(big))
	flipped := append([]byte(nil), big...)
	flipped[1000] ^= 1
	for _, tc := range []struct {
		name  string
		fault func(kind, id string, n int, r *http.Request) *registry.Fault
		check check
	}{
		{"manifest 404", always("manifest", "", registry.Fault{Status: 404, Body: `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"gone"}]}`}), status(404, false)},
		{"manifest 404 text", always("manifest", "", registry.Fault{Status: 404, Body: `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"gone\u001b[2J"}]}`}), text("404 Not Found", "MANIFEST_UNKNOWN: gone?[2J")},
		{"blob 404", always("blob", layer, registry.Fault{Status: 404}), text("404 Not Found", "read blob "+layer)},
		{"manifest 500", always("manifest", "", registry.Fault{Status: 500}), status(500, true)},
		{"manifest 429", always("manifest", "", registry.Fault{Status: 429}), status(429, true)},
		{"429 that asks for an hour", always("manifest", "", registry.Fault{Status: 429, Header: http.Header{"Retry-After": {"3600"}}}), func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			status(429, true)(t, r, err)
			text("read manifest 1: registry answers 429 Too Many Requests and asks to wait 1h")(t, r, err)
			requests("manifest", "1", 1)(t, r, err)
		}},
		{"429 that asks for a day, at once", always("ping", "", registry.Fault{Status: 429, Body: `{"errors":[{"code":"TOOMANYREQUESTS"}]}`, Header: http.Header{"Retry-After": {"86400"}}}),
			text("connect: registry answers 429 Too Many Requests and asks to wait 24h: TOOMANYREQUESTS")},
		{"manifest cut once", first("manifest", "", 1, registry.Fault{CutAfter: 20}), ok(1)},
		{"manifest cut always", always("manifest", "", registry.Fault{CutAfter: 20}), func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			text("read manifest 1: connection broke off: unexpected EOF")(t, r, err)
			requests("manifest", "1", 5)(t, r, err)
		}},
		{"manifest stalls once", first("manifest", "", 1, registry.Fault{HangAfter: 20}), ok(1)},
		{"manifest stalls always", always("manifest", "", registry.Fault{HangAfter: 20}), requests("manifest", "1", 2)},
		{"ping 503 twice", first("ping", "", 2, registry.Fault{Status: 503}), ok(1)},
		{"blob 500 twice", first("blob", layer, 2, registry.Fault{Status: 500}), ok(3)},
		{"blob 429 once", first("blob", layer, 1, registry.Fault{Status: 429, Header: http.Header{"Retry-After": {"0"}}}), ok(2)},
		{"manifest hangs", always("manifest", "", registry.Fault{Hang: true}), text("read manifest 1", "timeout")},
		{"blob hangs", always("blob", layer, registry.Fault{Hang: true}), text("read blob", "timeout")},
		{"blob stalls always", always("blob", layer, registry.Fault{HangAfter: 1000}), func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			text("connection broke off: no data arrives for 300ms", "bytes")(t, r, err)
			requests("blob", layer, 2)(t, r, err)
		}},
		{"blob stalls once", first("blob", layer, 1, registry.Fault{HangAfter: 100_000}), ok(2)},
		{"blob cut once", first("blob", layer, 1, registry.Fault{CutAfter: 300_000}), ok(2)},
		{"blob cut once, no ranges", func(k, i string, n int, _ *http.Request) *registry.Fault {
			if k != "blob" || i != layer {
				return nil
			}
			return &registry.Fault{NoRange: true, CutAfter: map[bool]int64{true: 300_000}[n == 0]}
		}, ok(2)},
		{"blob cut every 100000 bytes", always("blob", layer, registry.Fault{CutAfter: 100_000}), ok(7)},
		{"blob cut at once, always", always("blob", layer, registry.Fault{CutAfter: 1}), text("connection broke off", "after 5 bytes")},
		{"blob shorter, announced", always("blob", layer, registry.Fault{Replace: big[:1000]}), sizes(1000, size)},
		{"blob shorter, not announced", always("blob", layer, registry.Fault{Replace: big[:1000], NoLength: true}), sizes(1000, size)},
		{"blob longer, announced", always("blob", layer, registry.Fault{ExtraBytes: 5}), sizes(size+5, size)},
		{"blob longer, not announced", always("blob", layer, registry.Fault{ExtraBytes: 5, NoLength: true}), sizes(size+1, size)},
		{"blob differs", always("blob", layer, registry.Fault{Replace: flipped}), func(t *testing.T, _ *registry.Registry, err error) {
			t.Helper()
			var d *oci.DigestError
			if !errors.As(err, &d) || d.Got != digest.FromBytes(flipped) {
				t.Errorf("got %v", err)
			}
		}},
		{"manifest differs from its header", always("manifest", "", registry.Fault{Replace: []byte(`{"schemaVersion":2}`)}), func(t *testing.T, r *registry.Registry, err error) {
			t.Helper()
			var d *oci.DigestError
			if !errors.As(err, &d) || !strings.HasPrefix(err.Error(), "manifest of "+r.Host()+"/team/os:1: got digest ") {
				t.Errorf("got %v", err)
			}
		}},
		{"redirect to HTTP", always("blob", layer, registry.Fault{Status: 307, Header: http.Header{"Location": {"http://example.invalid/x?X-Signature=1"}}}), text("refused redirect from HTTPS")},
		{"redirect loop", always("blob", "", registry.Fault{Status: 307, Header: http.Header{"Location": {"/v2/team/os/blobs/x?X-Signature=1"}}}), text("read blob sha256:", "refused redirect: more than 10")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r, _ := serve(t, true)
			r.OnRequest = tc.fault
			_, err := pull(t.Context(), open(t, r.Host()+"/team/os:1", options(t, r)))
			tc.check(t, r, err)
			if err != nil {
				noSecrets(t, err.Error())
				if strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), ": :") {
					t.Errorf("error of several lines, or with an empty part: %q", err)
				}
			}
		})
	}
}

func TestRangeRequestIsClosed(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	layer := digest.FromBytes(big).String()
	r.OnRequest = func(_, id string, n int, _ *http.Request) *registry.Fault {
		if id == layer && n == 0 {
			return &registry.Fault{CutAfter: 123_456}
		}
		return nil
	}
	if _, err := pull(t.Context(), open(t, r.Host()+"/team/os:1", options(t, r))); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("Range=bytes=123456-%d ", len(big)-1)
	if log := strings.Join(r.Log(), "\n"); !strings.Contains(log, want) {
		t.Errorf("no %q in\n%s", want, log)
	}
}

func TestUnauthorizedNamesAuthFiles(t *testing.T) {
	t.Parallel()
	for _, token := range []bool{false, true} {
		r, _ := serve(t, true)
		r.User, r.Password, r.Token = user, password, token
		o := options(t, r)
		_, err := open(t, r.Host()+"/team/os:1", o).Resolve(t.Context())
		var e *remote.Error
		if !errors.As(err, &e) || e.Status != 401 || e.Temporary || !strings.Contains(err.Error(), "; no credentials file at /") ||
			!strings.Contains(err.Error(), "containers/auth.json") {
			t.Errorf("token %v, no file: %v", token, err)
		}
		home := t.TempDir()
		for _, f := range []string{".config/containers/auth.json", ".docker/config.json"} {
			p := filepath.Join(home, f)
			if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
				t.Fatal(err)
			}
			wrong := base64.StdEncoding.EncodeToString([]byte(user + ":wrong-password"))
			key := map[bool]string{true: r.Host(), false: "elsewhere.example"}[strings.Contains(f, "docker")]
			if err := os.WriteFile(p, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}},"credsStore":"pass"}`, key, wrong), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o.SetEnvironment(fakeEnv{root: t.TempDir(), uid: 1, vars: map[string]string{"HOME": home}})
		_, err = open(t, r.Host()+"/team/os:1", o).Resolve(t.Context())
		if !errors.As(err, &e) || e.Status != 401 || len(e.AuthFiles) != 2 ||
			!strings.Contains(err.Error(), home+"/.config/containers/auth.json, "+home+"/.docker/config.json") {
			t.Errorf("token %v, wrong password: %v", token, err)
		}
		if want := home + `/.config/containers/auth.json names the credential helper "pass", and helpers are not run`; !strings.HasSuffix(err.Error(), "; "+want) {
			t.Errorf("token %v: got %v, want one that ends in %q", token, err, want)
		}
		if strings.Contains(err.Error(), "wrong-password") {
			t.Errorf("error shows the password: %v", err)
		}
	}
}

// TestRegistryEchoesSecrets: a registry that sends the credentials back does not
// get them into a message.
func TestRegistryEchoesSecrets(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	r.User, r.Password = user, password
	o := options(t, r)
	o.AuthFile = writeAuth(t, r.Host(), user, password)
	r.OnRequest = func(kind, _ string, _ int, req *http.Request) *registry.Fault {
		if kind != "manifest" {
			return nil
		}
		_, p, _ := req.BasicAuth()
		return &registry.Fault{Status: 403, Body: fmt.Sprintf(`{"errors":[{"code":"DENIED","message":"you said %s, that is %s"}]}`, req.Header.Get("Authorization"), p)}
	}
	_, err := open(t, r.Host()+"/team/os:1", o).Resolve(t.Context())
	var e *remote.Error
	if !errors.As(err, &e) || e.Status != 403 || !strings.Contains(err.Error(), "you said") {
		t.Fatalf("got %v", err)
	}
	noSecrets(t, err.Error())
}

// messages keeps what people are told.
type messages []string

func (m *messages) Event(e progress.Event) {
	if e, ok := e.(progress.Message); ok {
		*m = append(*m, e.Text)
	}
}

func TestProgressTellsAboutRepetition(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	layer := digest.FromBytes(big).String()
	r.OnRequest = func(kind, id string, n int, _ *http.Request) *registry.Fault {
		switch {
		case kind == "manifest" && n == 0:
			return &registry.Fault{Status: 503}
		case kind == "manifest" && n == 1:
			return &registry.Fault{CutAfter: 20}
		case id == layer && n == 0:
			return &registry.Fault{HangAfter: 1000}
		case id == layer && n == 1:
			return &registry.Fault{CutAfter: 1000}
		}
		return nil
	}
	var got []string
	o := options(t, r)
	o.Progress = (*messages)(&got)
	if _, err := pull(oci.WithComponent(t.Context(), "layer 1 of 1"), open(t, r.Host()+"/team/os:1", o)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"answers 503 Service Unavailable; next attempt in", "connection broke off: unexpected EOF; next attempt in",
		"connection broke off: no data arrives for 300ms; next attempt in", "connection broke off: unexpected EOF; next attempt in",
	}
	if len(got) != len(want) {
		t.Fatalf("messages %q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], "layer 1 of 1: "+r.Host()+": "+want[i]) {
			t.Errorf("message %q, want %q", got[i], want[i])
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	o := options(t, r)
	o.StallTimeout, o.HeaderTimeout = time.Hour, time.Hour
	r.OnRequest = func(kind, _ string, _ int, _ *http.Request) *registry.Fault {
		if kind == "blob" {
			return &registry.Fault{HangAfter: 10}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	s := open(t, r.Host()+"/team/os:1", o)
	rd, err := s.Blob(ctx, describe("", big))
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := io.Copy(io.Discard, rd); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

func TestIndex(t *testing.T) {
	t.Parallel()
	r := registry.New(t, true)
	arm := v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	ma, mb := addImage(t, r, "amd", amd64), addImage(t, r, "arm", arm)
	desc := func(m v1.Manifest, p *v1.Platform) v1.Descriptor {
		d := describe(v1.MediaTypeImageManifest, mustJSON(t, m))
		d.Platform = p
		return d
	}
	add := func(tag string, ds ...v1.Descriptor) digest.Digest {
		b := mustJSON(t, v1.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: v1.MediaTypeImageIndex, Manifests: ds})
		r.AddManifest("team/os", tag, digest.FromBytes(b).String(), v1.MediaTypeImageIndex, b)
		return digest.FromBytes(b)
	}
	attestation := desc(mb, &v1.Platform{OS: "unknown", Architecture: "unknown"})
	both := add("both", attestation, desc(mb, &arm), desc(ma, &amd64))
	add("bare", desc(mb, nil), desc(ma, nil))
	add("arm-only", desc(mb, &arm), attestation)
	add("empty")
	nested := describe(v1.MediaTypeImageIndex, []byte("{}"))
	add("nested", nested)
	add("foreign", v1.Descriptor{MediaType: "application/x-thing", Digest: digest.FromString("x"), Size: 1})
	lying := desc(ma, &amd64)
	lying.Size++
	add("lying", lying)

	for _, tc := range []struct {
		tag   string
		want  v1.Platform
		image *v1.Manifest
		index digest.Digest
		err   any
		text  string
	}{
		{tag: "both", want: amd64, image: &ma, index: both},
		{tag: "both", want: v1.Platform{OS: "linux", Architecture: "arm64"}, image: &mb, index: both},
		{tag: "both", want: arm, image: &mb, index: both},
		{tag: "bare", want: amd64, image: &ma},
		{tag: "arm-only", want: amd64, err: new(*oci.PlatformError), text: "is not for linux/amd64, but for linux/arm64/v8, unknown/unknown"},
		{tag: "both", want: v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v9"}, err: new(*oci.PlatformError)},
		{tag: "empty", want: amd64, err: new(*oci.FormatError), text: "empty"},
		{tag: "nested", want: amd64, err: new(*oci.FormatError), text: "inside another index"},
		{tag: "foreign", want: amd64, err: new(*oci.MediaTypeError), text: "application/x-thing"},
		{tag: "lying", want: amd64, err: new(*oci.DigestError)},
	} {
		o := options(t, r)
		o.Platform = tc.want
		res, err := open(t, r.Host()+"/team/os:"+tc.tag, o).Resolve(t.Context())
		if tc.err != nil {
			if !errors.As(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%s: got %v, want %T with %q", tc.tag, err, tc.err, tc.text)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tc.tag, err)
			continue
		}
		if !bytes.Equal(res.Manifest, mustJSON(t, tc.image)) || res.IndexDigest == "" || (tc.index != "" && res.IndexDigest != tc.index) {
			t.Errorf("%s for %s: got manifest %s, index %s", tc.tag, oci.FormatPlatform(tc.want), res.Manifest, res.IndexDigest)
		}
	}
}

func TestWrongDocuments(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, header, body string
		err                any
		text               string
	}{
		{"docker schema 2", "application/vnd.docker.distribution.manifest.v2+json", `{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{}}`, new(*oci.MediaTypeError), "docker"},
		{"docker schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1}`, new(*oci.MediaTypeError), "prettyjws"},
		{"HTML", "text/html", `<html>log in</html>`, new(*oci.FormatError), "not a JSON object"},
		{"array", "application/json", `[]`, new(*oci.FormatError), "not a JSON object"},
		{"index and manifest in one", v1.MediaTypeImageIndex, `{"manifests":[],"config":{}}`, new(*oci.FormatError), "no \"config\""},
		{"manifest with manifests", v1.MediaTypeImageManifest, `{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[],"config":{}}`, new(*oci.FormatError), "must not have"},
		{"too large", v1.MediaTypeImageManifest, strings.Repeat(" ", oci.MaxManifestSize+1), new(*oci.FormatError), "more than 4194304 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := registry.New(t, true)
			r.AddManifest("team/os", "1", digest.FromString(tc.body).String(), tc.header, []byte(tc.body))
			_, err := open(t, r.Host()+"/team/os:1", options(t, r)).Resolve(t.Context())
			if !errors.As(err, tc.err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("got %v, want %T with %q", err, tc.err, tc.text)
			}
		})
	}
}

func TestManifestWithoutMediaType(t *testing.T) {
	t.Parallel()
	r, m := serve(t, true)
	m.MediaType = ""
	b := mustJSON(t, m)
	r.AddManifest("team/os", "plain", digest.FromBytes(b).String(), "application/json", b)
	if _, err := pull(t.Context(), open(t, r.Host()+"/team/os:plain", options(t, r))); err != nil {
		t.Error(err)
	}
}

// TestSecretInReference: a password in a reference is refused and not repeated.
func TestSecretInReference(t *testing.T) {
	t.Parallel()
	for _, prefix := range []string{"docker://", "registry:", "", "docker://http://", "docker://https://", "http://", "https://", "docker:", "ostree-unverified-image://"} {
		_, err := remote.Open(t.Context(), prefix+user+":"+password+"@quay.io/team/os:1", remote.Options{})
		if err == nil || !strings.Contains(err.Error(), "[hidden]@quay.io/team/os:1") || !strings.Contains(err.Error(), "credentials file") {
			t.Errorf("got %v", err)
		}
		noSecrets(t, fmt.Sprint(err))
	}
}

func TestReferenceErrors(t *testing.T) {
	t.Parallel()
	for ref, text := range map[string]string{"": "empty", "UPPER/Case": "could not parse", "docker-archive:/x": "not supported", "oci:": "no directory"} {
		_, err := remote.Open(t.Context(), ref, remote.Options{})
		var e *remote.ReferenceError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: got %v, want %q", ref, err, text)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		ref  string
		opts remote.Options
		text string
	}{
		{"quay.io/x", remote.Options{AuthFile: bad}, "not valid JSON"},
		{"oci:/nonexistent/layout", remote.Options{}, "no such file"},
		{"oci:" + bad, remote.Options{}, "not a directory"},
	} {
		_, err := remote.Open(t.Context(), tc.ref, tc.opts)
		var e *remote.Error
		var l *remote.LayoutError
		if errors.As(err, &e) == errors.As(err, &l) || errors.As(err, &l) != strings.HasPrefix(tc.ref, "oci:") || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%q: got %v, want %q", tc.ref, err, tc.text)
		}
	}
}

// TestUnusableCAFile: the network has no part in it, so it is no *Error.
func TestUnusableCAFile(t *testing.T) {
	t.Parallel()
	bad := filepath.Join(t.TempDir(), "bad.pem")
	if err := os.WriteFile(bad, []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{bad: bad + " contains no certificate", bad + ".missing": "no such file"} {
		_, err := remote.Open(t.Context(), "quay.io/x", remote.Options{CAFile: file})
		var e *remote.Error
		if errors.As(err, &e) || err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("got %v, want %q", err, text)
		}
	}
}

// TestPlainHTTPAtOnce: a server without TLS that hangs up on a handshake is asked by
// plain HTTP without a pause, if that is allowed.
func TestPlainHTTPAtOnce(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, false)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	go func() { // passes HTTP on, and hangs up on anything else
		for {
			c, err := inner.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				first := make([]byte, 4096)
				n, _ := c.Read(first)
				if n == 0 || first[0] != 'G' {
					return
				}
				up, err := net.Dial("tcp", r.Host())
				if err != nil {
					return
				}
				defer up.Close()
				_, _ = up.Write(first[:n])
				go func() { _, _ = io.Copy(up, c) }()
				_, _ = io.Copy(c, up)
			}()
		}
	}()
	o := options(t, r)
	o.InsecureHTTP, o.RetryDelay = true, time.Minute
	var told messages
	o.Progress = &told
	if _, err := open(t, inner.Addr().String()+"/team/os:1", o).Resolve(t.Context()); err != nil || len(told) > 0 {
		t.Errorf("got %v, told %q", err, told)
	}
}

// TestTokenServerAnswersNonsense: its answer may contain secrets and is not quoted.
func TestTokenServerAnswersNonsense(t *testing.T) {
	t.Parallel()
	r, _ := serve(t, true)
	r.User, r.Password, r.Token = user, password, true
	r.OnRequest = func(kind, _ string, _ int, _ *http.Request) *registry.Fault {
		if kind == "token" {
			return &registry.Fault{Status: 200, Body: `{"refresh_token":"` + password + `"}`}
		}
		return nil
	}
	_, err := open(t, r.Host()+"/team/os:1", options(t, r)).Resolve(t.Context())
	var e *remote.Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "no token") {
		t.Errorf("got %v", err)
	}
	noSecrets(t, err.Error())
}

// FuzzResolve: a document from a registry names one image manifest or is refused
// for a reason of ours.
func FuzzResolve(f *testing.F) {
	sha := `"digest":"sha256:` + strings.Repeat("a", 64) + `","size":2`
	manifest := `{"schemaVersion":2,"mediaType":"` + v1.MediaTypeImageManifest + `","config":{"mediaType":"` + v1.MediaTypeImageConfig + `",` + sha + `},"layers":[]}`
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"` + v1.MediaTypeImageManifest + `",` + sha + `},{"mediaType":"` + v1.MediaTypeImageIndex + `",` + sha + `}]}`
	config := `{"os":"linux","architecture":"amd64"}`
	f.Add(v1.MediaTypeImageManifest, []byte(manifest), []byte(manifest), []byte(config))
	f.Add(v1.MediaTypeImageIndex, []byte(index), []byte(manifest), []byte(config))
	f.Add("", []byte(index), []byte(`{"config":{"mediaType":"x"}}`), []byte("{}"))
	f.Fuzz(func(t *testing.T, mediaType string, document, manifest, config []byte) {
		res, err := remote.ResolveDocument(t.Context(), mediaType, document, manifest, config)
		if err == nil {
			direct := res.IndexDigest == "" && bytes.Equal(res.Manifest, document) && res.Descriptor.Digest == digest.FromBytes(document)
			chosen := res.IndexDigest == digest.FromBytes(document) && bytes.Equal(res.Manifest, manifest)
			if direct == chosen || res.Descriptor.MediaType != v1.MediaTypeImageManifest {
				t.Errorf("resolved %+v", res)
			}
			return
		}
		var format *oci.FormatError
		var media *oci.MediaTypeError
		var platform *oci.PlatformError
		if !errors.As(err, &format) && !errors.As(err, &media) && !errors.As(err, &platform) {
			t.Errorf("got %v (%T)", err, err)
		}
	})
}
