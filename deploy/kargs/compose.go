package kargs

import (
	"path"
	"slices"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

// Input is what the kernel command line of a deployment is made of.
type Input struct {
	Composefs    string        // the parameter that selects the boot image
	Base         []record.Karg // sources cfsboot, install and local, without composefs parameters
	Image, Site  []File
	Architecture string // of the image, as OCI spells it
}

// Compose returns the arguments of a deployment with their sources, in the order
// of the line: cfsboot's with the composefs parameter last, the image's, those of
// the installation and of local changes, the site's. Unless one of them says what
// follows a panic, a reboot does. For the kernel and for
// systemd the last one of a name counts, so the site has the last word. Errors
// are *FormatError; a file that is masked is not looked at.
func Compose(in Input) ([]record.Karg, error) {
	var own, given, image, site []record.Karg
	for _, k := range in.Base {
		switch {
		case k == rebootOnPanic: // decided anew
		case k.Source == record.KargCfsboot:
			own = append(own, k)
		default:
			given = append(given, k)
		}
	}
	for _, f := range Select(in.Image, in.Site) {
		c, err := Parse(f.Path, f.Data)
		if err != nil {
			return nil, err
		}
		if !c.Applies(in.Architecture) {
			continue
		}
		source, to := record.KargImage, &image
		if path.Dir(f.Path) == SiteDir {
			source, to = record.KargSite, &site
		}
		for _, token := range c.Kargs {
			*to = append(*to, record.Karg{Argument: token, Source: source, File: f.Path})
		}
	}
	if !slices.ContainsFunc(slices.Concat(own, image, given, site), isPanic) {
		own = append(own, rebootOnPanic)
	}
	own = append(own, record.Karg{Argument: in.Composefs, Source: record.KargCfsboot})
	return slices.Concat(own, image, given, site), nil
}

// rebootOnPanic makes a kernel that panics reboot, after as many seconds as somebody
// needs to read the console. Otherwise it stops, and no further try of its entry is
// counted (boot-failure.md).
var rebootOnPanic = record.Karg{Argument: "panic=30", Source: record.KargCfsboot}

func isPanic(k record.Karg) bool {
	key, _, _ := bls.SplitToken(k.Argument)
	return key == "panic"
}

// Line is the kernel command line of a list of arguments. An argument that
// stands there again, to the letter, counts once, at its last place.
func Line(list []record.Karg) bls.Cmdline {
	line := make(bls.Cmdline, 0, len(list))
	for _, k := range Effective(list) {
		line = append(line, k.Argument)
	}
	return line
}

// Effective leaves out what stands in the list again.
func Effective(list []record.Karg) []record.Karg {
	var out []record.Karg
	for i, k := range list {
		if !slices.ContainsFunc(list[i+1:], func(x record.Karg) bool { return x.Argument == k.Argument }) {
			out = append(out, k)
		}
	}
	return out
}

// Base finds what the next release takes over. recorded is what the running
// deployment was made with, nil if nobody wrote that down; current is its boot
// entry now, which a person may have changed: what is missing there goes, what is
// new stays as a local argument. Arguments of image and site are left to their
// files.
func Base(recorded []record.Karg, current bls.Cmdline) []record.Karg {
	var out []record.Karg
	for _, k := range Sources(recorded, current) {
		if k.Source != record.KargImage && k.Source != record.KargSite && !isComposefs(k.Argument) {
			out = append(out, k)
		}
	}
	return out
}

// Sources tells where the arguments of a boot entry come from, by what was
// recorded: the recorded ones that stand in the entry, in their order, then the
// others, which are local. Without a record everything is of the installation but
// what cfsboot writes.
func Sources(recorded []record.Karg, current bls.Cmdline) []record.Karg {
	var out []record.Karg
	for _, k := range recorded {
		if slices.Contains(current, k.Argument) {
			out = append(out, k)
		}
	}
	for _, token := range current {
		if slices.ContainsFunc(recorded, func(k record.Karg) bool { return k.Argument == token }) {
			continue
		}
		k := record.Karg{Argument: token, Source: record.KargLocal}
		switch key, _, _ := bls.SplitToken(token); {
		case isComposefs(token):
			k.Source = record.KargCfsboot
		case len(recorded) > 0:
		case key == "root" || token == "rw":
			k.Source = record.KargCfsboot
		default:
			k.Source = record.KargInstall
		}
		out = append(out, k)
	}
	return out
}

// Explain gives the source of each argument of a boot entry, in its order.
func Explain(recorded []record.Karg, current bls.Cmdline) []record.Karg {
	sources := Sources(recorded, current)
	out := make([]record.Karg, 0, len(current))
	for _, token := range current {
		for _, k := range slices.Backward(sources) { // of equal ones the last counts
			if k.Argument == token {
				out = append(out, k)
				break
			}
		}
	}
	return out
}

func isComposefs(token string) bool {
	key, _, hasValue := bls.SplitToken(token)
	return hasValue && (key == "composefs" || key == "composefs.digest")
}
