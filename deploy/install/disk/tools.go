package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// Tools runs the programs that divide and format disks. They are exceptions to
// the rule that files change through package durable only.
type Tools interface {
	// Find returns an error that wraps exec.ErrNotFound if a program is missing.
	Find(name string) error
	// Run runs a program with the text as its standard input and returns its
	// standard output. The error of a failed run holds what it said.
	Run(ctx context.Context, stdin string, name string, args ...string) ([]byte, error)
}

// packages name where Debian has the programs.
var packages = map[string]string{"sfdisk": "fdisk", "wipefs": "util-linux", "mkfs.vfat": "dosfstools", "mkfs.ext4": "e2fsprogs"}

// CheckTools says at once which of the programs that an installation needs are
// missing.
func CheckTools(t Tools) error {
	var errs []error
	for _, name := range []string{"wipefs", "sfdisk", "mkfs.vfat", "mkfs.ext4"} {
		if err := t.Find(name); err != nil {
			errs = append(errs, fmt.Errorf("program %s (Debian's package %s): %w", name, packages[name], err))
		}
	}
	return errors.Join(errs...)
}

// Programs are the Tools of this machine.
type Programs struct{}

// Find looks along PATH, then where administrators' programs are.
func (Programs) Find(name string) error {
	_, err := find(name)
	return err
}

func find(name string) (string, error) {
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("not installed: %w", exec.ErrNotFound)
}

// Run runs the program that Find found.
func (Programs) Run(ctx context.Context, stdin, name string, args ...string) ([]byte, error) {
	path, err := find(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &said
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", name, context.Cause(ctx))
		}
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.Join(strings.Fields(said.String()), " "))
	}
	return out.Bytes(), nil
}
