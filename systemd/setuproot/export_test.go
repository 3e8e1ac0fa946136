package setuproot

import "github.com/cfsboot/cfsboot/bootimage/bls"

// Denied shows which parameter a sealed (or other) initramfs refuses.
func Denied(sealed bool, cmdline string) (string, bool) {
	return Policy{Sealed: sealed}.denied(bls.ParseCmdline(cmdline))
}

// AsFailure shows what Run makes of an error.
var AsFailure = asFailure

// HasFilesystem shows how /proc/filesystems is read.
var HasFilesystem = hasFilesystem
