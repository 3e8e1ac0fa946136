package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/pull"
	"github.com/cfsboot/cfsboot/repo/remote"
)

// profile pulls once in this process.
func profile(ctx context.Context, o options, cpu, heap string) (err error) {
	work, remove, err := o.workDir(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	at := filepath.Join(work, "repository")
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if cpu != "" {
		f, err := os.Create(cpu)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if heap != "" {
		runtime.MemProfileRate = 64 << 10
	}
	start := time.Now()
	if err := pullHere(ctx, at, o.layout); err != nil {
		return err
	}
	fmt.Printf("%.2f s\n", time.Since(start).Seconds())
	if heap == "" {
		return nil
	}
	f, err := os.Create(heap)
	if err != nil {
		return err
	}
	defer f.Close()
	return pprof.Lookup("allocs").WriteTo(f, 0)
}

func pullHere(ctx context.Context, at, layout string) (err error) {
	dir, err := durable.OpenDir(at)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := repo.Init(ctx, dir, repo.InitOptions{Insecure: true}); err != nil {
		return err
	}
	r, err := repo.Open(ctx, dir, repo.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	src, err := remote.Open(ctx, "oci:"+layout, remote.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	_, err = pull.Pull(ctx, r, src, pull.Options{Name: "bench", Bootable: true, Policy: keyring.Computed{}})
	return err
}
