package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

// TestTwoRootDisks: a copy of the disk is in the machine. Commands work on the disk that runs; status and they say in one line that
// the next boot may take the other.
func TestTwoRootDisks(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	for dev, name := range map[string]string{"254:2": "vda2", "8:2": "sda2"} {
		w.writeRunning("run/udev/data/b"+dev, "E:ID_FS_UUID=4f68\nE:ID_FS_USAGE=filesystem\n")
		w.writeRunning("sys/devices/"+name+"/dev", dev+"\n")
		must(t, os.MkdirAll(filepath.Join(w.running, "sys/dev/block"), 0o755))
		must(t, os.Symlink("../../devices/"+name, filepath.Join(w.running, "sys/dev/block", dev)))
	}
	const want = "vda2 and sda2 have file systems with one UUID; vda2 holds the running system, and the next boot may take either"
	problems := w.status().Cfsboot.Problems
	if !slices.ContainsFunc(problems, func(p deploy.Problem) bool {
		return p.Code == deploy.ProblemTwins && p.Message == want && p.Hint != ""
	}) {
		t.Errorf("problems %+v", problems)
	}
	c, err := w.upgrade(release(t, "2"))
	must(t, err)
	if !slices.Equal(c.Warnings, []string{want}) {
		t.Errorf("warnings %q", c.Warnings)
	}
	must(t, settled(w.finalize()))
	w.boot()
}
