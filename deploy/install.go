package deploy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage"
	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

// InstallOptions are those of Install.
type InstallOptions struct {
	Options
	PullOptions
	Image       string // reference to install from; required
	TargetImage string // reference that the installed machine follows; "" means Image
	Kargs       []string
	// AllowMissingVerity installs to a file system without fs-verity: the machine
	// then does not notice changed files.
	AllowMissingVerity bool
	// ESPPath is where the boot partition is mounted; "" means boot/efi, efi or
	// boot below the target, whichever is a mounted FAT file system.
	ESPPath string
	// Timeout is how long the loader shows its menu, in seconds; 0 means 3,
	// negative means not at all.
	Timeout int
	// RootUUID is used in root=UUID=; "" means that of the target file system.
	RootUUID string
	// RootSSHKeys are public keys, as in authorized_keys, that root of the machine
	// can be logged in to with; nil: none.
	RootSSHKeys []byte
	Hostname    string // of the machine; "": the image decides
}

// check refuses what can be seen to be wrong without looking at anything.
func (o InstallOptions) check() error {
	if err := checkKargs(append([]string{"root=UUID=" + o.RootUUID}, o.Kargs...)); err != nil {
		return err
	}
	if o.RootSSHKeys != nil {
		if _, err := install.CheckAuthorizedKeys(o.RootSSHKeys); err != nil {
			return &RefusedError{Code: CodeIdentity, Err: err}
		}
	}
	if o.Hostname != "" {
		if err := install.CheckHostname(o.Hostname); err != nil {
			return &RefusedError{Code: CodeIdentity, Err: err}
		}
	}
	return nil
}

// defaultTimeout is how many seconds the loader shows its menu.
const defaultTimeout = 3

// Install puts an operating system image onto the file system mounted at dir,
// which becomes the physical root of the machine. The file system must be empty
// but for lost+found and mount points, or hold an installation that was
// interrupted, which is then finished. The result boots by itself under UEFI.
// Options.Root, Systemd and Vars are not used.
//
// Errors: *RefusedError, *ConflictError (foreign files on the boot partition),
// *durable.SpaceError, and those of pull.Pull and the source.
func Install(ctx context.Context, dir string, o InstallOptions) (_ *Change, err error) {
	m := &machine{Options: o.withDefaults()}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := o.check(); err != nil {
		return nil, err
	}
	target := o.TargetImage
	if target == "" {
		target = o.Image
	}
	targetRef, err := record.ParseImageReference(target)
	if err != nil {
		return nil, refuse(CodeImage, "reference for the installed machine: %v", err)
	}
	if err := m.openTarget(dir, o.ESPPath); err != nil {
		return nil, err
	}
	src, resolved, err := resolve(ctx, o.PullOptions, o.Image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	if err := m.startInstall(ctx, o); err != nil {
		return nil, err
	}
	if n := m.facts.State.Newest(); n != nil { // only the last record was missing
		if err := m.checkSame(n.Deployment, resolved, targetRef); err != nil {
			return nil, err
		}
		return m.change(ActionArmed, n.Deployment), nil
	}
	tx := newTransaction()
	if err := m.add(record.Event{Kind: record.EventBegin, Transaction: tx, Op: record.OpInstall, Reference: o.Image}); err != nil {
		return nil, err
	}
	defer func() {
		if m.facts.State.Transaction != nil {
			m.abort(ctx, tx, err)
		}
	}()
	return m.install(ctx, src, tx, targetRef, o)
}

// checkSame refuses an installation that is complete but of another image, or
// that follows another reference, than what was asked for.
func (m *machine) checkSame(id string, want oci.Resolved, target record.ImageReference) error {
	d, ok := m.facts.Deployments[id]
	if !ok {
		return fmt.Errorf("deployment %s has no readable %s", short(id), record.DeploymentName)
	}
	if got := d.ManifestDigest; got != string(want.Descriptor.Digest) {
		return refuse(CodeInstalled, "target %q holds an installation already, of image %s, not %s", m.top.Path(), got, want.Descriptor.Digest)
	}
	if d.Reference != target.String() {
		return refuse(CodeInstalled, "target %q holds an installation already, which follows %s, not %s", m.top.Path(), d.Reference, target)
	}
	return nil
}

// startInstall takes the lock, starts or continues the journal, and makes the
// repository.
func (m *machine) startInstall(ctx context.Context, o InstallOptions) error {
	lock, err := m.top.MkdirAll(stateTop, stateDirPerm)
	if err != nil {
		return err
	}
	m.onClose(lock.Close)
	if err := repo.Lock(ctx, lock, true, m.LockWait); err != nil {
		return err
	}
	if err := checkTarget(m.top); err != nil { // another installation may have had the lock
		return err
	}
	if m.journal, err = openJournal(m.top, m.Options); err != nil {
		return err
	}
	m.onClose(func() error { m.journal.close(); return nil })
	if err := lock.SyncFS(); err != nil { // the directories above the journal
		return err
	}
	if m.journal.State().Token == "" {
		if err := m.add(record.Event{Kind: record.EventInit, Token: newToken()}); err != nil {
			return err
		}
	}
	if err := m.recover(); err != nil {
		return err
	}
	return m.makeRepo(ctx, o.AllowMissingVerity)
}

// install does the work between begin and the commit point.
func (m *machine) install(ctx context.Context, src oci.Source, tx string, target record.ImageReference, o InstallOptions) (*Change, error) {
	img, err := m.pullImage(ctx, src, o.Image, o.PullOptions)
	if err != nil {
		return nil, err
	}
	loader, err := m.loader(ctx, img, o.Timeout)
	if err != nil {
		return nil, err
	}
	d := img.record
	d.Reference, d.Transaction, d.Created = target.String(), tx, m.Clock.Now()
	if d.Kargs, err = m.installKargs(o); err != nil {
		return nil, err
	}
	if err := m.checkInstallKargs(d, img); err != nil {
		return nil, err
	}
	// Before the target is recorded: that record says that what is there from now
	// on is ours.
	begun, err := m.journal.has(record.EventTarget)
	if err != nil {
		return nil, err
	}
	if !begun {
		if err := refuseForeign(m.esp.CheckForeign(ctx, loader.Files)); err != nil {
			return nil, err
		}
	}
	if err := m.add(record.Event{Kind: record.EventTarget, Transaction: tx, Deployment: img.id(), BootDigest: img.payload.Digest}); err != nil {
		return nil, err
	}
	if err := m.hold(ctx, img.id(), img.holdings); err != nil {
		return nil, err
	}
	etc, err := findEtc(img.tree)
	if err != nil {
		return nil, err
	}
	if err := m.fillVar(ctx, img.tree); err != nil {
		return nil, err
	}
	policy, err := bootimage.SELinuxPolicy(img.tree, m.repo)
	if err != nil {
		return nil, refuseImage(err)
	}
	if err := m.writeRootKeys(img.tree, policy, o.RootSSHKeys); err != nil {
		return nil, err
	}
	m.say("making the state of deployment %s", short(d.ID))
	err = m.makeState(ctx, stateOf(d.ID), d, img.kargs, func(ctx context.Context, dir *durable.Dir, name string) error {
		if err := etcmerge.CopyEtc(ctx, dir, name, etc, m.repo); err != nil {
			return err
		}
		return writeHostname(dir, name, policy, o.Hostname)
	})
	if err != nil {
		return nil, err
	}
	if d, err = readDeployment(m.top, record.StateDir, d.ID); err != nil { // with its kernel command line
		return nil, err
	}
	m.say("installing the boot loader")
	if err := m.placeLoader(ctx, img, loader, begun); err != nil {
		return nil, err
	}
	if err := m.placePayload(ctx, img); err != nil {
		return nil, err
	}
	seq, err := m.writeEntry(d, m.facts.State.Transaction.Entry, 0)
	if err != nil {
		return nil, err
	}
	if err := m.add(record.Event{Kind: record.EventArmed, Deployment: d.ID, Entry: seq}); err != nil {
		return nil, err
	}
	if err := m.look(); err != nil {
		return nil, err
	}
	c := m.change(ActionArmed, d.ID)
	c.Entry = seq
	c.Warnings = append(c.Warnings, slices.Concat(m.loaderWarnings(), imageLoaderWarnings(img.tree))...)
	m.clean(ctx)
	return c, m.top.SyncFS()
}

// installKargs are the kernel arguments of the first entry that no file gives.
// "rw" is about the physical root; the composefs root is read-only all the same
// (boot.md 1.2).
func (m *machine) installKargs(o InstallOptions) ([]record.Karg, error) {
	given := bls.ParseCmdline(strings.Join(o.Kargs, " "))
	var list []record.Karg
	if !given.Has("root") {
		uuid := o.RootUUID
		if uuid == "" {
			var err error
			if uuid, err = install.FSUUID(m.top.Fd(), "/dev/disk/by-uuid"); err != nil {
				return nil, &RefusedError{Code: CodeTarget, Detail: fmt.Sprintf("target %q: name the root by --karg root=…", m.top.Path()), Err: err}
			}
		}
		list = append(list, record.Karg{Argument: "root=UUID=" + uuid, Source: record.KargCfsboot})
	}
	if !given.Has("rw") && !given.Has("ro") {
		list = append(list, record.Karg{Argument: "rw", Source: record.KargCfsboot})
	}
	for _, token := range given {
		list = append(list, record.Karg{Argument: token, Source: record.KargInstall})
	}
	return list, nil
}

// checkKargs refuses kernel arguments that would name another image, and what
// cannot stand in an entry.
func checkKargs(kargs []string) error {
	for _, k := range kargs {
		if strings.ContainsAny(k, "\r\n\x00") || strings.TrimSpace(k) == "" {
			return refuse(CodeKarg, "kernel argument %q is empty or has a line break", k)
		}
		if strings.Count(k, `"`)%2 != 0 {
			return refuse(CodeKarg, "kernel argument %q has a quote that is not closed", k)
		}
		for _, token := range bls.ParseCmdline(k) {
			switch key, _, _ := bls.SplitToken(token); key {
			case "composefs", "composefs.digest":
				return refuse(CodeKarg, "kernel argument %q: the image decides it", token)
			case "--":
				return refuse(CodeKarg, "kernel argument %q ends the arguments of the kernel", k)
			}
		}
	}
	return nil
}

// fillVar makes the shared /var once, from the image. It is there whole or not
// at all.
func (m *machine) fillVar(ctx context.Context, root *tree.Node) error {
	ok, err := m.top.Exists(sharedVar)
	if err != nil || ok {
		return err
	}
	parentName, base := splitName(sharedVar)
	parent, err := m.top.MkdirAll(parentName, stateDirPerm)
	if err != nil {
		return err
	}
	defer parent.Close() //nolint:errcheck // synced below
	const temp = ".var.new"
	if err := parent.RemoveAll(temp); err != nil {
		return err
	}
	source := root.Lookup("var")
	if source == nil || !source.IsDir() {
		return refuse(CodeImage, "the image has no directory /var")
	}
	m.say("filling /var")
	if err := etcmerge.Copy(ctx, parent, temp, source, m.repo); err != nil {
		return fmt.Errorf("fill /var: %w", err)
	}
	if err := parent.SyncFS(); err != nil {
		return err
	}
	if err := parent.Rename(temp, parent, base); err != nil {
		return err
	}
	return parent.Sync()
}

// loader is systemd-boot as the image has it, with its configuration.
func (m *machine) loader(ctx context.Context, img *image, timeout int) (esp.Payload, error) {
	arch := img.pulled.Architecture
	if arch == "" {
		arch = runtime.GOARCH
	}
	node, err := findLoader(img.tree, arch)
	if err != nil {
		return esp.Payload{}, err
	}
	switch {
	case timeout == 0:
		timeout = defaultTimeout
	case timeout < 0:
		timeout = 0
	}
	files, err := install.LoaderFiles(arch, timeout, func() (io.ReadCloser, error) { return bootimage.Open(node, m.repo) })
	if err != nil {
		return esp.Payload{}, &RefusedError{Code: CodeImage, Err: err}
	}
	return esp.NewPayload(ctx, files)
}

// findLoader finds systemd-boot in an image.
func findLoader(root *tree.Node, arch string) (*tree.Node, error) {
	path, err := install.LoaderPath(arch)
	if err != nil {
		return nil, &RefusedError{Code: CodeImage, Err: err}
	}
	node, err := root.Find(path)
	if err != nil || node.Kind != tree.Regular {
		return nil, &RefusedError{Code: CodeImage, Detail: fmt.Sprintf("the image has no boot loader /%s; it is in the package systemd-boot-efi", path), Err: err}
	}
	return node, nil
}

// placeLoader puts the loader onto the boot partition. Files of somebody else
// that are in the way are a *ConflictError; leftover says that a run before this
// one may have left other ones, which are replaced.
func (m *machine) placeLoader(ctx context.Context, img *image, loader esp.Payload, leftover bool) error {
	space, err := m.space(m.esp)
	if err != nil {
		return err
	}
	// The payload and the loader together, before the first byte of either.
	need := m.esp.NeedFor(img.payload.Digest, img.payload.Sums(), space.Cluster) + m.esp.NeedForFiles(loader.Sums(), space.Cluster)
	if err := m.makeRoom(ctx, need, img.id(), img.payload.Digest); err != nil {
		return err
	}
	return refuseForeign(m.esp.Ensure(ctx, loader.Files, leftover))
}

// refuseForeign makes a *ConflictError of a file with other content.
func refuseForeign(err error) error {
	var foreign *esp.VerifyError
	if errors.As(err, &foreign) {
		return &ConflictError{What: "files on the boot partition that cfsboot did not write", Paths: []string{foreign.Path}, Reasons: []string{fmt.Sprintf("got %s, want %s", foreign.Got, foreign.Want)}, Err: err}
	}
	return err
}

// newToken returns the name of this installation in its boot entries: 8 hex
// digits. It does not come from the machine-id, which a first boot may change.
func newToken() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
