package esp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

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
