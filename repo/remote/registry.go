package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
)

// Media types of docker that registries may answer with.
const (
	mediaTypeDockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = strings.Join([]string{v1.MediaTypeImageManifest, v1.MediaTypeImageIndex, mediaTypeDockerManifest, mediaTypeDockerManifestList}, ", ")

// registry is one image in a registry. It satisfies oci.Source.
type registry struct {
	typed string // the reference as the user typed it
	ref   name.Reference
	opts  Options
	creds credentials
	base  http.RoundTripper

	closeIdle func()

	mu     sync.Mutex
	client *http.Client // after authentication
}

var _ oci.Source = (*registry)(nil)

func openRegistry(typed string, r reference, opts Options) (*registry, error) {
	nameOpts := []name.Option{name.WeakValidation}
	if opts.InsecureHTTP {
		nameOpts = append(nameOpts, name.Insecure)
	}
	ref, err := name.ParseReference(r.name, nameOpts...)
	if err != nil {
		return nil, &ReferenceError{Ref: typed, Err: err}
	}
	repo := ref.Context()
	creds, err := findCredentials(authFiles(opts.env, opts.AuthFile), opts.AuthFile != "", repo.RegistryStr(), repo.RepositoryStr())
	if err != nil {
		return nil, &Error{Ref: typed, Op: "open", Err: err}
	}
	s := &registry{typed: typed, ref: ref, opts: opts, creds: creds}
	if s.base, s.closeIdle, err = newTransport(&s.opts); err != nil {
		return nil, err // the network has no part in it
	}
	for _, remark := range creds.skipped {
		opts.Logger.Warn(remark)
	}
	return s, nil
}

// Close ends idle connections.
func (s *registry) Close() error {
	s.closeIdle()
	return nil
}

// connect authenticates once.
func (s *registry) connect(ctx context.Context) (*http.Client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return s.client, nil
	}
	repo := s.ref.Context()
	rt, err := transport.NewWithContext(withDeadline(ctx), repo.Registry, s.creds.auth, s.base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, s.fail(ctx, "connect", 0, err)
	}
	s.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect(repo.RegistryStr())}
	return s.client, nil
}

// Resolve asks for the manifest and, if that is an index, for the one of the
// wanted platform.
func (s *registry) Resolve(ctx context.Context) (oci.Resolved, error) {
	id := s.ref.Identifier()
	var want digest.Digest
	if _, ok := s.ref.(name.Digest); ok {
		want = digest.Digest(id)
	}
	b, mediaType, err := s.manifest(ctx, id, want)
	if err != nil {
		return oci.Resolved{}, err
	}
	top := v1.Descriptor{MediaType: mediaType, Digest: want, Size: int64(len(b))}
	if want == "" {
		top.Digest = digest.FromBytes(b)
	}
	res, err := resolve(ctx, s, s.typed, top, b, s.opts.Platform)
	if err != nil {
		return oci.Resolved{}, err
	}
	s.opts.Logger.Debug("resolved", "reference", s.typed, "manifest", res.Descriptor.Digest, "index", res.IndexDigest)
	return res, nil
}

// fetchManifest reads a manifest that an index names.
func (s *registry) fetchManifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	where := "manifest " + d.Digest.String()
	if err := oci.CheckDescriptor(where, d); err != nil {
		return nil, err
	}
	b, _, err := s.manifest(ctx, d.Digest.String(), d.Digest)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size {
		return nil, &oci.DigestError{Where: "manifest of " + s.typed, Want: d.Digest, GotSize: int64(len(b)), WantSize: d.Size}
	}
	return b, nil
}

// manifest reads a manifest by tag or digest and checks it against want, or,
// for a tag, against what the registry says.
func (s *registry) manifest(ctx context.Context, id string, want digest.Digest) ([]byte, string, error) {
	op := "read manifest " + id
	where := "manifest of " + s.typed
	if want != "" {
		if err := oci.CheckDescriptor(where, v1.Descriptor{Digest: want}); err != nil {
			return nil, "", err
		}
	}
	b, header, err := s.read(withDeadline(ctx), op, s.url("manifests", id), http.Header{"Accept": {acceptManifests}}, oci.MaxManifestSize+1)
	if err != nil {
		return nil, "", err
	}
	if len(b) > oci.MaxManifestSize {
		return nil, "", &oci.FormatError{Where: where, Detail: fmt.Sprintf("more than %d bytes", oci.MaxManifestSize)}
	}
	if want == "" {
		// Trust for a tag comes from TLS alone, but bytes that are not what the
		// registry itself says were damaged on the way.
		want = digest.Digest(header.Get("Docker-Content-Digest"))
	}
	if want != "" {
		if err := oci.VerifyBytes(where, b, want); err != nil {
			return nil, "", err
		}
	}
	mediaType, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	return b, strings.TrimSpace(mediaType), nil
}

// read returns a small answer, at most limit bytes of it, and its header. An answer
// that breaks off is asked for again.
func (s *registry) read(ctx context.Context, op, u string, header http.Header, limit int64) ([]byte, http.Header, error) {
	var again repeater
	for {
		resp, err := s.get(ctx, op, u, header, http.StatusOK)
		if err != nil {
			return nil, nil, err
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, limit))
		if err = errors.Join(err, resp.Body.Close()); err == nil {
			return b, resp.Header, nil
		}
		if err := again.wait(ctx, s, resp.Request.URL.Host, err); err != nil {
			return nil, nil, s.fail(ctx, op, 0, err)
		}
	}
}

// repeater counts the repetitions of one transfer that broke off.
type repeater struct{ tries, stalls int }

// wait sleeps before the next repetition, or returns why there is none: the number
// of attempts, or a second time that nothing arrived, since a registry that is
// silent is not given five times the time-out.
func (c *repeater) wait(ctx context.Context, s *registry, host string, cause error) error {
	if ctx.Err() != nil {
		return cause
	}
	if isTimeout(cause) || errors.Is(cause, errStalled) {
		c.stalls++
	}
	if c.tries >= s.opts.Retries || c.stalls > 1 {
		return fmt.Errorf("connection broke off: %w", cause)
	}
	delay := backoff(s.opts.RetryDelay, c.tries)
	c.tries++
	s.opts.announce(ctx, host, nil, fmt.Errorf("connection broke off: %w", cause), delay)
	return sleep(ctx, delay)
}

func (s *registry) url(kind, id string) string {
	repo := s.ref.Context()
	u := url.URL{Scheme: "https", Host: repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/%s/%s", repo.RepositoryStr(), kind, id)}
	return u.String() // the transport changes the scheme if plain HTTP was allowed and answered
}

// get sends a request; the caller closes the body. Other statuses than those
// wanted are errors.
func (s *registry) get(ctx context.Context, op, u string, header http.Header, statuses ...int) (*http.Response, error) {
	client, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, s.fail(ctx, op, 0, err)
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return nil, s.fail(ctx, op, 0, err)
	}
	if err := transport.CheckError(resp, statuses...); err != nil {
		return nil, s.fail(ctx, op, 0, errors.Join(err, resp.Body.Close()))
	}
	return resp, nil
}

// fail makes an *Error of anything that went wrong.
func (s *registry) fail(ctx context.Context, op string, done int64, err error) error {
	var mine *Error
	if errors.As(err, &mine) {
		return err
	}
	if cause := context.Cause(ctx); cause != nil {
		return &Error{Ref: s.typed, Op: op, Done: done, Err: cause}
	}
	e := &Error{Ref: s.typed, Op: op, Done: done}
	var status *transport.Error
	if errors.As(err, &status) {
		e.Status, e.Detail = status.StatusCode, s.scrub(errorDetail(status))
		e.Temporary = temporaryStatus(status.StatusCode)
		e.AuthFiles, e.AuthFilesAbsent, e.AuthRemarks = s.creds.tried, s.creds.absent, s.creds.skipped
		var wait *waitError
		if errors.As(err, &wait) {
			e.RetryAfter = wait.asked
		}
		return e
	}
	e.Temporary = temporaryError(err) || errors.Is(err, errStalled)
	e.Err = s.scrubError(hideURL(err))
	if errors.Is(err, http.ErrSchemeMismatch) {
		e.Err = fmt.Errorf("%w, and %w", e.Err, ErrPlainHTTP)
	}
	return e
}

// scrub removes credentials that a hostile or careless registry sends back.
func (s *registry) scrub(text string) string {
	text = hideSecrets(text)
	for _, secret := range s.creds.secrets {
		text = strings.ReplaceAll(text, secret, "[hidden]")
	}
	return text
}

// scrubError keeps the chain of an error whose text is harmless. Only the first
// line counts: go-containerregistry quotes the whole answer of a token server.
func (s *registry) scrubError(err error) error {
	line, _, _ := strings.Cut(err.Error(), "\n")
	if text := s.scrub(line); text != err.Error() {
		return errors.New(text)
	}
	return err
}
