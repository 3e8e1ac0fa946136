package registry

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestPatient(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		bad, status int // answers of that status before the good one
		want, asked int
	}{
		{0, 500, 200, 1}, {3, 500, 200, 4}, {attempts, 500, 500, attempts}, {1, 404, 404, 1}, {1, 503, 503, 1},
	} {
		var asked atomic.Int32
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			b, err := io.ReadAll(req.Body)
			if err != nil || string(b) != "manifest" {
				t.Errorf("request %d has the body %q, %v", asked.Load()+1, b, err)
			}
			if int(asked.Add(1)) <= tc.bad {
				w.WriteHeader(tc.status)
			}
		}))
		client := http.Client{Transport: patient{http.DefaultTransport}}
		res, err := client.Post(s.URL, "text/plain", strings.NewReader("manifest"))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		s.Close()
		if res.StatusCode != tc.want || int(asked.Load()) != tc.asked {
			t.Errorf("%d times %d: status %d after %d requests, want %d after %d", tc.bad, tc.status, res.StatusCode, asked.Load(), tc.want, tc.asked)
		}
	}
}
