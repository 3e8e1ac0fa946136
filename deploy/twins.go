package deploy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/internal/mnt"
)

// twinsText says that the next boot may mount another disk's file system as the physical root. names are those of mnt.Twins.
func twinsText(names []string) string {
	return fmt.Sprintf("%s have file systems with one UUID; %s holds the running system, and the next boot may take either", strings.Join(names, " and "), names[0])
}

// warnings are what a person should know whatever was changed; never nil. seq is the
// number of the entry that the loader should start.
func (m *machine) warnings(seq uint64) []string {
	out := []string{}
	if b := m.facts.Booted; b != nil {
		if names := mnt.Twins(m.Root, b.Sysroot.Dev); len(names) > 0 {
			out = append(out, twinsText(names))
		}
	}
	return append(out, m.stateWarnings(seq)...)
}

// stateWarnings are about what keeps this machine from booting what it should, and
// from removing what is old.
func (m *machine) stateWarnings(seq uint64) (out []string) {
	if m.facts.Booted == nil {
		return nil // an installation
	}
	next := m.facts.nextID()
	if list := m.facts.defects[next]; len(list) > 0 {
		worst := max(0, slices.IndexFunc(list, func(x defect) bool { return !x.Boots }))
		out = append(out, "the next boot: "+list[worst].of(next))
	}
	out = append(out, m.choiceWarnings(seq)...)
	if _, err := m.retiringKeep(); err != nil {
		out = append(out, "old deployments are not removed: "+firstLine(err))
	}
	return out
}
