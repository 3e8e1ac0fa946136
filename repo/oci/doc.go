// Package oci stores OCI container images in a composefs repository, exactly as
// composefs-rs does (docs/design/oci.md): every layer is a splitstream whose
// files are objects, config and manifest are streams around their unchanged JSON
// bytes, tags are refs, and the image IDs hang on the config stream under fixed
// keys.
//
// Where the bytes come from is behind the interface [Source], which repo/remote
// implements for registries and layouts. This package checks what it is given:
// every blob against its descriptor, every layer against its diff_id, before a
// name for it exists. It does not decide whether an image may be used (keyring)
// and does not order a whole pull (repo/pull).
//
// Words: a digest ("sha256:…") is the OCI digest of bytes; an fs-verity digest
// or ID ([fsverity.Digest]) names an object. A diff_id is the digest of an
// uncompressed layer.
//
// All functions may be used by several goroutines at once on one repository.
package oci
