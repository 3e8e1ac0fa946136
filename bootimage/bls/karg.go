package bls

import (
	"fmt"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
)

const (
	kargNew = "composefs.digest" // composefs.digest=[?]v1-sha512-12:<hex>
	kargOld = "composefs"        // composefs=[?]<hex>

	// maxSealedKargs bounds what a sealed initramfs tries: two algorithms in two
	// formats.
	maxSealedKargs = 4
)

// KargImage is one root image that a command line names.
type KargImage struct {
	Digest   fsverity.Digest
	Insecure bool // '?': missing fs-verity is allowed
	Version  int  // in the token: 1 for images of EROFS formats 0 and 1, or 2
}

// String gives the token for the command line: "composefs.digest=" for flavour
// 1 and "composefs=" for flavour 2, as composefs-rs writes them.
func (k KargImage) String() string {
	mark := ""
	if k.Insecure {
		mark = "?"
	}
	if k.Version == 2 {
		return kargOld + "=" + mark + k.Digest.Hex()
	}
	return fmt.Sprintf("%s=%sv1-%s-12:%s", kargNew, mark, k.Digest.Algorithm().Name(), k.Digest.Hex())
}

// KargError reports a composefs token that no conforming writer produces, or a
// set of tokens that a sealed initramfs refuses.
type KargError struct {
	Token  string // as it stands on the command line
	Detail string // what was found and what was expected
}

func (e *KargError) Error() string {
	return fmt.Sprintf("kernel parameter %q: %s", e.Token, e.Detail)
}

// ParseKargs collects every "composefs.digest=" and "composefs=" token of a
// kernel command line in the order of the line, which is the order in which the
// initramfs tries them. One malformed token is an error (*KargError) even if
// others are good. No token at all gives an empty list and no error.
func ParseKargs(cmdline string) ([]KargImage, error) {
	var out []KargImage
	for _, token := range ParseCmdline(cmdline) {
		k, ok, err := parseKarg(token)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, k)
		}
	}
	return out, nil
}

// CheckSealed applies what a sealed initramfs adds to ParseKargs: no '?', and
// at most 4 tokens. The command line that the kernel sees is longer than the
// signed one, so a token added at its end must not loosen anything.
func CheckSealed(images []KargImage) error {
	for _, k := range images {
		if k.Insecure {
			return &KargError{k.String(), "'?' allows an image without fs-verity, which the policy of this initramfs forbids"}
		}
	}
	if len(images) > maxSealedKargs {
		return &KargError{images[maxSealedKargs].String(), fmt.Sprintf("%d composefs parameters, want at most %d", len(images), maxSealedKargs)}
	}
	return nil
}

// parseKarg reads one token; ok is false if it is not a composefs token.
// "composefs" without '=' is not one.
func parseKarg(token string) (k KargImage, ok bool, err error) {
	key, value, hasValue := SplitToken(token)
	if !hasValue || (key != kargNew && key != kargOld) {
		return KargImage{}, false, nil
	}
	fail := func(format string, args ...any) (KargImage, bool, error) {
		return KargImage{}, false, &KargError{token, fmt.Sprintf(format, args...)}
	}
	value, k.Insecure = strings.CutPrefix(value, "?")
	k.Version = 2
	wantAlgorithm := ""
	if key == kargNew {
		descriptor, hex, found := strings.Cut(value, ":")
		if !found {
			return fail("no ':' after the descriptor, want v1-sha512-12:<hex>")
		}
		version, algorithm, _ := strings.Cut(descriptor, "-")
		switch version {
		case "v1":
			k.Version = 1
		case "v2":
		default:
			return fail("image format %q, want v1 or v2", version)
		}
		switch algorithm {
		case "sha256-12", "sha512-12":
			wantAlgorithm = strings.TrimSuffix(algorithm, "-12")
		default:
			return fail("algorithm %q, want sha256-12 or sha512-12", algorithm)
		}
		value = hex
	}
	if k.Digest, err = fsverity.ParseHex(value); err != nil {
		return fail("%v", err)
	}
	if got := k.Digest.Algorithm().Name(); wantAlgorithm != "" && got != wantAlgorithm {
		return fail("%d hex digits, which is a %s digest, want %s", len(value), got, wantAlgorithm)
	}
	return k, true, nil
}
