package setuproot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/mnt"
	"github.com/cfsboot/cfsboot/keyring"
)

// image is an opened boot image that a policy has accepted.
type image struct {
	file     *os.File
	karg     bls.KargImage
	verified keyring.Verified
	tried    []record.BootedTry // named before it and missing
}

// id is the digest that was verified.
func (i *image) id() fsverity.Digest {
	d, _ := i.verified.Digest(keyring.Boot)
	return d
}

// openImage opens the first image of the list that exists and verifies it. Only "does not exist" leads to the next
// one: a wrong digest is an attack or a broken disk, and ends the boot.
func openImage(ctx context.Context, repo *os.File, list []bls.KargImage) (*image, error) {
	var tried []record.BootedTry
	for _, k := range list {
		f, err := findImage(repo, k)
		if errors.Is(err, fs.ErrNotExist) {
			tried = append(tried, record.BootedTry{Digest: k.Digest.Hex(), Result: "missing"})
			continue
		}
		if err != nil {
			return nil, err
		}
		v, err := verify(ctx, f, k)
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return &image{file: f, karg: k, verified: v, tried: tried}, nil
	}
	return nil, missing(repo, list)
}

// findImage opens images/<hex> or, if that name is gone, the object of the digest. A ref never stands in for an
// image: an image is found by its digest or not at all. Whatever is found has to pass verify.
func findImage(repo *os.File, k bls.KargImage) (*os.File, error) {
	name := "images/" + k.Digest.Hex()
	f, err := openRegular(repo, name)
	if errors.Is(err, fs.ErrNotExist) {
		name = "objects/" + k.Digest.ObjectPath()
		f, err = openRegular(repo, name)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &Failure{Code: CodeMissing, Param: k.String(), Path: repo.Name() + "/" + name, Err: cause(err)}
	}
	return f, err
}

// openRegular opens a regular file below dir for reading; links are followed as long as they stay below dir.
func openRegular(dir *os.File, name string) (*os.File, error) {
	f, err := mnt.OpenBelow(dir, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("a file of type %v, want a regular file", st.Mode().Type())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// verify measures the open image and asks the policy of pinned mode: the digest must be the one of the parameter.
func verify(ctx context.Context, f *os.File, k bls.KargImage) (keyring.Verified, error) {
	fail := &Failure{Code: CodeNoVerity, Param: k.String(), Path: f.Name()}
	measured, err := fsverity.Measure(f)
	withoutVerity := errors.Is(err, fsverity.ErrNotEnabled) || errors.Is(err, errors.ErrUnsupported)
	switch {
	case withoutVerity && k.Insecure:
		// '?' allows a file system without fs-verity, not another image.
		if measured, _, err = fsverity.SumReader(k.Digest.Algorithm(), contextReader{ctx, f}); err != nil {
			fail.Code, fail.Err = CodeObject, cause(err)
			return keyring.Verified{}, fail
		}
	case errors.Is(err, fsverity.ErrNotEnabled):
		fail.Want, fail.Got, fail.Err = k.Digest.String(), "none", errors.New("the image is not sealed: fs-verity is not enabled on this file")
		return keyring.Verified{}, fail
	case withoutVerity:
		fail.Want, fail.Got, fail.Err = k.Digest.String(), "none", cause(err)
		fail.Notes = []string{"the file system or the kernel has no fs-verity; for ext4: tune2fs -O verity DEVICE (block size 4096), kernel option CONFIG_FS_VERITY"}
		return keyring.Verified{}, fail
	case err != nil:
		fail.Err = cause(err)
		return keyring.Verified{}, fail
	}
	v, err := keyring.Pinned{Digests: []fsverity.Digest{k.Digest}}.Verify(keyring.Boot, measured)
	if err != nil {
		fail.Code, fail.Want, fail.Got = CodeDigest, k.Digest.String(), measured.String()
		fail.Err = errors.New("the image is not the one the parameter names; no other image is tried")
		return keyring.Verified{}, fail
	}
	return v, nil
}

// missing is the failure of a machine that has none of the images; it lists some of those that it has.
func missing(repo *os.File, list []bls.KargImage) error {
	first := list[0]
	f := &Failure{
		Code: CodeMissing, Param: first.String(), Path: repo.Name() + "/images/" + first.Digest.Hex(),
		Want: first.Digest.String(), Got: "no image", Err: fs.ErrNotExist,
	}
	for _, k := range list[1:] {
		f.Notes = append(f.Notes, "also missing: "+k.String())
	}
	names, err := listImages(repo, 10)
	switch {
	case err != nil:
		f.Notes = append(f.Notes, "list images: "+err.Error())
	case len(names) == 0:
		f.Notes = append(f.Notes, "the repository has no images")
	}
	for _, n := range names {
		f.Notes = append(f.Notes, "present: images/"+n)
	}
	return f
}

// listImages names at most limit image links, without refs.
func listImages(repo *os.File, limit int) ([]string, error) {
	dir, err := mnt.OpenBelow(repo, "images", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var names []string
	for {
		batch, err := dir.Readdirnames(64)
		for _, n := range batch {
			if _, hexErr := fsverity.ParseHex(n); hexErr == nil {
				names = append(names, n)
			}
			if len(names) == limit {
				return names, nil
			}
		}
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return names, err
		}
	}
}

// contextReader stops reading when the context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// cause drops the path from a path error, because the line names it already, and says what EXDEV means for openat2.
func cause(err error) error {
	var pe *fs.PathError
	if errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("a link on the way leads out of the repository or of the disk: %w", unix.EXDEV)
	}
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: %w", strings.TrimSpace(pe.Op), pe.Err)
	}
	return err
}
