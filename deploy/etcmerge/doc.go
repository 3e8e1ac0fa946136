// Package etcmerge carries local changes of /etc over to a new image: a
// three-way merge for each field of each file.
//
// The three sides are pristine (P, /etc of the booted image), current (C, the
// live directory) and new (N, /etc of the target image). P and N are trees of
// decoded images, C is read from a directory by [Scan]. [Merge] decides, purely;
// [Result.Build] writes the outcome as a new directory that nothing refers to
// yet; the caller syncs it and renames it into place. The live directory is
// never written. Building again from the same three sides gives the same tree,
// so a run that was interrupted is simply repeated.
//
// Fields are type and contents (or link target), permission bits together with
// the access ACL, owner, group and each extended attribute. If C has what P has,
// N's value is taken; else if N has what P or C has, C's; else both sides
// changed it, C's value is taken and the report says so. A directory on one side
// against a file on the other cannot be merged and is a [Conflict]. The outcome
// for every combination is the table in docs/design/etc-merge.md.
//
// Not done here: SELinux labels by a policy (the label of N, or of what only C has,
// is taken as it is; package deploy labels the result), and keeping what lost.
//
// Nothing here is for use by several goroutines at once.
package etcmerge
