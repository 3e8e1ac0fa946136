// Package install holds the parts of an installation that are not shared with an
// upgrade: what kind of target it is (file system UUID, ESP below the mount
// point), who the machine is, and the boot loader's files. docs/design/install.md
// is normative. The making of a disk is in package disk below it.
//
// systemd-boot is installed without bootctl: its PE file comes from the image
// that is installed, so the loader is exactly as old as the system, and it is
// placed like every file on the ESP, verified and never over another one. No
// EFI variable is written: firmware starts EFI/BOOT/BOOT<ARCH>.EFI of a disk it
// has no entry for.
//
// The order of an installation and its journal are in package deploy.
package install
