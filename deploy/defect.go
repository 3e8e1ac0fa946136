package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// defect is something that a deployment lacks. Only what is cheap is looked at:
// names, types and sizes, no content.
type defect struct {
	Code   string // ProblemDeployment, ProblemState, ProblemImage or ProblemPayload
	Detail string // "its … is gone"
	Boots  bool   // the initramfs starts the deployment all the same
}

// of says so of a deployment.
func (x defect) of(id string) string {
	if x.Boots {
		return fmt.Sprintf("deployment %s boots, but `cfsboot rollback` cannot go there: %s", short(id), x.Detail)
	}
	return fmt.Sprintf("deployment %s cannot boot: %s", short(id), x.Detail)
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
		if images {
			list = append(list, imageDefects(top, id)...)
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
			out[id] = append(out[id], defect{Code: ProblemPayload, Detail: strings.Join(all, "; ")})
		}
	}
}

// imageDefects looks for the image of a deployment as the initramfs does: by its
// name, and if that leads nowhere, for the object.
func imageDefects(top *durable.Dir, id string) []defect {
	err := top.Leads(repoDir+"/images/"+id, false)
	if !isGone(err) && !errors.Is(err, unix.EXDEV) {
		return nil
	}
	if d, bad := fsverity.ParseHex(id); bad == nil && errors.Is(err, fs.ErrNotExist) {
		if _, err := top.Lstat(repoDir + "/objects/" + d.ObjectPath()); !isGone(err) {
			return []defect{{ProblemImage, "its image has no name in the repository", true}}
		}
	}
	return []defect{{Code: ProblemImage, Detail: "its image is not in the repository"}}
}

// stateDefects looks at the state of a deployment as the initramfs does, and at the
// record, which that does not read.
func stateDefects(top *durable.Dir, id string, recorded bool) (out []defect) {
	name := stateOf(id)
	if _, err := top.Lstat(name); isGone(err) {
		return []defect{{Code: ProblemState, Detail: "its state is gone"}}
	}
	if !recorded {
		out = append(out, defect{ProblemDeployment, "its record cannot be read", true})
	}
	if list, err := top.ReadSubDir(name + "/etc"); isGone(err) || err == nil && len(list) == 0 {
		out = append(out, defect{Code: ProblemState, Detail: "its /etc is gone or empty"})
	}
	// The link to the directory that all deployments share.
	if err := top.Leads(name+"/var", true); isGone(err) || errors.Is(err, unix.EXDEV) {
		out = append(out, defect{Code: ProblemState, Detail: "its /var is gone or leads to no directory"})
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

// broken tells whether a deployment lacks anything.
func (f Facts) broken(id string) bool { return len(f.defects[id]) > 0 }

// bootable tells whether nothing is missing that a deployment needs to boot.
func (f Facts) bootable(id string) bool {
	return !slices.ContainsFunc(f.defects[id], func(x defect) bool { return !x.Boots })
}

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
