package deploy

import "github.com/cfsboot/cfsboot/deploy/esp"

// WithSpace makes the boot partition as full as space says.
func (o Options) WithSpace(space func(*esp.ESP) (esp.Space, error)) Options {
	o.space = space
	return o
}
