package esp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
)

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
