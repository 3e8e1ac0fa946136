package registry

import (
	"io"
	"net/http"
	"time"
)

// patient repeats requests that the registry answers with "internal server error": it does so
// while another request gives the same manifest one more tag, since it writes the file that
// names a manifest in place ("invalid checksum digest format" in its log).
type patient struct{ http.RoundTripper }

// Of patient: how often, and how long it waits before each repetition.
const (
	attempts = 10
	pause    = 100 * time.Millisecond
)

func (p patient) RoundTrip(req *http.Request) (*http.Response, error) {
	for n := 1; ; n++ {
		res, err := p.RoundTripper.RoundTrip(req)
		if err != nil || res.StatusCode != http.StatusInternalServerError || n == attempts {
			return res, err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		select {
		case <-req.Context().Done():
			return nil, req.Context().Err()
		case <-time.After(pause):
		}
		if req.GetBody != nil {
			req = req.Clone(req.Context())
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
	}
}
