// Package setuproot assembles the root file system of a machine in its initramfs.
//
// The digest on the kernel command line ("composefs.digest=v1-sha512-12:<hex>") is the only name it trusts. The image
// of that name is opened in the repository on the physical root, its fs-verity digest is measured on the open
// descriptor, and exactly this descriptor is mounted, below an overlay that makes the kernel check every file
// (verity=require). Nothing that lies on the disk decides: no ref, no meta.json, no configuration. The repository is
// never written to. The way it goes is boot.md 1.8:
//
//	command line -> candidates -> open, measure, verify -> private mounts below /run -> preflight ->
//	/etc, /var, /sysroot -> booted.json -> detach the physical root, move the new root to its place
//
// Every refusal is a *Failure with a stable code (CFS-B01 to CFS-B15, boot.md 7.1). After one, nothing of ours is
// mounted, nothing is left below /run, and the physical root is where it was. An image whose digest is wrong ends the
// boot: no other candidate is tried after it.
//
// Policy comes from a file of the initramfs (docs/design/initramfs.toml.md); what was done is written to
// /run/cfsboot/booted.json (docs/design/booted.json.md). Run is called once by one goroutine.
package setuproot
