package esp

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/internal/efivar"
)

// LoaderConf is where the configuration of systemd-boot lies on the partition from
// which it was started.
const LoaderConf = "loader/loader.conf"

// firstPreferring is the version of systemd-boot that knows preferred entries.
const firstPreferring = 260

// Choice is something that tells the loader to start another entry than the first
// one of the menu. It counts if an entry matches.
type Choice struct {
	By      string // LoaderConf with the key, or the name of an EFI variable
	Pattern string // for ids of entries, see bls.MatchID
	Once    bool   // for one boot only
	NotBad  bool   // entries whose tries are used up do not match
}

// Choices lists what tells the loader which entry to start, the strongest first.
// Source: boot.md 4.2. copies are those of Loaders: without one on this partition,
// the loader reads another loader.conf. The error is that of a loader.conf that
// cannot be read; what the variables say is in the list all the same.
func (e *ESP) Choices(vars Vars, copies []Loader) ([]Choice, error) {
	text := func(name string) string {
		s, err := vars.Loader(name)
		if err != nil {
			return "" // as the loader takes it
		}
		return s
	}
	var conf bls.LoaderConf
	var err error
	if len(copies) > 0 {
		conf, err = e.loaderConf()
	}
	var out []Choice
	add := func(c Choice) bool {
		if strings.EqualFold(c.Pattern, "@saved") {
			if c.Pattern = text(efivar.LoaderEntryLastBooted); c.Pattern != "" {
				c.By += " (@saved)"
			}
		}
		if c.Pattern != "" {
			out = append(out, c)
		}
		return c.Pattern != ""
	}
	add(Choice{By: efivar.LoaderEntryOneShot, Pattern: text(efivar.LoaderEntryOneShot), Once: true})
	if prefers(copies) {
		if !add(Choice{By: efivar.LoaderEntryPreferred, Pattern: text(efivar.LoaderEntryPreferred), NotBad: true}) {
			add(Choice{By: LoaderConf + ", key preferred", Pattern: conf.Preferred, NotBad: true})
		}
	}
	add(Choice{By: efivar.LoaderEntryDefault, Pattern: text(efivar.LoaderEntryDefault)})
	add(Choice{By: LoaderConf + ", key default", Pattern: conf.Default})
	return out, err
}

// prefers tells whether a copy of the loader knows preferred entries.
func prefers(copies []Loader) bool {
	for _, l := range copies {
		if l.Product == SystemdBoot && l.Major() >= firstPreferring {
			return true
		}
	}
	return false
}

func (e *ESP) loaderConf() (bls.LoaderConf, error) {
	data, err := e.dir.ReadFile(LoaderConf, bls.MaxLoaderConf)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return bls.LoaderConf{}, nil
	case errors.Is(err, unix.EFBIG):
		return bls.LoaderConf{}, &bls.LoaderConfError{Detail: fmt.Sprintf("more than %d bytes", bls.MaxLoaderConf)}
	case err != nil:
		return bls.LoaderConf{}, err
	}
	return bls.ParseLoaderConf(data)
}

// Choose finds the entry that the loader starts because of a choice: the first of
// the menu that matches the first choice that anything matches. nil: it starts the
// first of the menu.
func Choose(menu []Entry, choices []Choice) (*Entry, Choice) {
	for _, c := range choices {
		for i := range menu {
			item, ok := menuItem(menu[i])
			if ok && !(c.NotBad && item.Counter.Bad()) && bls.MatchID(c.Pattern, item.ID) {
				return &menu[i], c
			}
		}
	}
	return nil, Choice{}
}
