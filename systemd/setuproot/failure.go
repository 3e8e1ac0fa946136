package setuproot

import (
	"fmt"
	"strings"
)

// Code is the stable name of a reason why the machine did not boot (boot.md 7.1).
type Code string

// Codes of Failure. CFS-B07 and CFS-B09 belong to signatures and do not occur in pinned mode.
const (
	CodeSysroot  Code = "CFS-B01" // physical root not mounted, or without a repository
	CodeNoKarg   Code = "CFS-B02" // no composefs parameter
	CodeBadKarg  Code = "CFS-B03" // malformed, contradictory or forbidden parameter
	CodeMissing  Code = "CFS-B04" // image missing for every digest
	CodeDigest   Code = "CFS-B05" // image present, digest differs
	CodeNoVerity Code = "CFS-B06" // image, file system or kernel without fs-verity
	CodeNoState  Code = "CFS-B08" // state of the deployment missing or unusable
	CodeNoModule Code = "CFS-B10" // EROFS or overlayfs missing
	CodeMount    Code = "CFS-B11" // a mount was refused
	CodeObject   Code = "CFS-B12" // what the system needs to start cannot be read
	CodeReadOnly Code = "CFS-B13" // state on a read-only or full file system
	CodeBusy     Code = "CFS-B14" // overlay state in use by another mount
	CodeNoDir    Code = "CFS-B15" // the image lacks /etc or /var
	CodeConfig   Code = "CFS-B16" // initramfs.toml or setup-root-conf.toml unreadable or invalid; not in boot.md 7.1
	CodePlace    Code = "CFS-B17" // not in an initramfs, not root, or an error of the environment; not in boot.md 7.1
)

// Failure says why the root was not assembled. Error is one line for the console: code, kernel parameter, path,
// digests, cause.
type Failure struct {
	Code  Code
	Param string   // the kernel parameter that asked for it, "" if none did
	Path  string   // what was looked up, "" if nothing was
	Want  string   // digest expected, "sha512:<hex>"; with Got
	Got   string   // digest found
	Err   error    // cause
	Notes []string // further lines: what was found instead, what may help
}

// Error gives the one line for the console.
func (f *Failure) Error() string {
	var b strings.Builder
	b.WriteString(string(f.Code))
	if f.Param != "" {
		fmt.Fprintf(&b, ": kernel parameter %s", f.Param)
	}
	if f.Path != "" {
		fmt.Fprintf(&b, ": %s", f.Path)
	}
	if f.Want != "" || f.Got != "" {
		fmt.Fprintf(&b, ": fs-verity digest expected %s, found %s", f.Want, f.Got)
	}
	if f.Err != nil {
		fmt.Fprintf(&b, ": %v", f.Err)
	}
	return b.String()
}

// Unwrap gives the cause.
func (f *Failure) Unwrap() error { return f.Err }
