package deploy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/deploy/kargs"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// sharedVar is the /var of all deployments; varTarget is the link to it in the
// state directory of each.
const (
	sharedVar = "state/os/default/var"
	varTarget = "../../os/default/var"
)

// newEtc is a half-made /etc in a state directory.
const newEtc = ".etc.new"

// fillEtc makes the directory name below dir the /etc of a deployment.
type fillEtc func(ctx context.Context, dir *durable.Dir, name string) error

// makeState makes the state of a deployment at name, whole and durable. A
// leftover of the same name is replaced. The kernel command line is made of
// d.Kargs, the files of the image, and those of the new /etc.
func (m *machine) makeState(ctx context.Context, name string, d record.Deployment, image []kargs.File, etc fillEtc) error {
	parentName, base := splitName(name)
	parent, err := m.top.MkdirAll(parentName, stateDirPerm)
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // synced below
	temp := "." + base
	if err := parent.RemoveAll(temp); err != nil {
		return err
	}
	if err := parent.Mkdir(temp, stateDirPerm); err != nil {
		return err
	}
	dir, err := parent.Sub(temp)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	if err := etc(ctx, dir, "etc"); err != nil {
		return &etcError{"make /etc of deployment " + short(d.ID), err}
	}
	site, err := siteKargs(dir, "etc")
	if err != nil {
		return err
	}
	if d, err = m.withKargs(d, image, site); err != nil {
		return err
	}
	if err := dir.Symlink(varTarget, "var"); err != nil {
		return err
	}
	if err := writeRecords(dir, d); err != nil {
		return err
	}
	if err := dir.SyncFS(); err != nil {
		return err
	}
	if err := m.removeState(name); err != nil {
		return err
	}
	if err := parent.Rename(temp, parent, base); err != nil {
		return err
	}
	return parent.Sync()
}

func splitName(name string) (dir, base string) {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[:i], name[i+1:]
		}
	}
	return ".", name
}

// writeRecords writes what a deployment is: for cfsboot and, as the origin, for
// bootc.
func writeRecords(dir *durable.Dir, d record.Deployment) error {
	data, err := d.Encode()
	if err != nil {
		return err
	}
	origin, err := originOf(d)
	if err != nil {
		return err
	}
	if err := dir.WriteFile(record.OriginName(d.ID), origin, stateFilePerm); err != nil {
		return err
	}
	return dir.WriteFile(record.DeploymentName, data, stateFilePerm)
}

// originOf is the origin file of a deployment.
func originOf(d record.Deployment) ([]byte, error) {
	ref, err := record.ParseImageReference(d.Reference)
	if err != nil {
		return nil, err
	}
	return record.Origin{Image: ref, BootType: d.BootType, BootDigest: d.BootDigest, ManifestDigest: d.ManifestDigest}.Format()
}

// mergeEtc decides the /etc of an image from the running deployment's. Files
// that cannot be merged are a *ConflictError.
func (m *machine) mergeEtc(ctx context.Context, next *tree.Node) (*etcmerge.Result, error) {
	res, err := m.decideEtc(ctx, next)
	if err != nil {
		return nil, &etcError{"merge /etc", err}
	}
	return res, nil
}

func (m *machine) decideEtc(ctx context.Context, next *tree.Node) (*etcmerge.Result, error) {
	booted, err := fsverity.ParseHex(m.facts.BootedID())
	if err != nil {
		return nil, err
	}
	pristine, err := readImage(ctx, m.repo, booted)
	if err != nil {
		return nil, fmt.Errorf("read the running image: %w", err)
	}
	pristineEtc, err := findEtc(pristine)
	if err != nil {
		return nil, err
	}
	nextEtc, err := findEtc(next)
	if err != nil {
		return nil, err
	}
	live, err := m.scanEtc(ctx)
	if err != nil {
		return nil, err
	}
	res, err := etcmerge.Merge(pristineEtc, live, nextEtc)
	if err != nil {
		return nil, err
	}
	if len(res.Conflicts) > 0 {
		return nil, etcConflict(res.Conflicts)
	}
	return res, m.labelEtc(next, res)
}

func (m *machine) scanEtc(ctx context.Context) (*etcmerge.Live, error) {
	dir, err := m.liveEtc()
	if err != nil {
		return nil, err
	}
	m.onClose(dir.Close) // the result reads from it later
	return etcmerge.Scan(ctx, dir, m.repo.Algorithm())
}

// liveEtc opens the running deployment's /etc where it lies on the disk, so that
// nothing that is mounted below /etc counts.
func (m *machine) liveEtc() (*durable.Dir, error) {
	name := stateOf(m.facts.BootedID()) + "/etc"
	dir, err := m.top.Sub(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noState("running ", m.facts.BootedID(), name)
	}
	return dir, err
}

// noState says that a part of a deployment's state is gone.
func noState(role, id, name string) error {
	return refuse(CodeNoState, "the state of the %sdeployment %s is gone: there is no %q", role, short(id), name)
}

func findEtc(root *tree.Node) (*tree.Node, error) {
	etc, err := root.Find("etc")
	if err != nil {
		return nil, &RefusedError{Code: CodeImage, Detail: "the image has no /etc", Err: err}
	}
	return etc, nil
}

func etcConflict(conflicts []etcmerge.Conflict) error {
	e := &ConflictError{What: "files of /etc that cannot be merged"}
	conflicts = slices.SortedFunc(slices.Values(conflicts), func(a, b etcmerge.Conflict) int { return strings.Compare(a.Path, b.Path) })
	for _, c := range conflicts {
		e.Paths, e.Reasons = append(e.Paths, "/etc/"+c.Path), append(e.Reasons, c.Detail)
	}
	return e
}

// buildEtc writes a merged /etc and its report below dir.
func (m *machine) buildEtc(res *etcmerge.Result) fillEtc {
	return func(ctx context.Context, dir *durable.Dir, name string) error {
		if err := res.Build(ctx, dir, name, m.repo); err != nil {
			return err
		}
		return writeReport(dir, res)
	}
}

func writeReport(dir *durable.Dir, res *etcmerge.Result) error {
	report, err := res.Report.Encode()
	if err != nil {
		return err
	}
	return dir.WriteFile(etcmerge.ReportName, report, reportPerm)
}

// reportPerm: the report has names out of private directories, and digests by
// which a guess of a secret file could be proved.
const reportPerm = 0o600

// mergeTries is how often a merge is repeated because /etc changed meanwhile.
const mergeTries = 5

// stageEtc makes the state of a deployment with a merged /etc. res is a merge
// that was decided already; it is decided again if /etc has changed since.
func (m *machine) stageEtc(ctx context.Context, name string, d record.Deployment, img *image, res *etcmerge.Result) error {
	for n := 1; ; n++ {
		err := m.makeState(ctx, name, d, img.kargs, m.buildEtc(res))
		var changed *etcmerge.ChangedError
		if !errors.As(err, &changed) || n == mergeTries {
			return err
		}
		m.Logger.Info("/etc changed while it was merged", "error", err)
		if res, err = m.mergeEtc(ctx, img.tree); err != nil {
			return err
		}
	}
}

// refreshEtc merges the /etc of the deployment at name again if the running one
// has changed since it was made.
func (m *machine) refreshEtc(ctx context.Context, name, id string) error {
	err := m.remakeEtc(ctx, name, id)
	var etc *etcError
	if err != nil && !errors.As(err, &etc) {
		err = &etcError{"merge /etc of deployment " + short(id) + " again", err}
	}
	return err
}

func (m *machine) remakeEtc(ctx context.Context, name, id string) error {
	dir, err := m.top.Sub(name)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // synced below
	same, err := m.etcUnchanged(ctx, dir)
	if err != nil {
		return err
	}
	if same {
		return nil
	}
	boot, err := fsverity.ParseHex(id)
	if err != nil {
		return err
	}
	next, err := readImage(ctx, m.repo, boot)
	if err != nil {
		return err
	}
	var res *etcmerge.Result
	for n := 1; ; n++ {
		if res, err = m.mergeEtc(ctx, next); err != nil {
			return err
		}
		if err := dir.RemoveAll(newEtc); err != nil {
			return err
		}
		err = res.Build(ctx, dir, newEtc, m.repo)
		var changed *etcmerge.ChangedError
		if err == nil {
			break
		}
		if !errors.As(err, &changed) || n == mergeTries {
			return err
		}
	}
	d, err := m.refreshKargs(ctx, dir, newEtc, id)
	if err != nil {
		return err
	}
	// A killed run must find one whole /etc, and a report that is not newer.
	if err := dir.SyncFS(); err != nil {
		return err
	}
	if err := dir.Exchange(newEtc, dir, "etc"); err != nil {
		return err
	}
	if err := dir.Sync(); err != nil {
		return err
	}
	if err := writeRecords(dir, d); err != nil {
		return err
	}
	if err := writeReport(dir, res); err != nil {
		return err
	}
	return dir.RemoveAll(newEtc)
}

// etcUnchanged tells whether the live /etc is what it was at the last merge.
func (m *machine) etcUnchanged(ctx context.Context, dir *durable.Dir) (bool, error) {
	data, err := dir.ReadFile(etcmerge.ReportName, maxReport)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EFBIG) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	report, err := etcmerge.ParseReport(data)
	if err != nil {
		return false, nil //nolint:nilerr // an unreadable report means: merge again
	}
	live, err := m.liveEtc()
	if err != nil {
		return false, err
	}
	defer live.Close() //nolint:errcheck // read only
	now, err := etcmerge.Fingerprint(ctx, live)
	return now != "" && now == report.Fingerprint, err
}

const maxReport = 16 << 20
