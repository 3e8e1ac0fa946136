package ocitest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/erofs/tree"
)

// WriteTar writes a tree as a layer: every directory before its entries, names
// without a leading slash, the root itself left out, fractions of times and
// extended attributes as PAX records.
func WriteTar(w io.Writer, root *tree.Node) error {
	t := tarWriter{tw: tar.NewWriter(w), seen: map[*tree.Node]string{}}
	if err := t.dir("", root); err != nil {
		return err
	}
	return t.tw.Close()
}

type tarWriter struct {
	tw   *tar.Writer
	seen map[*tree.Node]string
}

func (t *tarWriter) dir(prefix string, d *tree.Node) error {
	for name, n := range d.All() {
		path := prefix + name
		if err := t.node(path, n); err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		if n.IsDir() {
			if err := t.dir(path+"/", n); err != nil {
				return err
			}
		}
	}
	return nil
}

var typeflags = map[tree.Kind]byte{
	tree.Regular: tar.TypeReg, tree.Directory: tar.TypeDir, tree.Symlink: tar.TypeSymlink,
	tree.CharDevice: tar.TypeChar, tree.BlockDevice: tar.TypeBlock, tree.Fifo: tar.TypeFifo,
}

func (t *tarWriter) node(path string, n *tree.Node) error {
	flag, ok := typeflags[n.Kind]
	if !ok {
		return fmt.Errorf("tar has no %s", n.Kind)
	}
	h := &tar.Header{
		Typeflag: flag, Name: path, Linkname: n.Target, Mode: int64(n.Mode), Uid: int(n.UID), Gid: int(n.GID),
		ModTime: time.Unix(n.MtimeSec, int64(n.MtimeNsec)), Format: tar.FormatPAX,
		Devmajor: int64(n.Rdev >> 8 & 0xfff), Devminor: int64(n.Rdev&0xff | n.Rdev>>12&0xfff00),
	}
	if n.IsDir() {
		h.Name += "/"
	} else if first, ok := t.seen[n]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
	} else {
		t.seen[n] = path
	}
	for _, x := range n.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+x.Name] = x.Value
	}
	var body []byte
	if h.Typeflag == tar.TypeReg {
		body = Contents(n)
		h.Size = int64(len(body))
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.tw.Write(body)
	return err
}

// Contents returns what WriteTar puts into a regular file: its inline contents,
// or Size bytes that depend on Digest alone.
func Contents(n *tree.Node) []byte {
	if n.Digest.IsZero() && !n.Sparse {
		return n.Inline
	}
	if n.Sparse {
		return make([]byte, n.Size)
	}
	unit := []byte(strings.ToUpper(n.Digest.Hex()) + "\n")
	return bytes.Repeat(unit, int(n.Size)/len(unit)+1)[:n.Size]
}
