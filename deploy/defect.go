package deploy

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// defect is something without which a deployment cannot boot. Only what is cheap is
// looked at: names, types and sizes, no content.
type defect struct {
	Code   string // ProblemDeployment, ProblemState, ProblemImage or ProblemPayload
	Detail string // "its … is gone"
}

// findDefects looks in the root file system for what the deployments that have a boot
// entry need to boot. What cannot be looked at is no defect.
func findDefects(top *durable.Dir, f Facts) map[string][]defect {
	out := map[string][]defect{}
	images, err := top.Exists(repoDir + "/images") // without a repository that is told, not what it lacks
	images = images && err == nil
	for _, id := range f.State.Deployments() {
		if a := f.State.LatestOf(id); a == nil || a.Retiring {
			continue
		}
		_, recorded := f.Deployments[id]
		list := stateDefects(top, id, recorded)
		if _, err := top.Lstat(repoDir + "/images/" + id); images && isGone(err) {
			list = append(list, defect{ProblemImage, "its image is not in the repository"})
		}
		if len(list) > 0 {
			out[id] = list
		}
	}
	return out
}

// addPayloadDefects does so on the boot partition.
func addPayloadDefects(out map[string][]defect, part *esp.ESP, f Facts) {
	for _, id := range f.State.Deployments() {
		a := f.State.LatestOf(id)
		if a == nil || a.Retiring {
			continue
		}
		var all []string
		for _, err := range part.CheckSizes(a.BootDigest, payloadSizes(f.Deployments[id], a.BootDigest)) {
			all = append(all, err.Error())
		}
		if all != nil {
			out[id] = append(out[id], defect{ProblemPayload, strings.Join(all, "; ")})
		}
	}
}

// stateDefects looks at the state of a deployment as the initramfs does.
func stateDefects(top *durable.Dir, id string, recorded bool) (out []defect) {
	name := stateOf(id)
	if _, err := top.Lstat(name); isGone(err) {
		return []defect{{ProblemState, "its state is gone"}}
	}
	if !recorded {
		out = append(out, defect{ProblemDeployment, "its record cannot be read"})
	}
	if list, err := top.ReadSubDir(name + "/etc"); isGone(err) || err == nil && len(list) == 0 {
		out = append(out, defect{ProblemState, "its /etc is gone or empty"})
	}
	// The link to the directory that all deployments share.
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}
	fd, err := unix.Openat2(top.Fd(), name+"/var", &how)
	if err == nil {
		err = unix.Close(fd)
	}
	if isGone(err) || errors.Is(err, unix.EXDEV) {
		out = append(out, defect{ProblemState, "its /var is gone or leads to no directory"})
	}
	return out
}

// isGone tells a thing that is not there, or is of another type, from one that
// cannot be looked at.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// payloadSizes is what the files of a payload have to be, as far as the record of a
// deployment says.
func payloadSizes(d record.Deployment, digest string) []esp.Sum {
	if d.BootDigest == digest && len(d.BootFiles) > 0 {
		var out []esp.Sum
		for _, x := range d.BootFiles {
			out = append(out, esp.Sum{Name: x.Name, Size: x.Size})
		}
		return out
	}
	return []esp.Sum{{Name: payloadKernel, Size: esp.AnySize}, {Name: payloadInitrd, Size: esp.AnySize}}
}

// broken tells whether a deployment lacks something that it needs to boot.
func (f Facts) broken(id string) bool { return len(f.defects[id]) > 0 }

// rollbackTarget is what `rollback` without ID goes to: the newest other
// deployment that has booted well and lacks nothing; if each of them does, the
// newest, so that the command says what is wrong with it. nil: there is none.
func (f Facts) rollbackTarget() *record.ArmedEntry {
	s := f.State
	s.Entries = slices.DeleteFunc(slices.Clone(s.Entries), func(a record.ArmedEntry) bool { return f.broken(a.Deployment) })
	if r := s.Rollback(f.BootedID()); r != nil {
		return r
	}
	return f.State.Rollback(f.BootedID())
}
