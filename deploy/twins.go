package deploy

import (
	"fmt"
	"strings"

	"github.com/cfsboot/cfsboot/internal/mnt"
)

// twinsText says that the next boot may mount another disk's file system as the physical root. names are those of mnt.Twins.
func twinsText(names []string) string {
	return fmt.Sprintf("%s have file systems with one UUID; %s holds the running system, and the next boot may take either", strings.Join(names, " and "), names[0])
}

// warnings are what a person should know whatever was changed; never nil.
func (m *machine) warnings() []string {
	out := []string{}
	if b := m.facts.Booted; b != nil {
		if names := mnt.Twins(m.Root, b.Sysroot.Dev); len(names) > 0 {
			out = append(out, twinsText(names))
		}
	}
	return out
}
