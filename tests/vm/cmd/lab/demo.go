package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/demo"
	"github.com/cfsboot/cfsboot/tests/vm/lab"
)

// runDemo is the project's main job, from the sources to a machine that was
// upgraded and rolled back.
func runDemo(ctx context.Context, args []string) (err error) {
	if len(args) > 0 {
		return fmt.Errorf("demo takes no arguments")
	}
	start := time.Now()
	l, err := lab.Open(ctx, func(format string, args ...any) {
		fmt.Printf("demo: %5.1f s  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := l.Close(); err == nil {
			err = cerr
		}
	}()
	if err := demo.Run(ctx, l, os.Stdout); err != nil {
		return fmt.Errorf("%w\n(console logs: %s)", err, l.Logs)
	}
	fmt.Printf("demo: done after %.0f s; console logs: %s\n", time.Since(start).Seconds(), l.Logs)
	return nil
}
