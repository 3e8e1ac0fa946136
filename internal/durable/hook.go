package durable

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Kind names a mutating call.
type Kind string

// The mutating calls that a Hook sees.
const (
	OpCreate   Kind = "create"    // openat O_CREAT|O_EXCL
	OpTemp     Kind = "temporary" // openat O_TMPFILE
	OpWrite    Kind = "write"
	OpFsync    Kind = "fsync"     // of a file
	OpSyncDir  Kind = "fsync-dir" // of a directory
	OpSyncFS   Kind = "syncfs"
	OpLink     Kind = "link"
	OpRename   Kind = "rename" // with or without RENAME_NOREPLACE
	OpExchange Kind = "exchange"
	OpUnlink   Kind = "unlink"
	OpRmdir    Kind = "rmdir"
	OpMkdir    Kind = "mkdir"
	OpSymlink  Kind = "symlink"
	OpMknod    Kind = "mknod"
	OpMeta     Kind = "metadata" // mode, owner, times, extended attributes
	OpOther    Kind = "other"    // through Dir.Mutate, for example enabling fs-verity
)

// Op describes one mutating call. Unused descriptors are -1.
type Op struct {
	Kind Kind
	// DirFD and Name are the entry that is made, changed or removed; Name is one
	// component. Both are unset for calls on an open file.
	DirFD int
	Name  string
	// NewDirFD and NewName are the destination of a link, rename or exchange.
	NewDirFD int
	NewName  string
	// FD is the open file of a write, fsync or metadata call, and after an OpTemp
	// or OpCreate the file that was made.
	FD int
	// Path is for messages.
	Path string
}

// Hook watches mutating calls. Before may refuse the call by returning an
// error, which the caller gets instead; After is called with the result of
// every call that Before let through. Calls are not serialised by this package.
type Hook interface {
	Before(op Op) error
	After(op Op, err error)
}

// do runs one mutating call, repeated on EINTR.
func do(h Hook, op Op, call func() error) error {
	if h == nil {
		return ignoreEINTR(call)
	}
	if err := h.Before(op); err != nil {
		return err
	}
	err := ignoreEINTR(call)
	h.After(op, err)
	return err
}

// doOpen is do for a call that returns a descriptor, which After sees in op.FD.
func doOpen(h Hook, op Op, call func() (int, error)) (int, error) {
	if h == nil {
		return openEINTR(call)
	}
	if err := h.Before(op); err != nil {
		return -1, err
	}
	fd, err := openEINTR(call)
	op.FD = fd
	h.After(op, err)
	return fd, err
}

func ignoreEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
