package deploy

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNothingToDo says that the machine is as the command wants it already.
var ErrNothingToDo = errors.New("nothing to do")

// Codes of RefusedError.
const (
	CodeNotManaged   = "not-managed"   // this machine was not installed by cfsboot
	CodeInstalled    = "installed"     // the target holds an installation already
	CodeNoVerity     = "no-verity"     // no fs-verity and not allowed to do without
	CodeImage        = "image"         // the image cannot be booted
	CodeTarget       = "target"        // the place cannot be installed to
	CodeReadOnly     = "read-only"     // nothing can be written
	CodeUnknown      = "unknown-id"    // no such deployment
	CodeNoRollback   = "no-rollback"   // there is nothing to go back to
	CodeFailed       = "failed-boot"   // the deployment did not boot before
	CodeNoESP        = "no-esp"        // no boot partition found
	CodeBadESP       = "bad-esp"       // the boot partition cannot be read
	CodeNoSysroot    = "no-sysroot"    // the root file system is not mounted
	CodeNoJournal    = "no-journal"    // the journal is gone
	CodeNoRepository = "no-repository" // the repository is gone
	CodeKarg         = "karg"          // a kernel argument that must not be given
	CodeInUse        = "in-use"        // the disk is used by somebody
	CodeNotEmpty     = "not-empty"     // the disk holds something that must not be destroyed
	CodeIncomplete   = "incomplete"    // the disk holds an installation that was interrupted
	CodeTwins        = "two-disks"     // a copy of the root's disk is attached
	CodeIdentity     = "identity"      // no name for a machine, or no public keys
	CodeNoRegistry   = "no-registry"   // the machine follows nothing that is in a registry
	CodeNoRecord     = "no-record"     // nobody knows what a deployment is
	CodeNoState      = "no-state"      // the state of a deployment, without which it cannot boot, is gone
	CodeNotStaged    = "not-staged"    // no deployment is staged
	CodeSequence     = "sequence"      // the sequence numbers of boot entries are used up
	CodeBooted       = "booted"        // the deployment runs
	CodeStaged       = "staged"        // the deployment is staged
	CodeLast         = "last-good"     // no other deployment is known to boot
	CodeEntries      = "entries"       // the boot partition does not show what the journal says
	CodeConfig       = "config"        // cfsboot.toml cannot be used
	CodeNoSELinux    = "no-selinux"    // SELinux is enforced, and the image has no policy
	CodeRoots        = "gc-roots"      // what runs is not in the repository
)

// RefusedError is a refusal by rule, made before anything was changed. Where room
// had to be made to find the reason out, the error around it names the deployments
// that went.
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
	What    string   // what the paths are, for example "files of /etc that cannot be merged"
	Paths   []string // sorted
	Reasons []string // one for each path; or nil
	Err     error    // the cause, or nil; it is not in the text
}

// maxPaths is how many paths the text of an error names.
const maxPaths = 10

func (e *ConflictError) Error() string {
	var list []string
	for i, path := range e.Paths[:min(len(e.Paths), maxPaths)] {
		if i < len(e.Reasons) {
			path += " (" + e.Reasons[i] + ")"
		}
		list = append(list, path)
	}
	text := e.What + ": " + strings.Join(list, ", ")
	if more := len(e.Paths) - len(list); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// Unwrap returns the cause.
func (e *ConflictError) Unwrap() error { return e.Err }

// etcError is a failure at making an /etc. Its text may name files in directories
// that only root can look into.
type etcError struct {
	what string // what was done
	err  error
}

func (e *etcError) Error() string { return e.what + ": " + e.err.Error() }

func (e *etcError) Unwrap() error { return e.err }

// publicReason is the text of an error for the journal, which everybody can read:
// without names of files below /etc.
func publicReason(err error) string {
	var conflict *ConflictError
	var etc *etcError
	var no unix.Errno
	switch {
	case !errors.As(err, &etc):
		return err.Error()
	case errors.As(err, &conflict):
		return fmt.Sprintf("%s: %s (%d)", etc.what, conflict.What, len(conflict.Paths))
	case errors.As(err, &no):
		return etc.what + ": " + no.Error()
	}
	return etc.what
}
