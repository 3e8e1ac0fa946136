package repo

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
)

// ErrNotFound says that a name or an object is not in the repository. It is
// fs.ErrNotExist too.
var ErrNotFound = fmt.Errorf("not in the repository: %w", fs.ErrNotExist)

// ErrBatchFailed says that an object of a Batch could not be stored; Wait says why.
var ErrBatchFailed = errors.New("an object of this batch was not stored")

// ErrNoRef says that a file below refs/ is not one of a repository.
var ErrNoRef = errors.New("neither a link nor a directory")

// NotFoundError names what is not there. It unwraps to ErrNotFound.
type NotFoundError struct {
	Kind string // "object", "image", "stream", "image ref", "stream ref"
	Name string
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s %q is not in the repository", e.Kind, e.Name)
}

func (e *NotFoundError) Unwrap() error { return ErrNotFound }

// MetadataError says that meta.json cannot be used.
type MetadataError struct {
	Path   string
	Detail string
}

func (e *MetadataError) Error() string {
	return fmt.Sprintf("repository metadata %q: %s", e.Path, e.Detail)
}

// MetadataMissingError says that a directory has no meta.json: it is no
// repository, or one from before composefs-rs 0.7.0 (OldFormat), which Upgrade
// converts. It is fs.ErrNotExist too.
type MetadataMissingError struct {
	Path      string
	OldFormat bool // there is a directory objects/
}

func (e *MetadataMissingError) Error() string {
	if e.OldFormat {
		return fmt.Sprintf("repository %q has objects but no meta.json: it was written before composefs-rs 0.7.0 and needs an upgrade, which any command of cfsctl does", e.Path)
	}
	return fmt.Sprintf("%q is not a repository: it has no meta.json", e.Path)
}

func (e *MetadataMissingError) Unwrap() error { return fs.ErrNotExist }

// VersionError says that a repository has a format version that is too new.
type VersionError struct {
	Path      string
	Got, Want int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("repository %q: format version %d, want at most %d", e.Path, e.Got, e.Want)
}

// AlgorithmError says that a repository, object or digest has another algorithm
// than the caller or the repository.
type AlgorithmError struct {
	Where     string
	Got, Want fsverity.Algorithm
}

func (e *AlgorithmError) Error() string {
	return fmt.Sprintf("algorithm of %s: got %s, want %s", e.Where, e.Got, e.Want)
}

// FeatureError says that a repository uses features that this program does not
// know: it cannot be opened, or (ReadOnly) not be written.
type FeatureError struct {
	Path     string
	Features []string
	ReadOnly bool
}

func (e *FeatureError) Error() string {
	what := "cannot be opened"
	if e.ReadOnly {
		what = "cannot be written"
	}
	return fmt.Sprintf("repository %q %s: it uses unknown features: %s", e.Path, what, strings.Join(e.Features, ", "))
}

// InsecureError says that a repository without fs-verity was opened or
// initialised where a secure one is required.
type InsecureError struct{ Path string }

func (e *InsecureError) Error() string {
	return fmt.Sprintf("repository %q does not enforce fs-verity, which is required", e.Path)
}

// ConflictError says that a repository is already initialised otherwise.
type ConflictError struct {
	Path      string
	Got, Want Metadata // what is there, what was asked for
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("repository %q is already initialised with %s, not with %s", e.Path, e.Got, e.Want)
}

// LockedError says that another process holds a lock that excludes ours.
type LockedError struct {
	Path      string
	PID       int  // of a holder, 0 if it could not be found
	Exclusive bool // the lock that was wanted
}

func (e *LockedError) Error() string {
	by := "another process"
	if e.PID != 0 {
		by = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("%q is locked by %s", e.Path, by)
}

// RootsError says that what refs lead to cannot be followed completely, so that
// nobody knows what is in use, and nothing was removed.
type RootsError struct {
	Path     string
	Problems []RootProblem
}

// RootProblem is one name that cannot be followed.
type RootProblem struct {
	Name string // below the repository, for example "streams/refs/oci/os"
	Err  error
	// Dangling: it leads to nothing, and only the name itself would be lost with it.
	Dangling bool
}

// maxRootProblems is how many problems the text of a RootsError has.
const maxRootProblems = 10

func (e *RootsError) Error() string {
	var list []string
	for _, p := range e.Problems[:min(len(e.Problems), maxRootProblems)] {
		list = append(list, fmt.Sprintf("%s: %v", p.Name, p.Err))
	}
	text := fmt.Sprintf("repository %q: nothing was removed, because it cannot be said what is in use: %s", e.Path, strings.Join(list, "; "))
	if more := len(e.Problems) - len(list); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// Unwrap returns the causes.
func (e *RootsError) Unwrap() []error {
	var list []error
	for _, p := range e.Problems {
		list = append(list, p.Err)
	}
	return list
}
