// Package bootimage turns the tree of an OCI image into the tree of its boot
// image, and finds what a boot loader needs in it: kernel, initrd, os-release.
//
// Words: the plain image is the whole tree; the boot image is the same with empty
// /boot and /sysroot, which is what gets mounted as root. So a file in /boot may
// hold the image ID of the boot image. Both IDs are those of composefs-rs 0.9.4
// (docs/design/erofs.md, section "Boot transform").
//
// Labels: the files of a boot image have the labels that the SELinux policy in the
// image gives them (docs/design/selabel.md), and none if there is no policy.
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
// and nanoseconds; every file gets the label of the SELinux policy in the tree, or
// loses the one it has, if there is no policy. Hard links whose names get different
// labels become files of their own. Encode the plain image first.
//
// o opens the objects of the files of the policy; it may be nil if there are none or
// they are inside the image.
//
// Errors, after which the tree is unchanged: *tree.RequiredError if /usr, /boot or
// /sysroot is missing or no directory; *FileError and *SELinuxError if there is a
// policy that cannot be used.
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
	policy, err := SELinuxPolicy(root, o)
	if err != nil {
		return err
	}
	var changes []labelChange
	if policy != nil {
		if changes, err = labelChanges(root, policy, empty[:]); err != nil {
			return &SELinuxError{selinuxDir, err}
		}
	}
	for _, dir := range empty {
		dir.MtimeSec, dir.MtimeNsec = usr.MtimeSec, usr.MtimeNsec
		dir.Clear()
	}
	if policy == nil {
		stripLabels(root)
		return nil
	}
	applyLabels(changes)
	return nil
}
