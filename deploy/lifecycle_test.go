package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// checkObjects opens the image and every object it names, as the kernel will.
func checkObjects(ctx context.Context, r *repo.Repository, d fsverity.Digest) error {
	f, err := r.OpenImage(ctx, d)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = r.OpenObject(d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	root, err := erofs.Decode(f, st.Size())
	if err != nil {
		return err
	}
	return walk(root, func(n *tree.Node) error {
		if n.Kind != tree.Regular || n.Digest.IsZero() {
			return nil
		}
		o, err := r.OpenObject(n.Digest)
		if err != nil {
			return err
		}
		return o.Close()
	})
}

func walk(n *tree.Node, visit func(*tree.Node) error) error {
	if err := visit(n); err != nil || !n.IsDir() {
		return err
	}
	for _, child := range n.All() {
		if err := walk(child, visit); err != nil {
			return err
		}
	}
	return nil
}

// TestLifecycle is the life of a machine: install, boot, upgrade, finalize,
// boot, rollback, boot, and forth again.
func TestLifecycle(t *testing.T) { lifecycle(t, newWorld(t)) }

func lifecycle(t *testing.T, w *world) {
	r1, r2 := release(t, "1"), release(t, "2")
	c, err := w.install(r1)
	if err != nil {
		t.Fatal(err)
	}
	if c.Action != deploy.ActionArmed || c.Entry != 1 || c.Title == "" || c.Version != "1" || c.Kernel != "6.12" || c.Reference != reference {
		t.Errorf("install: %+v", c)
	}
	one := w.boot()
	if one != c.Deployment {
		t.Fatalf("booted %s, installed %s", one, c.Deployment)
	}
	for name, want := range map[string]string{
		"EFI/BOOT/BOOTX64.EFI": toyLoader, "EFI/systemd/systemd-bootx64.efi": toyLoader,
		"loader/loader.conf": "timeout 3\n", "loader/entries.srel": "type1\n",
	} {
		if got, err := os.ReadFile(filepath.Join(w.fat.Path(), name)); string(got) != want {
			t.Errorf("boot partition: %s holds %q, %v", name, got, err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(w.root.Path(), "state/os/default/var/lib/seed")); string(got) != "from 1\n" {
		t.Errorf("/var/lib/seed holds %q, %v", got, err)
	}

	if _, err := w.upgrade(r1); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Fatalf("upgrade to the same image: %v", err)
	}
	w.edit("hostname", "mine\n")
	c, err = w.upgrade(r2)
	if err != nil {
		t.Fatal(err)
	}
	if c.Action != deploy.ActionStaged || c.Booted != one || len(c.Warnings) > 0 || !slices.Contains(w.systemd.calls, "start cfsboot-finalize.service") {
		t.Errorf("upgrade: %+v, systemctl %q", c, w.systemd.calls)
	}
	two := c.Deployment
	if got := w.boot(); got != one {
		t.Fatalf("a staged deployment boots before it is finalized: %s", got)
	}
	if c, err := w.upgrade(r2); !errors.Is(err, deploy.ErrNothingToDo) || c.Action != deploy.ActionStaged || c.Deployment != two {
		t.Errorf("upgrade twice: %+v, %v", c, err)
	}
	w.edit("conf.d/app.conf", "level=2\n") // after staging
	c, err = w.finalize()
	if err != nil {
		t.Fatal(err)
	}
	if c.Action != deploy.ActionArmed || c.Deployment != two {
		t.Errorf("finalize: %+v", c)
	}
	if _, err := w.finalize(); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("finalize twice: %v", err)
	}
	if got := w.boot(); got != two {
		t.Fatalf("booted %s, want %s", got, two)
	}
	w.bless()
	for name, want := range map[string]string{"hostname": "mine\n", "conf.d/app.conf": "level=2\n", "motd": "welcome to 2\n"} {
		if got := w.etc(two, name); got != want {
			t.Errorf("/etc/%s holds %q, want %q", name, got, want)
		}
	}
	if got := w.etc(one, "motd"); got != "welcome to 1\n" {
		t.Errorf("/etc/motd of the first deployment holds %q", got)
	}

	c, err = w.rollback("")
	if err != nil {
		t.Fatal(err)
	}
	if c.Action != deploy.ActionArmed || c.Deployment != one || c.Booted != two {
		t.Errorf("rollback: %+v", c)
	}
	if _, err := w.rollback(""); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("rollback twice: %v", err)
	}
	if got := w.boot(); got != one {
		t.Fatalf("booted %s, want %s", got, one)
	}
	// Not counted: it was good before.
	if e := w.state().Newest(); e.Tries != 0 || !e.Blessed || e.Deployment != one {
		t.Errorf("entry of the rollback: %+v", e)
	}
	// The tag still stands for release 2: its state is made anew from here.
	w.edit("hostname", "again\n")
	if c, err = w.upgrade(r2); err != nil || c.Action != deploy.ActionStaged || c.Deployment != two {
		t.Fatalf("upgrade after the rollback: %+v, %v", c, err)
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	if got := w.boot(); got != two || w.etc(two, "hostname") != "again\n" {
		t.Errorf("booted %s with hostname %q", got, w.etc(two, "hostname"))
	}
	checkQuiet(t, w)
}

// checkQuiet looks for what a finished command must not leave.
func checkQuiet(t *testing.T, w *world) {
	t.Helper()
	s := w.state()
	if s.Transaction != nil || len(s.Orphans) > 0 {
		t.Errorf("journal: transaction %+v, orphans %v", s.Transaction, s.Orphans)
	}
	dirs := func(name string) []string {
		list, _ := os.ReadDir(filepath.Join(w.root.Path(), name))
		var out []string
		for _, e := range list {
			out = append(out, e.Name())
		}
		return out
	}
	var staged []string
	if s.Staged != nil {
		staged = []string{s.Staged.Deployment}
	}
	if got := dirs("state/cfsboot/staged"); !slices.Equal(got, staged) {
		t.Errorf("staged state %v, want %v", got, staged)
	}
	var known []string
	for _, id := range s.Deployments() {
		if s.LatestOf(id) != nil {
			known = append(known, id)
		}
	}
	slices.Sort(known)
	if got := dirs("state/deploy"); !slices.Equal(got, known) {
		t.Errorf("state of %v, want of %v", got, known)
	}
	if got := dirs("state/cfsboot/trash"); len(got) > 0 {
		t.Errorf("trash: %v", got)
	}
	for _, pattern := range []string{"state/deploy/*/.etc.new", "state/cfsboot/staged/*/.etc.new"} {
		if got, _ := filepath.Glob(filepath.Join(w.root.Path(), pattern)); len(got) > 0 {
			t.Errorf("half-made /etc: %v", got)
		}
	}
	refs := dirs("composefs/images/refs/cfsboot")
	want := s.Deployments()
	slices.Sort(want)
	if !slices.Equal(refs, want) {
		t.Errorf("refs of %v, want of %v", refs, want)
	}
}

// TestEntryOfUpgrade: title and version come from os-release (peers' P13), the
// command line keeps local arguments, one composefs parameter stands in it.
func TestEntryOfUpgrade(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	c, err := w.upgrade(release(t, "2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	entries := entriesOf(t, w)
	e := entries[0]
	if e.Name.Seq != 2 || !e.Name.Counter.Present || e.Name.Counter.Left != 3 || !strings.HasSuffix(e.File, "-0000000002+3-0.conf") {
		t.Errorf("file name %s", e.File)
	}
	if got := e.Entry.Get("title"); got != "Toy 2" {
		t.Errorf("title %q", got)
	}
	if got := e.Entry.Get("version"); got != "0000000002.2" {
		t.Errorf("version %q", got)
	}
	mark := "?"
	if hasVerity(t, w.root.Path()) {
		mark = ""
	}
	if got, want := e.Entry.Options().String(), fmt.Sprintf("root=UUID=11111111-2222-3333-4444-555555555555 rw panic=30 composefs.digest=%sv1-sha512-12:%s quiet console=ttyS0", mark, c.Deployment); got != want {
		t.Errorf("options\n got %q\nwant %q", got, want)
	}
	if entries[1].Name.Counter.Present {
		t.Errorf("the first entry is counted: %s", entries[1].File)
	}
}

// hasVerity tells whether the tests run on a file system with fs-verity, as in
// the lab.
func hasVerity(t *testing.T, below string) bool {
	t.Helper()
	path := filepath.Join(below, "verity-probe")
	must(t, os.Mkdir(path, 0o700))
	defer os.RemoveAll(path)
	dir, err := durable.OpenDir(path)
	must(t, err)
	defer dir.Close()
	err = repo.Init(t.Context(), dir, repo.InitOptions{})
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	return err == nil
}

func entriesOf(t *testing.T, w *world) []esp.Entry {
	t.Helper()
	dir, err := durable.OpenDir(w.fat.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	list, err := esp.New(dir).Entries()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestFallback: a release that does not come up is given up by the loader, the
// old one runs, and the same image is not deployed again.
func TestFallback(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	r2 := release(t, "2")
	c, err := w.upgrade(r2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if got := w.boot(); got != c.Deployment {
			t.Fatalf("try %d starts %s", n, got)
		}
	}
	if got := w.boot(); got != one {
		t.Fatalf("after three tries it starts %s, want %s", got, one)
	}
	var refused *deploy.RefusedError
	if _, err := w.upgrade(r2); !errors.As(err, &refused) || refused.Code != deploy.CodeFailed {
		t.Fatalf("upgrade to what failed: %v", err)
	}
	if f := w.state().FailureOf(c.Deployment); f == nil {
		t.Error("the failure is not in the journal")
	}
	if _, err := w.rollback(""); !errors.As(err, &refused) || refused.Code != deploy.CodeNoRollback {
		t.Errorf("rollback to what failed: %v", err)
	}
	// A newer release is welcome, and makes room by what failed if it must.
	if _, err := w.upgrade(release(t, "3")); err != nil {
		t.Fatal(err)
	}
}

// TestTagMovedBack: what is staged is dropped when the tag stands for the
// running release again.
func TestTagMovedBack(t *testing.T) {
	w := newWorld(t)
	r1, r2, r3 := release(t, "1"), release(t, "2"), release(t, "3")
	if _, err := w.install(r1); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	c2, err := w.upgrade(r2)
	if err != nil {
		t.Fatal(err)
	}
	c3, err := w.upgrade(r3)
	if err != nil || c3.Dropped != c2.Deployment {
		t.Fatalf("a second upgrade: %+v, %v", c3, err)
	}
	checkQuiet(t, w)
	c, err := w.upgrade(r1)
	if err != nil || c.Action != deploy.ActionDropped || c.Dropped != c3.Deployment || c.Deployment != one {
		t.Fatalf("the tag is back: %+v, %v", c, err)
	}
	checkQuiet(t, w)
	if _, err := w.finalize(); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Errorf("finalize: %v", err)
	}
	// Armed already, then the tag moves back: the running one gets a new entry.
	if _, err := w.upgrade(r2); err != nil {
		t.Fatal(err)
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	if c, err = w.upgrade(r1); err != nil || c.Action != deploy.ActionArmed || c.Deployment != one {
		t.Fatalf("the tag is back after finalize: %+v, %v", c, err)
	}
	if got := w.boot(); got != one {
		t.Errorf("booted %s, want %s", got, one)
	}
}

// TestSameContent: another manifest of the same tree is noted, not deployed
// (peers' D21: an error).
func TestSameContent(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	again := release(t, "1")
	if err := again.SetConfig(append(again.Config, ' ')); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := w.upgrade(again)
		if !errors.Is(err, deploy.ErrNothingToDo) || c.Deployment != one || c.ManifestDigest != string(again.Descriptor.Digest) {
			t.Fatalf("got %+v, %v", c, err)
		}
	}
	checkQuiet(t, w)
	// In the way of the same content, a staged deployment is given up at once.
	c, err := w.upgrade(release(t, "2"))
	if err != nil {
		t.Fatal(err)
	}
	if err := again.SetConfig(append(again.Config, ' ')); err != nil {
		t.Fatal(err)
	}
	if c2, err := w.upgrade(again); err != nil || c2.Action != deploy.ActionDropped || c2.Dropped != c.Deployment {
		t.Fatalf("got %+v, %v, want %s dropped", c2, err, c.Deployment)
	}
	checkQuiet(t, w)
}

// TestSameContentAfterKilledFinalize: the records of a staged deployment are
// those that a killed finalize has moved into place, not the old ones of the same
// deployment that it has moved out of the way.
func TestSameContentAfterKilledFinalize(t *testing.T) {
	w := newWorld(t)
	one := release(t, "1")
	ids := w.releases(one, release(t, "2"))
	if _, err := w.upgrade(one); err != nil {
		t.Fatal(err)
	}
	top := filepath.Join(w.root.Path(), "state")
	must(t, unix.Renameat2(unix.AT_FDCWD, filepath.Join(top, "cfsboot/staged", ids[0]), unix.AT_FDCWD, filepath.Join(top, "deploy", ids[0]), unix.RENAME_EXCHANGE))
	w.changed()
	again := release(t, "1")
	must(t, again.SetConfig(append(again.Config, ' ')))
	for range 2 {
		c, err := w.upgrade(again)
		if !errors.Is(err, deploy.ErrNothingToDo) || c.Action != deploy.ActionStaged || c.ManifestDigest != string(again.Descriptor.Digest) {
			t.Fatalf("got %+v, %v", c, err)
		}
	}
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(top, "deploy", w.boot(), record.DeploymentName))
	must(t, err)
	if d, err := record.ParseDeployment(data); err != nil || d.ManifestDigest != string(again.Descriptor.Digest) {
		t.Errorf("manifest %s, %v, want %s", d.ManifestDigest, err, again.Descriptor.Digest)
	}
	checkQuiet(t, w)
}

// TestEtcConflict: nothing is changed, the paths are named, and the command
// works once the conflict is gone.
func TestEtcConflict(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	files := osTree("2")
	delete(files, "etc/conf.d/app.conf")
	delete(files, "etc/conf.d/")
	files["etc/conf.d"] = "now a file\n"
	w.edit("conf.d/mine.conf", "kept\n")
	var conflict *deploy.ConflictError
	if _, err := w.upgrade(buildImage(t, files)); !errors.As(err, &conflict) || !slices.Contains(conflict.Paths, "/etc/conf.d") {
		t.Fatalf("got %v, want a conflict of /etc/conf.d", err)
	}
	checkQuiet(t, w)
	w.checkJournal("conf.d")
	if w.state().Staged != nil || w.boot() != one {
		t.Error("something was staged")
	}
	if err := os.Remove(filepath.Join(w.root.Path(), "state/deploy", one, "etc/conf.d/mine.conf")); err != nil {
		t.Fatal(err)
	}
	w.changed()
	if _, err := w.upgrade(buildImage(t, files)); err != nil {
		t.Errorf("after the conflict is gone: %v", err)
	}
}

// TestConflictAfterStaging: the reason of a failed finalize is in the journal,
// the old deployment stays the default, and a later finalize works.
func TestConflictAfterStaging(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	files := osTree("2")
	delete(files, "etc/conf.d/app.conf")
	delete(files, "etc/conf.d/")
	files["etc/conf.d"] = "now a file\n"
	if _, err := w.upgrade(buildImage(t, files)); err != nil {
		t.Fatal(err)
	}
	w.edit("conf.d/mine.conf", "new\n")
	var conflict *deploy.ConflictError
	if _, err := w.finalize(); !errors.As(err, &conflict) {
		t.Fatalf("got %v, want a conflict", err)
	}
	if !strings.Contains(conflict.Error(), "/etc/conf.d (") || strings.Count(conflict.Error(), "/etc/conf.d") != 1 {
		t.Errorf("the text does not name the path once, with its reason: %v", conflict)
	}
	// Everybody can read the journal.
	if st := w.state().Staged; st == nil || !strings.Contains(st.Failure, "files of /etc that cannot be merged (1)") || strings.Contains(st.Failure, "conf.d") {
		t.Errorf("staged: %+v", st)
	}
	if got := w.boot(); got != one {
		t.Errorf("booted %s, want %s", got, one)
	}
	if err := os.Remove(filepath.Join(w.root.Path(), "state/deploy", one, "etc/conf.d/mine.conf")); err != nil {
		t.Fatal(err)
	}
	w.changed()
	if _, err := w.finalize(); err != nil {
		t.Error(err)
	}
}

// TestPublicReason: whatever goes wrong with an /etc, the journal names none of its files.
func TestPublicReason(t *testing.T) {
	private := &fs.PathError{Op: "open", Path: "/etc/private/name", Err: unix.EIO}
	for want, err := range map[string]error{
		"merge: " + unix.EIO.Error():    private,
		"merge: " + unix.ENOSPC.Error(): fmt.Errorf("write: %w", &durable.SpaceError{Where: "/etc/private/name", Err: unix.ENOSPC}),
		"merge: files (2)":              &deploy.ConflictError{What: "files", Paths: []string{"/etc/private/name", "/etc/x"}},
		"merge":                         errors.New("private/name is odd"),
	} {
		if got := deploy.PublicReason("merge", err); got != want {
			t.Errorf("%v: got %q, want %q", err, got, want)
		}
	}
}

// TestHalfMadeEtc: what a killed merge has left goes, also if /etc has not changed
// since and nothing is merged.
func TestHalfMadeEtc(t *testing.T) {
	w := newWorld(t)
	must(t, settled(w.install(release(t, "1"))))
	one := w.boot()
	c, err := w.upgrade(release(t, "2"))
	must(t, err)
	for _, dir := range []string{"state/deploy/" + one, "state/cfsboot/staged/" + c.Deployment} {
		must(t, os.MkdirAll(filepath.Join(w.root.Path(), dir, ".etc.new/half"), 0o700))
	}
	w.changed()
	must(t, settled(w.finalize()))
	checkQuiet(t, w)
	if got := w.boot(); got != c.Deployment {
		t.Errorf("booted %s, want %s", got, c.Deployment)
	}
}

// TestDamagedPayloadIsPlacedAgain: between staging and shutdown a file system
// check took the initrd away.
func TestDamagedPayloadIsPlacedAgain(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	c, err := w.upgrade(release(t, "2"))
	if err != nil {
		t.Fatal(err)
	}
	boot := w.state().Staged.BootDigest
	if err := os.WriteFile(filepath.Join(w.fat.Path(), esp.Path(boot, "initrd")), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.changed()
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	if got := w.boot(); got != c.Deployment {
		t.Errorf("booted %s, want %s", got, c.Deployment)
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	var refused *deploy.RefusedError
	want := func(name string, err error, code string) {
		t.Helper()
		if !errors.As(err, &refused) || refused.Code != code {
			t.Errorf("%s: got %v, want refusal %s", name, err, code)
		}
	}
	_, err := w.upgrade(release(t, "2"))
	want("not booted by us", err, deploy.CodeNotManaged)
	_, err = w.install(release(t, "1"))
	want("install twice", err, deploy.CodeInstalled)
	one := w.boot()
	_, err = w.rollback("")
	want("nothing to go back to", err, deploy.CodeNoRollback)
	_, err = w.rollback("abcd")
	want("unknown id", err, deploy.CodeUnknown)
	checkQuiet(t, w)

	noKernel := osTree("2")
	for name := range noKernel {
		if strings.HasPrefix(name, "usr/lib/modules/6.12/") {
			delete(noKernel, name)
		}
	}
	_, err = w.upgrade(buildImage(t, noKernel))
	want("no kernel", err, deploy.CodeImage)
	checkQuiet(t, w)
	if got := w.boot(); got != one {
		t.Errorf("booted %s, want %s", got, one)
	}

	for _, name := range []string{"boot/", "sysroot/"} {
		files := osTree("2")
		delete(files, name)
		_, err = w.upgrade(buildImage(t, files))
		want("image without "+name, err, deploy.CodeImage)
		checkQuiet(t, w)
	}
	noRelease := osTree("2")
	delete(noRelease, "usr/lib/os-release")
	_, err = w.upgrade(buildImage(t, noRelease))
	want("no os-release", err, deploy.CodeImage)
	if !strings.Contains(err.Error(), "/usr/lib/os-release") {
		t.Errorf("the refusal does not name os-release: %v", err)
	}
	checkQuiet(t, w)
	other, err := ocitest.Build(ocitest.Spec{Layers: []ocitest.Layer{{Tar: make([]byte, 1024)}}, Platform: v1.Platform{OS: "linux", Architecture: "s390x"}})
	must(t, err)
	_, err = w.upgrade(other)
	want("another architecture", err, deploy.CodeImage)
	if w.state().Staged != nil || w.boot() != one {
		t.Error("a refused image was staged")
	}
	if got := w.tagged(); got != string(release(t, "1").Descriptor.Digest) {
		t.Errorf("after the refusals the tag stands for %s, want the image that runs", got)
	}

	empty := newWorld(t)
	empty.writeRunning(record.BootedPath, `{"version":1,"digest":"`+one+`","algorithm":"sha512-12","karg":"","secure":false,"gate":"digest","sysroot":{"dev":"1:2","uuid":""},"etc":"bind","var":"bind","root":"ro","erofs":"file","kernel":"6"}`)
	_, err = empty.upgrade(release(t, "2"))
	want("no journal", err, deploy.CodeNotManaged)
}

func TestInstallRefusals(t *testing.T) {
	img := release(t, "1")
	var refused *deploy.RefusedError
	check := func(name, code string, edit func(w *world, o *deploy.InstallOptions)) {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.tag = img
			o := deploy.InstallOptions{
				Options: w.options(), PullOptions: w.pull(), Image: reference, AllowMissingVerity: true, RootUUID: "x",
			}
			edit(w, &o)
			before := entriesBelow(t, w.fat.Path())
			_, err := deploy.Install(t.Context(), w.root.Path(), o)
			if !errors.As(err, &refused) || refused.Code != code {
				t.Fatalf("got %v, want refusal %s", err, code)
			}
			if got := entriesBelow(t, w.fat.Path()); !slices.Equal(got, before) {
				t.Errorf("the boot partition was changed: %v", got)
			}
			if tags, _ := filepath.Glob(filepath.Join(w.root.Path(), "composefs/streams/refs/oci/*")); len(tags) > 0 {
				t.Errorf("the refused image has tags: %v", tags)
			}
		})
	}
	if !hasVerity(t, t.TempDir()) {
		check("no fs-verity", deploy.CodeNoVerity, func(_ *world, o *deploy.InstallOptions) { o.AllowMissingVerity = false })
	}
	check("composefs karg", deploy.CodeKarg, func(_ *world, o *deploy.InstallOptions) { o.Kargs = []string{"quiet composefs.digest=x"} })
	check("line break in a karg", deploy.CodeKarg, func(_ *world, o *deploy.InstallOptions) { o.Kargs = []string{"a\nb"} })
	check("open quote in a karg", deploy.CodeKarg, func(_ *world, o *deploy.InstallOptions) { o.Kargs = []string{`a="b`} })
	check("open quote in the UUID", deploy.CodeKarg, func(_ *world, o *deploy.InstallOptions) { o.RootUUID = `x"` })
	check("not empty", deploy.CodeTarget, func(w *world, _ *deploy.InstallOptions) { w.touch("home") })
	check("a repository of somebody", deploy.CodeTarget, func(w *world, _ *deploy.InstallOptions) { w.touch("composefs") })
	check("no ESP", deploy.CodeNoESP, func(_ *world, o *deploy.InstallOptions) { o.ESP = nil })
	check("ESP is none", deploy.CodeNoESP, func(w *world, o *deploy.InstallOptions) { o.ESP, o.ESPPath = nil, w.fat.Path() })
	check("no loader in the image", deploy.CodeImage, func(w *world, _ *deploy.InstallOptions) {
		files := osTree("1")
		delete(files, "usr/lib/systemd/boot/efi/systemd-bootx64.efi")
		w.tag = buildImage(w.t, files)
	})
	check("no reference", deploy.CodeImage, func(_ *world, o *deploy.InstallOptions) { o.TargetImage = "docker://" })
}

// TestInstallTwiceAtOnce: the second installation, of another image, looked at
// the target before the first had begun and finds it done when it gets the lock.
func TestInstallTwiceAtOnce(t *testing.T) {
	w := newWorld(t)
	first, second := release(t, "1"), release(t, "2")
	var id string
	o := deploy.InstallOptions{Options: w.options(), PullOptions: w.pull(), Image: reference, AllowMissingVerity: true, RootUUID: "x"}
	o.OpenSource = func(context.Context, string) (oci.Source, error) {
		c, err := w.install(first)
		if err != nil {
			return nil, err
		}
		id = c.Deployment
		return &ocitest.Source{Image: second}, nil
	}
	var refused *deploy.RefusedError
	if c, err := deploy.Install(t.Context(), w.root.Path(), o); !errors.As(err, &refused) || refused.Code != deploy.CodeInstalled {
		t.Fatalf("got %+v, %v, want refusal %s", c, err, deploy.CodeInstalled)
	}
	if got := w.boot(); got != id {
		t.Errorf("booted %s, want the first, %s", got, id)
	}
}

// TestInstallOfAnotherImage: an installation lacks only its last record. With the
// same image and reference that is written, with others it is no success.
func TestInstallOfAnotherImage(t *testing.T) {
	w := newWorld(t)
	img := release(t, "1")
	done, err := w.install(img)
	must(t, err)
	records := w.records()
	must(t, os.Remove(filepath.Join(w.root.Path(), record.JournalDir, records[len(records)-1])))
	w.changed()
	var refused *deploy.RefusedError
	if c, err := w.copy().install(release(t, "2")); !errors.As(err, &refused) || refused.Code != deploy.CodeInstalled {
		t.Errorf("another image: got %+v, %v, want refusal %s", c, err, deploy.CodeInstalled)
	}
	follows := w.copy()
	_, err = deploy.Install(t.Context(), follows.root.Path(), deploy.InstallOptions{
		Options: follows.options(), PullOptions: w.pull(), Image: reference, TargetImage: "docker://registry.example/other:1", AllowMissingVerity: true, RootUUID: "x",
	})
	if !errors.As(err, &refused) || refused.Code != deploy.CodeInstalled {
		t.Errorf("another reference: got %v, want refusal %s", err, deploy.CodeInstalled)
	}
	if c, err := w.install(img); err != nil || c.Deployment != done.Deployment {
		t.Errorf("the same again: %+v, %v", c, err)
	}
}

// TestPlatform: an image for another machine is installed where that is asked for.
func TestPlatform(t *testing.T) {
	w := newWorld(t)
	files := osTree("1")
	files["usr/lib/systemd/boot/efi/systemd-bootaa64.efi"] = toyLoader
	w.tag = buildImageFor(t, files, v1.Platform{OS: "linux", Architecture: "arm64"})
	o := deploy.InstallOptions{Options: w.options(), PullOptions: w.pull(), Image: reference, AllowMissingVerity: true, RootUUID: "x"}
	if oci.HostPlatform().Architecture != "arm64" {
		var refused *deploy.RefusedError
		if _, err := deploy.Install(t.Context(), w.root.Path(), o); !errors.As(err, &refused) || refused.Code != deploy.CodeImage {
			t.Fatalf("got %v, want refusal %s", err, deploy.CodeImage)
		}
	}
	o.Platform = v1.Platform{OS: "linux", Architecture: "arm64"}
	must(t, settled(deploy.Install(t.Context(), w.root.Path(), o)))
	if _, err := os.Stat(filepath.Join(w.fat.Path(), "EFI/BOOT/BOOTAA64.EFI")); err != nil {
		t.Error(err)
	}
}

func (w *world) touch(name string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.root.Path(), name), nil, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func entriesBelow(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		out = append(out, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestForeignLoader: files of another system on the ESP are not touched.
func TestForeignLoader(t *testing.T) {
	w := newWorld(t)
	file := filepath.Join(w.fat.Path(), "EFI/BOOT/BOOTX64.EFI")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("another system"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.changed()
	for n := range 3 { // a refused run must not count as one that wrote the file
		var conflict *deploy.ConflictError
		if _, err := w.install(release(t, "1")); !errors.As(err, &conflict) || !slices.Equal(conflict.Paths, []string{"EFI/BOOT/BOOTX64.EFI"}) {
			t.Fatalf("run %d: got %v, want a conflict that names the loader", n+1, err)
		}
		if got, _ := os.ReadFile(file); string(got) != "another system" {
			t.Fatalf("run %d: it was overwritten by %q", n+1, got)
		}
	}
	if got := entriesOf(t, w); len(got) > 0 {
		t.Errorf("%d boot entries were made", len(got))
	}
}

// TestRetirementForgetsImage: with a deployment goes what the repository knows
// about its image and layers, and nothing about the others.
func TestRetirementForgetsImage(t *testing.T) {
	w := newWorld(t)
	images := []*ocitest.Image{release(t, "1"), release(t, "2"), release(t, "3")}
	ids := w.releases(images...)
	check := func(when string, img *ocitest.Image, want bool) {
		t.Helper()
		for _, name := range []string{"images/" + string(img.Descriptor.Digest), "verified/" + string(img.DiffIDs[0])} {
			if _, err := os.Lstat(filepath.Join(w.root.Path(), "composefs/cfsboot", name)); want && err != nil || !want && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: record %s: %v, want it there: %v", when, name, err, want)
			}
		}
	}
	for _, img := range images {
		check("before", img, true)
	}
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	must(t, settled(w.upgrade(images[2]))) // nothing to do but to clean up
	checkQuiet(t, w)
	check("after", images[0], false)
	check("after", images[1], true)
	check("after", images[2], true)
}

// TestRetirementIsFinishedFirst: what a killed retirement left of a deployment
// does not take the same one along when it is staged anew.
func TestRetirementIsFinishedFirst(t *testing.T) {
	w := newWorld(t)
	ids := w.releases(release(t, "1"), release(t, "2"), release(t, "3"))
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	var refused *deploy.RefusedError
	if _, err := w.rollback(ids[0]); !errors.As(err, &refused) || refused.Code != deploy.CodeUnknown {
		t.Errorf("rollback to what is being removed: %v", err)
	}
	if _, err := w.upgrade(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	checkQuiet(t, w)
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	if got := w.boot(); got != ids[0] {
		t.Errorf("booted %s, want %s", got, ids[0])
	}
}

// TestTornRename: both names that a power cut leaves of a renamed counter go when
// their deployment does.
func TestTornRename(t *testing.T) {
	w := newWorld(t)
	ids := w.releases(release(t, "1"), release(t, "2"), release(t, "3"))
	dir := filepath.Join(w.fat.Path(), esp.EntryDir)
	for _, e := range entriesOf(t, w) {
		if e.ImageID() != ids[0] {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.File))
		must(t, err)
		n := e.Name
		n.Counter = bls.Counter{Present: true, Left: 2, Done: 1}
		must(t, os.WriteFile(filepath.Join(dir, n.String()), data, 0o600))
		w.changed()
	}
	w.note(record.Event{Kind: record.EventRetire, Deployment: ids[0]})
	if _, err := w.upgrade(release(t, "3")); !errors.Is(err, deploy.ErrNothingToDo) {
		t.Fatal(err)
	}
	for _, e := range entriesOf(t, w) {
		if e.ImageID() == ids[0] {
			t.Errorf("%s starts a deployment without state", e.File)
		}
	}
	checkQuiet(t, w)
}

// TestJournalSetBack: what runs, and what an entry starts, keeps its refs, state
// and entry, although the journal does not know it.
func TestJournalSetBack(t *testing.T) {
	w := newWorld(t)
	one := release(t, "1")
	_, err := w.install(one)
	must(t, err)
	w.boot()
	must(t, settled(w.upgrade(one)))
	n := len(w.records())
	two := w.releases(one, release(t, "2"))[1]
	for _, name := range w.records()[n:] {
		must(t, os.Remove(filepath.Join(w.root.Path(), record.JournalDir, name)))
	}
	w.changed()
	must(t, settled(w.upgrade(release(t, "3"))))
	must(t, settled(w.finalize()))
	for _, name := range []string{"composefs/images/refs/cfsboot/" + two + "/boot", "composefs/streams/refs/cfsboot/" + two, "state/deploy/" + two + "/etc"} {
		if _, err := os.Lstat(filepath.Join(w.root.Path(), name)); err != nil {
			t.Error(err)
		}
	}
	if !slices.ContainsFunc(entriesOf(t, w), func(e esp.Entry) bool { return e.ImageID() == two }) {
		t.Error("the entry of the running deployment is gone")
	}
	w.boot()
}

// TestLocked: a second cfsboot is told, and the first one is not disturbed.
func TestLocked(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	dir, err := durable.OpenDir(filepath.Join(w.root.Path(), "state/cfsboot"))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := dir.Flock(unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	var locked *repo.LockedError
	for name, run := range map[string]func() (*deploy.Change, error){
		"upgrade":  func() (*deploy.Change, error) { return w.upgrade(release(t, "2")) },
		"finalize": w.finalize,
		"rollback": func() (*deploy.Change, error) { return w.rollback("") },
	} {
		if _, err := run(); !errors.As(err, &locked) {
			t.Errorf("%s: got %v, want a LockedError", name, err)
		}
	}
	if err := dir.Flock(unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := w.upgrade(release(t, "2")); err != nil {
		t.Error(err)
	}
}

// TestShutdownUnitMissing: staging succeeds, and the user hears what to do.
func TestShutdownUnitMissing(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	w.boot()
	w.systemd.err = errors.New("unit not found")
	c, err := w.upgrade(release(t, "2"))
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "cfsboot finalize") {
		t.Errorf("got %+v, %v", c, err)
	}
}

func TestCancelled(t *testing.T) {
	w := newWorld(t)
	if _, err := w.install(release(t, "1")); err != nil {
		t.Fatal(err)
	}
	one := w.boot()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.tag = release(t, "2")
	if _, err := deploy.Upgrade(ctx, deploy.UpgradeOptions{Options: w.options(), PullOptions: w.pull()}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	checkQuiet(t, w)
	if got := w.boot(); got != one {
		t.Errorf("booted %s", got)
	}
}
