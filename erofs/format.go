// Package erofs writes and reads composefs images: EROFS file systems that hold
// the metadata of a tree, small files, and for all other files the fs-verity
// digest of the object with the contents. The fs-verity digest of the image file
// is the image ID that names a root file system.
//
// The bytes are those of C mkcomposefs and composefs-rs. There are three formats,
// named after the composefs_version of their header: 0 and 1, which are nearly the
// same, and 2, the older layout of composefs-rs. Encode writes and Decode reads all
// of them. They are described in docs/design/erofs.md. Mounting is not done here,
// and nothing touches files.
//
// The functions are safe for concurrent use on different trees.
package erofs

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// Version is the composefs format of an image.
type Version uint8

// The formats.
const (
	V0 Version = 0 // what C mkcomposefs writes without options, if the tree has no whiteouts
	V1 Version = 1 // the format of new repositories
	V2 Version = 2 // the older layout of composefs-rs: no stubs, no fractions of seconds
)

// Sizes of the format, in bytes.
const (
	blockSize      = 4096
	slotSize       = 32 // an inode number (nid) counts slots from the start of the image
	superOffset    = 1024
	superSize      = 128
	firstInode     = superOffset + superSize
	compactSize    = 32
	extendedSize   = 64
	xattrHeader    = 12
	direntSize     = 12
	maxImage       = 1 << 30 // readers refuse more
	maxTailOfDir   = blockSize / 2
	maxTailOfFile  = blockSize / 2
	noChunk        = 0xffffffff
	maxXattrArea   = xattrHeader + 4*(0xffff-1)
	maxExternal    = 1 << 53
	maxChunkBits   = 12 + 31
	chunkFormatV2  = 31 // chunk format of every file in format 2
	maxDepth       = 2048
	maxInline      = 5000
	maxInlineV2    = 512 // readers of format 2 refuse more
	maxTarget      = 4095
	maxXattrs      = 128
	maxSharedRefs  = 128
	maxXattrName   = 255
	maxXattrValue  = 65535
	maxNsec        = 999_999_999
	compactLinkMax = 0xffff
)

// On-disk constants.
const (
	composefsMagic   = 0xd078629a
	composefsVersion = 1
	flagHasACL       = 1 // LCFS_EROFS_FLAGS_HAS_ACL
	superMagic       = 0xe0f5e1e2
	featureMtime     = 2 // EROFS_FEATURE_COMPAT_MTIME
	featureFilter    = 4 // EROFS_FEATURE_COMPAT_XATTR_FILTER
	layoutPlain      = 0 // EROFS_INODE_FLAT_PLAIN
	layoutInline     = 2 // EROFS_INODE_FLAT_INLINE
	layoutChunk      = 4 // EROFS_INODE_CHUNK_BASED
)

// Names of extended attributes with a meaning here.
const (
	overlayPrefix  = "trusted.overlay."
	escapedPrefix  = "trusted.overlay.overlay."
	nameMetacopy   = "trusted.overlay.metacopy"
	nameRedirect   = "trusted.overlay.redirect"
	nameOpaque     = "trusted.overlay.opaque"
	nameSELinux    = "security.selinux"
	nameACLAccess  = "system.posix_acl_access"
	nameACLDefault = "system.posix_acl_default"

	nameWhiteout      = "trusted.overlay.overlay.whiteout"
	nameWhiteouts     = "trusted.overlay.overlay.whiteouts"
	nameOpaqueEscaped = "trusted.overlay.overlay.opaque"
	nameUserWhiteout  = "user.overlay.whiteout"
	nameUserWhiteouts = "user.overlay.whiteouts"
	nameUserOpaque    = "user.overlay.opaque"
)

// ErrVersion is returned for a format that is none of the three. It wraps
// errors.ErrUnsupported.
var ErrVersion = fmt.Errorf("composefs format: %w", errors.ErrUnsupported)

// TreeError names a node that no image of the format can hold, or that readers
// would refuse.
type TreeError struct {
	Path   string // absolute, in the tree
	Field  string // what about it: "name", "mtime", "xattr", "size" …
	Detail string // got and want, with units
}

func (e *TreeError) Error() string {
	return fmt.Sprintf("erofs: %s of %q: %s", e.Field, e.Path, e.Detail)
}

// FormatError reports bytes that no conforming writer produces.
type FormatError struct {
	Offset int64  // in the image, bytes
	Field  string // on-disk name, for example "super.magic"
	Detail string // what was found and what was expected
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("erofs: %s at byte %d: %s", e.Field, e.Offset, e.Detail)
}

func roundUp(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

// xattrPrefixes are the names that an entry stores as an index.
var xattrPrefixes = [...]string{0: "", 1: "user.", 2: nameACLAccess, 3: nameACLDefault, 4: "trusted.", prefixLustre: "lustre.", 6: "security."}

// prefixLustre exists in format 2 only; the others store the whole name.
const prefixLustre = 5

// splitName returns the prefix index of a name and the rest, as format v has them.
func splitName(v Version, name string) (index uint8, suffix string) {
	if name == "" {
		return 0, name
	}
	switch name[0] {
	case 'u':
		if rest, ok := strings.CutPrefix(name, xattrPrefixes[1]); ok {
			return 1, rest
		}
	case 's':
		for _, i := range [...]uint8{2, 3, 6} {
			if rest, ok := strings.CutPrefix(name, xattrPrefixes[i]); ok {
				return i, rest
			}
		}
	case 't':
		if rest, ok := strings.CutPrefix(name, xattrPrefixes[4]); ok {
			return 4, rest
		}
	case 'l':
		if rest, ok := strings.CutPrefix(name, xattrPrefixes[prefixLustre]); ok && v == V2 {
			return prefixLustre, rest
		}
	}
	return 0, name
}

// filterBit returns the bit of the name filter that the attribute clears.
func filterBit(index uint8, suffix string) uint32 {
	return 1 << (xxh32(suffix, 0x25bbe08f+uint32(index)) & 31)
}

// chunkBits returns the logarithm of the chunk size of a file of size bytes: the
// smallest power of two that holds it, within the limits of the format.
func chunkBits(size int64) int {
	return max(12, min(bits.Len64(uint64(size-1)), maxChunkBits))
}

// chunkCount returns how many chunk pointers the file has.
func chunkCount(size int64) int64 {
	b := chunkBits(size)
	return (size + 1<<b - 1) >> b
}

// stubName reports whether an entry of the root with this name hides a folder of
// an object store: two lower-case hexadecimal digits.
func stubName(name string) bool {
	return len(name) == 2 && lowerHex(name[0]) && lowerHex(name[1])
}

func lowerHex(c byte) bool { return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' }

// isStub reports whether an entry of the root is what Encode puts there by
// itself: a whiteout without anything of its own.
func isStub(root *tree.Node, name string, n *tree.Node) bool {
	if !n.IsWhiteout() || !stubName(name) || n.Mode != 0o644 || n.UID != root.UID || n.GID != root.GID || n.CompareMtime(&root.Meta) != 0 {
		return false
	}
	label, labelled := root.Xattr(nameSELinux)
	if !labelled {
		return len(n.Xattrs) == 0
	}
	own, ok := n.Xattr(nameSELinux)
	return ok && own == label && len(n.Xattrs) == 1
}
