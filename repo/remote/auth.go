package remote

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
)

// environment is what the search for credentials files looks at.
type environment interface {
	Getenv(name string) string
	Getuid() int
	Root() string // prefix of absolute system paths
}

type osEnvironment struct{}

func (osEnvironment) Getenv(name string) string { return os.Getenv(name) }
func (osEnvironment) Getuid() int               { return os.Getuid() }
func (osEnvironment) Root() string              { return "" }

// authFiles lists the files where credentials may be, the most specific first:
// what the caller or the environment names, the user's, then, for root, those of
// the machine.
func authFiles(env environment, explicit string) []string {
	if explicit != "" {
		return []string{explicit}
	}
	var files []string
	add := func(dir, name string) {
		if dir != "" {
			files = append(files, filepath.Join(dir, name))
		}
	}
	if f := env.Getenv("REGISTRY_AUTH_FILE"); f != "" {
		files = append(files, f)
	}
	root, uid := env.Root(), env.Getuid()
	if uid == 0 {
		// bootc and ostree: these are about the machine's own image.
		add(root+"/etc/ostree", "auth.json")
		add(root+"/run/ostree", "auth.json")
		add(root+"/usr/lib/ostree", "auth.json")
	}
	if dir := env.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		add(dir, "containers/auth.json")
	} else if uid != 0 {
		add(root+"/run/user/"+strconv.Itoa(uid), "containers/auth.json")
	}
	if uid == 0 {
		add(root+"/run/containers/0", "auth.json")
	}
	home := env.Getenv("HOME")
	if dir := env.Getenv("XDG_CONFIG_HOME"); dir != "" {
		add(dir, "containers/auth.json")
	} else if home != "" {
		add(home, ".config/containers/auth.json")
	}
	if dir := env.Getenv("DOCKER_CONFIG"); dir != "" {
		add(dir, "config.json")
	} else if home != "" {
		add(home, ".docker/config.json")
	}
	return files
}

// authFile is the part of containers-auth.json(5) and of docker's config.json
// that is understood.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

const maxAuthFile = 1 << 20 // bytes

// credentials are what was found for one repository.
type credentials struct {
	auth    authn.Authenticator
	secrets []string // never to appear in a message
	tried   []string // files that exist and were read
	absent  []string // files that were looked for and are not there or not readable
	skipped []string // remarks about entries that cannot be used
}

// findCredentials looks for "host/path" in the files. In each file the longest
// prefix wins; the first file with a match ends the search. A file that cannot
// be read or parsed is an error: going on without would ask as someone else.
func findCredentials(files []string, explicit bool, host, path string) (credentials, error) {
	c := credentials{auth: authn.Anonymous}
	for _, f := range files {
		b, err := readLimited(f, maxAuthFile)
		if !explicit && (errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission)) {
			c.absent = append(c.absent, f)
			continue
		}
		if err != nil {
			return c, fmt.Errorf("read credentials: %w", err)
		}
		c.tried = append(c.tried, f)
		var af authFile
		if err := json.Unmarshal(b, &af); err != nil {
			// The text of a JSON error may quote a piece of the file.
			return c, fmt.Errorf("read credentials: %s is not valid JSON", f)
		}
		key, entry, ok := af.match(host, path)
		if !ok {
			if helper := af.helper(host); helper != "" {
				c.skipped = append(c.skipped, fmt.Sprintf("%s names the credential helper %q, and helpers are not run", f, helper))
			}
			continue
		}
		cfg, err := entry.config()
		if err != nil {
			return c, fmt.Errorf("read credentials: %s, entry %q: %w", f, key, err)
		}
		if cfg == (authn.AuthConfig{}) {
			continue
		}
		c.auth, c.secrets = authn.FromConfig(cfg), secrets(cfg)
		return c, nil
	}
	return c, nil
}

func readLimited(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return b, nil
}

// match finds the most specific key for host/path: "host/a/b", "host/a", "host".
// Keys may have the forms that docker writes, with a scheme and "/v1/" or "/v2/".
func (a *authFile) match(host, path string) (string, authEntry, bool) {
	for _, h := range hostAliases(host) {
		for want := h + "/" + path; ; want = want[:strings.LastIndexByte(want, '/')] {
			if e, ok := a.Auths[want]; ok {
				return want, e, true
			}
			if !strings.Contains(want, "/") {
				break
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a.Auths)) {
		if slices.Contains(hostAliases(host), plainHost(key)) {
			return key, a.Auths[key], true
		}
	}
	return "", authEntry{}, false
}

// plainHost strips what docker puts around a host name. A key with a path of its
// own is no host.
func plainHost(key string) string {
	for _, scheme := range []string{"https://", "http://"} {
		key = strings.TrimPrefix(key, scheme)
	}
	key = strings.TrimSuffix(key, "/")
	for _, version := range []string{"/v1", "/v2"} {
		key = strings.TrimSuffix(key, version)
	}
	return key
}

// hostAliases are the names that Docker Hub goes by.
func hostAliases(host string) []string {
	if host == "index.docker.io" {
		return []string{host, "docker.io", "registry-1.docker.io"}
	}
	return []string{host}
}

func (a *authFile) helper(host string) string {
	for _, h := range hostAliases(host) {
		if name := a.CredHelpers[h]; name != "" {
			return name
		}
	}
	return a.CredsStore
}

func (e authEntry) config() (authn.AuthConfig, error) {
	cfg := authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		b, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			b, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		if err != nil {
			return cfg, errors.New("\"auth\" is not base64") // without the text, which is a secret
		}
		user, password, ok := strings.Cut(strings.TrimRight(string(b), "\x00"), ":")
		if !ok {
			return cfg, errors.New("\"auth\" has no colon between name and password")
		}
		cfg.Username, cfg.Password = user, password
	}
	return cfg, nil
}

// secrets lists the strings that must not be shown.
func secrets(c authn.AuthConfig) []string {
	var out []string
	for _, s := range []string{c.Password, c.IdentityToken, c.RegistryToken, c.Auth} {
		if len(s) >= 4 { // shorter ones would tear messages apart and hide nothing
			out = append(out, s)
		}
	}
	if c.Username != "" || c.Password != "" {
		out = append(out, base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password)))
	}
	return out
}
