package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// Config is cfsboot.toml.
type Config struct {
	// Keep is how many deployments stay beside the booted one, the staged one, the
	// default and the one that `rollback` goes to.
	Keep int `toml:"keep"`
}

const (
	// DefaultKeep is Config.Keep where no file says otherwise.
	DefaultKeep = 1
	maxKeep     = 100
	configName  = "cfsboot.toml"
	configLimit = 64 << 10
)

// configDirs are the places of the configuration, the strongest first (UAPI.6).
var configDirs = []string{"/etc/cfsboot", "/run/cfsboot", "/usr/local/lib/cfsboot", "/usr/lib/cfsboot"}

// ReadConfig reads the configuration below root: the strongest cfsboot.toml, then
// the drop-ins cfsboot.toml.d/*.toml of all places in the order of their names, of
// which a stronger one of the same name replaces a weaker, and an empty one or a
// link to /dev/null masks. Unknown keys are returned, so that a newer file does
// not stop an older program.
func ReadConfig(root string) (c Config, unknown []string, err error) {
	c = Config{Keep: DefaultKeep}
	var files []string
	for _, dir := range configDirs {
		name := filepath.Join(root, dir, configName)
		if _, err := os.Lstat(name); err == nil {
			files = append(files, name)
			break
		}
	}
	dropIns := map[string]string{}
	for _, dir := range slices.Backward(configDirs) {
		list, err := os.ReadDir(filepath.Join(root, dir, configName+".d"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return c, nil, err
		}
		for _, x := range list {
			if strings.HasSuffix(x.Name(), ".toml") {
				dropIns[x.Name()] = filepath.Join(root, dir, configName+".d", x.Name())
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropIns)) {
		files = append(files, dropIns[name])
	}
	for _, name := range files {
		more, err := c.read(name)
		if err != nil {
			return c, nil, err
		}
		unknown = append(unknown, more...)
	}
	return c, unknown, nil
}

func (c *Config) read(name string) (unknown []string, err error) {
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() { // /dev/null
		return nil, nil
	}
	if st.Size() > configLimit {
		return nil, fmt.Errorf("%s: %d bytes, want at most %d", name, st.Size(), configLimit)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	meta, err := toml.Decode(string(data), c)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if c.Keep < 0 || c.Keep > maxKeep {
		return nil, fmt.Errorf("%s: keep = %d, want 0 to %d", name, c.Keep, maxKeep)
	}
	for _, key := range meta.Undecoded() {
		unknown = append(unknown, name+": "+key.String())
	}
	return unknown, nil
}

// keepCount is how many other deployments stay on this machine.
func (m *machine) keepCount() (int, error) {
	c, unknown, err := ReadConfig(m.Root)
	for _, key := range unknown {
		m.Logger.Warn("unknown key in the configuration", "key", key)
	}
	if err != nil {
		return 0, &RefusedError{Code: CodeConfig, Err: err}
	}
	return c.Keep, nil
}

// readConfig tells what is wrong with the configuration.
func (r *statusReader) readConfig() {
	_, unknown, err := ReadConfig(r.Root)
	if err != nil {
		r.problem(ProblemConfig, "correct it: until then old deployments stay", err)
	}
	for _, key := range unknown {
		r.problem(ProblemConfig, "a word that is misspelled counts for nothing", fmt.Errorf("unknown key %s", key))
	}
}
