package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// releaseWith is a release with more files.
func releaseWith(t testing.TB, name string, more map[string]string) *ocitest.Image {
	t.Helper()
	files := osTree(name)
	for path, text := range more {
		for i, c := range path {
			if c == '/' {
				files[path[:i+1]] = ""
			}
		}
		files[path] = text
	}
	return buildImage(t, files)
}

// siteKargs writes a file of kernel arguments into the running /etc.
func (w *world) siteKargs(name, text string) {
	w.t.Helper()
	must(w.t, os.MkdirAll(filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc/cfsboot/kargs.d"), 0o755))
	w.edit("cfsboot/kargs.d/"+name, text)
}

// next takes the machine to another release, found to be good.
func (w *world) next(img *ocitest.Image) {
	w.t.Helper()
	must(w.t, settled(w.upgrade(img)))
	must(w.t, settled(w.finalize()))
	w.boot()
	w.bless()
}

// wantKargs compares the kernel command line of the newest entry, without what selects the root.
func wantKargs(t *testing.T, w *world, what, want string) {
	t.Helper()
	var got []string
	for _, token := range entriesOf(t, w)[0].Entry.Options() {
		if !strings.HasPrefix(token, "root=") && !strings.HasPrefix(token, "composefs.digest=") {
			got = append(got, token)
		}
	}
	if text := strings.Join(got, " "); text != want {
		t.Errorf("%s:\n got %q\nwant %q", what, text, want)
	}
}

const bootcKargs = "usr/lib/bootc/kargs.d/"

// TestKargs: the image's kernel arguments come and go with the release, those of the site and of --karg stay, what a person wrote
// into the entry stays too, and rollback brings the old line back.
func TestKargs(t *testing.T) {
	w := newWorld(t)
	one := w.releases(releaseWith(t, "1", map[string]string{
		bootcKargs + "10-one.toml":             `kargs = ["one=1", "quiet"]`,
		bootcKargs + "20-arm.toml":             "kargs = [\"arm=1\"]\nmatch-architectures = [\"aarch64\"]\n",
		bootcKargs + "README":                  "not TOML",
		"usr/lib/cfsboot/kargs.d/30-own.toml":  `kargs = ["own=1"]`,
		"etc/cfsboot/kargs.d/90-vendored.toml": `kargs = ["vendored=1"]`,
	}))[0]
	wantKargs(t, w, "installed", "rw panic=30 one=1 own=1 quiet console=ttyS0 vendored=1")

	w.siteKargs("50-site.toml", `kargs = ["site=1"]`)
	w.siteKargs("30-own.toml", "") // masks the image's
	editEntry(t, w, "console=ttyS0", "console=ttyS1")
	w.next(releaseWith(t, "2", map[string]string{
		bootcKargs + "10-two.toml":             `kargs = ["two=1"]`,
		"usr/lib/cfsboot/kargs.d/30-own.toml":  `kargs = ["root=/dev/sda"]`, // nobody looks at what is masked
		"etc/cfsboot/kargs.d/90-vendored.toml": `kargs = ["vendored=1"]`,
	}))
	wantKargs(t, w, "second release", "rw panic=30 two=1 quiet console=ttyS1 site=1 vendored=1")

	s := deploy.ReadStatus(t.Context(), w.options())
	from := map[string]string{}
	for _, k := range s.Cfsboot.Deployments[0].Kargs {
		from[k.Argument] = strings.Trim(k.Source+" "+k.File, " ")
	}
	for argument, want := range map[string]string{
		"two=1": "image /usr/lib/bootc/kargs.d/10-two.toml", "quiet": "install", "console=ttyS1": "local", "site=1": "site /etc/cfsboot/kargs.d/50-site.toml", "rw": "cfsboot",
	} {
		if from[argument] != want {
			t.Errorf("%s comes from %q, want %q", argument, from[argument], want)
		}
	}

	if _, err := w.rollback(one); err != nil {
		t.Fatal(err)
	}
	wantKargs(t, w, "rolled back", "rw panic=30 one=1 own=1 quiet console=ttyS1 vendored=1")
	w.boot()
	checkQuiet(t, w)
}

// editEntry changes the newest boot entry, as a person does with an editor.
func editEntry(t *testing.T, w *world, from, to string) {
	t.Helper()
	path := filepath.Join(w.fat.Path(), esp.EntryDir, entriesOf(t, w)[0].File)
	data, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(data), from, to)), 0o644))
	w.changed()
}

// TestKargsChangedAfterStaging: what the site changes before the shutdown counts, masks of the image's files included.
func TestKargsChangedAfterStaging(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	w.siteKargs("50-site.toml", `kargs = ["site=1"]`)
	if _, err := w.upgrade(releaseWith(t, "2", map[string]string{bootcKargs + "10-two.toml": `kargs = ["two=1"]`})); err != nil {
		t.Fatal(err)
	}
	w.siteKargs("50-site.toml", `kargs = ["site=2"]`)
	w.siteKargs("10-two.toml", "")
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	wantKargs(t, w, "finalized", "rw panic=30 quiet console=ttyS0 site=2")

	// A file that is broken by then leaves the old deployment the default and is told; the journal, open to all, does not name it.
	w.boot()
	w.bless()
	if _, err := w.upgrade(release(t, "3")); err != nil {
		t.Fatal(err)
	}
	w.siteKargs("60-secret.toml", "kargs = [")
	_, err := w.finalize()
	checkRefusedFile(t, err, "/etc/cfsboot/kargs.d/60-secret.toml")
	if st := w.state().Staged; st == nil || st.Failure == "" || strings.Contains(st.Failure, "secret") {
		t.Errorf("staged %+v", st)
	}
	w.checkJournal("60-secret")
	wantKargs(t, w, "after the failure", "rw panic=30 quiet console=ttyS0 site=2")
	must(t, os.Remove(filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc/cfsboot/kargs.d/60-secret.toml")))
	w.changed()
	if _, err := w.finalize(); err != nil {
		t.Fatal(err)
	}
	w.boot()
}

func checkRefusedFile(t *testing.T, err error, path string) {
	t.Helper()
	var refused *deploy.RefusedError
	if !errors.As(err, &refused) || refused.Code != deploy.CodeKarg || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want a refusal (%s) that names %s in one line", err, deploy.CodeKarg, path)
	}
}

// TestKargsRefused: a file that cannot be used, of the image or of the site, is refused before anything is staged.
func TestKargsRefused(t *testing.T) {
	for name, tc := range map[string]struct{ path, text string }{
		"no TOML":         {bootcKargs + "10.toml", "kargs = ["},
		"unknown key":     {bootcKargs + "10.toml", "arguments = [\"a\"]"},
		"root":            {"usr/lib/cfsboot/kargs.d/10.toml", `kargs = ["root=/dev/sda"]`},
		"another image":   {bootcKargs + "10.toml", `kargs = ["composefs=` + strings.Repeat("ab", 64) + `"]`},
		"link":            {bootcKargs + "10.toml", "-> ../other.toml"},
		"directory":       {bootcKargs + "10.toml/", ""},
		"too large":       {bootcKargs + "10.toml", "#" + strings.Repeat("x", 64<<10)},
		"no directory":    {"usr/lib/bootc/kargs.d", "a file"},
		"of the site too": {"etc/cfsboot/kargs.d/10.toml", "kargs = 1"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := releaseWith(t, "2", map[string]string{tc.path: tc.text})
			path := "/" + strings.TrimSuffix(tc.path, "/")
			w := newWorld(t)
			_, err := w.install(bad)
			checkRefusedFile(t, err, path)
			if list, _ := os.ReadDir(filepath.Join(w.fat.Path(), "loader/entries")); len(list) > 0 {
				t.Errorf("a refused installation has left %v", list)
			}

			w = newWorld(t)
			w.releases(release(t, "1"))
			before := w.state()
			_, err = w.upgrade(bad)
			checkRefusedFile(t, err, path)
			if s := w.state(); s.Staged != nil || s.Transaction != nil || len(s.Entries) != len(before.Entries) {
				t.Errorf("something was staged: %+v", s)
			}
			checkQuiet(t, w)
			must(t, settled(w.upgrade(release(t, "3"))))
		})
	}
	for name, prepare := range map[string]func(w *world, dir string){
		"of the running site": func(w *world, dir string) { must(w.t, os.WriteFile(dir+"/10.toml", []byte("kargs = ["), 0o644)) },
		"link":                func(w *world, dir string) { must(w.t, os.Symlink("/etc/shadow", dir+"/10.toml")) },
		"directory":           func(w *world, dir string) { must(w.t, os.Mkdir(dir+"/10.toml", 0o755)) },
		"too large":           func(w *world, dir string) { must(w.t, os.WriteFile(dir+"/10.toml", make([]byte, 1<<20), 0o644)) },
	} {
		t.Run("site: "+name, func(t *testing.T) {
			w := newWorld(t)
			w.releases(release(t, "1"))
			dir := filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc/cfsboot/kargs.d")
			must(t, os.MkdirAll(dir, 0o755))
			prepare(w, dir)
			w.changed()
			must(t, settled(w.upgrade(w.tag))) // which records that the first release is good
			n := len(w.records())
			_, err := w.upgrade(release(t, "2"))
			checkRefusedFile(t, err, "/etc/cfsboot/kargs.d/10.toml")
			if len(w.records()) != n {
				t.Error("the refusal comes after the beginning")
			}
			// A link to /dev/null in its place is the usual mask.
			must(t, os.RemoveAll(dir+"/10.toml"))
			must(t, os.Symlink("/dev/null", dir+"/10.toml"))
			w.changed()
			must(t, settled(w.upgrade(release(t, "2"))))
		})
	}
}

// TestKargsTooMany: no more files are read than may be, so the one that cannot be
// used is not found.
func TestKargsTooMany(t *testing.T) {
	check := func(t *testing.T, err error, path string) {
		t.Helper()
		checkRefusedFile(t, err, path)
		if err == nil || !strings.Contains(err.Error(), "more than 128 files") || strings.Contains(err.Error(), ".toml") {
			t.Errorf("got %v, want a refusal of the number of files", err)
		}
	}
	more := map[string]string{}
	for i := range 128 {
		more[fmt.Sprintf("%s%03d.toml", bootcKargs, i)] = ""
	}
	must(t, settled(newWorld(t).install(releaseWith(t, "2", more))))
	more[bootcKargs+"200.toml/"] = ""
	_, err := newWorld(t).install(releaseWith(t, "2", more))
	check(t, err, "/usr/lib/bootc/kargs.d")

	w := newWorld(t)
	w.releases(release(t, "1"))
	for i := range 128 {
		w.siteKargs(fmt.Sprintf("%03d.toml", i), "")
	}
	must(t, settled(w.upgrade(release(t, "2"))))
	must(t, os.Mkdir(filepath.Join(w.root.Path(), "state/deploy", w.booted(), "etc/cfsboot/kargs.d/200.toml"), 0o755))
	w.changed()
	_, err = w.upgrade(release(t, "3"))
	check(t, err, "/etc/cfsboot/kargs.d")
}

// TestKargsTooLong: what the kernel would cut off is refused.
func TestKargsTooLong(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	var refused *deploy.RefusedError
	_, err := w.upgrade(releaseWith(t, "2", map[string]string{bootcKargs + "10.toml": fmt.Sprintf("kargs = [\"x=%s\"]", strings.Repeat("y", 2000))}))
	if !errors.As(err, &refused) || refused.Code != deploy.CodeKarg || !strings.Contains(err.Error(), "the kernel takes 2047") {
		t.Errorf("got %v", err)
	}
	checkQuiet(t, w)
}

// TestKargsOfOldRecord: a machine whose deployment was made before sources were written down keeps its arguments.
func TestKargsOfOldRecord(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	path := filepath.Join(w.root.Path(), "state/deploy", w.booted(), record.DeploymentName)
	data, err := os.ReadFile(path)
	must(t, err)
	d, err := record.ParseDeployment(data)
	must(t, err)
	d.Kargs = nil
	data, err = d.Encode()
	must(t, err)
	must(t, os.WriteFile(path, data, 0o644))
	w.changed()
	w.next(releaseWith(t, "2", map[string]string{bootcKargs + "10.toml": `kargs = ["two=1"]`}))
	wantKargs(t, w, "second release", "rw two=1 panic=30 quiet console=ttyS0")
}
