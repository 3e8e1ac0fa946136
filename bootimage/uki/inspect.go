package uki

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// Names of payload sections.
const (
	sectionLinux     = ".linux"
	sectionOSRelease = ".osrel"
	sectionCmdline   = ".cmdline"
	sectionInitrd    = ".initrd"
	sectionMicrocode = ".ucode"
	sectionSplash    = ".splash"
	sectionUname     = ".uname"
	sectionSBAT      = ".sbat"
	sectionProfile   = ".profile"
)

// payload are the sections that the stub reads (systemd 257 to 262), and whether a
// profile may have several of them.
var payload = []struct {
	name    string
	several bool
}{
	{sectionLinux, false}, {sectionOSRelease, false}, {sectionCmdline, false}, {sectionInitrd, false}, {sectionMicrocode, false}, {sectionSplash, false},
	{".dtb", false}, {sectionUname, false}, {sectionSBAT, false}, {".pcrsig", false}, {".pcrpkey", false}, {sectionProfile, false},
	{".dtbauto", true}, {".hwids", false}, {".efifw", true},
}

// payloadKind tells whether the stub reads a section of this name, and whether a profile
// may have several.
func payloadKind(name string) (several, ok bool) {
	for _, p := range payload {
		if p.name == name {
			return p.several, true
		}
	}
	return false, false
}

// Limits of the texts in a UKI, in bytes. A kernel keeps 2047 bytes of its command line
// and loses the rest without a word; a release is at most 64 bytes (utsname).
const (
	maxText    = 64 << 10
	maxCmdline = 2047 // that is built
	maxUname   = 64
)

// blanks is the white space of these texts, other characters are part of a word.
const blanks = " \t\n\r"

// Image is a UKI as its stub reads it.
type Image struct {
	*PE
	// Profiles has at least one; the first is what starts if nobody chooses.
	Profiles []Profile
}

// Profile is one way to start a UKI: its own sections, and those that come before the
// first profile where it has none of that name.
type Profile struct {
	ID, Title string // of .profile; "" without one
	Sections  []int  // payload sections it uses, as ascending indexes of PE.Sections
	// Cmdline is the command line that is built in, without white space at its ends;
	// firmware and add-ons append to it. "" if there is none.
	Cmdline   string
	OSRelease bls.OSRelease // nil if there is none: systemd-boot does not show it
	Uname     string        // release of the kernel; "" if there is none
}

// Composefs returns the root images that the profile's command line names, in the order in
// which the initramfs tries them. A malformed composefs parameter is a *bls.KargError:
// the initramfs refuses to start with it, whatever else is there.
func (p Profile) Composefs() ([]bls.KargImage, error) { return bls.ParseKargs(p.Cmdline) }

// Inspect reads what a UKI says about itself. It has to have a kernel. Ambiguous files
// are refused: a payload section that comes twice in one profile, or that is longer in
// memory than in the file (the stub measures zeros that are not there); texts that are
// not UTF-8, have a NUL inside, or control characters that the stub turns into blanks
// and readers do not.
//
// Errors: *FormatError; else those of the file's reader.
func Inspect(pe *PE) (*Image, error) {
	groups, err := pe.group()
	if err != nil {
		return nil, err
	}
	img := &Image{PE: pe}
	t := texts{pe: pe, cmdline: map[int]string{}, osRelease: map[int]bls.OSRelease{}}
	profiles := groups[1:]
	if len(profiles) == 0 {
		profiles = []map[string][]int{{}}
	}
	for _, own := range profiles {
		p, err := t.profile(groups[0], own)
		if err != nil {
			return nil, err
		}
		img.Profiles = append(img.Profiles, p)
	}
	return img, nil
}

// group sorts the payload sections: first those before any profile, then those of each
// profile.
func (p *PE) group() ([]map[string][]int, error) {
	groups := []map[string][]int{{}}
	linux := false
	for i, s := range p.Sections {
		several, ok := payloadKind(s.Name)
		if !ok {
			continue
		}
		if s.VirtualSize > s.RawSize {
			return nil, &FormatError{p.header(i) + 8, "section " + s.Name, fmt.Sprintf("%d bytes in memory, but only %d in the file", s.VirtualSize, s.RawSize)}
		}
		if s.Name == sectionProfile {
			groups = append(groups, map[string][]int{})
		}
		linux = linux || s.Name == sectionLinux
		last := groups[len(groups)-1]
		if len(last[s.Name]) > 0 && !several {
			return nil, &FormatError{p.header(i), "section " + s.Name, "a second one in the same profile"}
		}
		last[s.Name] = append(last[s.Name], i)
	}
	if !linux {
		return nil, &FormatError{p.table, "section " + sectionLinux, "missing: this is not a unified kernel image"}
	}
	return groups, nil
}

// texts reads the texts of sections, each once.
type texts struct {
	pe        *PE
	cmdline   map[int]string
	osRelease map[int]bls.OSRelease
}

func (t *texts) profile(base, own map[string][]int) (Profile, error) {
	var (
		p   Profile
		err error
	)
	section := func(name string) int { // -1: none
		list := own[name]
		if len(list) == 0 {
			list = base[name]
		}
		p.Sections = append(p.Sections, list...)
		if len(list) == 0 {
			return -1
		}
		return list[0]
	}
	for _, kind := range payload {
		i := section(kind.name)
		if i < 0 {
			continue
		}
		var text string
		switch kind.name {
		case sectionCmdline:
			p.Cmdline, err = t.line(i)
		case sectionOSRelease:
			p.OSRelease, err = t.release(i)
		case sectionUname:
			text, err = t.pe.text(i, maxUname)
			p.Uname = strings.Trim(text, blanks)
		case sectionProfile:
			text, err = t.pe.text(i, maxText)
			fields := bls.ParseOSRelease([]byte(text))
			p.ID, p.Title = fields.Get("ID"), fields.Get("TITLE")
		}
		if err != nil {
			return Profile{}, err
		}
	}
	slices.Sort(p.Sections)
	return p, nil
}

func (t *texts) line(i int) (string, error) {
	if line, ok := t.cmdline[i]; ok {
		return line, nil
	}
	text, err := t.pe.text(i, maxText)
	t.cmdline[i] = strings.Trim(text, blanks)
	return t.cmdline[i], err
}

func (t *texts) release(i int) (bls.OSRelease, error) {
	if release, ok := t.osRelease[i]; ok {
		return release, nil
	}
	text, err := t.pe.text(i, maxText)
	t.osRelease[i] = bls.ParseOSRelease([]byte(text))
	return t.osRelease[i], err
}

// text reads a section of at most limit bytes.
func (p *PE) text(i int, limit int64) (string, error) {
	s := p.Sections[i]
	if s.Size() > limit {
		return "", &FormatError{p.header(i) + 8, "section " + s.Name, fmt.Sprintf("%d bytes, want at most %d", s.Size(), limit)}
	}
	b, err := p.read(int64(s.Offset), s.Size(), "section "+s.Name)
	if err != nil {
		return "", err
	}
	text := strings.TrimRight(string(b), "\x00")
	if at, detail := badText(text); at >= 0 {
		return "", &FormatError{int64(s.Offset) + int64(at), "section " + s.Name, detail}
	}
	return text, nil
}

// badText returns the place of the first byte that is not part of a plain text, -1 if
// all are. systemd's stub ends a text at a NUL and turns control characters into blanks,
// a reader that does not would see another text.
func badText(text string) (at int, detail string) {
	for i, r := range text {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(text[i:]); n == 1 {
				return i, "not UTF-8"
			}
		}
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f {
			return i, fmt.Sprintf("control character %#02x", r)
		}
	}
	return -1, ""
}
