package record

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

const (
	entryPrefix = "cfsboot_"
	entrySuffix = ".conf"
	seqDigits   = 10

	// MaxEntrySeq is the largest sequence number that keeps the width of names.
	MaxEntrySeq = 9999999999

	// DefaultTries is how often the loader starts a new entry before it falls
	// back to an older one.
	DefaultTries = 3

	maxToken = 32
)

// EntryName is the name of a boot entry of cfsboot:
//
//	cfsboot_<token>-<sequence, 10 digits>[+<left>[-<done>]].conf
//
// The loader and systemd-bless-boot change the counter; token and sequence
// number are the entry's identity.
type EntryName struct {
	Token   string // lower-case letters, digits, '.', '_' and '-', 1 to 32 bytes
	Seq     uint64 // 1 to MaxEntrySeq
	Counter bls.Counter
}

// ParseEntryName reads a file name from loader/entries. ok is false for names
// that are not ours. The case of letters does not matter, as FAT may change it.
func ParseEntryName(name string) (n EntryName, ok bool) {
	stem, counter, ok := bls.SplitCounter(name, entrySuffix)
	if !ok {
		return EntryName{}, false
	}
	rest, ok := strings.CutPrefix(strings.ToLower(stem), entryPrefix)
	if !ok {
		return EntryName{}, false
	}
	at := strings.LastIndexByte(rest, '-')
	if at < 0 {
		return EntryName{}, false
	}
	seq, ok := parseSeq(rest[at+1:])
	if !ok || !ValidToken(rest[:at]) {
		return EntryName{}, false
	}
	return EntryName{Token: rest[:at], Seq: seq, Counter: counter}, true
}

// String is the file name. It is only meaningful for a valid token and
// sequence number.
func (n EntryName) String() string {
	return fmt.Sprintf("%s%s-%0*d%s%s", entryPrefix, n.Token, seqDigits, n.Seq, n.Counter, entrySuffix)
}

// ValidToken tells whether s may stand in entry names.
func ValidToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// parseSeq reads a sequence number of exactly 10 digits, not 0.
func parseSeq(s string) (uint64, bool) {
	if len(s) != seqDigits {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	seq, err := strconv.ParseUint(s, 10, 64)
	return seq, err == nil && seq > 0
}

// EntrySpec is what a boot entry of a kernel and initrd deployment says.
type EntrySpec struct {
	Token     string
	Seq       uint64
	Title     string // for people; "" becomes "Linux"
	OSVersion string // may be ""
	Linux     string // path on the boot partition, with leading slash
	Initrd    string
	Options   bls.Cmdline
}

// NewEntry composes a Type 1 entry. All entries of one installation share a
// sort-key and start their version with the sequence number, so that the
// newest one is the default whatever the OS versions are. The key linux stands
// last, so that the loader ignores every shorter beginning of the file. Errors
// are *FormatError.
func NewEntry(s EntrySpec) (bls.Entry, error) {
	fail := func(field, format string, args ...any) (bls.Entry, error) {
		return bls.Entry{}, &FormatError{"boot entry", field, fmt.Sprintf(format, args...)}
	}
	switch {
	case !ValidToken(s.Token):
		return fail("token", "%q, want 1 to %d of a-z 0-9 . _ -", s.Token, maxToken)
	case s.Seq == 0 || s.Seq > MaxEntrySeq:
		return fail("sequence", "%d, want 1 to %d", s.Seq, uint64(MaxEntrySeq))
	case !strings.HasPrefix(s.Linux, "/"):
		return fail("linux", "%q, want an absolute path", s.Linux)
	case !strings.HasPrefix(s.Initrd, "/"):
		return fail("initrd", "%q, want an absolute path", s.Initrd)
	}
	e := bls.Entry{Fields: []bls.Field{
		{Key: "title", Value: cleanTitle(s.Title)},
		{Key: "version", Value: EntryVersion(s.Seq, s.OSVersion)},
		{Key: "sort-key", Value: SortKey(s.Token)},
	}}
	e.SetOptions(s.Options)
	e.Set("initrd", s.Initrd)
	e.Set("linux", s.Linux) // last: without it the loader ignores a torn file
	if _, err := e.Format(); err != nil {
		return fail("", "%v", err)
	}
	return e, nil
}

// SortKey is the sort-key that all entries with this token share.
func SortKey(token string) string { return "cfsboot-" + token }

// EntryVersion is the version of an entry: the padded sequence number, which
// alone decides the order, then for people the OS version, in which bytes that
// version comparison does not know become '_'.
func EntryVersion(seq uint64, osVersion string) string {
	v := fmt.Sprintf("%0*d", seqDigits, seq)
	clean := strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-.~^+_", r) {
			return r
		}
		return '_'
	}, osVersion)
	if clean == "" {
		return v
	}
	return v + "." + clean
}

// cleanTitle makes a text that stays one line of a menu.
func cleanTitle(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	s = strings.Join(strings.Fields(s), " ")
	if s == "" {
		return "Linux"
	}
	const maxTitle = 200 // bytes, keeps an entry below one cluster
	if len(s) > maxTitle {
		s = strings.TrimSpace(strings.ToValidUTF8(s[:maxTitle], ""))
	}
	return s
}
