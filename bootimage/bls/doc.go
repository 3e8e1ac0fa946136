// Package bls holds the small text formats of the boot path: the kernel
// command line and the composefs parameter on it, os-release, Type 1 entries
// of the Boot Loader Specification (UAPI.1) with their boot counter, and the
// version order of UAPI.10.
//
// Everything is a pure function over strings and bytes; nothing here opens a
// file. The initramfs program, the deployment code and the boot image code
// share it, so that all three read one grammar.
//
// Words: a token is one white-space separated part of the command line, its
// key is the text before the first '=' (or the whole token), a karg image is
// one digest selected by a composefs token. The grammar of the composefs
// parameter is that of composefs-rs 0.9 (docs/design/boot-entry.md).
//
// The package does not know the names cfsboot gives to its entries; that is
// deploy/record. All types are for use by one goroutine at a time.
package bls
