package repo

import (
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// Room is how many bytes and files may be stored on such a file system.
func Room(s durable.Space, keep int64) (bytes, files int64) {
	out := spareOf(s, keep)
	return out.bytes, out.files
}

// ParseTarget reads the target of a first-level link in a repository with this
// algorithm.
func ParseTarget(a fsverity.Algorithm, target string) (fsverity.Digest, error) {
	r := &Repository{meta: Metadata{Algorithm: a}}
	return r.parseTarget(target)
}

// What no command needs yet.
var (
	PutFile       = (*Repository).putFile
	ResetMetadata = resetMetadata
)
