// Package repo keeps composefs repositories: objects named by their fs-verity
// digest, images and streams that name objects, and refs that keep images and
// streams alive. The layout is that of composefs-rs 0.9, so that cfsctl reads our
// repositories and we read its (docs/design/repository.md).
//
// A repository is a cache and not a root of trust: meta.json and every symbolic
// link can be replaced by who can write the directory. What is opened by name is
// therefore opened by the digest that the name leads to, and measured; whoever
// needs an image opens it by a digest that comes from elsewhere.
//
// In a secure repository (meta.json has fs-verity) every object has fs-verity
// and its measured digest is its name. An insecure one lives on a file system
// without fs-verity, or was asked for; its objects have the same names, computed
// here, and only a wrong digest is an error, not a missing one.
//
// Durability: data is on the medium before a name for it can be, and a
// first-level name before a ref to it can be. Publishing syncs as often as that
// needs and no more; [Repository.Sync] makes the last names durable.
//
// Every handle holds the shared lock of the repository, so that nothing it has
// stored or found is collected. A Repository may be used by several goroutines;
// ObjectWriter and StreamWriter by one each. What a failed piece of work has
// stored is removed again by its [Run]. The package mounts nothing, and garbage
// collection of a whole repository is not in it yet.
package repo
