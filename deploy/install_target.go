package deploy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// openTarget opens the target and its boot partition and looks whether there is
// anything that must not be touched.
func (m *machine) openTarget(dir, espPath string) error {
	var err error
	if m.top = m.Sysroot; m.top == nil {
		if m.top, err = durable.OpenDir(dir); err != nil {
			return err
		}
		m.onClose(m.top.Close)
	}
	if err := writable(m.top); err != nil {
		return err
	}
	if err := checkTarget(m.top); err != nil {
		return err
	}
	espDir := m.ESP
	if espDir == nil {
		path := espPath
		if path == "" {
			path, err = install.FindESP(dir)
		} else {
			err = install.CheckESP(path)
		}
		if err != nil {
			return &RefusedError{Code: CodeNoESP, Err: err}
		}
		if espDir, err = durable.OpenDir(path); err != nil {
			return err
		}
		m.onClose(espDir.Close)
	}
	m.esp = esp.New(espDir)
	return writable(espDir)
}

// targetNames may be on a file system that is installed to: what mkfs and the
// mount points of the caller leave.
var targetNames = []string{"lost+found", "boot", "efi", repoDir, "state"}

// checkTarget refuses a file system that holds anything else than an
// installation that was interrupted.
func checkTarget(top *durable.Dir) error {
	list, err := top.ReadDir()
	if err != nil {
		return err
	}
	var foreign []string
	used := false
	for _, x := range list {
		if !slices.Contains(targetNames, x.Name) {
			foreign = append(foreign, x.Name)
		}
		used = used || x.Name == repoDir
	}
	if len(foreign) > 0 {
		more := ""
		if n := len(foreign) - maxPaths; n > 0 {
			more = fmt.Sprintf(" and %d more", n)
		}
		return refuse(CodeTarget, "target %q is not empty: it holds %s%s", top.Path(), strings.Join(foreign[:min(len(foreign), maxPaths)], ", "), more)
	}
	j, err := bootlog.ReadJournal(top)
	switch {
	case errors.Is(err, record.ErrNoJournal) && used:
		return refuse(CodeTarget, "target %q holds a repository %q that no installation of cfsboot made", top.Path(), repoDir)
	case errors.Is(err, record.ErrNoJournal):
		return nil
	case err != nil:
		return err
	case len(j.State().Entries) > 0:
		return refuse(CodeInstalled, "target %q holds an installation already", top.Path())
	}
	return nil
}
