package uki

import (
	"context"
	"errors"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// BuildFile does Build into the file name of dir, replacing one that is there. The file
// is complete and durable, or what was there before.
func BuildFile(ctx context.Context, dir *durable.Dir, name string, in Input) (*Built, error) {
	temp, err := dir.CreateTemp(0o644)
	if err != nil {
		return nil, err
	}
	built, err := Build(ctx, temp, in)
	if err == nil {
		err = temp.Sync()
	}
	if err == nil {
		err = temp.Replace(dir, name)
	}
	if err != nil {
		return nil, errors.Join(err, temp.Discard())
	}
	return built, dir.Sync()
}
