package repo

import "github.com/cfsboot/cfsboot/fsverity"

// ParseTarget reads the target of a first-level link in a repository with this
// algorithm.
func ParseTarget(a fsverity.Algorithm, target string) (fsverity.Digest, error) {
	r := &Repository{meta: Metadata{Algorithm: a}}
	return r.parseTarget(target)
}
