package record

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Origin is the file `<id>.origin` in the state directory of a deployment: an
// INI file with the keys of bootc, so that bootc can read the deployments of
// cfsboot and the other way round. What cfsboot needs beyond that is in
// deployment.json. Source: lifecycle.md 2.3.
type Origin struct {
	Image          ImageReference
	Signed         bool   // a signature was required when the image was taken; bootc always says no
	BootType       string // "bls" or "uki"
	BootDigest     string // hex sha256 over kernel and initrd
	ManifestDigest string // "sha256:…" of the platform manifest, "" in old files
}

const (
	whatOrigin = "origin file"
	maxOrigin  = 64 << 10
)

// OriginName is the file name of a deployment's origin.
func OriginName(deployment string) string { return deployment + ".origin" }

// The ways in which ostree-based tools spell "this image, and how far it is
// trusted". The first of each pair is the one that is written.
const (
	unverifiedImage    = "ostree-unverified-image:"
	unverifiedRegistry = "ostree-unverified-registry:" // short for …image:docker://
	signedImage        = "ostree-image-signed:"
	remoteImage        = "ostree-remote-image:"    // followed by REMOTE:
	remoteRegistry     = "ostree-remote-registry:" // REMOTE:NAME
)

// Format gives the bytes of the file, or a *FormatError if ParseOrigin would
// refuse them.
func (o Origin) Format() ([]byte, error) {
	prefix := unverifiedImage
	if o.Signed {
		prefix = signedImage
	}
	text := fmt.Sprintf("[origin]\ncontainer-image-reference=%s%s\n\n[boot]\nboot_type=%s\ndigest=%s\n",
		prefix, o.Image, o.BootType, o.BootDigest)
	if o.ManifestDigest != "" {
		text += fmt.Sprintf("\n[image]\nmanifest_digest=%s\n", o.ManifestDigest)
	}
	got, err := ParseOrigin([]byte(text))
	if err != nil {
		return nil, err
	}
	if got != o {
		return nil, &FormatError{What: whatOrigin, Detail: fmt.Sprintf("%+v cannot be written: it reads back as %+v", o, got)}
	}
	return []byte(text), nil
}

// ParseOrigin reads the file. Unknown sections and keys are ignored; of equal
// keys the last wins. The reference and, if there is a [boot] section, its keys
// are required. Errors are *FormatError.
func ParseOrigin(data []byte) (Origin, error) {
	fail := func(field, format string, args ...any) (Origin, error) {
		return Origin{}, &FormatError{whatOrigin, field, fmt.Sprintf(format, args...)}
	}
	if len(data) > maxOrigin {
		return fail("", "%d bytes, want at most %d", len(data), maxOrigin)
	}
	if !utf8.Valid(data) {
		return fail("", "not UTF-8")
	}
	values := map[string]string{}
	section := ""
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#' || line[0] == ';':
		case line[0] == '[':
			name, ok := strings.CutSuffix(line[1:], "]")
			if !ok {
				return fail("", "line %d: %q is no section", i+1, line)
			}
			section = strings.TrimSpace(name)
			values[section] = "" // a section without keys exists too
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" {
				return fail("", "line %d: %q is no key of a section", i+1, line)
			}
			values[section+"/"+strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	const referenceKey = "origin/container-image-reference"
	var (
		o   Origin
		err error
	)
	if o.Image, o.Signed, err = parseOriginReference(values[referenceKey]); err != nil {
		return fail(referenceKey, "%v", err)
	}
	if _, ok := values["boot"]; ok {
		o.BootType, o.BootDigest = values["boot/boot_type"], values["boot/digest"]
		if !slices.Contains([]string{"bls", "uki"}, o.BootType) {
			return fail("boot/boot_type", "%q, want bls or uki", o.BootType)
		}
		if len(o.BootDigest) != 64 || !isLowerHex(o.BootDigest) {
			return fail("boot/digest", "%q, want 64 lower-case hex digits", o.BootDigest)
		}
	}
	if o.ManifestDigest = values["image/manifest_digest"]; o.ManifestDigest != "" && !isOCIDigest(o.ManifestDigest) {
		return fail("image/manifest_digest", "%q, want sha256:<64 hex digits>", o.ManifestDigest)
	}
	return o, nil
}

func parseOriginReference(s string) (ref ImageReference, signed bool, err error) {
	if name, ok := strings.CutPrefix(s, unverifiedRegistry); ok {
		ref, err = newReference(s, "registry", name)
		return ref, false, err
	}
	for _, prefix := range []string{unverifiedImage, signedImage} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			ref, err = ParseImageReference(rest)
			return ref, prefix == signedImage, err
		}
	}
	for _, prefix := range []string{remoteImage, remoteRegistry} {
		rest, ok := strings.CutPrefix(s, prefix)
		if !ok {
			continue
		}
		_, name, _ := strings.Cut(rest, ":")
		if prefix == remoteRegistry {
			ref, err = newReference(s, "registry", name)
		} else {
			ref, err = ParseImageReference(name)
		}
		return ref, true, err
	}
	return ImageReference{}, false, fmt.Errorf("%q, want %s<transport>:<image>", s, unverifiedImage)
}

// isOCIDigest accepts the two algorithms that image-spec registers.
func isOCIDigest(s string) bool {
	algorithm, hex, ok := strings.Cut(s, ":")
	return ok && isLowerHex(hex) && (algorithm == "sha256" && len(hex) == 64 || algorithm == "sha512" && len(hex) == 128)
}
