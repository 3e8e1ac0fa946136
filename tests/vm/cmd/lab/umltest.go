package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

// umlTest runs packages one after the other; a failure does not stop the rest.
func umlTest(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("umltest", flag.ExitOnError)
	run := fs.String("run", "", "run only tests matching this expression")
	verbose := fs.Bool("v", false, "name each test")
	limit := fs.Duration("limit", 5*time.Minute, "time limit per package")
	memory := fs.String("mem", "1024M", "memory of the guest")
	scratch := fs.Int64("scratch", 2048, "size of the scratch disk in MiB")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var packages []string
	for rest := fs.Args(); len(rest) > 0; rest = fs.Args() { // flags may follow packages
		packages = append(packages, rest[0])
		if err := fs.Parse(rest[1:]); err != nil {
			return err
		}
	}
	if len(packages) == 0 {
		return fmt.Errorf("umltest: no package named")
	}
	kernel, err := uml.FindKernel()
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "cfsboot-lab-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	initProgram := filepath.Join(work, "init")
	if err := uml.BuildInit(ctx, initProgram); err != nil {
		return err
	}
	testArgs := []string{"-test.timeout=" + limit.String(), "-test.paniconexit0"}
	if *run != "" {
		testArgs = append(testArgs, "-test.run="+*run)
	}
	if *verbose {
		testArgs = append(testArgs, "-test.v")
	}
	failed := 0
	for _, p := range packages {
		start := time.Now()
		status, err := uml.RunGoTest(ctx, uml.GoTest{
			Kernel: kernel, Init: initProgram, Package: p, Args: testArgs, Memory: *memory,
			Scratch: *scratch << 20, Limit: *limit + 30*time.Second, Output: os.Stdout,
		})
		result := "ok"
		if err != nil {
			fmt.Println(err)
		}
		if err != nil || status != 0 {
			result = "FAIL"
			failed++
		}
		fmt.Printf("%-4s %s (User Mode Linux) %.1fs\n", result, p, time.Since(start).Seconds())
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if failed > 0 {
		return exitStatus(1)
	}
	return nil
}
