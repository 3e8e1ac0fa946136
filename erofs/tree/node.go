// Package tree is the file tree of an image in memory: what the dumpfile, the
// EROFS encoder and decoder, and the layers of an OCI image have in common.
//
// A tree is made of Nodes. A directory holds named entries in byte order
// (unsigned, a prefix first). A Node that is not a directory may be entered
// under several names: those are hard links, and there is no other place where
// the link count is kept. Names, targets and extended attributes are bytes;
// nothing is normalised. The model is that of composefs (docs/design/erofs.md,
// section "Tree").
//
// The package also stacks the layers of an OCI image (Builder) and applies the
// rule that follows the last layer (TransformOCI). It does not read or write
// files.
//
// A tree is used by one goroutine at a time, reading included: entries that
// were added out of order are sorted by the next reader.
package tree

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/cfsboot/cfsboot/fsverity"
)

// Kind is the type of a Node. The values are those of EROFS directory entries.
type Kind uint8

// The file types. There is no other, and zero is none of them.
const (
	Regular     Kind = 1 // EROFS_FT_REG_FILE
	Directory   Kind = 2 // EROFS_FT_DIR
	CharDevice  Kind = 3 // EROFS_FT_CHRDEV
	BlockDevice Kind = 4 // EROFS_FT_BLKDEV
	Fifo        Kind = 5 // EROFS_FT_FIFO
	Socket      Kind = 6 // EROFS_FT_SOCK
	Symlink     Kind = 7 // EROFS_FT_SYMLINK
)

var kindNames = [...]string{"none", "regular file", "directory", "character device", "block device", "fifo", "socket", "symlink"}

// The type bits of st_mode, indexed by Kind.
var kindModes = [...]uint16{0, 0o100000, 0o040000, 0o020000, 0o060000, 0o010000, 0o140000, 0o120000}

// Valid reports whether k is one of the seven file types.
func (k Kind) Valid() bool { return k >= Regular && k <= Symlink }

// String returns the type in words.
func (k Kind) String() string {
	if !k.Valid() {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// ModeType returns the type bits of st_mode (S_IFMT), for example 0o100000.
func (k Kind) ModeType() uint16 {
	if !k.Valid() {
		return 0
	}
	return kindModes[k]
}

// KindOfMode returns the type that the type bits of st_mode name.
func KindOfMode(mode uint32) (Kind, bool) {
	for k := Regular; k <= Symlink; k++ {
		if mode&0o170000 == uint32(kindModes[k]) {
			return k, true
		}
	}
	return 0, false
}

// Xattr is an extended attribute with its full name ("user.note").
type Xattr struct{ Name, Value string }

// Meta is what every type of file has. There is no access or change time.
type Meta struct {
	Xattrs    []Xattr // sorted by Name in byte order, unique; shared between nodes, so replace it, never write into it
	MtimeSec  int64   // seconds since 1970
	MtimeNsec uint32  // 0 to 999999999
	UID, GID  uint32
	Mode      uint16 // the 12 permission bits (07777)
}

// Xattr returns the value of the named attribute.
func (m *Meta) Xattr(name string) (value string, ok bool) {
	for i := range m.Xattrs {
		if m.Xattrs[i].Name == name {
			return m.Xattrs[i].Value, true
		}
	}
	return "", false
}

// Node is one inode. Which fields count depends on Kind:
//
//	Regular      one of: Digest and Size (contents in an object; NoVerity: the
//	             digest is not recorded in the image); Sparse and Size (zeros);
//	             else Inline (contents in the image, Size is its length)
//	Symlink      Target
//	CharDevice,  Rdev, as Linux new_encode_dev packs major and minor; a
//	BlockDevice  character device 0 is an overlayfs whiteout
//	Directory    the entries
type Node struct {
	Meta
	Size     int64           // bytes; of a regular file only
	Inline   []byte          // never written into
	Digest   fsverity.Digest // of the object that holds the contents
	Target   string          // of a symlink, 1 to 4095 bytes
	dir      *directory      // of a Directory
	Rdev     uint32
	Kind     Kind
	NoVerity bool  // the image names the object, but does not pin its digest
	Sparse   bool  // Size zeros, no object
	entered  uint8 // how often it was put into a directory: 0, 1, or 2 for more
}

// NewDir returns an empty directory.
func NewDir(m Meta) *Node { return &Node{Meta: m, Kind: Directory, dir: new(directory)} }

// NewInline returns a regular file with its contents in the image.
func NewInline(m Meta, contents []byte) *Node {
	return &Node{Meta: m, Kind: Regular, Size: int64(len(contents)), Inline: contents}
}

// NewExternal returns a regular file with its contents in the object d.
func NewExternal(m Meta, d fsverity.Digest, size int64) *Node {
	return &Node{Meta: m, Kind: Regular, Size: size, Digest: d}
}

// NewSymlink returns a symbolic link.
func NewSymlink(m Meta, target string) *Node {
	return &Node{Meta: m, Kind: Symlink, Target: target}
}

// IsDir reports whether n is a directory.
func (n *Node) IsDir() bool { return n.Kind == Directory }

// IsWhiteout reports whether n is a character device with number 0.
func (n *Node) IsWhiteout() bool { return n.Kind == CharDevice && n.Rdev == 0 }

// IsExternal reports whether n is a regular file whose contents are in an
// object.
func (n *Node) IsExternal() bool { return n.Kind == Regular && !n.Digest.IsZero() }

// MaybeLinked reports whether n was entered more than once. False means that it
// has at most one name; true that it may have several, which only a walk of the
// tree can tell, since entries may have been removed again.
func (n *Node) MaybeLinked() bool { return n.entered > 1 }

// Find walks path down from n, a directory. Components are separated by "/";
// empty ones and "." are skipped, ".." is looked up like a name and never found.
// Symbolic links are not followed. The error is an *fs.PathError with
// fs.ErrNotExist.
func (n *Node) Find(path string) (*Node, error) {
	cur := n
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if name == "" || name == "." {
			continue
		}
		if !cur.IsDir() {
			return nil, &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
		}
		if cur = cur.Lookup(name); cur == nil {
			return nil, &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
		}
	}
	return cur, nil
}

// CompareMtime orders two modification times.
func (m *Meta) CompareMtime(o *Meta) int {
	switch {
	case m.MtimeSec != o.MtimeSec:
		if m.MtimeSec < o.MtimeSec {
			return -1
		}
		return 1
	case m.MtimeNsec != o.MtimeNsec:
		if m.MtimeNsec < o.MtimeNsec {
			return -1
		}
		return 1
	}
	return 0
}
