package remote_test

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/repo/remote"
)

// TestAnswersThatNeverEnd: a registry that sends a byte from time to time, for
// ever, where an answer is small does not keep us.
func TestAnswersThatNeverEnd(t *testing.T) {
	t.Parallel()
	for what, text := range map[string]string{
		"/v2/":                        "not a JSON object", // what a ping says beside its status is of no interest
		"/token":                      "not complete after 200ms",
		"/v2/team/os/manifests/1":     "not complete after 200ms",
		"/v2/team/os/manifests/1 500": "not complete after 200ms",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			path, failing, _ := strings.Cut(what, " ")
			gone := make(chan struct{})
			server := httptest.NewUnstartedServer(nil)
			server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				status := http.StatusOK
				if path == "/token" && r.URL.Path == "/v2/" {
					w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q", server.URL+"/token"))
					status = http.StatusUnauthorized
				}
				if r.URL.Path == path && failing != "" {
					status = http.StatusInternalServerError
				}
				w.WriteHeader(status)
				if r.URL.Path != path {
					return
				}
				for r.Context().Err() == nil {
					_, _ = w.Write([]byte(" "))
					_ = http.NewResponseController(w).Flush()
					select {
					case <-time.After(20 * time.Millisecond):
					case <-gone:
						return
					}
				}
			})
			server.StartTLS()
			t.Cleanup(func() { close(gone); server.Close() })
			ca := filepath.Join(t.TempDir(), "ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
			o := remote.Options{CAFile: ca, StallTimeout: 200 * time.Millisecond, Retries: -1, Platform: amd64}
			o.SetEnvironment(fakeEnv{root: t.TempDir(), uid: 1})
			source := open(t, strings.TrimPrefix(server.URL, "https://")+"/team/os:1", o)
			done := make(chan error, 1)
			ctx := t.Context()
			go func() {
				_, err := source.Resolve(ctx)
				done <- err
			}()
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "\n") {
					t.Errorf("got %v, want one line with %q", err, text)
				}
			case <-time.After(5 * time.Second):
				t.Error("it still waits after 5 s")
			}
		})
	}
}
