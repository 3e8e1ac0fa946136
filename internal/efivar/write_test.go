package efivar_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/efivar"
)

const oneShot = "LoaderEntryOneShot-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

// immutable is FS_IMMUTABLE_FL of linux/fs.h.
const immutable = 0x10

func TestSetLoader(t *testing.T) {
	root := t.TempDir()
	d := efivar.Dir{Root: root}
	if err := d.SetLoader(efivar.LoaderEntryOneShot, "é.conf"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, oneShot)
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "\x07\x00\x00\x00\xe9\x00.\x00c\x00o\x00n\x00f\x00\x00\x00" {
		t.Errorf("got %q, %v", got, err)
	}
	if text, err := d.Loader(efivar.LoaderEntryOneShot); text != "é.conf" || err != nil {
		t.Errorf("read back %q, %v", text, err)
	}
	// The same text is not written again.
	if err := os.Chmod(path, 0o444); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SetLoader(efivar.LoaderEntryOneShot, "é.conf"); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the variable was written again: %v", err)
	}

	var bad *efivar.FormatError
	for _, text := range []string{"", "a\x00b", "a\nb", "\xff"} {
		if err := d.SetLoader(efivar.LoaderEntryOneShot, text); !errors.As(err, &bad) {
			t.Errorf("%q: %v, want a FormatError", text, err)
		}
	}
	if err := d.SetLoader(efivar.LoaderInfo, "x"); err == nil {
		t.Error("a variable of the loader was written")
	}
	if err := (efivar.Dir{Root: filepath.Join(root, "none")}).SetLoader(efivar.LoaderEntryOneShot, "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without EFI: %v", err)
	}
}

// TestRootSetLoaderImmutable: what efivarfs protects is written all the same, and protected again.
func TestRootSetLoaderImmutable(t *testing.T) {
	if os.Getenv("CFSBOOT_ROOT_TESTS") != "1" {
		t.Skip("needs root and a kernel with file flags: CFSBOOT_ROOT_TESTS=1")
	}
	root := filepath.Join(t.TempDir(), "efivars")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	d := efivar.Dir{Root: root}
	if err := d.SetLoader(efivar.LoaderEntryOneShot, "one.conf"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, oneShot)
	flags := func() uint32 {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags()|immutable))
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.EPERM) {
		t.Fatalf("the file is not immutable: %v", err)
	}
	if err := d.SetLoader(efivar.LoaderEntryOneShot, "two.conf"); err != nil {
		t.Fatal(err)
	}
	if text, err := d.Loader(efivar.LoaderEntryOneShot); text != "two.conf" || err != nil {
		t.Errorf("read back %q, %v", text, err)
	}
	if flags()&immutable == 0 {
		t.Error("the file is not immutable any more")
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := d.SetLoader(efivar.LoaderEntryOneShot, "three.conf"); !errors.Is(err, unix.EROFS) {
		t.Errorf("read-only: %v, want EROFS", err)
	}
}
