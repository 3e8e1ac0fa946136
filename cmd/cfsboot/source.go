package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
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
	f.StringVar(&s.platform, "platform", "", "`OS/ARCH[/VARIANT]` that the image must be for, and to choose from an index (default: this machine's)")
}

// options checks the flags and returns what they say, for a pull of this command: where images come from and for which platform.
func (s *sourceFlags) options(cmd *cobra.Command, e *env) (deploy.PullOptions, error) {
	platform, err := s.parsePlatform(cmd)
	if err != nil {
		return deploy.PullOptions{}, err
	}
	// Named files must be there, also for a source that does not need them.
	for _, file := range []struct{ flag, path string }{{"--ca-file", s.caFile}, {"--auth-file", s.authFile}} {
		if file.path == "" {
			continue
		}
		f, err := os.Open(file.path)
		if err != nil {
			return deploy.PullOptions{}, fmt.Errorf("%s: %w", file.flag, err)
		}
		f.Close()
	}
	return deploy.PullOptions{Platform: platform, OpenSource: func(ctx context.Context, ref string) (oci.Source, error) {
		return remote.Open(ctx, ref, remote.Options{
			CAFile: s.caFile, AuthFile: s.authFile, InsecureHTTP: s.insecureHTTP, Platform: platform, Progress: e.reporter(), Logger: e.logger,
		})
	}}, nil
}

// checkReference refuses what cannot name an image; what is the argument or flag. An empty reference is refused, too.
func checkReference(cmd *cobra.Command, what, reference string) error {
	_, err := record.ParseImageReference(reference)
	if err == nil {
		err = remote.CheckReference(reference)
	}
	if err != nil {
		return usageErrorf(cmd, "%s: %v", what, err)
	}
	return nil
}

// checkReferences is checkReference for the flags of an installation.
func checkReferences(cmd *cobra.Command, o deploy.InstallOptions) error {
	if o.Image == "" {
		return usageErrorf(cmd, "--image is required: what is to be installed")
	}
	if err := checkReference(cmd, "--image", o.Image); err != nil || o.TargetImage == "" {
		return err
	}
	return checkReference(cmd, "--target-image", o.TargetImage)
}

// checkID refuses an ID that is empty, as a script has it whose variable is not set.
func checkID(cmd *cobra.Command, id string) error {
	if id == "" {
		return usageErrorf(cmd, "ID is empty")
	}
	return nil
}

// parsePlatform returns the platform that was asked for, the zero value for this machine's.
func (s *sourceFlags) parsePlatform(cmd *cobra.Command) (v1.Platform, error) {
	if s.platform == "" {
		return v1.Platform{}, nil
	}
	system, rest, _ := strings.Cut(s.platform, "/")
	arch, variant, hasVariant := strings.Cut(rest, "/")
	if system == "" || arch == "" || hasVariant && variant == "" || strings.Contains(variant, "/") {
		return v1.Platform{}, usageErrorf(cmd, "--platform: got %q, want OS/ARCH[/VARIANT]", s.platform)
	}
	return v1.Platform{OS: system, Architecture: arch, Variant: variant}, nil
}
