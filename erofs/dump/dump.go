// Package dump reads and writes the composefs dumpfile, the text form of an
// image: one line an inode name, 11 fields and the extended attributes.
//
//	PATH SIZE MODE NLINK UID GID RDEV MTIME PAYLOAD CONTENT DIGEST [XATTR=VALUE …]
//
// The format is that of composefs-dump(5) with the rules of composefs-rs; where C
// mkcomposefs and composefs-rs disagree about bad input, it is refused. The
// document is docs/design/erofs.md, section "Dumpfile".
//
// Read does not check everything that an image cannot hold; erofs.Encode does.
// The functions are safe for concurrent use on different trees.
package dump

import "fmt"

// FormatError reports a line that is not part of a valid dumpfile.
type FormatError struct {
	Line   int    // from 1
	Field  string // "PATH", "SIZE" and so on, "XATTR", or "line"
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("dumpfile line %d: %s: %s", e.Line, e.Field, e.Detail)
}

// Limits bound what a dumpfile may hold beyond what the format says. The zero
// value is the limits of composefs-rs: 512 bytes of inline content and 1024 of a
// symlink target. Compat is what C mkcomposefs accepts.
type Limits struct {
	Inline int // bytes of inline content, 0: 512
	Target int // bytes of a symlink target, 0: 1024
}

// Compat are the limits of C mkcomposefs.
var Compat = Limits{Inline: 5000, Target: 4095}

const (
	maxPath       = 4096     // bytes of an unescaped path
	maxXattrName  = 255      // bytes
	maxXattrValue = 65535    // bytes
	maxXattrNames = 65535    // bytes, all names of one inode together
	maxLine       = 64 << 20 // bytes of text; 128 escaped values of 64 KiB fit
	maxNsec       = 999_999_999
)

// The fields in order.
const (
	fieldPath = iota
	fieldSize
	fieldMode
	fieldNlink
	fieldUID
	fieldGID
	fieldRdev
	fieldMtime
	fieldPayload
	fieldContent
	fieldDigest
	fieldCount
)

var fieldNames = [fieldCount]string{"PATH", "SIZE", "MODE", "NLINK", "UID", "GID", "RDEV", "MTIME", "PAYLOAD", "CONTENT", "DIGEST"}
