package remote

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// reference is a parsed image reference.
type reference struct {
	layout bool
	path   string // of a layout
	name   string // of a registry image, with tag and digest
	tag    string // of a layout
	hasTag bool   // of a layout; the tag may be given and empty
}

// otherTransports are those of containers-transports(5) that are not supported.
var otherTransports = []string{"oci-archive", "docker-archive", "docker-daemon", "containers-storage", "dir", "docker", "ostree-unverified-image", "ostree-unverified-registry", "ostree-remote-image", "ostree-image-signed", "http", "https"}

func parseReference(s string) (reference, error) {
	if s == "" {
		return reference{}, errors.New("the reference is empty")
	}
	if rest, ok := strings.CutPrefix(s, "oci:"); ok {
		path, tag, has := splitLayout(rest)
		if path == "" {
			return reference{}, errors.New("the reference names no directory")
		}
		if strings.ContainsFunc(tag, unicode.IsControl) {
			return reference{}, errors.New("the tag contains a line break or another control character")
		}
		return reference{layout: true, path: path, tag: tag, hasTag: has}, nil
	}
	for _, prefix := range []string{"docker://", "registry:"} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			return registryReference(rest)
		}
	}
	for _, t := range otherTransports {
		rest, ok := strings.CutPrefix(s, t+":")
		// "docker:5000/x" is a host with a port, "dir:/x" is not.
		if ok && (rest == "" || rest[0] < '0' || rest[0] > '9') {
			if err := checkUserInfo(s); err != nil {
				return reference{}, err
			}
			return reference{}, fmt.Errorf("transport %q is not supported: use docker:// for a registry and oci: for a layout", t)
		}
	}
	return registryReference(s)
}

// userInfoError refuses what would end up in logs, records and process lists.
type userInfoError struct{ hidden string } // the reference without the secret

func (*userInfoError) Error() string {
	return "name and password do not belong into a reference, but into a credentials file"
}

// checkUserInfo refuses a name of an image in a registry, or a URL, with a user's name and
// password in it.
func checkUserInfo(name string) error {
	scheme, rest, ok := strings.Cut(name, "//")
	if !ok {
		scheme, rest = "", name
	} else {
		scheme += "//"
	}
	// Only "name@digest" without a host has an "@" there too, and then no slash.
	if host, path, ok := strings.Cut(rest, "/"); ok && strings.Contains(host, "@") {
		return &userInfoError{scheme + "[hidden]" + host[strings.LastIndexByte(host, '@'):] + "/" + path}
	}
	return nil
}

func registryReference(name string) (reference, error) {
	if name == "" {
		return reference{}, errors.New("the reference names no image")
	}
	if err := checkUserInfo(name); err != nil {
		return reference{}, err
	}
	if strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://") {
		return reference{}, errors.New("want HOST/NAME:TAG, without http:// or https://")
	}
	return reference{name: name}, nil
}

// splitLayout splits at the last colon, unless the part behind it is a path.
func splitLayout(s string) (path, tag string, hasTag bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.Contains(s[i+1:], "/") {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
