// Package remote fetches OCI images from registries and from OCI layout
// directories. It is the only package that talks HTTP, and hides
// go-containerregistry behind oci.Source.
//
// Registries are spoken to over HTTPS; plain HTTP needs an explicit option, on
// loopback and private addresses too. Credentials come from the files that
// docker, podman, ostree and bootc use (containers-auth.json(5)). Requests that
// fail in a way that may pass are repeated; a body that breaks off is continued
// where it ended. Nothing that a registry says is trusted before its digest was
// compared.
//
// Errors of this package are [*Error] and [*LayoutError]; what a blob or manifest really contains
// is reported by the types of package oci. Neither errors nor logs contain
// credentials, tokens or the query part of a URL.
package remote

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cfsboot/cfsboot/internal/progress"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// Options says how a source is opened. The zero value is usable.
type Options struct {
	CAFile       string   // PEM file with the certificates to trust instead of the system's
	AuthFile     string   // the only credentials file to use; empty: the usual ones
	InsecureHTTP bool     // allow plain HTTP
	Platform     Platform // zero: the platform of this program

	ConnectTimeout time.Duration // for TCP and for TLS; 0: 15 s
	HeaderTimeout  time.Duration // from request to response header; 0: 60 s
	StallTimeout   time.Duration // longest silence within a blob, and longest time for a smaller answer; 0: 60 s
	RetryDelay     time.Duration // before the first repetition, then doubling up to 30 s; 0: 1 s
	Retries        int           // repetitions without progress; 0: 4, negative: none

	Progress progress.Reporter // told about repetitions; may be nil
	Logger   *slog.Logger      // nil: silent

	env environment // replaced by tests
}

// Platform is the platform of the wanted image.
type Platform = v1.Platform

func (o *Options) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.ConnectTimeout, 15*time.Second)
	def(&o.HeaderTimeout, time.Minute)
	def(&o.StallTimeout, time.Minute)
	def(&o.RetryDelay, time.Second)
	switch {
	case o.Retries == 0:
		o.Retries = 4
	case o.Retries < 0:
		o.Retries = 0
	}
	if o.Platform.OS == "" && o.Platform.Architecture == "" {
		o.Platform = oci.HostPlatform()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.env == nil {
		o.env = osEnvironment{}
	}
}

// Error is a failure of a registry or of the way to it.
type Error struct {
	Ref       string // the reference as the user typed it
	Op        string // what was tried: "read manifest", "read blob sha256:…"
	Status    int    // HTTP status, 0 if there was no answer
	Temporary bool   // a later attempt may work
	Done      int64  // bytes of the blob that had arrived
	// AuthFiles are the credentials files that were read, AuthFilesAbsent those that were looked for in vain.
	AuthFiles, AuthFilesAbsent []string
	AuthRemarks                []string      // what those files have for this registry and is not used
	RetryAfter                 time.Duration // that the registry asks to wait, if that is longer than is waited for
	Detail                     string        // the registry's own words, shortened
	Err                        error         // may be nil
}

// Error is one line; see the fields.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Ref, e.Op)
	if e.Status != 0 {
		fmt.Fprintf(&b, ": registry answers %s", statusText(e.Status))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " and asks to wait %s", formatWait(e.RetryAfter))
	}
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Done > 0 {
		fmt.Fprintf(&b, " after %d bytes", e.Done)
	}
	if e.Status == 401 || e.Status == 403 {
		if len(e.AuthFiles) > 0 {
			b.WriteString("; credentials files tried: " + strings.Join(e.AuthFiles, ", "))
		} else if len(e.AuthFilesAbsent) > 0 {
			b.WriteString("; no credentials file at " + strings.Join(e.AuthFilesAbsent, ", "))
		}
		for _, remark := range e.AuthRemarks {
			b.WriteString("; " + remark)
		}
	}
	return b.String()
}

// formatWait writes whole hours and minutes without what is zero.
func formatWait(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// LayoutError is an OCI layout directory that cannot be read, or that has no such
// image. The network has no part in it.
type LayoutError struct {
	Ref  string   // the reference as the user typed it
	Op   string   // what was tried: "open layout", "read index.json"
	Tags []string // at most 10 that exist, if another one was asked for
	Err  error
}

func (e *LayoutError) Error() string {
	s := fmt.Sprintf("%s: %s: %v", e.Ref, e.Op, e.Err)
	if len(e.Tags) > 0 {
		quoted := make([]string, len(e.Tags))
		for i, tag := range e.Tags {
			quoted[i] = strconv.Quote(tag)
		}
		s += "; there are: " + strings.Join(quoted, ", ")
	}
	return s
}

// Unwrap returns the cause.
func (e *LayoutError) Unwrap() error { return e.Err }

// ReferenceError is an image reference that cannot be meant.
type ReferenceError struct {
	Ref string // as the user typed it, without a password
	Err error
}

// Error names the reference and what is wrong with it.
func (e *ReferenceError) Error() string { return fmt.Sprintf("image reference %q: %v", e.Ref, e.Err) }

// Unwrap returns the cause.
func (e *ReferenceError) Unwrap() error { return e.Err }

// repositoryName is the grammar of a repository's name (OCI distribution-spec, "Pulling
// manifests").
var repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// CheckReference returns a *ReferenceError for what Open would not take as a reference,
// or what names no repository that a registry may have. It looks at nothing but the
// text.
func CheckReference(ref string) error {
	r, err := parseReference(ref)
	if err == nil && !r.layout {
		var parsed name.Reference
		parsed, err = name.ParseReference(r.name, name.WeakValidation)
		if err == nil && !repositoryName.MatchString(parsed.Context().RepositoryStr()) {
			err = fmt.Errorf("%q is no name of a repository", parsed.Context().RepositoryStr())
		}
	}
	if err != nil {
		return &ReferenceError{Ref: withoutSecret(ref, err), Err: err}
	}
	return nil
}

// withoutSecret is the reference as it may be shown, given what parseReference says.
func withoutSecret(ref string, err error) string {
	if secret, ok := errors.AsType[*userInfoError](err); ok {
		return secret.hidden
	}
	return ref
}

// Open prepares reading one image. ref is "docker://[HOST/]NAME[:TAG][@DIGEST]",
// "registry:" and the same, the same without prefix, or "oci:DIR[:TAG]".
// Nothing is contacted before Resolve. A reference that cannot be read is a
// *ReferenceError, a directory that cannot be opened a *LayoutError, an unusable
// CAFile an error that names it, everything else a *Error.
func Open(_ context.Context, ref string, opts Options) (oci.Source, error) {
	opts.setDefaults()
	r, err := parseReference(ref)
	if err != nil {
		return nil, &ReferenceError{Ref: withoutSecret(ref, err), Err: err}
	}
	if r.layout {
		return openLayout(ref, r, opts)
	}
	return openRegistry(ref, r, opts)
}
