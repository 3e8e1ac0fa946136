package oci

import (
	"runtime"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// HostPlatform is the platform that this program was built for.
func HostPlatform() v1.Platform {
	return v1.Platform{OS: "linux", Architecture: runtime.GOARCH}
}

// MatchPlatform reports whether an image for got runs on want. Operating system
// and architecture must be equal. Variants are compared only if both are given;
// for arm64 none means "v8".
func MatchPlatform(want, got v1.Platform) bool {
	if want.OS != got.OS || want.Architecture != got.Architecture {
		return false
	}
	w, g := variant(want), variant(got)
	return w == "" || g == "" || w == g
}

func variant(p v1.Platform) string {
	if p.Architecture == "arm64" && p.Variant == "" {
		return "v8"
	}
	return p.Variant
}

// FormatPlatform renders a platform as os/architecture[/variant].
func FormatPlatform(p v1.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}
