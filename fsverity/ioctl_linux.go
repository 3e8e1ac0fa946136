package fsverity

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNotEnabled is returned by Measure for a file without fs-verity.
var ErrNotEnabled = errors.New("fs-verity is not enabled")

// ErrAlreadyEnabled is returned by Enable for a file that has fs-verity. The
// caller measures it: the digest may be another one.
var ErrAlreadyEnabled = errors.New("fs-verity is already enabled")

// UnsupportedError says that the kernel or the file system has no fs-verity.
// errors.Is(err, errors.ErrUnsupported) is true.
type UnsupportedError struct {
	Op    string     // "enable" or "measure"
	Name  string     // name of the file
	Errno unix.Errno // ENOTTY: no support in this file system type; EOPNOTSUPP: not switched on
}

func (e *UnsupportedError) Error() string {
	why := "the file system lacks the verity feature or the kernel CONFIG_FS_VERITY"
	if e.Errno == unix.ENOTTY {
		why = "this type of file system has no fs-verity"
	}
	return fmt.Sprintf("%s fs-verity of %q: %s: %v", e.Op, e.Name, why, e.Errno)
}

// Unwrap makes errors.Is work for errors.ErrUnsupported and for the errno.
func (e *UnsupportedError) Unwrap() []error { return []error{errors.ErrUnsupported, e.Errno} }

// BlockSizeError says that the blocks of a file system are smaller than those of a
// Merkle tree, so that its fs-verity cannot be used. errors.Is(err,
// errors.ErrUnsupported) is true.
type BlockSizeError struct {
	Name      string // of the file
	Got, Want int64  // bytes
}

func (e *BlockSizeError) Error() string {
	return fmt.Sprintf("enable fs-verity of %q: the file system has blocks of %d bytes, want at least %d bytes", e.Name, e.Got, e.Want)
}

// Unwrap makes errors.Is work for errors.ErrUnsupported and for the errno.
func (e *BlockSizeError) Unwrap() []error { return []error{errors.ErrUnsupported, unix.EINVAL} }

// enableArg is struct fsverity_enable_arg, 128 bytes.
type enableArg struct {
	version       uint32
	hashAlgorithm uint32
	blockSize     uint32
	saltSize      uint32
	saltPtr       uint64
	sigSize       uint32
	_             uint32
	sigPtr        uint64
	_             [11]uint64
}

// digestArg is struct fsverity_digest with room for the longest digest.
type digestArg struct {
	algorithm uint16
	size      uint16
	digest    [64]byte
}

const (
	retryFirst = time.Millisecond // doubled for each further try
	retryTotal = time.Second
)

// Enable makes the kernel compute and from now on enforce the Merkle tree of f,
// which must be open for reading only, with no other writer of the inode.
//
// A process that is just being started may hold a copy of a writer that was
// closed already (O_CLOEXEC acts at exec), so ETXTBSY is retried for one second
// in total. The data is flushed by the kernel; that the mark survives a power
// loss needs a sync of the file system.
//
// Errors: ErrAlreadyEnabled; *UnsupportedError; *BlockSizeError; else an
// *os.PathError with the errno, ETXTBSY if a writer stays.
func Enable(f *os.File, a Algorithm) error {
	if !a.Valid() {
		return fmt.Errorf("enable fs-verity of %q: unknown algorithm %d", f.Name(), uint8(a))
	}
	arg := enableArg{version: 1, hashAlgorithm: uint32(a), blockSize: BlockSize}
	deadline := time.Now().Add(retryTotal)
	for pause := retryFirst; ; pause *= 2 {
		err := ioctl(f, unix.FS_IOC_ENABLE_VERITY, unsafe.Pointer(&arg))
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("enable fs-verity of %q: %w", f.Name(), ErrAlreadyEnabled)
		case errors.Is(err, unix.ETXTBSY) && time.Now().Add(pause).Before(deadline):
			time.Sleep(pause)
		case errors.Is(err, unix.EINVAL):
			return invalid(f, err)
		default:
			return ioctlError("enable", f, err)
		}
	}
}

// Measure returns the digest that the kernel enforces for f. The digest's
// algorithm is the file's, which the caller has to compare.
//
// Errors: ErrNotEnabled; *UnsupportedError; else an *os.PathError.
func Measure(f *os.File) (Digest, error) {
	var arg digestArg
	arg.size = uint16(len(arg.digest))
	err := ioctl(f, unix.FS_IOC_MEASURE_VERITY, unsafe.Pointer(&arg))
	if errors.Is(err, unix.ENODATA) {
		return Digest{}, fmt.Errorf("measure %q: %w", f.Name(), ErrNotEnabled)
	}
	if err != nil {
		return Digest{}, ioctlError("measure", f, err)
	}
	a := Algorithm(arg.algorithm)
	if arg.algorithm > 255 || !a.Valid() || int(arg.size) != a.Size() {
		return Digest{}, fmt.Errorf("measure %q: kernel says algorithm %d, %d bytes", f.Name(), arg.algorithm, arg.size)
	}
	return NewDigest(a, arg.digest[:arg.size])
}

// invalid looks for the reason of an EINVAL from enabling.
func invalid(f *os.File, err error) error {
	var st unix.Statfs_t
	if ferr := unix.Fstatfs(int(f.Fd()), &st); ferr == nil && st.Bsize < BlockSize {
		return &BlockSizeError{Name: f.Name(), Got: st.Bsize, Want: BlockSize}
	}
	return ioctlError("enable", f, err)
}

func ioctlError(op string, f *os.File, err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) && (errno == unix.ENOTTY || errno == unix.EOPNOTSUPP) {
		return &UnsupportedError{Op: op, Name: f.Name(), Errno: errno}
	}
	return &os.PathError{Op: op + " fs-verity of", Path: f.Name(), Err: err}
}

// ioctl repeats on EINTR: enabling a large file can be interrupted.
func ioctl(f *os.File, request uintptr, arg unsafe.Pointer) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var errno unix.Errno
	err = conn.Control(func(fd uintptr) {
		for {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, request, uintptr(arg))
			if errno != unix.EINTR {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if errno != 0 {
		return errno
	}
	return nil
}
