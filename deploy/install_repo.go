package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
)

// makeRepo makes the repository of an installation and opens it. It is closed with
// the machine.
func (m *machine) makeRepo(ctx context.Context, allowMissing bool) error {
	if err := m.top.Mkdir(repoDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := m.top.Sub(repoDir)
	if err != nil {
		return err
	}
	m.onClose(dir.Close)
	if err := m.initRepo(ctx, dir, allowMissing); err != nil {
		return err
	}
	if m.repo, err = repo.Open(ctx, dir, repo.Options{LockWait: m.LockWait, Logger: m.Logger, RequireVerity: !allowMissing}); err != nil {
		return err
	}
	m.onClose(m.repo.Close)
	return nil
}

// initRepo makes a repository with fs-verity, or without where there is none and
// that is allowed.
func (m *machine) initRepo(ctx context.Context, dir *durable.Dir, allowMissing bool) error {
	err := checkBlocks(dir)
	if err == nil {
		err = repo.Init(ctx, dir, repo.InitOptions{})
	}
	var insecure *repo.InsecureError
	var blocks *blockSizeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &insecure) && allowMissing:
		return nil // a run before this one made it
	case !errors.Is(err, errors.ErrUnsupported) && !errors.As(err, &insecure):
		return err
	case errors.As(err, &blocks) && !allowMissing:
		return &RefusedError{Code: CodeNoVerity, Err: err}
	case !allowMissing:
		return &RefusedError{
			Code: CodeNoVerity, Err: err,
			Detail: fmt.Sprintf("the file system of %q has no fs-verity, so changed files would not be noticed (--allow-missing-verity does without)", m.top.Path()),
		}
	}
	m.say("warning: %s has no fs-verity, changed files will not be noticed", m.top.Path())
	return repo.Init(ctx, dir, repo.InitOptions{Insecure: true})
}

// blockSizeError says that the blocks of a file system are too small for
// fs-verity with the Merkle blocks of composefs.
type blockSizeError struct {
	path      string
	got, want int64 // bytes
}

func (e *blockSizeError) Error() string {
	return fmt.Sprintf("the file system of %q has %d-byte blocks, want %d (mkfs.ext4 -b %d -O verity)", e.path, e.got, e.want, e.want)
}

// Unwrap: without fs-verity is how such a file system can be used.
func (e *blockSizeError) Unwrap() error { return errors.ErrUnsupported }

// checkBlocks finds out before the kernel does, which only answers EINVAL
// (fs/verity/enable.c).
func checkBlocks(dir *durable.Dir) error {
	space, err := dir.Space()
	if err == nil && space.BlockSize < fsverity.BlockSize {
		err = &blockSizeError{dir.Path(), space.BlockSize, fsverity.BlockSize}
	}
	return err
}
