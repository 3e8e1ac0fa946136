package deploy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
	"golang.org/x/sys/unix"
)

// withPolicy is a release with a SELinux policy.
func withPolicy(t testing.TB, name, contexts string) *ocitest.Image {
	t.Helper()
	files := osTree(name)
	for _, dir := range []string{"etc/selinux/", "etc/selinux/toy/", "etc/selinux/toy/contexts/", "etc/selinux/toy/contexts/files/"} {
		files[dir] = ""
	}
	files["etc/selinux/config"] = "SELINUX=enforcing\nSELINUXTYPE=toy\n"
	files["etc/selinux/toy/contexts/files/file_contexts"] = contexts
	return buildImage(t, files)
}

const toyPolicy = "/.* u:r:default_t:s0\n/etc(/.*)? u:r:etc_t:s0\n"

// needLabels skips where files cannot get labels.
func needLabels(t *testing.T) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(name, nil, 0o600))
	if err := unix.Setxattr(name, "security.selinux", []byte("u:r:etc_t:s0"), 0); err != nil {
		t.Skip("files cannot be labelled here: ", err)
	}
}

// TestNoSELinux: a machine where SELinux is enforcing switches to an image without a
// policy only if that is allowed, and tells it if an upgrade leads there.
func TestNoSELinux(t *testing.T) {
	needLabels(t)
	for name, c := range map[string]struct {
		mode     string
		img      *ocitest.Image
		allow    bool
		upgrade  bool
		refused  bool
		warnings int
	}{
		"enforcing":              {mode: "enforcing", img: release(t, "2"), refused: true},
		"enforcing, allowed":     {mode: "enforcing", img: release(t, "2"), allow: true, warnings: 1},
		"enforcing, upgrade":     {mode: "enforcing", img: release(t, "2"), upgrade: true, warnings: 1},
		"enforcing, with policy": {mode: "enforcing", img: withPolicy(t, "2", toyPolicy)},
		"permissive":             {mode: "permissive", img: release(t, "2")},
		"disabled":               {mode: "disabled", img: release(t, "2")},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := w.releases(withPolicy(t, "1", toyPolicy))[0]
			w.selinux.Mode = c.mode
			var change *deploy.Change
			var err error
			if c.upgrade {
				change, err = w.upgrade(c.img)
			} else {
				change, err = w.switchTo(otherReference, c.img, deploy.SwitchOptions{AllowNoSELinux: c.allow})
			}
			if c.refused {
				var refused *deploy.RefusedError
				if !errors.As(err, &refused) || refused.Code != deploy.CodeNoSELinux {
					t.Fatalf("got %v, want a refusal", err)
				}
				if w.state().Staged != nil || w.follows(one) != reference {
					t.Error("something is staged or followed")
				}
				if objects := w.objects(); objects != wantObjects(t) {
					t.Errorf("%d objects are left, want %d", objects, wantObjects(t))
				}
				checkQuiet(t, w)
				return
			}
			must(t, err)
			got := 0
			for _, text := range change.Warnings {
				if strings.Contains(text, "SELinux") {
					got++
				}
			}
			if got != c.warnings || change.Action != deploy.ActionStaged {
				t.Errorf("%+v, want %d warnings", change, c.warnings)
			}
			must(t, settled(w.finalize()))
			if id := w.boot(); id != change.Deployment {
				t.Errorf("booted %s, want %s", id, change.Deployment)
			}
			checkQuiet(t, w)
		})
	}
}

// wantObjects is how many objects a machine has that has just been installed.
func wantObjects(t *testing.T) int64 {
	t.Helper()
	w := newWorld(t)
	w.root = durabletest.New(t)
	w.releases(withPolicy(t, "1", toyPolicy))
	return w.objects()
}

// labelOf reads the label of a file of the physical root, "" if it has none.
func (w *world) labelOf(name string) string {
	w.t.Helper()
	b := make([]byte, 100)
	n, err := unix.Lgetxattr(filepath.Join(w.root.Path(), name), "security.selinux", b)
	if errors.Is(err, unix.ENODATA) {
		return ""
	}
	must(w.t, err)
	return string(b[:n])
}

// TestEtcLabels: the /etc of each deployment has the labels of the policy that comes
// with it, local files and local rules included.
func TestEtcLabels(t *testing.T) {
	needLabels(t)
	const second = "/.* u:r:two_t:s0\n/etc(/.*)? u:r:etc2_t:s0\n/etc/motd -- u:r:motd2_t:s0\n/etc/link -l u:r:link2_t:s0\n/etc/none <<none>>\n"
	const local = "etc/selinux/toy/contexts/files/file_contexts.local"
	for name, c := range map[string]struct {
		next  *ocitest.Image
		edits map[string]string // of /etc
		want  map[string]string // labels in /etc
	}{
		"by the new policy": {
			next: withPolicy(t, "2", second),
			want: map[string]string{".": "u:r:etc2_t:s0", "motd": "u:r:motd2_t:s0", "hostname": "u:r:etc2_t:s0", "mine": "u:r:etc2_t:s0", "link": "u:r:link2_t:s0", "none": "", "selinux/config": "u:r:etc2_t:s0"},
		},
		"with local rules": {
			next:  withPolicy(t, "2", second),
			edits: map[string]string{local: "/etc/mine -- u:r:local_t:s0\n"},
			want:  map[string]string{"motd": "u:r:motd2_t:s0", "mine": "u:r:local_t:s0", local[len("etc/"):]: "u:r:etc2_t:s0"},
		},
		"local rules that cannot be read": {
			next:  withPolicy(t, "2", second),
			edits: map[string]string{local: "/etc/(mine -- u:r:local_t:s0\n"},
			want:  map[string]string{"motd": "u:r:motd2_t:s0", "mine": "u:r:etc2_t:s0"},
		},
		"no policy any more": {
			next: release(t, "2"),
			want: map[string]string{".": "", "motd": "", "mine": "", "link": "", "hostname": ""},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			one := w.releases(withPolicy(t, "1", toyPolicy))[0]
			etc := filepath.Join(w.stateDir(one), "etc")
			if got := w.labelOf("state/deploy/" + one + "/etc/motd"); got != "u:r:etc_t:s0" {
				t.Fatalf("label after the installation: %q", got)
			}
			w.edit("hostname", "mine\n")
			w.edit("mine", "x\n")
			w.edit("none", "x\n")
			must(t, unix.Setxattr(filepath.Join(etc, "mine"), "security.selinux", []byte("u:r:byhand_t:s0"), 0))
			must(t, unix.Lsetxattr(filepath.Join(etc, "motd"), "security.selinux", []byte("u:r:byhand_t:s0"), 0))
			must(t, os.Symlink("motd", filepath.Join(etc, "link")))
			for name, text := range c.edits {
				w.edit(strings.TrimPrefix(name, "etc/"), text)
			}
			change, err := w.upgrade(c.next)
			must(t, err)
			w.edit("late", "after staging\n")
			must(t, settled(w.finalize()))
			two := change.Deployment
			if got := w.boot(); got != two {
				t.Fatalf("booted %s", got)
			}
			for name, want := range c.want {
				if got := w.labelOf(filepath.Join("state/deploy", two, "etc", name)); got != want {
					t.Errorf("/etc/%s: label %q, want %q", name, got, want)
				}
			}
			if got := w.labelOf(filepath.Join("state/deploy", two, "etc/late")); got != c.want["selinux/config"] && c.want["selinux/config"] != "" {
				t.Errorf("/etc/late: label %q", got)
			}
			checkQuiet(t, w)
		})
	}
}

// TestInstallLabels: what an installation adds to the image has labels too.
func TestInstallLabels(t *testing.T) {
	needLabels(t)
	files := osTree("1")
	for _, dir := range []string{"etc/selinux/", "etc/selinux/toy/", "etc/selinux/toy/contexts/", "etc/selinux/toy/contexts/files/"} {
		files[dir] = ""
	}
	delete(files, "root/")
	files["root"] = "-> var/roothome"
	files["etc/selinux/config"] = "SELINUXTYPE=toy\n"
	const name = "etc/selinux/toy/contexts/files/file_contexts"
	files[name] = "/.* u:r:default_t:s0\n/etc/hostname -- u:r:hostname_t:s0\n/var/lib(/.*)? u:r:lib_t:s0\n/root -d u:r:home_t:s0\n/root/.ssh(/.*)? u:r:ssh_t:s0\n"
	files[name+".subs_dist"] = "/var/roothome /root\n"
	w := newWorld(t)
	w.keys, w.hostname = testKey, "toy7"
	one := w.releases(buildImage(t, files))[0]
	for name, want := range map[string]string{
		"state/deploy/" + one + "/etc/hostname":                   "u:r:hostname_t:s0",
		"state/os/default/var":                                    "u:r:default_t:s0",
		"state/os/default/var/lib/seed":                           "u:r:lib_t:s0",
		"state/os/default/var/roothome":                           "u:r:home_t:s0",
		"state/os/default/var/roothome/.ssh":                      "u:r:ssh_t:s0",
		"state/os/default/var/roothome/.ssh/authorized_keys":      "u:r:ssh_t:s0",
		"state/deploy/" + one + "/etc/selinux/toy/contexts/files": "u:r:default_t:s0",
	} {
		if got := w.labelOf(name); got != want {
			t.Errorf("%s: label %q, want %q", name, got, want)
		}
	}
}

// TestStatusSELinux: mode, policy and label of the running machine.
func TestStatusSELinux(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.releases(release(t, "1"))
	if got := w.status().Cfsboot.SELinux; got != (deploy.SELinuxStatus{Mode: "disabled"}) {
		t.Errorf("disabled: %+v", got)
	}
	w.selinux = deploy.SELinuxState{Mode: "enforcing", Label: "u:r:init_t:s0"}
	if got := w.status().Cfsboot.SELinux; got != (deploy.SELinuxStatus{Mode: "enforcing", Label: "u:r:init_t:s0"}) {
		t.Errorf("enforcing, without a configuration: %+v", got)
	}
	w.writeRunning("etc/selinux/config", "SELINUXTYPE=toy\n")
	s := w.status()
	if got := s.Cfsboot.SELinux; got != (deploy.SELinuxStatus{Mode: "enforcing", Policy: "toy", Label: "u:r:init_t:s0"}) {
		t.Errorf("enforcing: %+v", got)
	}
	if text := strings.Join(s.Table().Lines, "\n"); !strings.Contains(text, "SELinux:     enforcing, policy toy") {
		t.Errorf("the table does not tell:\n%s", text)
	}
}

// TestKernelSELinux: this machine's kernel is asked.
func TestKernelSELinux(t *testing.T) {
	s := deploy.ReadStatus(t.Context(), deploy.Options{}).Cfsboot.SELinux
	_, err := os.Stat("/sys/fs/selinux/enforce")
	if on := err == nil; on == (s.Mode == deploy.SELinuxDisabled) || s.Mode == deploy.SELinuxDisabled && s != (deploy.SELinuxStatus{Mode: s.Mode}) {
		t.Errorf("/sys/fs/selinux/enforce: %v; status: %+v", err, s)
	}
}
