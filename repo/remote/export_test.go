package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/repo/oci"
)

// Environment is for tests of the credentials files.
type Environment = environment

// SetEnvironment replaces the environment that is searched for credentials.
func (o *Options) SetEnvironment(e Environment) { o.env = e }

// AuthFiles lists the credentials files of an environment.
func AuthFiles(e Environment, explicit string) []string { return authFiles(e, explicit) }

// FoundCredentials is the result of FindCredentials.
type FoundCredentials struct {
	User, Password, Identity string
	Tried, Skipped           []string
}

// FindCredentials looks for the credentials of host/path.
func FindCredentials(files []string, explicit bool, host, path string) (FoundCredentials, error) {
	c, err := findCredentials(files, explicit, host, path)
	f := FoundCredentials{Tried: c.tried, Skipped: c.skipped}
	if cfg, aerr := c.auth.Authorization(); aerr == nil {
		f.User, f.Password, f.Identity = cfg.Username, cfg.Password, cfg.IdentityToken
	}
	return f, err
}

// MatchCredentials looks for the credentials of host/path in the content of a file.
func MatchCredentials(b []byte, host, path string) (found bool, err error) {
	var af authFile
	if err := json.Unmarshal(b, &af); err != nil {
		return false, nil // reported without its text
	}
	_, entry, ok := af.match(host, path)
	if !ok {
		return false, nil
	}
	_, err = entry.config()
	return true, err
}

// ResolveDocument resolves a document that a registry sent, every manifest that
// it names being manifest and every blob being config.
func ResolveDocument(ctx context.Context, mediaType string, document, manifest, config []byte) (oci.Resolved, error) {
	top := v1.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(document), Size: int64(len(document))}
	return resolve(ctx, &fixed{manifest, config}, "test", top, document, Platform{OS: "linux", Architecture: "amd64"})
}

type fixed struct{ manifest, config []byte }

func (f *fixed) fetchManifest(context.Context, v1.Descriptor) ([]byte, error) { return f.manifest, nil }

func (f *fixed) Blob(context.Context, v1.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(f.config)), nil
}

// ParsedReference is the result of ParseReference.
type ParsedReference struct {
	Layout    bool
	Path, Tag string
	HasTag    bool
	Name      string
}

// ParseReference parses an image reference.
func ParseReference(s string) (ParsedReference, error) {
	r, err := parseReference(s)
	return ParsedReference{r.layout, r.path, r.tag, r.hasTag, r.name}, err
}

// RetryAfter parses the header.
func RetryAfter(s string, now time.Time) (time.Duration, bool) { return retryAfter(s, now) }

// HideSecrets removes what looks like a credential.
func HideSecrets(text string) string { return hideSecrets(text) }

// HideURL drops the URLs from an error.
func HideURL(err error) error { return hideURL(err) }

// CheckRedirect decides about a redirect from one URL to another.
func CheckRedirect(registry, from, to string) error {
	a, err := http.NewRequest(http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	b, err := http.NewRequest(http.MethodGet, to, nil)
	if err != nil {
		return err
	}
	return checkRedirect(registry)(b, []*http.Request{a})
}
