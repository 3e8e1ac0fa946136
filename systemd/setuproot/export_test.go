package setuproot

import (
	"errors"
	"os"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// MountCode shows the code of a refused mount.
func MountCode(err error) Code {
	var f *Failure
	errors.As(mountFailure(&image{file: os.Stdin}, err), &f)
	return f.Code
}

// StateCode shows the code of an error in the state of a deployment.
var StateCode = stateCode

// Denied shows which parameter a sealed (or other) initramfs refuses.
func Denied(sealed bool, cmdline string) (string, bool) {
	return Policy{Sealed: sealed}.denied(bls.ParseCmdline(cmdline))
}

// AsFailure shows what Run makes of an error.
var AsFailure = asFailure

// HasFilesystem shows how /proc/filesystems is read.
var HasFilesystem = hasFilesystem
