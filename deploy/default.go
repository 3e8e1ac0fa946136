package deploy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/efivar"
)

// nextID is the deployment that the next boot starts, as far as the boot entries
// of this installation decide it: that of the first one in the menu, whatever the
// journal has armed last. "": that entry is not what was made, or there is none.
// What fails or goes does not count. A running deployment on its last try, which
// the menu shows last, is the default until it is known how that ends.
func (f Facts) nextID() string {
	newest := f.State.Newest()
	if !f.EntriesRead {
		if newest != nil {
			return newest.Deployment
		}
		return f.BootedID()
	}
	if newest != nil && newest.Deployment == f.BootedID() && f.whole(*newest) && f.EntryOf(newest.Seq).Name.Counter.Bad() {
		return newest.Deployment
	}
	for i := range f.Entries {
		e := &f.Entries[i]
		if !f.ours(*e) || fileOfTorn(e) != "" {
			continue
		}
		a := f.State.Entry(e.Name.Seq)
		switch {
		case a == nil:
			return e.ImageID()
		case a.Failed || a.Retiring:
			continue
		case isEntryOf(e, a.Deployment, a.BootDigest):
			return a.Deployment
		}
		return ""
	}
	return ""
}

// entryID is the deployment that an entry starts, "" if it is not of this
// installation.
func (f Facts) entryID(e *esp.Entry) string {
	if !f.ours(*e) {
		return ""
	}
	return e.ImageID()
}

// firstOwn is where the first entry of this installation stands in the menu, -1:
// there is none.
func firstOwn(f Facts, menu []esp.Entry) int {
	return slices.IndexFunc(menu, func(e esp.Entry) bool { return f.ours(e) && fileOfTorn(&e) == "" })
}

// choiceProblems tells what makes the loader start another entry than the first one
// of this installation, or may do so. menu are the entries as the loader sorts them.
func choiceProblems(f Facts, menu []esp.Entry, choices []esp.Choice) (out []Problem) {
	chosen, by := esp.Choose(menu, choices)
	first := slices.IndexFunc(menu, func(e esp.Entry) bool { return fileOfTorn(&e) == "" })
	if chosen == nil && first >= 0 && !f.ours(menu[first]) {
		out = append(out, Problem{ProblemForeign, fmt.Sprintf("boot entry %q, which is not of this installation, stands first in the menu", menu[first].File), ""})
	}
	own := firstOwn(f, menu)
	if own < 0 {
		return out
	}
	for _, c := range choices {
		p := Problem{Code: ProblemLoaderDefault, Hint: choiceHint(c)}
		once := ""
		if c.Once {
			once = ", once"
		}
		switch {
		case chosen == nil || c != by:
			p.Message = fmt.Sprintf("%s is %q, which is no boot entry here: if the loader finds one elsewhere it starts that%s", c.By, clipPattern(c.Pattern), once)
		case chosen == &menu[own]:
			return out
		default:
			p.Message = fmt.Sprintf("%s is %q, so the loader starts boot entry %q%s, and not deployment %s", c.By, clipPattern(c.Pattern), chosen.File, once, short(menu[own].ImageID()))
		}
		if out = append(out, p); chosen != nil && c == by {
			break
		}
	}
	return out
}

// maxShownPattern is how many bytes of a pattern a message has.
const maxShownPattern = 128

func clipPattern(s string) string {
	if len(s) <= maxShownPattern {
		return s
	}
	return strings.ToValidUTF8(s[:maxShownPattern], "") + "…"
}

func choiceHint(c esp.Choice) string {
	name, _, _ := strings.Cut(c.By, " ")
	for variable, verb := range map[string]string{efivar.LoaderEntryOneShot: "set-oneshot", efivar.LoaderEntryDefault: "set-default", efivar.LoaderEntryPreferred: "set-preferred"} {
		if name == variable {
			return fmt.Sprintf("`bootctl %s \"\"` takes it back", verb)
		}
	}
	return "remove the line from " + esp.LoaderConf + " on the boot partition"
}

// choiceWarnings are choiceProblems for a command after which the loader should
// start entry number seq, which may not be there yet.
func (m *machine) choiceWarnings(seq uint64) (out []string) {
	choices, err := m.esp.Choices(m.Vars, m.esp.Loaders())
	if err != nil {
		out = append(out, firstLine(err)+": what the boot loader starts is not known")
	}
	menu := m.facts.Entries
	if m.facts.EntryOf(seq) == nil && seq > 0 {
		name := record.EntryName{Token: m.facts.State.Token, Seq: seq}
		id := ""
		if st := m.facts.State.Staged; st != nil {
			id = st.Deployment
		}
		next := esp.Entry{File: name.String(), Ours: true, Name: name, Entry: bls.Entry{Fields: []bls.Field{
			{Key: "options", Value: "composefs=" + id}, {Key: "linux", Value: "/"},
		}}}
		menu = slices.Insert(slices.Clone(menu), max(0, firstOwn(m.facts, menu)), next)
	}
	for _, p := range choiceProblems(m.facts, menu, choices) {
		if p.Hint != "" {
			p.Message += "; " + p.Hint
		}
		out = append(out, p.Message)
	}
	return out
}
