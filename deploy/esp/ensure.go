package esp

import (
	"context"
	"errors"
	"fmt"
	"path"
)

// Ensure makes the medium hold files that are not payloads, for example the boot
// loader, each at its path below the root; Content.Name is the path. Like Place
// it keeps what is there and right, and verifies what it writes. A file with
// other content is a *VerifyError before anything is written, unless leftover
// says that a killed run may have left it: then it is written anew.
func (e *ESP) Ensure(ctx context.Context, files []Content, leftover bool) error {
	todo, err := e.missing(ctx, files, leftover)
	if err != nil || len(todo) == 0 {
		return err
	}
	for _, f := range todo {
		if err := e.ensure(ctx, f); err != nil {
			return fmt.Errorf("place %q: %w", f.Name, err)
		}
	}
	if err := e.dir.SyncFS(); err != nil {
		return err
	}
	for _, f := range todo {
		if err := e.checkPath(ctx, f.Name, f.Sum); err != nil {
			return err
		}
	}
	return nil
}

// CheckForeign returns a *VerifyError if one of the files is there with other
// content, so that Ensure would refuse. It writes nothing.
func (e *ESP) CheckForeign(ctx context.Context, files []Content) error {
	_, err := e.missing(ctx, files, false)
	return err
}

// Missing tells whether there is nothing at all in the place of the file.
func (e *VerifyError) Missing() bool { return e.Got == missing }

// missing lists the files that have to be written.
func (e *ESP) missing(ctx context.Context, files []Content, leftover bool) ([]Content, error) {
	var todo []Content
	for _, f := range files {
		err := e.checkPath(ctx, f.Name, f.Sum)
		var bad *VerifyError
		switch {
		case err == nil:
			continue
		case !errors.As(err, &bad) || bad.Got == NoDirectory || bad.Got != missing && !leftover:
			return nil, err
		}
		todo = append(todo, f)
	}
	return todo, nil
}

func (e *ESP) ensure(ctx context.Context, f Content) error {
	dir := e.dir
	if parent := path.Dir(f.Name); parent != "." {
		sub, err := e.dir.MkdirAll(parent, dirPerm)
		if err != nil {
			return err
		}
		defer sub.Close() //nolint:errcheck // synced by the caller
		dir = sub
	}
	return e.write(ctx, dir, path.Base(f.Name), f)
}
