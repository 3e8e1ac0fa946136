package esp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// Directories below the root of the partition.
const (
	PayloadDir = "cfsboot"        // one directory for each boot digest
	EntryDir   = "loader/entries" // Type 1 files
)

// perm are the modes of what is made; FAT has none and shows those of the mount.
const (
	filePerm = 0o600
	dirPerm  = 0o700
)

// ESP is the open root of a boot partition that is mounted somewhere, read-write
// for the methods that place or remove.
type ESP struct {
	dir *durable.Dir
}

// New returns the ESP whose root is dir, which stays owned by the caller.
func New(dir *durable.Dir) *ESP { return &ESP{dir} }

// Dir returns the root directory.
func (e *ESP) Dir() *durable.Dir { return e.dir }

// VerifyError says that the medium does not hold what was written, or what is
// recorded as written.
type VerifyError struct {
	Path      string // below the root of the partition
	Got, Want string // size and SHA-256, or "missing"
}

// missing is VerifyError.Got of a file that is not there.
const missing = "missing"

// VerifyError.Got of something else than what belongs there.
const (
	NoFile      = "no regular file"
	NoDirectory = "no directory"
)

func (e *VerifyError) Error() string {
	return fmt.Sprintf("boot file %q: got %s, want %s", e.Path, e.Got, e.Want)
}

func (e *ESP) checkSize(name string, want Sum) error {
	st, err := e.dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &VerifyError{name, missing, want.text()}
	case err != nil:
		return e.notDirectory(name, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return &VerifyError{name, NoFile, want.text()}
	case st.Size != want.Size:
		return &VerifyError{name, fmt.Sprintf("%d bytes", st.Size), want.text()}
	}
	return nil
}

// notFile makes a *VerifyError of an error that name, or what is above it, is of
// another type.
func (e *ESP) notFile(name string, err error) error {
	if st, err := e.dir.Lstat(name); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &VerifyError{name, NoFile, "a file"}
	}
	return e.notDirectory(name, err)
}

// notDirectory makes a *VerifyError of an error that name, or what is above it, is
// no directory.
func (e *ESP) notDirectory(name string, err error) error {
	if !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for i, c := range name + "/" {
		if c != '/' {
			continue
		}
		if st, err := e.dir.Lstat(name[:i]); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &VerifyError{name[:i], NoDirectory, "a directory"}
		}
	}
	return err
}

// AnySize stands for a size that is not known, but is not 0.
const AnySize = -1

// checkPath compares the file name below the root with want.
func (e *ESP) checkPath(ctx context.Context, name string, want Sum) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.checkSize(name, want); err != nil {
		return err
	}
	h := sha256.New()
	n, err := e.dir.ReadBack(name, h)
	if err != nil {
		return fmt.Errorf("verify boot file: %w", err)
	}
	if got := (Sum{want.Name, n, hex.EncodeToString(h.Sum(nil))}); got != want {
		return &VerifyError{name, got.text(), want.text()}
	}
	return nil
}

func (e *ESP) write(ctx context.Context, dir *durable.Dir, name string, f Content) (err error) {
	if err := e.removeLeftover(dir, name); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = dir.CreateExclusive(name, &contextReader{ctx, r}, filePerm)
	return err
}

// removeLeftover removes a file that a killed run left. After a power cut two
// FAT entries may name one chain of clusters; removing the leftover would then
// free those of a good file, so that is refused.
func (e *ESP) removeLeftover(dir *durable.Dir, name string) error {
	st, err := dir.Lstat(name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &VerifyError{e.below(dir, name), NoFile, "a file"}
	}
	f, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block, known := firstBlock(int(f.Fd())) //nolint:gosec // a descriptor fits
	if err := f.Close(); err != nil {
		return err
	}
	if known && block != 0 {
		if other := e.sharesBlock(dir.Path(), name, block); other != "" {
			return &VerifyError{e.below(dir, name), "the same clusters as " + other, "clusters of its own; run fsck.fat"}
		}
	}
	return dir.Remove(name)
}

// below returns where a file in dir is, below the root of the partition.
func (e *ESP) below(dir *durable.Dir, name string) string {
	return strings.TrimPrefix(path.Join(dir.Path(), name), e.dir.Path()+"/")
}

// sharesBlock returns another payload file that starts at the same block.
func (e *ESP) sharesBlock(dirPath, name string, block int) string {
	for _, digest := range e.names(PayloadDir) {
		for _, file := range e.names(PayloadDir + "/" + digest) {
			if path.Join(e.dir.Path(), PayloadDir, digest) == dirPath && file == name {
				continue
			}
			f, err := e.dir.Open(Path(digest, file))
			if err != nil {
				continue
			}
			b, known := firstBlock(int(f.Fd())) //nolint:gosec // a descriptor fits
			_ = f.Close()
			if known && b == block {
				return Path(digest, file)
			}
		}
	}
	return ""
}

// firstBlock asks for the first block of an open file (FIBMAP); known is false
// where the file system or the missing privilege does not allow the question.
func firstBlock(fd int) (block int, known bool) {
	const fibmap = 1 // linux/fs.h
	n, err := unix.IoctlGetInt(fd, fibmap)
	return n, err == nil
}

// names lists a directory; one that cannot be read has none.
func (e *ESP) names(dir string) []string {
	list, err := e.dir.ReadSubDir(dir)
	if err != nil {
		return nil
	}
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = x.Name
	}
	return out
}
