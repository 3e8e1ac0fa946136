package deploy

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNothingToDo says that the machine is as the command wants it already.
var ErrNothingToDo = errors.New("nothing to do")

// Codes of RefusedError.
const (
	CodeNotManaged = "not-managed" // this machine was not installed by cfsboot
	CodeInstalled  = "installed"   // the target holds an installation already
	CodeNoVerity   = "no-verity"   // no fs-verity and not allowed to do without
	CodeImage      = "image"       // the image cannot be booted
	CodeTarget     = "target"      // the place cannot be installed to
	CodeReadOnly   = "read-only"   // nothing can be written
	CodeUnknown    = "unknown-id"  // no such deployment
	CodeNoRollback = "no-rollback" // there is nothing to go back to
	CodeFailed     = "failed-boot" // the deployment did not boot before
	CodeNoESP      = "no-esp"      // no boot partition found
	CodeKarg       = "karg"        // a kernel argument that must not be given
)

// RefusedError is a refusal by rule, made before anything was changed.
type RefusedError struct {
	Code   string // one of the Code constants
	Detail string // what was found and what was expected
	Err    error  // the reason in detail, or nil
}

func (e *RefusedError) Error() string {
	if e.Err != nil {
		if e.Detail == "" {
			return e.Err.Error()
		}
		return e.Detail + ": " + e.Err.Error()
	}
	return e.Detail
}

// Unwrap returns the cause.
func (e *RefusedError) Unwrap() error { return e.Err }

func refuse(code, format string, args ...any) error {
	return &RefusedError{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// ConflictError says that something needs a person's decision: files below /etc
// that cannot be merged, or files on the boot partition that are not cfsboot's.
type ConflictError struct {
	What  string   // what the paths are, for example "files of /etc that cannot be merged"
	Paths []string // sorted
	Err   error    // the reasons in detail, or nil
}

// maxPaths is how many paths the text of a ConflictError names.
const maxPaths = 10

func (e *ConflictError) Error() string {
	paths := e.Paths
	more := ""
	if len(paths) > maxPaths {
		more = fmt.Sprintf(" and %d more", len(paths)-maxPaths)
		paths = paths[:maxPaths]
	}
	text := fmt.Sprintf("%s: %s%s", e.What, strings.Join(paths, ", "), more)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *ConflictError) Unwrap() error { return e.Err }
