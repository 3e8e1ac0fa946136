package mnt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// ComposefsOptions say how Composefs mounts. The zero value is an insecure mount with source "composefs".
type ComposefsOptions struct {
	Source string // first column of the mount table; default "composefs"
	Verity bool   // objects must have the fs-verity digest that the image names (verity=require)
	Joined bool   // see Overlay.Joined
}

// Composefs mounts the image (an EROFS file opened for reading) with the objects directory as its data layer,
// read-only, on the directory target or the one that target leads to. The caller has measured image. Exactly one mount is left at target; on error
// there is none. While it works, the bare EROFS is visible at target for a moment, because overlayfs of kernels
// before 6.15 takes layers on attached mounts only.
func Composefs(image, objects *os.File, target string, o ComposefsOptions) error {
	if o.Source == "" {
		o.Source = "composefs"
	}
	target, err := filepath.EvalSymlinks(target) // Attach follows links, Detach does not
	if err != nil {
		return err
	}
	meta, err := EROFS(image)
	if err != nil {
		return err
	}
	defer meta.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := meta.Attach(target); err != nil {
		return err
	}
	// The layers are named by descriptor: a path may be too long, and the one of target now leads elsewhere for
	// nobody but us.
	overlay, err := Overlay{
		Source: o.Source,
		Lower:  fmt.Sprintf("/proc/self/fd/%d", meta.f.Fd()),
		Data:   fmt.Sprintf("/proc/self/fd/%d", objects.Fd()),
		Verity: o.Verity,
		Joined: o.Joined,
	}.Mount()
	if err := errors.Join(err, Detach(target)); err != nil {
		if overlay != nil {
			err = errors.Join(err, overlay.Close())
		}
		return err
	}
	defer overlay.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	return overlay.Attach(target)
}
