package remote

import (
	"net/http"
	"time"
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
