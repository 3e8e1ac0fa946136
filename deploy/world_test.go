package deploy_test

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/etcmerge"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

const (
	reference      = "docker://registry.example/os:stable"
	otherReference = "docker://registry.example/other:1"
)

// osTree is a small operating system; "dir/" makes a directory, "-> x" a link.
func osTree(release string) map[string]string {
	return map[string]string{
		"usr/": "", "boot/": "", "sysroot/": "", "efi/": "", "etc/": "", "var/": "", "root/": "", "run/": "", "tmp/": "", "proc/": "", "sys/": "", "dev/": "",
		"usr/lib/": "", "usr/lib/modules/": "", "usr/lib/modules/6.12/": "",
		"usr/lib/modules/6.12/vmlinuz":                 "kernel of " + release,
		"usr/lib/modules/6.12/initramfs.img":           strings.Repeat("initrd of "+release, 600),
		"usr/lib/os-release":                           "ID=toy\nVERSION_ID=" + release + "\nPRETTY_NAME=\"Toy " + release + "\"\n",
		"usr/lib/systemd/":                             "",
		"usr/lib/systemd/boot/":                        "",
		"usr/lib/systemd/boot/efi/":                    "",
		"usr/lib/systemd/boot/efi/systemd-bootx64.efi": toyLoader,
		"usr/lib/big":                                  strings.Repeat("shared ", 2000),
		"usr/lib/release":                              strings.Repeat(release, 400),
		"etc/hostname":                                 "toy\n",
		"etc/motd":                                     "welcome to " + release + "\n",
		"etc/conf.d/":                                  "",
		"etc/conf.d/app.conf":                          "level=1\n",
		"var/lib/":                                     "",
		"var/lib/seed":                                 "from " + release + "\n",
		"etc/os-release":                               "-> ../usr/lib/os-release",
	}
}

// tarOf is a tree as one layer.
func tarOf(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		text := files[name]
		h := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg, Size: int64(len(text)), ModTime: time.Unix(1700000000, 0)}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			h.Typeflag, h.Linkname, h.Size, h.Mode, text = tar.TypeSymlink, target, 0, 0o777, ""
		} else if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// buildImage makes a one-layer image of a tree.
func buildImage(t testing.TB, files map[string]string) *ocitest.Image {
	t.Helper()
	return buildImageFor(t, files, v1.Platform{})
}

func buildImageFor(t testing.TB, files map[string]string, platform v1.Platform) *ocitest.Image {
	t.Helper()
	img, err := ocitest.Build(ocitest.Spec{Layers: []ocitest.Layer{{Tar: tarOf(t, files), Compression: ocitest.Gzip}}, Platform: platform})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func release(t testing.TB, name string) *ocitest.Image {
	t.Helper()
	return buildImage(t, osTree(name))
}

type fakeSystemd struct {
	calls []string
	err   error            // of every call
	fail  map[string]error // of one command line
}

func (f *fakeSystemd) Systemctl(_ context.Context, args ...string) error {
	f.calls = append(f.calls, strings.Join(args, " "))
	if err := f.fail[strings.Join(args, " ")]; err != nil {
		return err
	}
	return f.err
}

// vars are EFI variables.
type vars map[string]string

func (v vars) Loader(name string) (string, error) {
	if text, ok := v[name]; ok {
		return text, nil
	}
	return "", fs.ErrNotExist
}

// fixedSELinux is a kernel that is in one state.
type fixedSELinux deploy.SELinuxState

func (s fixedSELinux) State() deploy.SELinuxState {
	if s.Mode == "" {
		s.Mode = deploy.SELinuxDisabled
	}
	return deploy.SELinuxState(s)
}

type clock struct{ now time.Time }

func (c *clock) Now() time.Time {
	c.now = c.now.Add(time.Second)
	return c.now
}

// disk is a file system of a machine: a durabletest.FS, or a real one.
type disk interface {
	Path() string
	Open() *durable.Dir
}

// realDisk is a mounted file system.
type realDisk struct {
	t    *testing.T
	path string
}

func (d realDisk) Path() string { return d.path }

func (d realDisk) Open() *durable.Dir {
	d.t.Helper()
	dir, err := durable.OpenDir(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = dir.Close() })
	return dir
}

// model is the crash model of a disk.
func model(d disk) *durabletest.FS { return d.(*durabletest.FS) }

// world is a machine made of two directories: the physical root and the boot
// partition. running is the root of the running system (/run, /proc).
type world struct {
	t       *testing.T
	root    disk
	fat     disk
	running string
	tag     *ocitest.Image // what the reference stands for
	other   *ocitest.Image // what otherReference stands for
	systemd *fakeSystemd
	clock   *clock
	vars    vars // of the firmware
	selinux deploy.SELinuxState
	killer  *killer // nil: no faults
	verity  bool    // the root file system has fs-verity
	// identity is what installations are given.
	keys, hostname string
	limit          int64  // size of the boot partition, bytes; 0: that of the file system below
	unmounted      bool   // nothing is at /sysroot
	search         bool   // commands find the boot partition by themselves, in the real /sys
	sysroot        string // "major:minor" of the root file system that runs; "": some
	disk           int64  // size of the root file system, bytes; 0: that of the file system below
	inodes         int64  // that the root file system can have for objects; 0: likewise
}

func newWorld(t *testing.T) *world {
	t.Helper()
	return &world{
		t: t, root: durabletest.New(t), fat: durabletest.NewFAT(t), running: t.TempDir(),
		systemd: &fakeSystemd{}, clock: &clock{time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)},
	}
}

// powerCut is the machine after a power cut: two new disks and nothing running.
func (w *world) powerCut(seed uint64) *world {
	w.t.Helper()
	return w.with(model(w.root).PowerLossRandom(seed), model(w.fat).PowerLossRandom(seed+1000))
}

// copy is the same machine once more; everything in it must have been synced.
func (w *world) copy() *world {
	w.t.Helper()
	c := w.with(model(w.root).PowerLoss(), model(w.fat).PowerLoss())
	data, err := os.ReadFile(filepath.Join(w.running, record.BootedPath))
	if err == nil {
		c.writeRunning(record.BootedPath, string(data))
	}
	return c
}

func (w *world) with(root, fat disk) *world {
	c := *w
	c.root, c.fat, c.running, c.killer, c.systemd = root, fat, w.t.TempDir(), nil, &fakeSystemd{}
	return &c
}

func (w *world) options() deploy.Options {
	w.t.Helper()
	root := w.root.Open()
	var fat *durable.Dir
	if !w.search {
		fat = w.fat.Open()
	}
	if w.killer != nil {
		root, fat = w.killer.watch(w.t, model(w.root)), w.killer.watch(w.t, model(w.fat))
	}
	o := deploy.Options{
		Root: w.running, Sysroot: root, ESP: fat, Vars: w.vars, Systemd: w.systemd, Clock: w.clock, SELinux: fixedSELinux(w.selinux),
		LockWait: 2 * time.Second, // a program that another test starts has the lock between fork and exec
	}
	if w.unmounted {
		o.Sysroot = nil
	}
	if w.limit > 0 {
		limit, path := w.limit, w.fat.Path()
		o = o.WithSpace(func(*esp.ESP) (esp.Space, error) {
			return esp.Space{Free: limit - used(path), Total: limit, Cluster: cluster}, nil
		})
	}
	if w.inodes > 0 {
		o = o.WithRepoSpace(func() (durable.Space, error) {
			return durable.Space{Bytes: 1 << 40, Size: 1 << 41, Inodes: max(0, w.inodes-w.objects()), MaxInodes: w.inodes, BlockSize: cluster}, nil
		})
	}
	if w.disk > 0 {
		disk, path := w.disk, w.root.Path()
		o = o.WithRepoSpace(func() (durable.Space, error) {
			return durable.Space{Bytes: max(0, disk-used(path)), Size: disk, Inodes: -1, MaxInodes: -1, BlockSize: cluster}, nil
		})
	}
	return o
}

const cluster = 4096

// objects is how many files of objects the machine has.
func (w *world) objects() (n int64) {
	w.t.Helper()
	list, err := filepath.Glob(filepath.Join(w.root.Path(), "composefs/objects/??/*"))
	must(w.t, err)
	return int64(len(list))
}

// used is what the files below a directory take on a FAT file system.
func used(root string) (sum int64) {
	_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			sum += esp.FileCost(info.Size(), cluster)
		}
		return err
	})
	return sum
}

// failed upgrades to an image that never boots well, so that the machine falls back.
func (w *world) failed(img *ocitest.Image) {
	w.t.Helper()
	must(w.t, settled(w.upgrade(img)))
	must(w.t, settled(w.finalize()))
	for range 4 {
		w.boot()
	}
}

func (w *world) pull() deploy.PullOptions {
	return deploy.PullOptions{Parallel: 1, OpenSource: func(_ context.Context, ref string) (oci.Source, error) {
		switch {
		case ref == reference:
			return &ocitest.Source{Image: w.tag}, nil
		case ref == otherReference && w.other != nil:
			return &ocitest.Source{Image: w.other}, nil
		}
		return nil, fmt.Errorf("unexpected reference %q", ref)
	}}
}

func (w *world) rootKeys() []byte {
	if w.keys == "" {
		return nil
	}
	return []byte(w.keys)
}

func (w *world) install(img *ocitest.Image) (*deploy.Change, error) {
	w.tag = img
	return deploy.Install(w.t.Context(), w.root.Path(), deploy.InstallOptions{
		Options: w.options(), PullOptions: w.pull(), Image: reference, AllowMissingVerity: !w.verity,
		RootUUID: "11111111-2222-3333-4444-555555555555", Kargs: []string{"quiet", "console=ttyS0"},
		RootSSHKeys: w.rootKeys(), Hostname: w.hostname,
	})
}

// releases installs the first image, unless there is one, and takes the machine
// through the others, each found to be good. It returns the deployments.
func (w *world) releases(images ...*ocitest.Image) []string {
	w.t.Helper()
	var ids []string
	for i, img := range images {
		switch {
		case i > 0:
			must(w.t, settled(w.upgrade(img)))
			must(w.t, settled(w.finalize()))
		case len(entriesOf(w.t, w)) == 0:
			must(w.t, settled(w.install(img)))
		}
		ids = append(ids, w.boot())
		w.bless()
	}
	return ids
}

func (w *world) upgrade(img *ocitest.Image) (*deploy.Change, error) {
	w.tag = img
	return deploy.Upgrade(w.t.Context(), deploy.UpgradeOptions{Options: w.options(), PullOptions: w.pull()})
}

// upgradeWith is upgrade with options, of what the tag stands for.
func (w *world) upgradeWith(o deploy.UpgradeOptions) (*deploy.Change, error) {
	o.Options, o.PullOptions = w.options(), w.pull()
	return deploy.Upgrade(w.t.Context(), o)
}

// switchTo switches to a reference. img is what otherReference stands for.
func (w *world) switchTo(ref string, img *ocitest.Image, o deploy.SwitchOptions) (*deploy.Change, error) {
	o.Options, o.PullOptions, o.Image = w.options(), w.pull(), ref
	if img != nil {
		w.other = img
		o.PullOptions = w.pull()
	}
	return deploy.Switch(w.t.Context(), o)
}

func (w *world) finalize() (*deploy.Change, error) {
	return deploy.Finalize(w.t.Context(), w.options())
}

func (w *world) rollback(id string) (*deploy.Change, error) {
	return deploy.Rollback(w.t.Context(), deploy.RollbackOptions{Options: w.options(), ID: id})
}

func (w *world) writeRunning(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.running, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// boot does what firmware, systemd-boot and the initramfs do: start the first
// entry of the menu, count the try, and find everything that the deployment
// needs. It returns the deployment's id; what does not boot fails the test.
func (w *world) boot() string {
	w.t.Helper()
	id, err := w.tryBoot()
	if err != nil {
		w.t.Fatalf("the machine does not boot: %v", err)
	}
	return id
}

func (w *world) tryBoot() (string, error) {
	dir, err := durable.OpenDir(w.fat.Path())
	if err != nil {
		return "", err
	}
	defer dir.Close()
	part := esp.New(dir)
	entries, err := part.Entries()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(entries, func(e esp.Entry) bool { return e.Err == nil })
	if i < 0 {
		return "", errors.New("no boot entry")
	}
	e := entries[i]
	if err := part.CheckDigest(w.t.Context(), e.Payload()); err != nil {
		return "", fmt.Errorf("entry %s: %w", e.File, err)
	}
	if c := e.Name.Counter; c.Present && c.Left > 0 {
		n := e.Name
		n.Counter = bls.Counter{Present: true, Left: c.Left - 1, Done: c.Done + 1}
		if err := os.Rename(filepath.Join(w.fat.Path(), esp.EntryDir, e.File), filepath.Join(w.fat.Path(), esp.EntryDir, n.String())); err != nil {
			return "", err
		}
		w.changed()
	}
	return e.ImageID(), w.setupRoot(e.ImageID(), e.Entry.Options())
}

// changed tells the crash models that something else than the code under test
// has changed the disks: what they hold counts as synced.
func (w *world) changed() {
	w.t.Helper()
	if _, ok := w.root.(*durabletest.FS); ok {
		w.root, w.fat = durabletest.Over(w.t, w.root.Path()), durabletest.OverFAT(w.t, w.fat.Path())
	}
}

// setupRoot is the initramfs: image by digest, or its object if that name is gone,
// and measured, every object there, state complete.
func (w *world) setupRoot(id string, options bls.Cmdline) error {
	top, err := durable.OpenDir(w.root.Path())
	if err != nil {
		return err
	}
	defer top.Close()
	dir, err := top.Sub("composefs")
	if err != nil {
		return err
	}
	defer dir.Close()
	r, err := repo.Open(w.t.Context(), dir, repo.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	kargs, err := bls.ParseKargs(options.String())
	if err != nil || len(kargs) != 1 || kargs[0].Digest.Hex() != id {
		return fmt.Errorf("command line %q: %v, %w", options, kargs, err)
	}
	d, err := fsverity.ParseHex(id)
	if err != nil {
		return err
	}
	if err := checkObjects(w.t.Context(), r, d); err != nil {
		return err
	}
	etc, err := top.ReadSubDir("state/deploy/" + id + "/etc")
	if err != nil || len(etc) == 0 {
		return fmt.Errorf("state of %s: %d files, %w", id[:12], len(etc), err)
	}
	if err := top.Leads("state/deploy/"+id+"/var", true); err != nil {
		return fmt.Errorf("/var of %s: %w", id[:12], err)
	}
	b, err := record.Booted{
		Digest: id, Algorithm: "sha512-12", Karg: options.String(), Gate: "digest", Secure: w.verity,
		Sysroot: record.BootedSysroot{Dev: cmp.Or(w.sysroot, "254:2")}, Etc: "bind", Var: "bind", Root: "ro", Erofs: "file", Kernel: "6.12",
	}.Encode()
	if err != nil {
		return err
	}
	w.writeRunning(record.BootedPath, string(b))
	return nil
}

// bless is systemd-bless-boot for the running deployment.
func (w *world) bless() {
	w.t.Helper()
	id := w.booted()
	dir, err := durable.OpenDir(w.fat.Path())
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	entries, err := esp.New(dir).Entries()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if e.ImageID() == id && e.Name.Counter.Present {
			n := e.Name
			n.Counter = bls.Counter{}
			if err := os.Rename(filepath.Join(w.fat.Path(), esp.EntryDir, e.File), filepath.Join(w.fat.Path(), esp.EntryDir, n.String())); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.changed()
}

func (w *world) booted() string {
	w.t.Helper()
	b, err := deploy.ReadBooted(w.running)
	if err != nil {
		w.t.Fatal(err)
	}
	return b.Digest
}

// etc reads a file of a deployment's /etc.
func (w *world) etc(id, name string) string {
	data, err := os.ReadFile(filepath.Join(w.root.Path(), "state/deploy", id, "etc", name))
	if err != nil {
		return "error: " + err.Error()
	}
	return string(data)
}

// hide takes a file of the running /etc away from everybody but its owner.
func (w *world) hide(name string) {
	w.t.Helper()
	if err := os.Chmod(filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc", name), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.changed()
}

// checkPrivate: no copy of a secret, whole or half made, and no report on it, is
// open to others.
func (w *world) checkPrivate(secret string) (copies int) {
	w.t.Helper()
	err := filepath.WalkDir(filepath.Join(w.root.Path(), "state"), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // killed before anything was made
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(data, []byte(secret)) || e.Name() == etcmerge.ReportName {
			copies++
			if info.Mode().Perm() != 0o600 {
				w.t.Errorf("%s has mode %v, want 0600", path, info.Mode())
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return copies
}

// checkDefault: what a failed command leaves in the menu is what the journal
// says. An entry that only the last record is missing for is found by the next run.
func (w *world) checkDefault() {
	w.t.Helper()
	entries := entriesOf(w.t, w)
	if len(entries) == 0 {
		return
	}
	s, first := w.state(), entries[0]
	if st := s.Staged; s.Transaction != nil || st != nil && st.Entry == first.Name.Seq {
		return
	}
	if a := s.Entry(first.Name.Seq); a == nil || a.Deployment != first.ImageID() {
		w.t.Errorf("%s: the menu begins with %s, which the journal does not know", w.killer.op, first.File)
	}
}

// edit changes a file of the running /etc, as an administrator.
func (w *world) edit(name, text string) {
	w.t.Helper()
	path := filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc", name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.changed()
}

// tagged is the manifest that the tag of the machine's image stands for.
func (w *world) tagged() string {
	w.t.Helper()
	dir, err := durable.OpenDir(filepath.Join(w.root.Path(), "composefs"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer dir.Close()
	r, err := repo.Open(w.t.Context(), dir, repo.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	d, err := oci.Resolve(r, strings.TrimPrefix(reference, "docker://"))
	if err != nil {
		w.t.Fatal(err)
	}
	return d.String()
}

// checkJournal: no record, which everybody can read, names this file of /etc.
func (w *world) checkJournal(name string) {
	w.t.Helper()
	for _, x := range w.records() {
		data, err := os.ReadFile(filepath.Join(w.root.Path(), record.JournalDir, x))
		if err != nil {
			w.t.Fatal(err)
		}
		if strings.Contains(string(data), name) {
			w.t.Errorf("record %s names %q: %s", x, name, data)
		}
	}
}

func (w *world) state() record.State {
	w.t.Helper()
	return w.journal().State()
}

func (w *world) journal() *record.Journal {
	w.t.Helper()
	j, err := record.ReadJournal(w.records(), func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(w.root.Path(), record.JournalDir, name))
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return j
}

// note writes an event into the journal, as a command that was killed right
// after it.
func (w *world) note(e record.Event) {
	w.t.Helper()
	dir := filepath.Join(w.root.Path(), record.JournalDir)
	r, err := w.journal().Next(e, w.clock.Now(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := r.Encode()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, r.Name()), data, 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.changed()
}

// records lists the files of the journal, oldest first.
func (w *world) records() []string {
	w.t.Helper()
	list, err := os.ReadDir(filepath.Join(w.root.Path(), record.JournalDir))
	if err != nil {
		w.t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name()
	}
	return names
}

// killer fails or kills at the n-th mutating call, counted over both disks: a
// process that is dead changes neither.
type killer struct {
	mu    sync.Mutex
	at    int
	err   error // nil: kill
	after bool  // kill after the call
	n     int
	dead  bool
	fired bool
	op    string
	// full is a directory of the root file system from which something has to go
	// before anything can be written there; "": there is room.
	full string
}

func (k *killer) watch(t *testing.T, f *durabletest.FS) *durable.Dir {
	t.Helper()
	plain, err := durable.OpenDir(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	d, err := plain.WithHook(&killerHook{k, f})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

type killerHook struct {
	k  *killer
	fs *durabletest.FS
}

func (h *killerHook) Before(op durable.Op) error {
	if err := h.k.before(op); err != nil {
		return err
	}
	return h.fs.Before(op)
}

func (h *killerHook) After(op durable.Op, err error) { h.fs.After(op, err) }

func (k *killer) before(op durable.Op) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.dead {
		return durabletest.ErrKilled
	}
	if k.full != "" {
		where, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", max(op.FD, op.DirFD)))
		onRoot := strings.Contains(where, "/state") || strings.Contains(where, "/composefs")
		switch {
		case op.Kind == durable.OpUnlink && strings.Contains(where+"/"+op.Name, k.full):
			k.full = ""
		case onRoot && (op.Kind == durable.OpWrite || op.Kind == durable.OpMkdir):
			k.fired = true
			return unix.ENOSPC
		}
	}
	n := k.n
	k.n++
	if n != k.at {
		return nil
	}
	k.fired, k.op = true, fmt.Sprintf("%s %s", op.Kind, op.Path)
	switch {
	case k.err != nil:
		return k.err
	case k.after:
		k.dead = true
		return nil
	}
	k.dead = true
	return durabletest.ErrKilled
}

// sumOf is the path of the object with this content.
func sumOf(text string) string { return fsverity.Sum(fsverity.SHA512, []byte(text)).ObjectPath() }
