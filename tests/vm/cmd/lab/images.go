package main

import (
	"context"
	"fmt"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/osimage"
	"github.com/cfsboot/cfsboot/tests/vm/registry"
)

// images builds both releases and leaves them in the registry's data.
func images(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("images takes no arguments")
	}
	reg, err := registry.Start(ctx)
	if err != nil {
		return err
	}
	defer reg.Close()
	start := time.Now()
	_, err = osimage.BuildAndPush(ctx, reg, func(format string, args ...any) {
		fmt.Printf("images: %5.1f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	})
	return err
}
