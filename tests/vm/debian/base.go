package debian

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
)

// BasePackages make a machine that boots under UEFI, has network and a login.
var BasePackages = []string{
	"systemd", "systemd-sysv", "systemd-resolved", "udev", "dbus", "libpam-systemd",
	"systemd-boot", "systemd-boot-efi", "systemd-boot-tools",
	"dracut", "linux-image-cloud-amd64", "kmod", "e2fsprogs", "dosfstools", "ca-certificates", "zstd",
	"systemd-repart", // grows the root partition
	"openssh-server",
}

// baseHook puts the kernel where image-mode tools look for it, and leaves /boot
// empty: that is where the machine's boot partition is mounted.
const baseHook = `set -e; cd "$1"
for k in boot/vmlinuz-*; do v=${k#boot/vmlinuz-}; mv "$k" "usr/lib/modules/$v/vmlinuz"; mv "boot/config-$v" "usr/lib/modules/$v/config"; done
find boot -mindepth 1 -delete
rm -f vmlinuz vmlinuz.old initrd.img initrd.img.old etc/resolv.conf etc/hostname
rm -rf usr/share/bug usr/share/lintian usr/share/bash-completion usr/share/zsh usr/share/fish usr/share/gdb var/cache/apt/* var/lib/apt/lists/* var/log/* var/cache/debconf/*`

// Base makes the cache entry of the OS images' base, a tar file, and returns its
// path and a key over what it was made from.
func Base(ctx context.Context, s Sources) (path, key string, err error) {
	key = cache.Key(Stable, strings.Join(BasePackages, " "), baseHook)
	path, err = cache.Make("base-"+key+".tar", func(tmp string) error {
		args := []string{
			"--quiet", "--mode=root", "--variant=minbase", "--format=tar",
			"--aptopt=Acquire::Languages \"none\"", "--aptopt=APT::Install-Recommends \"false\"",
			"--include=" + strings.Join(BasePackages, ","), "--customize-hook=" + baseHook,
		}
		for _, d := range []string{"doc", "man", "locale", "info"} {
			args = append(args, "--dpkgopt=path-exclude=/usr/share/"+d+"/*")
		}
		args = append(append(args, Stable, tmp), s.Lines(Stable)...)
		// The kernel's hook would make an initramfs for nothing; the OS image makes its own.
		_, err := run(ctx, []string{"INITRD=No", "TMPDIR=" + filepath.Dir(tmp)}, "mmdebstrap", args...)
		if err != nil {
			return err
		}
		return os.Chmod(tmp, 0o644)
	})
	return path, key, err
}
