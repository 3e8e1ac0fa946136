package setuproot

import (
	"errors"
	"os"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
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

// FailedBoot is what decides about the end of a failed boot.
type FailedBoot = failedBoot

// DecideFailed shows what follows: power-off, or the entry that is started once (0: none).
func DecideFailed(f FailedBoot) (powerOff bool, oneShot uint64) {
	step := decideFailed(f)
	if step.OneShot != nil {
		oneShot = step.OneShot.Seq
	}
	return step.PowerOff, oneShot
}

// Remember shows what is written down below root.
func Remember(root *durable.Dir, o FailedOptions, kmsg []byte, action Action) (record.BootFailure, error) {
	o.setDefaults()
	return remember(root, o, failureRecord(o, kmsg), kmsg, action)
}
