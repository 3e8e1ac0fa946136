package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
)

// Blob opens a blob; see oci.Source.
func (s *registry) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := oci.CheckDescriptor("blob", d); err != nil {
		return nil, err
	}
	b := &blob{s: s, ctx: ctx, desc: d} // a reader has no other way to get one
	if err := b.request(); err != nil {
		return nil, err
	}
	return &verified{Reader: oci.VerifyReader(b, "blob", d), closer: b}, nil
}

type verified struct {
	io.Reader
	closer io.Closer
}

func (v *verified) Close() error { return v.closer.Close() }

// progressForRetry is how much must arrive for the count of repetitions to start
// again; less would let a registry keep us busy for ever.
const progressForRetry = 64 << 10

// blob reads a blob over as many connections as it takes.
type blob struct {
	s      *registry
	ctx    context.Context // of the call of Blob
	desc   v1.Descriptor
	body   io.ReadCloser
	host   string // that sends it
	n      int64  // bytes handed out
	again  repeater
	tryAt  int64 // n at the last repetition
	closed bool
}

func (b *blob) op() string { return "read blob " + b.desc.Digest.String() }

// request asks for the rest of the blob. A registry that does not know ranges
// sends all of it, and what was read before is skipped.
func (b *blob) request() error {
	header := http.Header{}
	statuses := []int{http.StatusOK}
	if b.n > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.n, b.desc.Size-1)) // a closed range: some servers know no other
		statuses = append(statuses, http.StatusPartialContent)
	}
	resp, err := b.s.get(b.ctx, b.op(), b.s.url("blobs", b.desc.Digest.String()), header, statuses...)
	if err != nil {
		return err
	}
	if err := b.skip(resp); err != nil {
		return errors.Join(err, resp.Body.Close())
	}
	b.body, b.host = resp.Body, resp.Request.URL.Host
	return nil
}

// skip checks what an answer says about itself and reads what was handed out
// before.
func (b *blob) skip(resp *http.Response) error {
	skip, expect := b.n, b.desc.Size
	if resp.StatusCode == http.StatusPartialContent {
		var from, to int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/", &from, &to); err != nil || from != b.n {
			return b.s.fail(b.ctx, b.op(), b.n, fmt.Errorf("registry answers with range %q, want one from %d", resp.Header.Get("Content-Range"), b.n))
		}
		skip, expect = 0, b.desc.Size-b.n
	}
	if resp.ContentLength >= 0 && resp.ContentLength != expect {
		got := resp.ContentLength + b.desc.Size - expect
		return &oci.DigestError{Where: "blob", Want: b.desc.Digest, GotSize: got, WantSize: b.desc.Size}
	}
	if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
		return b.s.fail(b.ctx, b.op(), b.n, err)
	}
	return nil
}

func (b *blob) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.n += int64(n)
		if n > 0 {
			return n, nil // the end, or a lasting error, comes again
		}
		if err == nil || oci.IsEOF(err) {
			return 0, err
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume continues after the connection broke, or says why not.
func (b *blob) resume(cause error) error {
	if b.n-b.tryAt >= progressForRetry {
		b.again = repeater{}
	}
	b.tryAt = b.n
	_ = b.body.Close() // it is broken
	if err := b.again.wait(b.ctx, b.s, b.host, cause); err != nil {
		return b.s.fail(b.ctx, b.op(), b.n, err)
	}
	b.s.opts.Logger.Debug("continue blob", "digest", b.desc.Digest, "offset", b.n)
	return b.request()
}

func (b *blob) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	return b.body.Close()
}
