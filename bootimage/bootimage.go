// Package bootimage turns the tree of an OCI image into the tree of its boot
// image, and finds what a boot loader needs in it: kernel, initrd, os-release.
//
// Words: the plain image is the whole tree; the boot image is the same with empty
// /boot and /sysroot, which is what gets mounted as root. So a file in /boot may
// hold the image ID of the boot image. Both IDs are those of composefs-rs 0.9.4
// (docs/design/erofs.md, section "Boot transform").
//
// Labels: a tree with a SELinux policy gets labels in its boot image. Transform
// refuses such a tree (ErrSELinux), since the image without labels would be
// another one under a permanent name.
//
// The package reads contents of files through an ObjectOpener and changes nothing
// but the tree it is given. The functions are safe for concurrent use on
// different trees.
package bootimage

import (
	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Transform makes the boot tree out of the tree of a plain image, in place: /boot
// and /sysroot lose their entries and get the modification time of /usr, seconds
// and nanoseconds; security.selinux is removed everywhere, as is right for a tree
// without a policy. Encode the plain image first.
//
// o opens the objects of /etc/selinux/config; it may be nil if that file is
// absent or inside the image.
//
// Errors, after which the tree is unchanged: *tree.RequiredError if /usr, /boot or
// /sysroot is missing or no directory; *SELinuxError (ErrSELinux); *FileError.
func Transform(root *tree.Node, o ObjectOpener) error {
	usr, err := tree.RequireDir(root, "usr")
	if err != nil {
		return err
	}
	var empty [2]*tree.Node
	for i, name := range [...]string{"boot", "sysroot"} {
		if empty[i], err = tree.RequireDir(root, name); err != nil {
			return err
		}
	}
	if err := refusePolicy(root, o); err != nil {
		return err
	}
	for _, dir := range empty {
		dir.MtimeSec, dir.MtimeNsec = usr.MtimeSec, usr.MtimeNsec
		dir.Clear()
	}
	stripLabels(root)
	return nil
}
