package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/kargs"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// baseKargs are the kernel arguments that the next deployment takes over from the
// running one: what its entry says now, local changes included, without those of
// files.
func (m *machine) baseKargs() []record.Karg {
	booted := m.facts.BootedID()
	d := m.facts.Deployments[booted]
	options := bls.ParseCmdline(d.Options)
	if e := m.bootedEntry(); e != nil {
		options = e.Entry.Options()
	}
	return kargs.Base(d.Kargs, options)
}

// bootedEntry is the newest boot entry of the running deployment, nil if it cannot
// be read or starts something else by now.
func (m *machine) bootedEntry() *esp.Entry {
	booted := m.facts.BootedID()
	a := m.facts.State.LatestOf(booted)
	if a == nil {
		return nil
	}
	if e := m.facts.EntryOf(a.Seq); e != nil && e.Err == nil && e.ImageID() == booted {
		return e
	}
	return nil
}

// withKargs makes the kernel command line of a deployment from what d.Kargs
// says and from files.
func (m *machine) withKargs(d record.Deployment, image, site []kargs.File) (record.Deployment, error) {
	boot, err := fsverity.ParseHex(d.ID)
	if err != nil {
		return d, err
	}
	arch := d.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	d.Kargs, err = kargs.Compose(kargs.Input{Composefs: m.karg(boot), Base: d.Kargs, Image: image, Site: site, Architecture: arch})
	if err != nil {
		return d, refuseKargs(err)
	}
	d.Options = kargs.Line(d.Kargs).String()
	if n := len(d.Options); n > kargs.MaxLine {
		return d, refuse(CodeKarg, "kernel command line of deployment %s: %d bytes, the kernel takes %d", short(d.ID), n, kargs.MaxLine)
	}
	return d, checkOptions(d)
}

// checkKargs refuses an upgrade before anything is staged if its kernel arguments
// cannot be made of the files as they are now.
func (m *machine) checkKargs(d record.Deployment, img *image) error {
	site, err := m.liveKargs()
	if err != nil {
		return err
	}
	_, err = m.withKargs(d, img.kargs, site)
	return err
}

// checkInstallKargs does so for an installation, whose /etc is the image's.
func (m *machine) checkInstallKargs(d record.Deployment, img *image) error {
	site, err := imageKargs(img.tree, m.repo, kargs.SiteDir)
	if err != nil {
		return err
	}
	_, err = m.withKargs(d, img.kargs, site)
	return err
}

// refreshKargs returns the record in the state directory dir with the kernel
// arguments that go with the /etc called etc in it.
func (m *machine) refreshKargs(ctx context.Context, dir *durable.Dir, etc, id string) (record.Deployment, error) {
	data, err := dir.ReadFile(record.DeploymentName, maxStateFile)
	if err != nil {
		return record.Deployment{}, err
	}
	d, err := record.ParseDeployment(data)
	if err != nil {
		return d, fmt.Errorf("read %s of deployment %s: %w", record.DeploymentName, short(id), err)
	}
	site, err := siteKargs(dir, etc)
	if err != nil {
		return d, err
	}
	plain, err := fsverity.ParseHex(d.PlainID)
	if err != nil {
		return d, err
	}
	root, err := readImage(ctx, m.repo, plain)
	if err != nil {
		return d, err
	}
	image, err := imageKargs(root, m.repo, kargs.BootcDir, kargs.ImageDir)
	if err != nil {
		return d, err
	}
	d.Kargs = kargs.Base(d.Kargs, bls.ParseCmdline(d.Options))
	return m.withKargs(d, image, site)
}

// liveKargs reads and checks the files of the site in the running /etc.
func (m *machine) liveKargs() ([]kargs.File, error) {
	booted := m.facts.BootedID()
	state, err := m.top.Sub(stateOf(booted))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, noState("running ", booted, stateOf(booted))
	}
	if err != nil {
		return nil, err
	}
	if _, ok := m.facts.Deployments[booted]; !ok && m.bootedEntry() == nil {
		return nil, noRecord(booted) // nor its command line
	}
	defer state.Close() //nolint:errcheck // read only
	files, err := siteKargs(state, "etc")
	if err != nil {
		return nil, err
	}
	_, err = kargs.Compose(kargs.Input{Site: files})
	return files, refuseKargs(err)
}

// siteKargs reads the files of the site from the /etc called etc in a state
// directory.
func siteKargs(state *durable.Dir, etc string) ([]kargs.File, error) {
	dir := etc + strings.TrimPrefix(kargs.SiteDir, "/etc")
	list, err := state.ReadSubDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, refuseKargs(&kargs.FormatError{Path: kargs.SiteDir, Detail: fmt.Sprintf("not a directory that can be read: %v", cause(err))})
	}
	var files []kargs.File
	for _, x := range list {
		if path.Ext(x.Name) != kargs.Suffix {
			continue
		}
		if len(files) == kargs.MaxFiles {
			return nil, tooMany(kargs.SiteDir)
		}
		f := kargs.File{Path: kargs.SiteDir + "/" + x.Name}
		st, err := state.Lstat(dir + "/" + x.Name)
		if err != nil {
			return nil, err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := state.Readlink(dir + "/" + x.Name)
			if err != nil {
				return nil, err
			}
			if target != masked {
				return nil, refuseKargs(&kargs.FormatError{Path: f.Path, Detail: fmt.Sprintf("a link to %q, want a file, or a link to %s that masks one", target, masked)})
			}
		case st.Mode&unix.S_IFMT != unix.S_IFREG:
			return nil, refuseKargs(&kargs.FormatError{Path: f.Path, Detail: "not a regular file"})
		case st.Size > kargs.MaxFile:
			return nil, refuseKargs(&kargs.FormatError{Path: f.Path, Detail: fmt.Sprintf("%d bytes, limit %d", st.Size, kargs.MaxFile)})
		default:
			if f.Data, err = state.ReadFile(dir+"/"+x.Name, kargs.MaxFile); err != nil {
				return nil, &etcError{"read kernel arguments of the site", err}
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// masked is what a link points to that takes the file of its name out of use.
const masked = "/dev/null"

// imageKargs reads the files of kernel arguments in directories of an image.
func imageKargs(root *tree.Node, o bootimage.ObjectOpener, dirs ...string) ([]kargs.File, error) {
	var files []kargs.File
	for _, dir := range dirs {
		node, err := root.Find(strings.TrimPrefix(dir, "/"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && !node.IsDir() {
			err = fmt.Errorf("a %s, want a directory", node.Kind)
		}
		if err != nil {
			return nil, refuseKargs(&kargs.FormatError{Path: dir, Detail: cause(err).Error()})
		}
		n := 0
		for name, x := range node.All() {
			if path.Ext(name) != kargs.Suffix {
				continue
			}
			if n == kargs.MaxFiles { // before another one is read: an image may name any number
				return nil, tooMany(dir)
			}
			f := kargs.File{Path: dir + "/" + name}
			if f.Data, err = imageKargsFile(f.Path, x, o); err != nil {
				return nil, err
			}
			files, n = append(files, f), n+1
		}
	}
	return files, nil
}

func imageKargsFile(name string, x *tree.Node, o bootimage.ObjectOpener) ([]byte, error) {
	switch {
	case x.Kind == tree.Symlink && x.Target == masked:
		return nil, nil
	case x.Kind != tree.Regular:
		return nil, refuseKargs(&kargs.FormatError{Path: name, Detail: fmt.Sprintf("a %s, want a regular file", x.Kind)})
	case x.Size > kargs.MaxFile:
		return nil, refuseKargs(&kargs.FormatError{Path: name, Detail: fmt.Sprintf("%d bytes, limit %d", x.Size, kargs.MaxFile)})
	}
	r, err := bootimage.Open(x, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func tooMany(dir string) error {
	return refuseKargs(&kargs.FormatError{Path: dir, Detail: fmt.Sprintf("more than %d files", kargs.MaxFiles)})
}

// refuseKargs makes a refusal of what is wrong with a file. Names of the site's
// files do not go into the journal.
func refuseKargs(err error) error {
	var bad *kargs.FormatError
	if !errors.As(err, &bad) {
		return err
	}
	refused := &RefusedError{Code: CodeKarg, Err: err}
	if strings.HasPrefix(bad.Path, kargs.SiteDir) {
		return &etcError{"the kernel arguments of the site cannot be used", refused}
	}
	refused.Detail = "the image cannot be deployed"
	return refused
}

// cause drops operation and path of a system error.
func cause(err error) error {
	var no unix.Errno
	if errors.As(err, &no) {
		return no
	}
	return err
}

// kargsOf gives the arguments of a deployment with their sources as they stand in
// its boot entry, or in its record if that cannot be read.
func (b *statusBuilder) kargsOf(id string) []record.Karg {
	d := b.in.Deployments[id]
	options := bls.ParseCmdline(d.Options)
	if a := b.in.State.LatestOf(id); a != nil {
		if e := b.in.EntryOf(a.Seq); e != nil && e.Err == nil && e.ImageID() == id {
			options = e.Entry.Options()
		}
	}
	return kargs.Explain(d.Kargs, options)
}
