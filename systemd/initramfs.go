package systemd

import (
	"embed"
	"io/fs"
	"path"
)

// SetupRootUnit is the unit of the initramfs that assembles the root.
const SetupRootUnit = "cfsboot-setup-root.service"

// bootCheckUnit is the unit that notices that the former did not run.
const bootCheckUnit = "cfsboot-boot-check.service"

// Paths in the initramfs.
const (
	SetupRootProgram = "/usr/lib/cfsboot/cfsboot-setup-root"
	InitramfsConfig  = "/usr/lib/cfsboot/initramfs.toml"
	initramfsUnits   = "/usr/lib/systemd/system/"
)

//go:embed initramfs/*.service initramfs/*.conf
var initramfsFiles embed.FS

// InitramfsFile is a unit, drop-in or link that belongs into an initramfs.
type InitramfsFile struct {
	Path string // absolute path in the initramfs
	Data []byte // content of a regular file
	Link string // target of a symbolic link; then Data is nil
}

// InitramfsFiles returns what an initramfs needs besides the program, its configuration and the kernel modules: the
// units, and the links that make initrd-root-fs.target require the first one and initrd.target want the check.
func InitramfsFiles() ([]InitramfsFile, error) {
	var out []InitramfsFile
	for _, f := range []struct{ name, path string }{
		{SetupRootUnit, SetupRootUnit},
		{bootCheckUnit, bootCheckUnit},
		{"cfsboot-boot-failed.service", "cfsboot-boot-failed.service"},
		{"emergency.service.conf", "emergency.service.d/10-cfsboot.conf"},
		{"emergency.target.conf", "emergency.target.d/10-cfsboot.conf"},
		{"initrd-root-fs.target.conf", "initrd-root-fs.target.d/10-cfsboot.conf"},
		{"initrd-switch-root.service.conf", "initrd-switch-root.service.d/10-cfsboot.conf"},
		{"watchdog.conf", "../system.conf.d/10-cfsboot-watchdog.conf"},
	} {
		data, err := fs.ReadFile(initramfsFiles, "initramfs/"+f.name)
		if err != nil {
			return nil, err
		}
		out = append(out, InitramfsFile{Path: path.Join(initramfsUnits, f.path), Data: data})
	}
	return append(out,
		InitramfsFile{Path: initramfsUnits + "initrd-root-fs.target.requires/" + SetupRootUnit, Link: "../" + SetupRootUnit},
		InitramfsFile{Path: initramfsUnits + "initrd.target.wants/" + bootCheckUnit, Link: "../" + bootCheckUnit},
	), nil
}
