package systemd

import (
	"errors"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// PstoreText is the last messages of a kernel that died, as it left them in the
// machine's non-volatile memory.
type PstoreText struct {
	Time  time.Time // of its newest part; systemd-pstore.service changes it to that of the boot in which it runs
	Lines []string  // oldest first
}

// pstoreDirs are where the texts lie: as the kernel shows them, and where
// systemd-pstore.service moves them to.
var pstoreDirs = []string{"sys/fs/pstore", "var/lib/systemd/pstore"}

const (
	maxPstoreFiles = 200
	maxPstoreFile  = 256 << 10

	// pstoreWhole is the file that systemd-pstore.service puts together of the parts
	// that lie beside it.
	pstoreWhole = "dmesg.txt"
)

// ReadPstore reads what kernels left below root, newest first. The error tells what
// could not be read.
func ReadPstore(root string) ([]PstoreText, error) {
	top, err := durable.OpenDir(root)
	if err != nil {
		return nil, err
	}
	defer top.Close() //nolint:errcheck // nothing was written
	var out []PstoreText
	var errs []error
	for _, name := range pstoreDirs {
		texts, err := readPstoreDir(top, name, 2)
		out, errs = append(out, texts...), append(errs, err)
	}
	slices.SortStableFunc(out, func(a, b PstoreText) int { return b.Time.Compare(a.Time) })
	return out, errors.Join(errs...)
}

// readPstoreDir reads the texts in a directory and those below it.
func readPstoreDir(top *durable.Dir, name string, depth int) ([]PstoreText, error) {
	list, err := top.ReadSubDir(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list = list[:min(len(list), maxPstoreFiles)]
	whole := slices.ContainsFunc(list, func(x durable.Entry) bool { return x.IsRegular() && x.Name == pstoreWhole })
	var out []PstoreText
	var errs []error
	texts := map[string]*PstoreText{}
	for _, x := range slices.Backward(list) { // the part with the highest number is the oldest
		path := name + "/" + x.Name
		if x.IsDir() && depth > 0 {
			below, err := readPstoreDir(top, path, depth-1)
			out, errs = append(out, below...), append(errs, err)
			continue
		}
		if !x.IsRegular() || !strings.HasPrefix(x.Name, "dmesg") || whole && x.Name != pstoreWhole {
			continue
		}
		st, err := top.Lstat(path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		data, err := top.ReadFile(path, maxPstoreFile)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		text := texts[pstoreGroup(x.Name)]
		if text == nil {
			text = &PstoreText{}
			texts[pstoreGroup(x.Name)] = text
		}
		if at := time.Unix(st.Mtim.Unix()).UTC(); at.After(text.Time) {
			text.Time = at
		}
		text.Lines = append(text.Lines, CleanLines(string(data))...)
	}
	for _, text := range texts {
		out = append(out, *text)
	}
	return out, errors.Join(errs...)
}

// pstoreGroup is the same for the files of one text. In the names that the EFI backend
// gives, the last three digits count the texts of one second, and the two before them
// the parts of a text (drivers/firmware/efi/efi-pstore.c).
func pstoreGroup(name string) string {
	if n := len(name); strings.HasPrefix(name, "dmesg-efi") && n > 15 {
		return name[:n-5] + "-" + name[n-3:]
	}
	return name
}

// CleanLines makes lines of a kernel's text that can be kept, without its priorities.
func CleanLines(text string) []string {
	var out []string
	for line := range strings.Lines(strings.ToValidUTF8(text, "?")) {
		line = strings.TrimRight(line, "\r\n")
		if len(line) > 3 && line[0] == '<' {
			if i := strings.IndexByte(line[:min(len(line), 6)], '>'); i > 0 {
				line = line[i+1:]
			}
		}
		out = append(out, line)
	}
	return out
}

// programLine is a message that a program has written into the kernel's log.
var programLine = regexp.MustCompile(`^\s*(\[[^\]]*\]\s*)*[^\s:\[\]]+\[[0-9]+\]: `)

// PanicLine is the line with which the kernel says why it stops, "" if there is
// none: the panic, and, where that is not the cause, what came before it. Lines of
// programs do not count.
func PanicLine(lines []string) string {
	cause := ""
	for _, line := range lines {
		if programLine.MatchString(line) {
			continue
		}
		text := strings.TrimSpace(line)
		for _, word := range []string{"BUG: ", "Oops: ", "Unable to mount root", "sysrq: Trigger a crash", "soft lockup"} {
			if cause == "" && strings.Contains(text, word) {
				cause = text
			}
		}
		if i := strings.Index(text, "Kernel panic - not syncing: "); i >= 0 {
			text = text[i:]
			if cause != "" && !strings.Contains(cause, "Kernel panic") {
				text += " (" + cause + ")"
			}
			return text
		}
	}
	return ""
}
