package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/bootlog"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/efivar"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// ReadStatus finds out what the machine is. It needs no privileges, takes no
// lock, writes nothing and does not fail: what it cannot read is in the
// document's list of problems. Of Options it uses Root, Sysroot, ESP, Vars,
// SELinux and Clock.
func ReadStatus(_ context.Context, o Options) Status {
	r := statusReader{Options: o.withDefaults()}
	r.in.Now = r.Clock.Now()
	r.readBooted()
	r.readConfig()
	r.readRoot()
	r.readTop()
	r.readUpdate()
	r.readSELinux()
	r.readLoader()
	if r.in.Booted != nil || r.in.Journal {
		r.readEntries()
	}
	return NewStatus(r.in)
}

type statusReader struct {
	Options
	in      StatusInput
	refused error // by whatever needs a journal: why there is none to be read
}

func (r *statusReader) problem(code, hint string, err error) {
	r.in.Problems = append(r.in.Problems, Problem{Code: code, Message: firstLine(err), Hint: hint})
}

func (r *statusReader) readBooted() {
	booted, err := ReadBooted(r.Root)
	switch {
	case err == nil:
		r.in.Booted, r.in.Twins = booted, mnt.Twins(r.Root, booted.Sysroot.Dev)
	case !errors.Is(err, fs.ErrNotExist):
		r.problem(ProblemBooted, hintRoot(err), err)
	}
}

// readRoot looks at the mount table, which is what the kernel knows.
func (r *statusReader) readRoot() {
	text, err := os.ReadFile(r.path("/proc/self/mountinfo"))
	if err != nil {
		r.problem(ProblemRootSource, "", err)
		return
	}
	table, err := mnt.ParseTable(text)
	if err != nil {
		r.problem(ProblemRootSource, "", err)
		return
	}
	root, err := rootOf(table)
	switch {
	case err == nil:
		r.in.Root = root
	case !errors.Is(err, errNotComposefs):
		r.problem(ProblemRootSource, "", err)
	}
}

// rootOf finds the composefs root in a mount table. The last mount of / is the
// one that is seen.
func rootOf(table []mnt.Info) (*RootStatus, error) {
	for _, m := range slices.Backward(table) {
		if m.Point != "/" {
			continue
		}
		digest, ok := sourceID(m.Source)
		if !ok || m.Type != "overlay" {
			return nil, errNotComposefs
		}
		s := &RootStatus{Source: m.Source, Digest: digest}
		for option := range strings.SplitSeq(m.SuperOptions, ",") {
			if value, ok := strings.CutPrefix(option, "verity="); ok {
				s.Verity = value
			}
		}
		return s, nil
	}
	return nil, errNotComposefs
}

// readTop reads journal and deployments.
func (r *statusReader) readTop() {
	top := r.Sysroot
	if top == nil {
		var err error
		if b := r.in.Booted; b != nil {
			if err := checkSysroot(r.path("/sysroot"), b); err != nil {
				r.problem(ProblemSysroot, "", err)
				r.refused = err
				return
			}
		}
		top, err = durable.OpenDir(r.path("/sysroot"))
		if errors.Is(err, fs.ErrNotExist) && r.in.Booted == nil {
			return
		}
		if err != nil {
			r.problem(ProblemSysroot, hintRoot(err), err)
			return
		}
		defer top.Close() //nolint:errcheck // nothing was written
	}
	j, err := bootlog.ReadJournal(top)
	switch {
	case err == nil:
		r.in.Journal, r.in.State, r.in.Recorded = true, j.State(), j.Time()
		for _, err := range j.Damaged() {
			r.problem(ProblemTornRecord, "", err)
		}
	case errors.Is(err, record.ErrNoJournal) && r.in.Booted == nil:
		return
	default:
		if b := r.in.Booted; b != nil {
			if r.refused = checkJournal(top, b); r.refused != nil {
				err = r.refused
			}
		}
		r.problem(ProblemJournal, hintRoot(err), err)
	}
	if st, err := top.Lstat(repoDir); err != nil {
		r.problem(ProblemRepository, hintRoot(err), err)
	} else if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		r.problem(ProblemRepository, "", fmt.Errorf("%q is not a directory", top.Path()+"/"+repoDir))
	}
	deployments, problems := readDeployments(top, r.in.State)
	r.in.Deployments, r.in.DeploymentsRead, r.in.StagedGone = deployments, true, stagedGone(top, r.in.State)
	for _, err := range problems {
		r.problem(ProblemDeployment, hintRoot(err), err)
	}
	r.in.defects = findDefects(top, r.in.Facts)
	r.readBootFailures(top)
}

// readUpdate reads what the last check has found. Without one, or if it cannot be
// read, nothing is known.
func (r *statusReader) readUpdate() {
	data, err := os.ReadFile(r.path(record.UpdatePath))
	if err != nil {
		return
	}
	if u, err := record.ParseUpdate(data); err == nil {
		r.in.Update = &u
	}
}

func (r *statusReader) readLoader() {
	info, err := r.Vars.Loader(efivar.LoaderInfo)
	if err == nil {
		r.in.Loader = info
	}
}

// readEntries lists the boot partition.
func (r *statusReader) readEntries() {
	dir := r.ESP
	if dir == nil {
		var err error
		if dir, err = r.openESP(); err != nil {
			r.problem(ProblemESP, hintRoot(err), err)
			return
		}
		defer dir.Close() //nolint:errcheck // nothing was written
	}
	entries, err := esp.New(dir).Entries()
	if err != nil {
		r.problem(ProblemESP, hintRoot(err), refuseDamaged(dir.Path(), err))
		return
	}
	r.in.Entries, r.in.EntriesRead = entries, true
	if r.in.defects != nil {
		addPayloadDefects(r.in.defects, esp.New(dir), r.in.Facts)
	}
	r.readLoaders(esp.New(dir))
}

// openESP opens the boot partition for reading where it is mounted, else mounts
// it privately, which takes root.
func (r *statusReader) openESP() (*durable.Dir, error) {
	rootDev := ""
	if r.in.Booted != nil {
		rootDev = r.in.Booted.Sysroot.Dev
	}
	if err := esp.CheckTwins(r.Root, rootDev); err != nil {
		r.problem(ProblemTwins, "detach the copy, or give it identifiers of its own", err)
	}
	list, err := r.bootPartitions(rootDev)
	if err != nil {
		return nil, err
	}
	readOnly := map[string]error{}
	dir, dev, err := chooseBoot(list, r.in.State, func(dev esp.Device) (*durable.Dir, error) {
		if dev.Dev == "" {
			return durable.OpenDir(dev.Path)
		}
		if path, ok := mountOf(r.path("/proc/self/mountinfo"), dev.Dev); ok {
			return durable.OpenDir(r.path(path))
		}
		dir, err := mountBoot(mountToLook, dev)
		if dir != nil || os.Geteuid() != 0 {
			return dir, err
		}
		if dir, err2 := mountBoot(mnt.ReadOnlyFAT, dev); err2 == nil {
			readOnly[dev.Dev] = err
			return dir, nil
		}
		return nil, err
	})
	if err == nil && readOnly[dev.Dev] != nil {
		r.problem(ProblemESP, "nothing can be changed until it can be written", readOnly[dev.Dev])
	}
	return dir, err
}

// mountToLook mounts a FAT file system for reading. It has to be shared with a
// program that writes to it at this moment, so only the mount is read-only, not the
// file system.
func mountToLook(device string) (*mnt.Mount, error) {
	m, err := mnt.FAT(device)
	if err != nil {
		return nil, err
	}
	if err := m.SetAttr(mnt.ReadOnly, 0); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// hintRoot tells a person without privileges that they are what is missing.
func hintRoot(err error) string {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return "run as root to see it"
	}
	return ""
}
