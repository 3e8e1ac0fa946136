package install

import (
	"bytes"
	"fmt"
	"io"

	"github.com/cfsboot/cfsboot/deploy/esp"
)

// ArchError says that the boot loader's names for an architecture are not known.
type ArchError struct{ Arch string }

func (e *ArchError) Error() string {
	return fmt.Sprintf("architecture %q: got none of amd64, arm64, for which EFI names are known", e.Arch)
}

// efiNames maps the architecture of an image to the suffix of EFI file names
// (UEFI 3.5.1.1).
var efiNames = map[string]string{"amd64": "x64", "arm64": "aa64"}

// LoaderPath returns where systemd-boot lies in an image of this architecture
// (Go's name for it). The error is an *ArchError.
func LoaderPath(arch string) (string, error) {
	name, ok := efiNames[arch]
	if !ok {
		return "", &ArchError{arch}
	}
	return "usr/lib/systemd/boot/efi/systemd-boot" + name + ".efi", nil
}

// LoaderFiles returns what makes a FAT partition boot: the loader twice, under
// its own and under the firmware's fallback name, loader.conf with a menu of
// timeout seconds, and the mark of a conforming entry directory (UAPI.1). open
// gives the loader's bytes out of the image. Sums are not filled in.
func LoaderFiles(arch string, timeout int, open func() (io.ReadCloser, error)) ([]esp.Content, error) {
	name, ok := efiNames[arch]
	if !ok {
		return nil, &ArchError{arch}
	}
	fallback := map[string]string{"x64": "BOOTX64.EFI", "aa64": "BOOTAA64.EFI"}[name]
	return []esp.Content{
		{Sum: esp.Sum{Name: "EFI/systemd/systemd-boot" + name + ".efi"}, Open: open},
		{Sum: esp.Sum{Name: "loader/entries.srel"}, Open: text("type1\n")},
		{Sum: esp.Sum{Name: "loader/loader.conf"}, Open: text(fmt.Sprintf("timeout %d\n", timeout))},
		// Last: with it the firmware finds the disk.
		{Sum: esp.Sum{Name: "EFI/BOOT/" + fallback}, Open: open},
	}, nil
}

func text(s string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(s))), nil }
}
