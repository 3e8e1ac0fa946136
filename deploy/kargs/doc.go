// Package kargs decides the kernel arguments of a boot entry: what cfsboot, the
// image, the installation and the site say, in a defined order. It implements
// docs/design/kargs.md; the files of images are those of bootc (lifecycle.md
// 1.8, "kargs.d").
//
// A file is one TOML document with the keys kargs and match-architectures and
// is masked by a file of the same name in a later directory. Everything here is
// pure and works on bytes; package deploy reads them, from the verified image
// and from /etc.
package kargs
