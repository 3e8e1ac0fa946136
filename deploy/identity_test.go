package deploy_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
)

// TestIdentitySurvivesEveryFault: no machine boots without the name and the key
// that were asked for, and a repeated installation gives it them once.
func TestIdentitySurvivesEveryFault(t *testing.T) {
	img := linkedHome(t, "1")
	base := newWorld(t)
	base.keys, base.hostname = testKey, "host-7"
	hasIdentity := func(t *testing.T, w *world) {
		t.Helper()
		if got := w.etc(w.boot(), "hostname"); got != "host-7\n" {
			t.Errorf("hostname %q", got)
		}
		checkKeyFile(t, w.root.Path(), testKey+"\n")
	}
	tc := crashCase{
		"install", func(*testing.T, *world) {},
		func(w *world) error { return settled(w.install(img)) },
		hasIdentity,
		func(t *testing.T, w *world) {
			if _, err := w.copy().tryBoot(); err == nil {
				hasIdentity(t, w.copy())
			}
			_, err := w.install(img)
			var refused *deploy.RefusedError
			if errors.As(err, &refused) && refused.Code == deploy.CodeInstalled {
				err = nil
			}
			must(t, err)
			hasIdentity(t, w)
		},
	}
	calls := countCalls(t, tc, base)
	for n := 0; n < calls; n += sampled(calls, 25) {
		for mode, f := range faults {
			crashOnce(t, tc, base, f.at(n), uint64(n*len(faults)+mode))
		}
	}
}

// TestRootKeysOfImage: keys that the image brings stay.
func TestRootKeysOfImage(t *testing.T) {
	files := osTree("1")
	delete(files, "root/")
	files["root"], files["var/roothome/"], files["var/roothome/.ssh/"], files["var/roothome/.ssh/authorized_keys"] = "-> /var/roothome", "", "", "# of the image"
	w := newWorld(t)
	w.keys = testKey
	if _, err := w.install(buildImage(t, files)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(w.root.Path(), "state/os/default/var/roothome/.ssh/authorized_keys")
	if got, err := os.ReadFile(path); err != nil || string(got) != "# of the image\n"+testKey+"\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestIdentityRefused(t *testing.T) {
	for name, c := range map[string]struct{ keys, hostname, code string }{
		"home":     {testKey, "", deploy.CodeImage}, // /root of the image is on the read-only root
		"keys":     {"hello", "", deploy.CodeIdentity},
		"hostname": {"", "-", deploy.CodeIdentity},
	} {
		w := newWorld(t)
		w.keys, w.hostname = c.keys, c.hostname
		_, err := w.install(release(t, "1"))
		wantRefusal(t, err, c.code)
		if _, err := w.tryBoot(); err == nil {
			t.Errorf("%s: it boots all the same", name)
		}
	}
}

// TestInstallToDiskUnprivileged: the refusal comes first and changes nothing.
func TestInstallToDiskUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		must(t, syscall.Seteuid(65534))
		defer func() { must(t, syscall.Seteuid(0)) }()
	}
	_, err := deploy.InstallToDisk(t.Context(), filepath.Join(t.TempDir(), "disk"), deploy.DiskOptions{Size: 1 << 30})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("got %v, want fs.ErrPermission", err)
	}
}
