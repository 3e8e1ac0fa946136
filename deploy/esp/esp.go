package esp

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// Directories below the root of the partition.
const (
	PayloadDir = "cfsboot"        // one directory for each boot digest
	EntryDir   = "loader/entries" // Type 1 files
)

// perm are the modes of what is made; FAT has none and shows those of the mount.
const (
	filePerm = 0o600
	dirPerm  = 0o700
)

// ESP is the open root of a boot partition that is mounted somewhere, read-write
// for the methods that place or remove.
type ESP struct {
	dir *durable.Dir
}

// New returns the ESP whose root is dir, which stays owned by the caller.
func New(dir *durable.Dir) *ESP { return &ESP{dir} }

// Dir returns the root directory.
func (e *ESP) Dir() *durable.Dir { return e.dir }

// VerifyError says that the medium does not hold what was written, or what is
// recorded as written.
type VerifyError struct {
	Path      string // below the root of the partition
	Got, Want string // size and SHA-256, or "missing"
}

// missing is VerifyError.Got of a file that is not there.
const missing = "missing"

// VerifyError.Got of something else than what belongs there.
const (
	NoFile      = "no regular file"
	NoDirectory = "no directory"
)

func (e *VerifyError) Error() string {
	return fmt.Sprintf("boot file %q: got %s, want %s", e.Path, e.Got, e.Want)
}

// Sum is what a file of a payload has to hold.
type Sum struct {
	Name   string `json:"name"` // "vmlinuz" or "initrd"
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

func (s Sum) text() string { return fmt.Sprintf("%d bytes of SHA-256 %s", s.Size, s.SHA256) }

// Content is a file to be placed.
type Content struct {
	Sum
	Open func() (io.ReadCloser, error)
}

// Payload is the kernel and the initrd of a deployment.
type Payload struct {
	Digest string // boot digest: SHA-256 in hex over the files in order
	Files  []Content
}

// Sums returns what has to be on the medium.
func (p Payload) Sums() []Sum {
	out := make([]Sum, len(p.Files))
	for i, f := range p.Files {
		out[i] = f.Sum
	}
	return out
}

// NewPayload reads the contents once to learn sizes and digests. A name with no
// opener is skipped by leaving it out of files; the order is that of the boot
// digest (lifecycle.md 2.3: vmlinuz, then initrd).
func NewPayload(ctx context.Context, files []Content) (Payload, error) {
	whole := sha256.New()
	p := Payload{Files: slices.Clone(files)}
	for i, f := range p.Files {
		h := sha256.New()
		n, err := readAll(ctx, f, io.MultiWriter(whole, h))
		if err != nil {
			return Payload{}, fmt.Errorf("read %q of the image: %w", f.Name, err)
		}
		p.Files[i].Size, p.Files[i].SHA256 = n, hex.EncodeToString(h.Sum(nil))
	}
	p.Digest = hex.EncodeToString(whole.Sum(nil))
	return p, nil
}

func readAll(ctx context.Context, f Content, w io.Writer) (n int64, err error) {
	r, err := f.Open()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return io.Copy(w, &contextReader{ctx, r})
}

// contextReader ends a long copy when its context does.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// Path returns where file name of the payload with this digest lies, below the
// root and without a leading slash.
func Path(digest, name string) string { return path.Join(PayloadDir, digest, name) }

// Space is the room on the partition, in bytes.
type Space struct {
	Free, Total, Cluster int64
}

// Space asks the file system.
func (e *ESP) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(e.dir.Fd(), &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: e.dir.Path(), Err: err}
	}
	size := st.Bsize                                                                                // on vfat the cluster
	return Space{Free: int64(st.Bavail) * size, Total: int64(st.Blocks) * size, Cluster: size}, nil //nolint:gosec // below 2^63 on any real file system
}

// NeedFor returns the bytes that have to be free to place the files, without
// those that are there with the right size, and one entry of a cluster.
func (e *ESP) NeedFor(digest string, files []Sum, cluster int64) int64 {
	var missing []File
	for _, f := range files {
		if st, err := e.dir.Lstat(Path(digest, f.Name)); err == nil && st.Size == f.Size {
			continue
		}
		missing = append(missing, File{Path(digest, f.Name), f.Size})
	}
	missing = append(missing, File{EntryDir + "/" + strings.Repeat("x", 64), cluster})
	return Cost(missing, cluster, func(dir string) bool {
		ok, err := e.dir.Exists(dir)
		return err == nil && ok
	})
}

// NeedForFiles returns the bytes that have to be free for Ensure to place files
// that are not there yet.
func (e *ESP) NeedForFiles(files []Sum, cluster int64) int64 {
	var missing []File
	for _, f := range files {
		if ok, err := e.dir.Exists(f.Name); err != nil || !ok {
			missing = append(missing, File{f.Name, f.Size})
		}
	}
	return Cost(missing, cluster, func(dir string) bool {
		ok, err := e.dir.Exists(dir)
		return err == nil && ok
	})
}

func (e *ESP) checkSize(name string, want Sum) error {
	st, err := e.dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &VerifyError{name, missing, want.text()}
	case err != nil:
		return e.notDirectory(name, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return &VerifyError{name, NoFile, want.text()}
	case st.Size != want.Size:
		return &VerifyError{name, fmt.Sprintf("%d bytes", st.Size), want.text()}
	}
	return nil
}

// notFile makes a *VerifyError of an error that name, or what is above it, is of
// another type.
func (e *ESP) notFile(name string, err error) error {
	if st, err := e.dir.Lstat(name); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &VerifyError{name, NoFile, "a file"}
	}
	return e.notDirectory(name, err)
}

// notDirectory makes a *VerifyError of an error that name, or what is above it, is
// no directory.
func (e *ESP) notDirectory(name string, err error) error {
	if !errors.Is(err, unix.ENOTDIR) {
		return err
	}
	for i, c := range name + "/" {
		if c != '/' {
			continue
		}
		if st, err := e.dir.Lstat(name[:i]); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return &VerifyError{name[:i], NoDirectory, "a directory"}
		}
	}
	return err
}

// AnySize stands for a size that is not known, but is not 0.
const AnySize = -1

// CheckSizes looks whether the files of a payload are there, and have the right
// sizes (or AnySize), without reading them. What is wrong is a *VerifyError each;
// what cannot be looked at is left out.
func (e *ESP) CheckSizes(digest string, files []Sum) (out []*VerifyError) {
	for _, f := range files {
		name, want := Path(digest, f.Name), "a file with content"
		if f.Size != AnySize {
			want = fmt.Sprintf("%d bytes", f.Size)
		}
		st, err := e.dir.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
			out = append(out, &VerifyError{name, missing, want})
		case err != nil:
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			out = append(out, &VerifyError{name, NoFile, want})
		case f.Size == AnySize && st.Size == 0, f.Size != AnySize && st.Size != f.Size:
			out = append(out, &VerifyError{name, fmt.Sprintf("%d bytes", st.Size), want})
		}
	}
	return out
}

func (e *ESP) checkFile(ctx context.Context, digest string, want Sum) error {
	return e.checkPath(ctx, Path(digest, want.Name), want)
}

// checkPath compares the file name below the root with want.
func (e *ESP) checkPath(ctx context.Context, name string, want Sum) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := e.checkSize(name, want); err != nil {
		return err
	}
	h := sha256.New()
	n, err := e.dir.ReadBack(name, h)
	if err != nil {
		return fmt.Errorf("verify boot file: %w", err)
	}
	if got := (Sum{want.Name, n, hex.EncodeToString(h.Sum(nil))}); got != want {
		return &VerifyError{name, got.text(), want.text()}
	}
	return nil
}

// Place makes the medium hold the payload, verified by reading it back. What is
// there already and right is kept, so a second call and a call after a crash do
// only the rest. A file that is there and wrong is a *VerifyError if an entry
// names this payload (used); else it is the leftover of a killed run and written
// anew. On success everything is durable.
func (e *ESP) Place(ctx context.Context, p Payload, used bool) error {
	var todo []Content
	for _, f := range p.Files {
		err := e.checkFile(ctx, p.Digest, f.Sum)
		var bad *VerifyError
		switch {
		case err == nil:
			continue
		case !errors.As(err, &bad) || used && bad.Got != missing || bad.Got == NoDirectory:
			return err
		}
		todo = append(todo, f)
	}
	if len(todo) == 0 {
		return nil
	}
	dir, err := e.dir.MkdirAll(PayloadDir+"/"+p.Digest, dirPerm)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	for _, f := range todo {
		if err := e.write(ctx, dir, f.Name, f); err != nil {
			return fmt.Errorf("place %q: %w", Path(p.Digest, f.Name), err)
		}
	}
	if err := e.dir.SyncFS(); err != nil {
		return err
	}
	for _, f := range todo {
		if err := e.checkFile(ctx, p.Digest, f.Sum); err != nil {
			return err
		}
	}
	return nil
}

func (e *ESP) write(ctx context.Context, dir *durable.Dir, name string, f Content) (err error) {
	if err := e.removeLeftover(dir, name); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = dir.CreateExclusive(name, &contextReader{ctx, r}, filePerm)
	return err
}

// removeLeftover removes a file that a killed run left. After a power cut two
// FAT entries may name one chain of clusters; removing the leftover would then
// free those of a good file, so that is refused.
func (e *ESP) removeLeftover(dir *durable.Dir, name string) error {
	st, err := dir.Lstat(name)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &VerifyError{e.below(dir, name), NoFile, "a file"}
	}
	f, err := dir.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	block, known := firstBlock(int(f.Fd())) //nolint:gosec // a descriptor fits
	if err := f.Close(); err != nil {
		return err
	}
	if known && block != 0 {
		if other := e.sharesBlock(dir.Path(), name, block); other != "" {
			return &VerifyError{e.below(dir, name), "the same clusters as " + other, "clusters of its own; run fsck.fat"}
		}
	}
	return dir.Remove(name)
}

// below returns where a file in dir is, below the root of the partition.
func (e *ESP) below(dir *durable.Dir, name string) string {
	return strings.TrimPrefix(path.Join(dir.Path(), name), e.dir.Path()+"/")
}

// sharesBlock returns another payload file that starts at the same block.
func (e *ESP) sharesBlock(dirPath, name string, block int) string {
	for _, digest := range e.names(PayloadDir) {
		for _, file := range e.names(PayloadDir + "/" + digest) {
			if path.Join(e.dir.Path(), PayloadDir, digest) == dirPath && file == name {
				continue
			}
			f, err := e.dir.Open(Path(digest, file))
			if err != nil {
				continue
			}
			b, known := firstBlock(int(f.Fd())) //nolint:gosec // a descriptor fits
			_ = f.Close()
			if known && b == block {
				return Path(digest, file)
			}
		}
	}
	return ""
}

// firstBlock asks for the first block of an open file (FIBMAP); known is false
// where the file system or the missing privilege does not allow the question.
func firstBlock(fd int) (block int, known bool) {
	const fibmap = 1 // linux/fs.h
	n, err := unix.IoctlGetInt(fd, fibmap)
	return n, err == nil
}

// names lists a directory; one that cannot be read has none.
func (e *ESP) names(dir string) []string {
	list, err := e.dir.ReadSubDir(dir)
	if err != nil {
		return nil
	}
	out := make([]string, len(list))
	for i, x := range list {
		out[i] = x.Name
	}
	return out
}

// Payloads returns the boot digests that have a directory, complete or not.
func (e *ESP) Payloads() ([]string, error) {
	list, err := e.dir.ReadSubDir(PayloadDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, e.notDirectory(PayloadDir, err)
	}
	var out []string
	for _, x := range list {
		if b, err := hex.DecodeString(x.Name); err == nil && len(b) == sha256.Size && x.IsDir() {
			out = append(out, x.Name)
		}
	}
	return out, nil
}

// PayloadSize returns the bytes that a payload takes in clusters of this size; 0
// if it is not there.
func (e *ESP) PayloadSize(digest string, cluster int64) int64 {
	if ok, err := e.dir.Exists(PayloadDir + "/" + digest); err != nil || !ok {
		return 0
	}
	size := cluster
	for _, name := range e.names(PayloadDir + "/" + digest) {
		if st, err := e.dir.Lstat(Path(digest, name)); err == nil {
			size += FileCost(st.Size, cluster)
		}
	}
	return size
}

// RemovePayload removes a payload durably. The caller has made sure that no
// entry names it. A payload that is not there is no error. Files of others in the
// directory stay, and it with them.
func (e *ESP) RemovePayload(digest string) error {
	dir, err := e.dir.Sub(PayloadDir + "/" + digest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	list, err := dir.ReadDir()
	if err != nil {
		return err
	}
	foreign := false
	for _, x := range list {
		if !slices.Contains(payloadNames, x.Name) || !x.IsRegular() {
			foreign = true
			continue
		}
		if err := e.removeLeftover(dir, x.Name); err != nil {
			return err
		}
	}
	if !foreign {
		if err := e.dir.Remove(PayloadDir + "/" + digest); err != nil {
			return err
		}
	}
	return e.dir.SyncFS()
}

// MaxEntry bounds an entry file, in bytes: one cluster of the usual size.
const MaxEntry = 4096

// WriteEntry makes the entry file name with this content: the commit point. The
// name must never have been used; one that exists is fs.ErrExist. On success it
// is durable and was read back from the medium; on an error it is removed again,
// unless that fails too. A power cut meanwhile may leave less of it, so what makes
// the loader show the entry has to stand at its end, as record.NewEntry does it.
func (e *ESP) WriteEntry(name string, content []byte) error {
	if len(content) > MaxEntry {
		return fmt.Errorf("write boot entry %q: %d bytes, want at most %d", name, len(content), MaxEntry)
	}
	dir, err := e.dir.MkdirAll(EntryDir, dirPerm)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	if _, err := dir.CreateExclusive(name, bytes.NewReader(content), filePerm); err != nil {
		return fmt.Errorf("write boot entry: %w", err)
	}
	err = e.dir.SyncFS()
	if err == nil {
		err = e.CheckEntry(name, content)
	}
	if err != nil {
		return errors.Join(err, e.RemoveEntry(name))
	}
	return nil
}

// CheckEntry compares what the medium holds of an entry; a difference is a
// *VerifyError.
func (e *ESP) CheckEntry(name string, want []byte) error {
	var got bytes.Buffer
	full := EntryDir + "/" + name
	if _, err := e.dir.ReadBack(full, &got); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return &VerifyError{full, missing, textOf(want)}
		}
		return fmt.Errorf("verify boot entry: %w", err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		return &VerifyError{full, textOf(got.Bytes()), textOf(want)}
	}
	return nil
}

func textOf(b []byte) string {
	sum := sha256.Sum256(b)
	return Sum{Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:])}.text()
}

// RemoveEntry removes an entry file durably and looks again whether it is gone.
// One that is not there is no error.
func (e *ESP) RemoveEntry(name string) error {
	dir, err := e.dir.Sub(EntryDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	if err := dir.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove boot entry: %w", err)
	}
	if err := e.dir.SyncFS(); err != nil {
		return err
	}
	switch ok, err := dir.Exists(name); {
	case err != nil:
		return fmt.Errorf("look whether boot entry %q is gone: %w", name, err)
	case ok:
		return fmt.Errorf("remove boot entry %q: it is still there", name)
	}
	return nil
}

// payloadNames are the files of a payload in the order of the boot digest.
var payloadNames = []string{"vmlinuz", "initrd"}

// CheckDigest reads a whole payload back from the medium and compares it with
// the boot digest that names it. A difference is a *VerifyError.
func (e *ESP) CheckDigest(ctx context.Context, digest string) error {
	h := sha256.New()
	for _, name := range payloadNames {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := e.dir.ReadBack(Path(digest, name), h); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return &VerifyError{Path(digest, name), missing, "a file of payload " + digest}
			}
			return e.notFile(Path(digest, name), fmt.Errorf("verify boot file: %w", err))
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return &VerifyError{path.Join(PayloadDir, digest), "SHA-256 " + got, "SHA-256 " + digest}
	}
	return nil
}
