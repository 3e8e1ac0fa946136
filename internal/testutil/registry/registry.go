// Package registry is a fake OCI registry with faults, for tests: read-only, in
// memory, with token and basic authentication. For pushing, tests use the
// registry of go-containerregistry.
package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Fault is what happens to a request instead of, or beside, the right answer.
type Fault struct {
	Status     int           // answer this instead
	Header     http.Header   // added to the answer
	Body       string        // of the answer with Status
	CutAfter   int64         // break the connection after this many bytes of the body; 0: do not
	Hang       bool          // send nothing until the client goes away
	HangAfter  int64         // send this many bytes, then nothing
	Replace    []byte        // send these bytes instead
	NoRange    bool          // answer 200 to range requests
	NoLength   bool          // send the body chunked
	ExtraBytes int           // send this many more bytes than there are
	Delay      time.Duration // before anything
}

// Registry serves the manifests and blobs that were added.
type Registry struct {
	*httptest.Server
	User, Password string // if set, needed
	Token          bool   // ask for a bearer token instead of basic authentication
	RealmPath      string // of the token server; default /token

	// OnRequest decides about faults: kind is "ping", "token", "manifest" or
	// "blob", id the tag or digest, n counts the requests of this kind and id
	// from 0. It may be nil. Once there were requests, use Heal to remove it.
	OnRequest func(kind, id string, n int, r *http.Request) *Fault

	mu        sync.Mutex
	manifests map[string]content // repository + "@" + tag or digest
	blobs     map[string][]byte
	counts    map[string]int
	log       []string
	done      chan struct{}
}

type content struct {
	mediaType string
	body      []byte
	digest    string
}

const issued = "issued-bearer-token"

// New starts a registry, with TLS if secure is set. It ends with the test.
func New(t *testing.T, secure bool) *Registry {
	t.Helper()
	r := &Registry{manifests: map[string]content{}, blobs: map[string][]byte{}, counts: map[string]int{}, done: make(chan struct{})}
	r.Server = httptest.NewUnstartedServer(http.HandlerFunc(r.serve))
	r.Config.ErrorLog = quiet()
	if secure {
		r.StartTLS()
	} else {
		r.Start()
	}
	t.Cleanup(func() {
		close(r.done)
		r.CloseClientConnections()
		r.Close()
	})
	return r
}

// Host returns host:port.
func (r *Registry) Host() string {
	_, host, _ := strings.Cut(r.URL, "://")
	return host
}

// AddManifest serves b under a tag and a digest of the repository.
func (r *Registry) AddManifest(repository, tag, digest, mediaType string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := content{mediaType, b, digest}
	r.manifests[repository+"@"+digest] = c
	if tag != "" {
		r.manifests[repository+"@"+tag] = c
	}
}

// AddBlob serves b in every repository.
func (r *Registry) AddBlob(digest string, b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[digest] = b
}

// Heal ends all faults.
func (r *Registry) Heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.OnRequest = nil
}

// Count returns how many requests of this kind and id came.
func (r *Registry) Count(kind, id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts[kind+" "+id]
}

// Log returns the requests: "GET /v2/… Range=… Auth=basic".
func (r *Registry) Log() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.log...)
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	kind, repository, id := split(req.URL.Path)
	r.mu.Lock()
	n := r.counts[kind+" "+id]
	r.counts[kind+" "+id]++
	scheme, _, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	r.log = append(r.log, fmt.Sprintf("%s %s Range=%s Auth=%s", req.Method, req.URL.Path, req.Header.Get("Range"), strings.ToLower(scheme)))
	m, okm := r.manifests[repository+"@"+id]
	b, okb := r.blobs[id]
	fault := r.OnRequest
	r.mu.Unlock()
	f := &Fault{}
	if fault != nil {
		if g := fault(kind, id, n, req); g != nil {
			f = g
		}
	}
	time.Sleep(f.Delay)
	for k, v := range f.Header {
		w.Header()[k] = v
	}
	switch {
	case f.Hang:
		r.wait(req)
	case f.Status != 0:
		w.WriteHeader(f.Status)
		_, _ = w.Write([]byte(f.Body))
	case kind == "token":
		r.token(w, req)
	case !r.allowed(req):
		r.challenge(w, repository)
	case kind == "ping":
		w.WriteHeader(http.StatusOK)
	case kind == "manifest" && okm:
		w.Header().Set("Content-Type", m.mediaType)
		w.Header().Set("Docker-Content-Digest", m.digest)
		r.send(w, req, m.body, f)
	case kind == "blob" && okb:
		w.Header().Set("Content-Type", "application/octet-stream")
		r.send(w, req, b, f)
	default:
		code := map[string]string{"manifest": "MANIFEST_UNKNOWN", "blob": "BLOB_UNKNOWN"}[kind]
		writeError(w, http.StatusNotFound, code, "no such thing here")
	}
}

// split cuts /v2/REPOSITORY/{manifests,blobs}/ID.
func split(path string) (kind, repository, id string) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "token", "", ""
	}
	for dir, kind := range map[string]string{"/manifests/": "manifest", "/blobs/": "blob"} {
		if i := strings.LastIndex(rest, dir); i >= 0 {
			return kind, rest[:i], rest[i+len(dir):]
		}
	}
	return "ping", "", ""
}

func (r *Registry) send(w http.ResponseWriter, req *http.Request, b []byte, f *Fault) {
	if f.Replace != nil {
		b = f.Replace
	}
	b = append(b[:len(b):len(b)], bytes.Repeat([]byte{'!'}, f.ExtraBytes)...)
	status := http.StatusOK
	var from, to int
	if _, err := fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-%d", &from, &to); err == nil && !f.NoRange && from <= to && to < len(b) {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to, len(b)))
		b, status = b[from:to+1], http.StatusPartialContent
	}
	if !f.NoLength {
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	}
	w.WriteHeader(status)
	stop := max(f.CutAfter, f.HangAfter)
	if stop == 0 || stop >= int64(len(b)) {
		_, _ = w.Write(b)
		return
	}
	_, _ = w.Write(b[:stop])
	_ = http.NewResponseController(w).Flush()
	if f.HangAfter > 0 {
		r.wait(req)
	}
	panic(http.ErrAbortHandler)
}

func (r *Registry) wait(req *http.Request) {
	select {
	case <-req.Context().Done():
	case <-r.done:
	}
	panic(http.ErrAbortHandler)
}

func (r *Registry) allowed(req *http.Request) bool {
	if r.User == "" {
		return true
	}
	if r.Token {
		return req.Header.Get("Authorization") == "Bearer "+issued
	}
	u, p, _ := req.BasicAuth()
	return u == r.User && p == r.Password
}

func (r *Registry) challenge(w http.ResponseWriter, repository string) {
	if r.Token {
		realm := r.RealmPath
		if realm == "" {
			realm = "/token"
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=%q,service=%q,scope=%q", r.URL+realm, "test", "repository:"+repository+":pull"))
	} else {
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	}
	writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func (r *Registry) token(w http.ResponseWriter, req *http.Request) {
	u, p, _ := req.BasicAuth()
	if u != r.User || p != r.Password {
		writeError(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong name or password")
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{"token": issued})
}

func writeError(w http.ResponseWriter, status int, code, message string) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
