// Package registry runs Debian's docker-registry for the tests: on loopback,
// with TLS and a password, behind a relay in which the tests can slow down and
// cut connections. Guests reach it at GuestAddress.
//
// Certificates, password, port and contents are kept in the cache folder, so
// that images and disks which name them stay usable.
package registry

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// GuestAddress is the host's loopback as QEMU's user-mode network shows it.
const GuestAddress = "10.0.2.2"

const user = "lab"

// Registry is a running registry.
type Registry struct {
	Dir    string   // of the cache entry: ca.pem and more
	Relays []*Relay // the ways to the registry, one for each machine that must not disturb another

	password string
	cmd      *exec.Cmd
	done     chan struct{}
}

// relays is the number of ways to the registry. Their ports are part of the images
// (the guests' passwords are by address), so it is the same for all labs.
const relays = 8

// Start starts the registry. It ends with Close.
func Start(ctx context.Context) (_ *Registry, err error) {
	dir, err := cache.Make("registry", func(tmp string) error {
		for _, d := range []string{tmp, filepath.Join(tmp, "data")} {
			if err := os.Mkdir(d, 0o700); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(tmp, "password"), []byte(rand.Text()), 0o600); err != nil {
			return err
		}
		return makeCertificates(tmp)
	})
	if err != nil {
		return nil, err
	}
	password, err := os.ReadFile(filepath.Join(dir, "password"))
	if err != nil {
		return nil, err
	}
	r := &Registry{Dir: dir, password: string(password), done: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = r.closeRelays()
		}
	}()
	backend, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	for i := range relays {
		listener, err := r.listen(ctx, i)
		if err != nil {
			return nil, err
		}
		r.Relays = append(r.Relays, newRelay(listener, backend))
	}
	return r, r.serve(ctx, backend)
}

func (r *Registry) closeRelays() error {
	var errs []error
	for _, relay := range r.Relays {
		errs = append(errs, relay.Close())
	}
	return errors.Join(errs...)
}

// listen takes the port that relay i had the first time. If that is in use, by
// another lab for example, it gets another one, and the images for it are made anew.
func (r *Registry) listen(ctx context.Context, i int) (net.Listener, error) {
	file := filepath.Join(r.Dir, fmt.Sprintf("port-%d", i))
	first, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var lc net.ListenConfig
	if len(first) > 0 {
		if l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:"+string(first)); err == nil {
			return l, nil
		}
	}
	l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil || len(first) > 0 {
		return l, err
	}
	return l, os.WriteFile(file, []byte(strconv.Itoa(l.Addr().(*net.TCPAddr).Port)), 0o644)
}

func freePort(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

const configText = `version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage:
  filesystem: {rootdirectory: %[1]s/data}
  delete: {enabled: true}
http:
  addr: %[2]s
  relativeurls: true
  tls: {certificate: %[1]s/server.pem, key: %[1]s/server.key}
auth:
  htpasswd: {realm: lab, path: %[1]s/htpasswd}
`

func (r *Registry) serve(ctx context.Context, addr string) error {
	hash, err := exec.CommandContext(ctx, "htpasswd", "-Bbn", user, r.password).Output()
	if err != nil {
		return fmt.Errorf("htpasswd: %w", err)
	}
	if err := os.WriteFile(filepath.Join(r.Dir, "htpasswd"), hash, 0o600); err != nil {
		return err
	}
	config := filepath.Join(r.Dir, "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, configText, r.Dir, addr), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(r.Dir, "registry.log"))
	if err != nil {
		return err
	}
	r.cmd = exec.Command("docker-registry", "serve", config)
	r.cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = r.cmd.Start()
	_ = log.Close()
	if err != nil {
		return fmt.Errorf("start docker-registry: %w", err)
	}
	go func() {
		_ = r.cmd.Wait() // how it ended is in its log
		close(r.done)
	}()
	return r.waitReady(ctx, addr)
}

func (r *Registry) waitReady(ctx context.Context, addr string) error {
	client, err := r.client()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+addr+"/v2/", nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusUnauthorized {
				return nil // as it should without a password
			}
			err = fmt.Errorf("status %s, want 401", res.Status)
		}
		select {
		case <-r.done:
			return fmt.Errorf("docker-registry ended; see %s/registry.log", r.Dir)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("docker-registry does not answer: %w", err)
		}
	}
}

func (r *Registry) client() (*http.Client, error) {
	pem, err := os.ReadFile(filepath.Join(r.Dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, errors.New("ca.pem holds no certificate")
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: patient{&http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}, nil
}

// Digest returns the digest of the manifest behind a tag, or "" if there is none.
func (r *Registry) Digest(ctx context.Context, repository, tag string) (string, error) {
	client, err := r.client()
	if err != nil {
		return "", err
	}
	url := fmt.Sprintf("https://127.0.0.1:%d/v2/%s/manifests/%s", r.Relays[0].Port, repository, tag)
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		return "", err
	}
	req.SetBasicAuth(user, r.password)
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	res, err := client.Do(req)
	if err != nil {
		return "", err
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	switch res.StatusCode {
	case http.StatusOK:
		return res.Header.Get("Docker-Content-Digest"), nil
	case http.StatusNotFound:
		return "", nil
	}
	return "", fmt.Errorf("%s: status %s", url, res.Status)
}

// Tag lets a tag point to the manifest with the given digest.
func (r *Registry) Tag(ctx context.Context, repository, digest, tag string) error {
	client, err := r.client()
	if err != nil {
		return err
	}
	base := fmt.Sprintf("https://127.0.0.1:%d/v2/%s/manifests/", r.Relays[0].Port, repository)
	const mediaType = "application/vnd.oci.image.manifest.v1+json"
	do := func(method, name string, body io.Reader) ([]byte, error) {
		req, err := http.NewRequestWithContext(ctx, method, base+name, body)
		if err != nil {
			return nil, err
		}
		req.SetBasicAuth(user, r.password)
		req.Header.Set("Accept", mediaType)
		req.Header.Set("Content-Type", mediaType)
		res, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		if res.StatusCode/100 != 2 {
			return nil, fmt.Errorf("%s %s%s: status %s", method, base, name, res.Status)
		}
		return io.ReadAll(res.Body)
	}
	manifest, err := do(http.MethodGet, digest, nil)
	if err != nil {
		return err
	}
	_, err = do(http.MethodPut, tag, strings.NewReader(string(manifest)))
	return err
}

// HostReference names an image as the host sees it.
func (r *Registry) HostReference(name string) string {
	return fmt.Sprintf("127.0.0.1:%d/%s", r.Relays[0].Port, name)
}

// CAFile is the certificate of the authority that signed the registry's.
func (r *Registry) CAFile() string { return filepath.Join(r.Dir, "ca.pem") }

// Credentials returns "user:password".
func (r *Registry) Credentials() string { return user + ":" + r.password }

// AuthFile returns the contents of an auth.json with the credentials for host
// and guests.
func (r *Registry) AuthFile() ([]byte, error) {
	type entry struct {
		Auth string `json:"auth"`
	}
	auths := map[string]entry{}
	for _, relay := range r.Relays {
		for _, host := range []string{"127.0.0.1", GuestAddress} {
			auths[fmt.Sprintf("%s:%d", host, relay.Port)] = entry{base64.StdEncoding.EncodeToString([]byte(r.Credentials()))}
		}
	}
	return json.Marshal(map[string]any{"auths": auths})
}

// Close ends the registry and its relays.
func (r *Registry) Close() error {
	err := r.closeRelays()
	_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case <-r.done:
	case <-time.After(5 * time.Second):
		_ = syscall.Kill(-r.cmd.Process.Pid, syscall.SIGKILL)
		<-r.done
	}
	return err
}
