// Command cfsboot keeps an image-mode Linux machine up to date: it pulls bootable OCI images into a composefs repository, deploys
// them beside the running system, updates and rolls back. Each command parses its flags, calls one library function and renders
// what that returns; everything else lives in the packages below.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "devel"

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run executes one command line and returns the exit status. SIGINT, SIGTERM and SIGHUP (a terminal that went away) cancel the
// context: what is running stops at the next safe point, and the next run repairs or resumes it. A second signal ends the process at once.
func run(args []string, stdin, stdout, stderr *os.File) int {
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // by nohup
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	ended := context.AfterFunc(ctx, func() {
		stop()
		signal.Ignore(syscall.SIGHUP) // a terminal that goes away sends it more than once
	})
	defer ended()
	// Everything is made with the mode it is to have: a stricter mask would hide the records from status without root.
	syscall.Umask(0o022)
	if os.Getenv("GOGC") == "" {
		// The tree of an image is most of the heap and stays: half of it as garbage beside it is enough. Measured for 200,000 files:
		// 30 MiB less at the peak for 2 percent more CPU (docs/performance.md).
		debug.SetGCPercent(50)
	}

	e := newEnv(stdin, stdout, stderr)
	cmd := newRootCommand(e)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	e.finish()
	if err == nil {
		return 0
	}
	var status statusOnly
	if errors.As(err, &status) {
		return int(status)
	}
	if ctx.Err() != nil {
		err = interrupted{err}
	}
	return e.fail(err)
}
