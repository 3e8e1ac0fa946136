// Package systemd carries cfsboot's units and talks to systemd: the files that an
// OS image needs for the running system and for its initramfs, and the few calls
// of systemctl.
//
// The text of a unit says why it is ordered as it is. Nothing here changes files
// of the machine; who builds an image or an initrd places what the package
// returns. Source: boot.md 1.11, lifecycle.md 2.8 and 6.5.
package systemd
