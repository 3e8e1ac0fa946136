package deploy

import (
	"fmt"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// WithSpace makes the boot partition as full as space says.
func (o Options) WithSpace(space func(*esp.ESP) (esp.Space, error)) Options {
	o.space = space
	return o
}

// WithRepoSpace makes the file system of the repository as full as space says.
func (o Options) WithRepoSpace(space func() (durable.Space, error)) Options {
	o.repoSpace = space
	return o
}

// PublicReason is what the journal keeps of a failure at making an /etc.
func PublicReason(what string, err error) string {
	return publicReason(fmt.Errorf("finalize: %w", &etcError{what, err}))
}

// DescribeIncomplete says what kept a boot from becoming complete.
var DescribeIncomplete = describeIncomplete

// DecideIncomplete tells whether a reboot leads anywhere, and why.
func DecideIncomplete(f Facts, seq uint64, counted, entriesRead bool) (reboot bool, why string) {
	d := decideIncomplete(f, seq, counted, entriesRead)
	return d.Reboot, d.Why
}
