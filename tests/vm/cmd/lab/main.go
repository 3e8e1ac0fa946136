// Command lab sets up what the tests need on a Debian machine and runs parts of
// the lab by hand. See docs/lab.md.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

type command struct {
	name, args, help string
	run              func(ctx context.Context, args []string) error
}

var commands = []command{
	{"setup", "", "install and build what the lab needs; may be repeated", setup},
	{"demo", "", "install, boot, upgrade, roll back a machine; prints a transcript", runDemo},
	{"images", "", "build both releases of the OS image and push them to the lab's registry", images},
	{"umltest", "[flags] PACKAGE...", "run the tests of packages under User Mode Linux", umlTest},
}

// exitStatus is an error that only carries the status of a program that has
// already said what was wrong.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 {
		usage()
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == os.Args[1] })
	if i < 0 {
		usage()
	}
	err := commands[i].run(ctx, os.Args[2:])
	var status exitStatus
	switch {
	case err == nil:
	case errors.As(err, &status):
		stop()
		os.Exit(int(status)) //nolint:gocritic // stop was called
	default:
		fmt.Fprintln(os.Stderr, "lab:", err)
		stop()
		os.Exit(1)
	}
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: lab COMMAND [ARGUMENTS]")
	for _, c := range commands {
		fmt.Fprintf(os.Stderr, "  %-10s %-28s %s\n", c.name, c.args, c.help)
	}
	os.Exit(2)
}
