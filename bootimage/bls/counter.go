package bls

import (
	"cmp"
	"strconv"
	"strings"
)

// Counter is the boot counter in the name of an entry (UAPI.1, "Boot
// counting").
type Counter struct {
	Present bool // false: the entry is not counted (any more), it is good
	Left    uint // tries left; 0 is bad
	Done    uint // tries done
}

// Bad tells whether the tries are used up. The loader sorts such an entry last.
func (c Counter) Bad() bool { return c.Present && c.Left == 0 }

// String is the part that stands between prefix and suffix of the name, for
// example "+3-0", or "" if there is no counter.
func (c Counter) String() string {
	if !c.Present {
		return ""
	}
	return "+" + strconv.FormatUint(uint64(c.Left), 10) + "-" + strconv.FormatUint(uint64(c.Done), 10)
}

// SplitCounter splits a file name that ends with suffix (".conf", ".efi"; case
// does not matter) into the part before the counter and the counter. The last
// '+' starts the counter, DONE may be missing. What does not follow the grammar
// is no counter and stays in prefix, as systemd-boot does it. ok is false if
// the name does not end with suffix.
func SplitCounter(name, suffix string) (prefix string, c Counter, ok bool) {
	n := len(name) - len(suffix)
	if n < 0 || !strings.EqualFold(name[n:], suffix) {
		return name, Counter{}, false
	}
	stem := name[:n]
	plus := strings.LastIndexByte(stem, '+')
	if plus < 0 {
		return stem, Counter{}, true
	}
	left, done, hasDone := strings.Cut(stem[plus+1:], "-")
	c = Counter{Present: true}
	if c.Left, ok = parseCount(left); !ok {
		return stem, Counter{}, true
	}
	if hasDone {
		if c.Done, ok = parseCount(done); !ok {
			return stem, Counter{}, true
		}
	}
	return stem[:plus], c, true
}

// parseCount reads unsigned decimal digits only: no sign, no blank.
func parseCount(s string) (uint, bool) {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return 0, false
		}
	}
	n, err := strconv.ParseUint(s, 10, 32)
	return uint(n), err == nil
}

// MenuItem is what systemd-boot sorts entries by.
type MenuItem struct {
	ID        string // file name without counter, with suffix
	SortKey   string
	MachineID string
	Version   string
	Counter   Counter
}

// MenuItemOf gives the sort fields of the Type 1 entry e in file name, and
// false if the loader would not list a file of that name.
func MenuItemOf(name string, e Entry) (MenuItem, bool) {
	prefix, counter, ok := SplitCounter(name, ".conf")
	if !ok || strings.HasPrefix(name, ".") || strings.HasPrefix(strings.ToLower(name), "auto-") {
		return MenuItem{}, false
	}
	return MenuItem{
		ID:        strings.ToLower(prefix + ".conf"),
		SortKey:   e.Get("sort-key"),
		MachineID: e.Get("machine-id"),
		Version:   e.Get("version"),
		Counter:   counter,
	}, true
}

// CompareMenu is the order of systemd-boot's menu: negative if a stands before
// b. The first item of the order is what the loader starts unless a variable or
// loader.conf names another. Source: boot.md 4.2.
func CompareMenu(a, b MenuItem) int {
	return cmp.Or(
		compareBool(a.Counter.Bad(), b.Counter.Bad()),
		compareBool(a.SortKey == "", b.SortKey == ""),
		compareSortKey(a, b),
		-CompareVersions(a.ID, b.ID),
		compareTries(a.Counter, b.Counter),
	)
}

func compareSortKey(a, b MenuItem) int {
	if a.SortKey == "" || b.SortKey == "" {
		return 0
	}
	return cmp.Or(
		cmp.Compare(a.SortKey, b.SortKey),
		cmp.Compare(a.MachineID, b.MachineID),
		-CompareVersions(a.Version, b.Version),
	)
}

// compareTries puts more tries left first, then fewer tries done. An entry
// without counter counts as one with all tries left.
func compareTries(a, b Counter) int {
	left := func(c Counter) uint64 {
		if !c.Present {
			return 1 << 32
		}
		return uint64(c.Left)
	}
	return cmp.Or(-cmp.Compare(left(a), left(b)), cmp.Compare(a.Done, b.Done))
}

// compareBool puts false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
