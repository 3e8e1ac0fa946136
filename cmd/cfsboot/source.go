package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
)

// sourceFlags are the flags of every command that reads an image from outside.
type sourceFlags struct {
	caFile, authFile, platform string
	insecureHTTP               bool
}

func (s *sourceFlags) bind(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.caFile, "ca-file", "", "PEM `FILE` of the certificates to trust instead of the system's")
	f.StringVar(&s.authFile, "auth-file", "", "`FILE` with registry credentials instead of the usual ones")
	f.BoolVar(&s.insecureHTTP, "insecure-http", false, "allow plain HTTP: anyone on the way can read and change what is fetched")
	f.StringVar(&s.platform, "platform", "", "`OS/ARCH[/VARIANT]` to choose from an index (default: this machine's)")
}

// open returns the function that opens references with these flags.
func (s *sourceFlags) open(e *env) deploy.OpenSource {
	return func(ctx context.Context, ref string) (oci.Source, error) {
		o := remote.Options{CAFile: s.caFile, AuthFile: s.authFile, InsecureHTTP: s.insecureHTTP, Progress: e.reporter(), Logger: e.logger}
		if s.platform != "" {
			parts := strings.Split(s.platform, "/")
			if len(parts) < 2 || len(parts) > 3 {
				return nil, usageError{"cfsboot", errPlatform(s.platform)}
			}
			o.Platform.OS, o.Platform.Architecture = parts[0], parts[1]
			if len(parts) == 3 {
				o.Platform.Variant = parts[2]
			}
		}
		return remote.Open(ctx, ref, o)
	}
}

// errPlatform is a --platform that is not OS/ARCH or OS/ARCH/VARIANT.
type errPlatform string

func (e errPlatform) Error() string {
	return "--platform: got " + string(e) + ", want OS/ARCH[/VARIANT]"
}
