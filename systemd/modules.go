package systemd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// neededModules are the file systems of a composefs root.
var neededModules = []string{"erofs", "overlay"}

// moduleIndexes are what modprobe reads to find a module by its name and to load what it depends on. They are taken
// over whole, because the initrd's own list only what it contains.
var moduleIndexes = []string{"modules.dep", "modules.dep.bin"}

// missingModules returns the files of the kernel modules that the initrd needs and lacks: the modules, what they
// depend on, and the indexes. dir is /usr/lib/modules/<version>; without it they are those of an earlier hook.
func missingModules(c *initrdContent, earlier []InitramfsFile, dir string) ([]InitramfsFile, error) {
	var missing []string
	for _, m := range neededModules {
		if !c.hasModule(m) {
			missing = append(missing, m)
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if dir == "" {
		if len(earlier) > 0 {
			return earlier, nil
		}
		return nil, &InitrdError{"kernel modules " + strings.Join(missing, " and "), "add them from the kernel's modules folder (--modules /usr/lib/modules/VERSION), or make the initrd with dracut --add-drivers \"erofs overlay\""}
	}
	version := filepath.Base(dir)
	if versions := c.kernelVersions(); len(versions) > 0 && !slices.Contains(versions, version) {
		return nil, &InitrdError{"kernel modules " + strings.Join(missing, " and "), fmt.Sprintf("the modules folder is of kernel %s, the initrd of %s", version, strings.Join(versions, ", "))}
	}
	return collectModules(c, dir, version, missing)
}

// hasModule looks for the module in the archive, and in the lists of what is built into the kernel.
func (c *initrdContent) hasModule(name string) bool {
	for path := range c.names {
		if isModule(path, name) {
			return true
		}
	}
	for _, text := range c.builtin {
		if listsModule(text, name) {
			return true
		}
	}
	return false
}

// isModule recognises the file of a module, compressed or not.
func isModule(path, name string) bool {
	base := path[strings.LastIndexByte(path, '/')+1:]
	base = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(base, ".xz"), ".zst"), ".gz")
	return base == name+".ko"
}

func listsModule(builtin, name string) bool {
	for line := range strings.Lines(builtin) {
		if isModule(strings.TrimSpace(line), name) {
			return true
		}
	}
	return false
}

// kernelVersions are the names of the modules folders in the archive.
func (c *initrdContent) kernelVersions() []string {
	var out []string
	for path := range c.names {
		rest, ok := strings.CutPrefix(strings.TrimPrefix(path, "usr/"), "lib/modules/")
		version, _, isBelow := strings.Cut(rest, "/")
		if ok && isBelow && !slices.Contains(out, version) {
			out = append(out, version)
		}
	}
	slices.Sort(out)
	return out
}

func collectModules(c *initrdContent, dir, version string, missing []string) ([]InitramfsFile, error) {
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	dep, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, m := range missing {
		if listsModule(string(builtin), m) {
			continue
		}
		found := false
		for line := range strings.Lines(string(dep)) {
			file, deps, _ := strings.Cut(line, ":")
			if isModule(file, m) {
				found = true
				paths = append(append(paths, file), strings.Fields(deps)...)
			}
		}
		if !found {
			return nil, &InitrdError{"kernel module " + m, "the modules folder " + dir + " has none either, and the kernel none built in"}
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	slices.Sort(paths)
	paths = append(slices.Compact(paths), moduleIndexes...)
	prefix := "/usr/lib/modules/" + version + "/"
	if c.has("/lib/modules/"+version) && !c.has("/usr/lib/modules/"+version) {
		prefix = "/lib/modules/" + version + "/" // an initrd in which /lib is a folder of its own
	}
	var out []InitramfsFile
	for _, p := range paths {
		if c.has(prefix+p) && !slices.Contains(moduleIndexes, p) {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, p))
		if err != nil {
			return nil, err
		}
		out = append(out, InitramfsFile{Path: prefix + p, Data: data})
	}
	return out, nil
}
