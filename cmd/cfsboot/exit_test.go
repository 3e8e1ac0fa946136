package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/remote"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err  error
		name string
		exit int
	}{
		{errors.New("anything"), "failed", 1},
		{usageError{"cfsboot", errors.New("x")}, "usage", 2},
		{&remote.ReferenceError{Err: errors.New("x")}, "usage", 2},
		{&deploy.RefusedError{}, "refused", 3},
		{&keyring.PolicyError{}, "refused", 3},
		{&tree.RequiredError{Path: "/usr"}, "refused", 3},
		{&bootimage.ResourceError{}, "refused", 3},
		{&oci.PlatformError{}, "refused", 3},
		{&durable.SpaceError{}, "no-space", 4},
		{&remote.Error{}, "network", 5},
		{&deploy.ConflictError{}, "conflict", 6},
		{&repo.ConflictError{}, "conflict", 6},
		{&repo.InsecureError{}, "refused", 3},
		{&remote.LayoutError{Err: fs.ErrNotExist}, "layout", 1},
		{&remote.Error{Err: remote.ErrPlainHTTP}, "network", 5},
		{&repo.LockedError{}, "locked", 7},
		{&fsverity.MismatchError{}, "integrity", 8},
		{&erofs.FormatError{}, "integrity", 8},
		{&splitstream.FormatError{}, "integrity", 8},
		{&oci.DigestError{}, "integrity", 8},
		{&oci.FormatError{}, "integrity", 8},
		// A blob whose digest is wrong came over the network, but is an integrity failure.
		{&remote.Error{Err: &oci.DigestError{}}, "integrity", 8},
		{fmt.Errorf("kernel: %w", errors.ErrUnsupported), "unsupported", 1},
		{fs.ErrNotExist, "not-found", 1},
		{context.Canceled, "interrupted", 130},
		{interrupted{&remote.Error{}}, "interrupted", 130},
	} {
		if got := classify(fmt.Errorf("wrapped: %w", c.err)); got.name != c.name || got.exit != c.exit {
			t.Errorf("%T: got %s, status %d, want %s, status %d", c.err, got.name, got.exit, c.name, c.exit)
		}
	}
}
