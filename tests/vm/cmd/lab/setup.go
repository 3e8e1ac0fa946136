package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/debian"
)

// step runs one part of the set-up and says how long it took.
func step(name string, f func() (string, error)) error {
	start := time.Now()
	detail, err := f()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Printf("setup: %-24s %6.1f s  %s\n", name, time.Since(start).Seconds(), detail)
	return nil
}

// setup is idempotent: what is in the cache or installed is not made again.
func setup(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("setup takes no arguments")
	}
	if err := step("host packages", func() (string, error) {
		missing, err := debian.MissingHostPackages(ctx)
		if err != nil || len(missing) == 0 {
			return "all installed", err
		}
		fmt.Println("setup: installing", strings.Join(missing, " "))
		return fmt.Sprintf("%d installed", len(missing)), debian.InstallHost(ctx, missing)
	}); err != nil {
		return err
	}
	var sources debian.Sources
	if err := step("package archive", func() (_ string, err error) {
		sources, err = debian.FindSources(ctx)
		return "the one apt uses", err
	}); err != nil {
		return err
	}
	// The lists of newer suites are fetched only if something has to be made from them.
	apt := sync.OnceValues(func() (*debian.Apt, error) {
		a, err := debian.NewApt(sources)
		if err != nil {
			return nil, err
		}
		return a, a.Update(ctx)
	})
	steps := []struct {
		name string
		f    func() (string, error)
	}{
		{"mkcomposefs", func() (string, error) { return debian.Mkcomposefs(ctx, apt) }},
		{"newer boot loader", func() (string, error) {
			l, err := debian.NewLoader(ctx, apt)
			return "systemd-boot " + l.Version, err
		}},
		{"ukify", func() (string, error) { return debian.Ukify(ctx, sources) }},
		{"QEMU", func() (string, error) { return debian.Emulator(ctx, sources) }},
		{"base image", func() (string, error) { p, _, err := debian.Base(ctx, sources); return p, err }},
		{"User Mode Linux", func() (string, error) {
			logPath, err := cache.Path("uml-build.log")
			if err != nil {
				return "", err
			}
			log, err := os.Create(logPath)
			if err != nil {
				return "", err
			}
			defer log.Close()
			p, err := debian.UMLKernel(ctx, apt, log)
			if err != nil {
				err = fmt.Errorf("%w (build log: %s)", err, logPath)
			}
			return p, err
		}},
	}
	for _, s := range steps {
		if err := step(s.name, s.f); err != nil {
			return err
		}
	}
	return nil
}
