// Package install holds the parts of an installation that are not shared with an
// upgrade: what kind of target it is (file system UUID, ESP below the mount
// point), the boot loader's files, and the making of a disk: what is on it and who
// uses it ([Prober]), how it is divided ([PlanDisk], which is pure), and the
// programs that do it ([DiskPlan.Divide]). docs/design/install.md is normative.
//
// systemd-boot is installed without bootctl: its PE file comes from the image
// that is installed, so the loader is exactly as old as the system, and it is
// placed like every file on the ESP, verified and never over another one. No
// EFI variable is written: firmware starts EFI/BOOT/BOOT<ARCH>.EFI of a disk it
// has no entry for.
//
// The order of an installation and its journal are in package deploy.
package install
