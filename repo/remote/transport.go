package remote

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo/oci"
)

const (
	maxRetryDelay = 30 * time.Second
	maxRetryAfter = 2 * time.Minute // a registry that asks for more is not waited for
	maxCAFile     = 4 << 20         // bytes
	maxErrorBody  = 8 << 10         // bytes of an error answer that are looked at
)

// ErrPlainHTTP refuses what go-containerregistry would do silently for loopback
// and private addresses. Options.InsecureHTTP allows it.
var ErrPlainHTTP = errors.New("plain HTTP is not allowed")

// newTransport returns the HTTP transport of a source: time-outs, certificates,
// no silent fallback to HTTP, repetition of failed requests. closeIdle ends the
// connections that wait for another request.
func newTransport(o *Options) (rt http.RoundTripper, closeIdle func(), err error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: o.ConnectTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   o.ConnectTimeout,
		ResponseHeaderTimeout: o.HeaderTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConnsPerHost:   8,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // a blob is what its digest says, not what a header says
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if o.CAFile != "" {
		pem, err := readLimited(o.CAFile, maxCAFile)
		if err != nil {
			return nil, nil, fmt.Errorf("read CA bundle: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("read CA bundle: %s contains no certificate", o.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return &retryTransport{inner: &guard{inner: t, plain: o.InsecureHTTP, stall: o.StallTimeout}, opts: o}, t.CloseIdleConnections, nil
}

// guard refuses plain HTTP unless it was asked for, and puts every body under a
// watchdog: those of answers that go-containerregistry reads too.
type guard struct {
	inner http.RoundTripper
	plain bool
	stall time.Duration
}

func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && (!g.plain || r.URL.Scheme != "http") {
		return nil, fmt.Errorf("%w (scheme %q of host %s)", ErrPlainHTTP, r.URL.Scheme, r.URL.Host)
	}
	w := newWatchdog(r.Context(), g.stall)
	resp, err := g.inner.RoundTrip(r.WithContext(w.ctx))
	if err != nil {
		w.stop()
		return nil, err
	}
	content := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent
	resp.Body = &watchedBody{body: resp.Body, w: w, whole: !content || hasDeadline(r.Context())}
	return resp, nil
}

// retryTransport repeats requests whose failure may pass.
type retryTransport struct {
	inner http.RoundTripper
	opts  *Options
}

func (t *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	timeouts := 0
	for attempt := 0; ; attempt++ {
		r := req
		if attempt > 0 {
			r = req.Clone(req.Context())
			if req.Body != nil && req.Body != http.NoBody {
				body, err := req.GetBody()
				if err != nil {
					return nil, err
				}
				r.Body = body
			}
		}
		resp, err := t.inner.RoundTrip(r)
		if isTimeout(err) {
			timeouts++
		}
		// A registry that does not answer is not given five times the time-out.
		repeatable := req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
		if attempt >= t.opts.Retries || t.plainNext(req, err) || timeouts > 1 || !repeatable || !temporary(resp, err) || req.Context().Err() != nil {
			return resp, err
		}
		delay := backoff(t.opts.RetryDelay, attempt)
		if resp != nil {
			asked, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
			if ok && asked > maxRetryAfter {
				return nil, newWaitError(resp, asked)
			}
			delay = max(delay, asked)
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxErrorBody)) // to use the connection again
			_ = resp.Body.Close()
		}
		t.opts.announce(req.Context(), req.URL.Host, resp, err, delay)
		if err := sleep(req.Context(), delay); err != nil {
			return nil, err
		}
	}
}

// plainNext tells whether go-containerregistry tries plain HTTP next: it asks for
// /v2/ by HTTPS first, and a server that does not know TLS may just hang up.
func (t *retryTransport) plainNext(req *http.Request, err error) bool {
	hungUp := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
	return t.opts.InsecureHTTP && hungUp && req.URL.Scheme == "https" && req.URL.Path == "/v2/"
}

// waitError is an answer that asks to wait longer than is waited for.
type waitError struct {
	asked  time.Duration
	answer error // a *transport.Error
}

// newWaitError reads and closes the answer.
func newWaitError(resp *http.Response, asked time.Duration) error {
	err := transport.CheckError(resp) // no status is wanted
	return &waitError{asked, errors.Join(err, resp.Body.Close())}
}

func (e *waitError) Error() string { return e.answer.Error() }

func (e *waitError) Unwrap() error { return e.answer }

// announce tells that a request is repeated, and for what, if the context says.
func (o *Options) announce(ctx context.Context, host string, resp *http.Response, err error, delay time.Duration) {
	reason := ""
	if resp != nil {
		reason = "answers " + statusText(resp.StatusCode)
	} else {
		reason = hideSecrets(hideURL(err).Error())
	}
	o.Logger.Debug("repeat request", "host", host, "reason", reason, "delay", delay)
	if name := oci.ComponentOf(ctx); name != "" {
		host = name + ": " + host
	}
	progress.Report(o.Progress, progress.Message{Text: fmt.Sprintf("%s: %s; next attempt in %s", host, reason, delay.Round(100*time.Millisecond))})
}

// backoff doubles from base to 30 s and adds up to a quarter, so that many
// machines do not come back at the same moment.
func backoff(base time.Duration, attempt int) time.Duration {
	d := base
	for range attempt {
		d = min(2*d, max(maxRetryDelay, base))
	}
	return d + time.Duration(rand.Int64N(int64(d)/4+1)) // spreads load, no secret
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// retryAfter reads the header in both of its forms.
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second, true // 31 bits
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(t.Sub(now), 0), true
	}
	return 0, false
}

func temporary(resp *http.Response, err error) bool {
	if err != nil {
		return temporaryError(err)
	}
	return temporaryStatus(resp.StatusCode)
}

func temporaryStatus(code int) bool {
	return slices.Contains([]int{
		http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout,
	}, code)
}

// temporaryError tells what the network did from what will not change.
func temporaryError(err error) bool {
	var (
		cert  *tls.CertificateVerificationError
		rec   tls.RecordHeaderError
		alert tls.AlertError
		dns   *net.DNSError
		op    *net.OpError
	)
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, ErrPlainHTTP), errors.Is(err, errRedirect),
		errors.As(err, &cert), errors.As(err, &rec), errors.As(err, &alert):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary || dns.IsTimeout
	case isTimeout(err), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return true
	}
	return errors.As(err, &op)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout() && !errors.Is(err, context.Canceled)
}

var errRedirect = errors.New("refused redirect")

// checkRedirect allows what registries do, sending blobs from elsewhere, but not
// a way into the machine's own network.
func checkRedirect(registry string) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return fmt.Errorf("%w: more than 10 in a row", errRedirect)
		}
		if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
			return fmt.Errorf("%w from HTTPS to %q", errRedirect, req.URL.Scheme)
		}
		from := (&url.URL{Host: registry}).Hostname()
		if to := req.URL.Hostname(); to != from && isPrivate(to) && !isPrivate(from) {
			return fmt.Errorf("%w from %s to the private address %s", errRedirect, from, to)
		}
		return nil
	}
}

func isPrivate(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified())
}

// hideURL drops the URLs from an error of net/http: a redirect target carries a
// signature in its query. There may be one in another, where a token is asked for.
func hideURL(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	// The target of a redirect that was refused may be relative, without a host.
	if parsed, perr := url.Parse(u.URL); perr == nil && parsed.Host != "" {
		return fmt.Errorf("%s: %w", parsed.Host, hideURL(u.Err))
	}
	return hideURL(u.Err)
}

// hideSecrets removes values of Authorization headers, tokens that the registry
// issued among them.
func hideSecrets(text string) string { return authHeader.ReplaceAllString(text, "$1 [hidden]") }

var authHeader = regexp.MustCompile(`(?i)\b(basic|bearer) [A-Za-z0-9+/_.~=-]{4,}`)

func statusText(code int) string {
	if s := http.StatusText(code); s != "" {
		return fmt.Sprintf("%d %s", code, s)
	}
	return strconv.Itoa(code)
}

// errorDetail is the registry's own explanation, made safe to print.
func errorDetail(err *transport.Error) string {
	parts := make([]string, 0, len(err.Errors))
	for _, d := range err.Errors {
		s := string(d.Code)
		if d.Message != "" {
			s += ": " + d.Message
		}
		parts = append(parts, s)
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, shorten(strings.Join(parts, "; "), 300))
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "…"
	}
	return s
}
