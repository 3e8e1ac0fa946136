// Package esp places boot files on the EFI system partition, or on XBOOTLDR,
// and reads the boot entries that are there.
//
// The partition is FAT, which has no journal and whose rename can leave an
// empty file after a power cut. So nothing here renames, exchanges or
// overwrites: a file is created under its final, never-used name, synced, the
// file system is synced, and the file is read back from the medium and compared
// (lifecycle.md 6.2, 6.5). What a visible entry names is never touched; an
// entry is removed durably before its payload is.
//
// Words: a payload is the directory cfsboot/<boot digest>/ with the kernel and
// the initrd of a deployment; the boot digest is the SHA-256 of both, so equal
// payloads share one directory. An entry is a Type 1 file of the Boot Loader
// Specification in loader/entries; making it is the commit point of a
// deployment.
//
// The package finds the partition ([ReadGPT]), plans its space ([Cost]), and
// does not know deployments: package deploy decides what is placed and removed.
// An [ESP] is for one goroutine at a time, except that reading is safe for
// several.
package esp
