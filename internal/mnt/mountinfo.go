package mnt

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Info is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)), with the octal escapes undone.
type Info struct {
	ID, Parent   int
	Major, Minor uint32
	Root         string // directory of the file system that is the root of this mount
	Point        string // where it is mounted
	Options      string // of the mount, for example "ro,relatime"
	Type         string // of the file system, for example "overlay"
	Source       string // for example "composefs:<hex>"
	SuperOptions string // of the file system, for example "ro,lowerdir+=…,verity=require"
}

// ParseTable parses the text of a mountinfo file. Lines keep their order: a later one covers an earlier one.
func ParseTable(text []byte) ([]Info, error) {
	var out []Info
	for i, line := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		if line == "" {
			continue
		}
		info, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %d: %w", i+1, err)
		}
		out = append(out, info)
	}
	return out, nil
}

func parseLine(line string) (Info, error) {
	f := strings.Split(line, " ")
	sep := -1
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			sep = i
			break
		}
	}
	if sep < 0 || len(f) < sep+4 {
		return Info{}, fmt.Errorf("%q: want 6 fields, optional fields, \"-\" and 3 fields", line)
	}
	var info Info
	var err error
	if info.ID, err = strconv.Atoi(f[0]); err != nil {
		return Info{}, fmt.Errorf("mount ID: %w", err)
	}
	if info.Parent, err = strconv.Atoi(f[1]); err != nil {
		return Info{}, fmt.Errorf("parent ID: %w", err)
	}
	if info.Major, info.Minor, err = parseDevice(f[2]); err != nil {
		return Info{}, err
	}
	info.Root, info.Point, info.Options = unescape(f[3]), unescape(f[4]), f[5]
	info.Type, info.Source, info.SuperOptions = unescape(f[sep+1]), unescape(f[sep+2]), strings.Join(f[sep+3:], " ")
	return info, nil
}

func parseDevice(s string) (major, minor uint32, err error) {
	a, b, ok := strings.Cut(s, ":")
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("device %q: want MAJOR:MINOR", s)
	}
	return uint32(x), uint32(y), nil
}

// unescape undoes the kernel's octal escapes \040 \011 \012 \134 \043; anything else stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Table reads the mount table of the process.
func Table() ([]Info, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return ParseTable(text)
}

// Of returns the mount that the open file or directory f lies on. A mount that is not attached in this mount
// namespace is fs.ErrNotExist.
func Of(f *os.File) (Info, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return Info{}, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return Info{}, &FeatureError{Feature: "statx STATX_MNT_ID", Option: "Linux 5.8"}
	}
	table, err := Table()
	if err != nil {
		return Info{}, err
	}
	for _, info := range table {
		if uint64(info.ID) == st.Mnt_id {
			return info, nil
		}
	}
	return Info{}, &os.PathError{Op: "find mount of", Path: f.Name(), Err: unix.ENOENT}
}
