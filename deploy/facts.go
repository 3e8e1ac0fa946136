package deploy

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// stagedDir holds the state of deployments that are not armed yet, one
// directory each; finalize moves it to record.StateDir.
const stagedDir = stateTop + "/staged"

const maxStateFile = 256 << 10

// Facts are what was found on a machine before anything is decided.
type Facts struct {
	Booted      *record.Booted               // nil: not booted by cfsboot's initramfs
	State       record.State                 // of the journal
	Deployments map[string]record.Deployment // by id: those with a readable deployment.json
	Entries     []esp.Entry                  // as the loader sorts them, foreign ones included
	EntriesRead bool                         // Entries is what the boot partition has
	Payloads    []string                     // boot digests that have a directory on the boot partition

	BootFailures []record.BootFailure // oldest first
	StagedGone   bool                 // the staged deployment has no state

	defects map[string][]defect // by deployment: what keeps it from booting; those with an entry only
}

// BootedID is the id of the running deployment, "" if cfsboot did not boot it.
func (f Facts) BootedID() string {
	if f.Booted == nil {
		return ""
	}
	return f.Booted.Digest
}

// ours tells whether the name of an entry is one of this installation.
func (f Facts) ours(e esp.Entry) bool { return e.Ours && e.Name.Token == f.State.Token }

// known is what the journal says about the file of an entry. nil: it is not in the
// journal, and perhaps not of this installation.
func (f Facts) known(e esp.Entry) *record.ArmedEntry {
	if !f.ours(e) {
		return nil
	}
	return f.State.Entry(e.Name.Seq)
}

// EntryOf finds the file of an entry by its sequence number, whatever its
// counter is by now. nil: there is none.
func (f Facts) EntryOf(seq uint64) *esp.Entry {
	for i := range f.Entries {
		if e := &f.Entries[i]; f.ours(*e) && e.Name.Seq == seq {
			return e
		}
	}
	return nil
}

// without is what the facts are when these deployments have lost their entries.
func (f Facts) without(ids []string) Facts {
	f.Entries = slices.DeleteFunc(slices.Clone(f.Entries), func(e esp.Entry) bool {
		a := f.known(e)
		return a != nil && slices.Contains(ids, a.Deployment)
	})
	f.State.Entries = slices.DeleteFunc(slices.Clone(f.State.Entries), func(a record.ArmedEntry) bool { return slices.Contains(ids, a.Deployment) })
	return f
}

// Startable tells whether a deployment runs or an entry on the boot partition
// starts it, or may start it, whatever the journal says.
func (f Facts) Startable(id string) bool {
	return id == f.BootedID() || slices.ContainsFunc(f.Entries, func(e esp.Entry) bool { return e.MayName(id) })
}

// DefaultID is the deployment that the first entry of the menu starts, which the
// loader shows. "" if that is not one of ours.
func (f Facts) DefaultID() string {
	for i := range f.Entries {
		if e := &f.Entries[i]; fileOfTorn(e) == "" {
			return f.entryID(e)
		}
	}
	return ""
}

// ReadBooted reads the record of the initramfs below root. Without one the
// error wraps fs.ErrNotExist.
func ReadBooted(root string) (*record.Booted, error) {
	data, err := os.ReadFile(Options{Root: root}.path(record.BootedPath))
	if err != nil {
		return nil, err
	}
	b, err := record.ParseBooted(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", record.BootedPath, err)
	}
	return &b, nil
}

// readDeployments reads the record of each deployment. The same id may be there
// twice: of the two records that of the staged deployment's transaction counts,
// wherever a killed finalize has left it, else that of the armed one.
func readDeployments(top *durable.Dir, s record.State) (map[string]record.Deployment, []error) {
	out := map[string]record.Deployment{}
	var problems []error
	for _, parent := range []string{record.StateDir, stagedDir} {
		list, err := top.ReadSubDir(parent)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			problems = append(problems, err)
			continue
		}
		for _, x := range list {
			if !x.IsDir() || !isID(x.Name) {
				continue
			}
			d, err := readDeployment(top, parent, x.Name)
			if err != nil {
				problems = append(problems, err)
				continue
			}
			if _, both := out[x.Name]; both && (s.Staged == nil || s.Staged.Deployment != d.ID || s.Staged.Transaction != d.Transaction) {
				continue
			}
			out[x.Name] = d
		}
	}
	return out, problems
}

// stagedGone tells whether the state of the staged deployment is neither where it
// was staged nor where finalize moves it. What cannot be looked at is not gone.
func stagedGone(top *durable.Dir, s record.State) bool {
	st := s.Staged
	if st == nil {
		return false
	}
	if ok, err := top.Exists(stagedOf(st.Deployment)); ok || err != nil {
		return false
	}
	d, err := readDeployment(top, record.StateDir, st.Deployment)
	return errors.Is(err, fs.ErrNotExist) || err == nil && d.Transaction != st.Transaction
}

func readDeployment(top *durable.Dir, parent, id string) (record.Deployment, error) {
	name := parent + "/" + id + "/" + record.DeploymentName
	data, err := top.ReadFile(name, maxStateFile)
	if err != nil {
		return record.Deployment{}, err
	}
	d, err := record.ParseDeployment(data)
	switch {
	case err != nil:
		return record.Deployment{}, fmt.Errorf("read %q: %w", name, err)
	case d.ID != id:
		return record.Deployment{}, fmt.Errorf("read %q: it is of deployment %s", name, d.ID)
	}
	return d, nil
}

// isID tells whether name is that of a deployment's directory.
func isID(name string) bool {
	return (len(name) == 64 || len(name) == 128) && !slices.ContainsFunc([]byte(name), func(c byte) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'f')
	})
}
