// Package durable is the only code of cfsboot that changes files, so that one
// crash model covers the whole program.
//
// Everything hangs off a [Dir], an open directory. Names given to its methods
// are relative paths below that directory; they never contain "..", and no
// component but the last may be a symbolic link (openat2 with RESOLVE_BENEATH
// and RESOLVE_NO_SYMLINKS). The last component is never followed either: an
// operation on a symbolic link works on the link.
//
// Every mutating system call passes through the [Hook] of the Dir it started
// from, if one is set. Package durabletest sets one to fail, to kill and to
// compute what a power cut leaves behind.
//
// What is durable when: a method changes the page cache only, unless its
// comment says that it syncs. [Dir.Sync] makes the names of one directory
// durable, [Dir.SyncFS] everything on the file system, [File.Sync] the content
// of a file. On vfat there is no journal: there use [Dir.CreateExclusive] under
// a name that was never used before, then SyncFS and [Dir.ReadBack], and never
// rename (lifecycle.md 6.2).
//
// Exceptions, which change files without this package: sfdisk, mkfs.*, bootctl
// install, systemd-bless-boot, the boot loader, and /run in the initramfs.
//
// A Dir may be used by several goroutines at once; a File or Temp by one.
package durable
