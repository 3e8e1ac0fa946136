package esp

import (
	"io/fs"
	"path"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

// File is something to be placed: its path below the root of the ESP, with
// slashes, and its size in bytes.
type File struct {
	Path string
	Size int64
}

// FileCost returns the bytes that a file of size bytes takes on a FAT file
// system with clusters of cluster bytes. An empty file takes none.
// Source: lifecycle.md 6.6.
func FileCost(size, cluster int64) int64 {
	return (size + cluster - 1) / cluster * cluster
}

// NameCost returns the bytes that one name takes in its directory: 32 for the
// short entry and 32 for every 13 UTF-16 units of the long name. A name that is
// an upper-case 8.3 name by itself takes the short entry only.
func NameCost(name string) int64 {
	if isShortName(name) {
		return 32
	}
	units := int64(len(utf16.Encode([]rune(name))))
	return 32 * (1 + (units+12)/13)
}

// isShortName tells whether FAT stores name without a long name.
func isShortName(name string) bool {
	base, ext, dotted := strings.Cut(name, ".")
	if len(base) == 0 || len(base) > 8 || len(ext) > 3 || dotted && ext == "" {
		return false
	}
	for _, c := range base + ext {
		if (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// Cost returns an upper bound of the bytes that placing files takes: their
// clusters, one cluster for every directory that is not in existing, and the
// growth of the directories, rounded up to clusters for each. existing tells
// whether a directory is there already; nil means none but the root is.
func Cost(files []File, cluster int64, existing func(dir string) bool) int64 {
	var sum int64
	grown := map[string]int64{} // directory -> bytes of new names
	made := map[string]bool{}
	for _, f := range files {
		sum += FileCost(f.Size, cluster)
		grown[path.Dir(f.Path)] += NameCost(path.Base(f.Path))
		for d := path.Dir(f.Path); d != "." && d != "/" && !made[d] && (existing == nil || !existing(d)); d = path.Dir(d) {
			made[d] = true
			grown[d] += 64 // "." and ".."
			grown[path.Dir(d)] += NameCost(path.Base(d))
		}
	}
	for _, bytes := range grown {
		sum += FileCost(bytes, cluster)
	}
	return sum
}

// minReserve is kept free for the firmware and for a newer boot loader.
const minReserve = 4 << 20

// Reserve returns the bytes of a file system of total bytes that cfsboot never
// plans to use: 1 percent, at least 4 MiB. On a small ESP the reserve is at
// most an eighth of it, so that a 32 MiB one remains usable.
func Reserve(total int64) int64 {
	return min(max(total/100, minReserve), total/8)
}

// Space is the room on the partition, in bytes.
type Space struct {
	Free, Total, Cluster int64
}

// Space asks the file system.
func (e *ESP) Space() (Space, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(e.dir.Fd(), &st); err != nil {
		return Space{}, &fs.PathError{Op: "statfs", Path: e.dir.Path(), Err: err}
	}
	size := st.Bsize                                                                                // on vfat the cluster
	return Space{Free: int64(st.Bavail) * size, Total: int64(st.Blocks) * size, Cluster: size}, nil //nolint:gosec // below 2^63 on any real file system
}

// NeedFor returns the bytes that have to be free to place the files, without
// those that are there with the right size, and one entry of a cluster.
func (e *ESP) NeedFor(digest string, files []Sum, cluster int64) int64 {
	var missing []File
	for _, f := range files {
		if st, err := e.dir.Lstat(Path(digest, f.Name)); err == nil && st.Size == f.Size {
			continue
		}
		missing = append(missing, File{Path(digest, f.Name), f.Size})
	}
	missing = append(missing, File{EntryDir + "/" + strings.Repeat("x", 64), cluster})
	return Cost(missing, cluster, func(dir string) bool {
		ok, err := e.dir.Exists(dir)
		return err == nil && ok
	})
}

// NeedForFiles returns the bytes that have to be free for Ensure to place files
// that are not there yet.
func (e *ESP) NeedForFiles(files []Sum, cluster int64) int64 {
	var missing []File
	for _, f := range files {
		if ok, err := e.dir.Exists(f.Name); err != nil || !ok {
			missing = append(missing, File{f.Name, f.Size})
		}
	}
	return Cost(missing, cluster, func(dir string) bool {
		ok, err := e.dir.Exists(dir)
		return err == nil && ok
	})
}
