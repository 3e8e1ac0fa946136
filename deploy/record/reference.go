package record

import (
	"fmt"
	"strings"
)

// ImageReference is an image as bootc writes it down: a transport of
// containers-transports(5) and the rest.
type ImageReference struct {
	Transport string `json:"transport"` // "registry", "oci", "oci-archive", "containers-storage", …
	Image     string `json:"image"`     // "registry.example/os:tag", "/dir:tag"
}

// ParseImageReference reads what a user names an image by: "docker://NAME",
// "registry:NAME", another transport's "oci:DIR[:TAG]", or a bare NAME, which is
// one in a registry. Errors are *FormatError.
func ParseImageReference(s string) (ImageReference, error) {
	if name, ok := strings.CutPrefix(s, "docker://"); ok {
		return newReference(s, "registry", name)
	}
	if transport, image, ok := strings.Cut(s, ":"); ok {
		switch transport {
		case "registry", "oci", "oci-archive", "containers-storage", "dir", "docker-archive", "docker-daemon":
			return newReference(s, transport, image)
		}
	}
	return newReference(s, "registry", s)
}

func newReference(s, transport, image string) (ImageReference, error) {
	if image == "" || len(s) > maxReason || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return ImageReference{}, &FormatError{"image reference", "", fmt.Sprintf("%q has no name, or white space, or more than %d bytes", s, maxReason)}
	}
	return ImageReference{Transport: transport, Image: image}, nil
}

// String is the image-proxy notation: "docker://NAME" for a registry, else
// "TRANSPORT:IMAGE".
func (r ImageReference) String() string {
	if r.Transport == "registry" {
		return "docker://" + r.Image
	}
	return r.Transport + ":" + r.Image
}
