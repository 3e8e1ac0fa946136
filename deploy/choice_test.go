package deploy_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
)

// TestLoaderDefault: what loader.conf or an EFI variable names is what the loader
// starts. Where that is not the default, status and every command say so; the
// command does its work all the same.
func TestLoaderDefault(t *testing.T) {
	t.Parallel()
	r3 := release(t, "3")
	base := newWorld(t)
	ids := base.releases(release(t, "1"), release(t, "2"))
	must(t, os.WriteFile(filepath.Join(base.fat.Path(), esp.EntryDir, "windows.conf"), []byte("title W\nsort-key zzz\nefi /w.efi\n"), 0o600))
	base.changed()
	first := fmt.Sprintf("cfsboot_%s-%010d.conf", base.state().Token, 1)
	const none = "nobody's"
	for name, x := range map[string]struct {
		conf string
		vars vars
		next string // what boots next, "": what cfsboot says; none: somebody else's
		told string // in status and in warnings, "": nothing
	}{
		"nothing":                        {"timeout 3\n", nil, "", ""},
		"an entry of somebody else":      {"default windows*\n", nil, none, `is "windows*", so the loader starts boot entry "windows.conf"`},
		"in capitals":                    {"default WINDOWS.conf\n", nil, none, `"windows.conf"`},
		"an entry that is not here":      {"default debian*\n", nil, "", `is "debian*", which is no boot entry here`},
		"all of ours":                    {"default cfsboot_*\n", nil, "", ""},
		"an old one of ours":             {"default " + first + "\n", nil, ids[0], first},
		"a variable":                     {"", vars{"LoaderEntryDefault": "windows.conf"}, none, `bootctl set-default`},
		"a variable before loader.conf":  {"default windows*\n", vars{"LoaderEntryDefault": first}, ids[0], first},
		"one that matches nothing first": {"default windows*\n", vars{"LoaderEntryDefault": "auto-osx"}, none, `LoaderEntryDefault is "auto-osx"`},
		"once":                           {"", vars{"LoaderEntryOneShot": "windows.conf"}, none, "once"},
		"once, of ours":                  {"default windows*\n", vars{"LoaderEntryOneShot": first, "LoaderEntryDefault": "windows.conf"}, ids[0], first},
		"saved":                          {"default @saved\n", vars{"LoaderEntryLastBooted": first}, ids[0], "(@saved)"},
		"saved in a variable":            {"", vars{"LoaderEntryDefault": "@saved", "LoaderEntryLastBooted": "windows.conf"}, none, "(@saved)"},
		"saved, nothing yet":             {"default @saved\n", nil, "", ""},
		"no loader.conf to read":         {"default a\x00b\n", nil, "", "loader.conf line 1"},
		"too long":                       {strings.Repeat("#", 70<<10), nil, "", "more than 65536 bytes"},
		"preferred is not known to it":   {"preferred windows*\n", vars{"LoaderEntryPreferred": "windows*"}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := base.copy()
			w.t, w.vars = t, x.vars
			must(t, os.WriteFile(filepath.Join(w.fat.Path(), "loader/loader.conf"), []byte(x.conf), 0o600))
			w.changed()
			check := func(what, own string, texts []string) {
				t.Helper()
				s := w.status()
				want, got := x.next, none
				if want == "" {
					want = own
				}
				if n := s.Cfsboot.NextBoot; n != nil {
					got = *n
				}
				if got != want {
					t.Errorf("%s: next boot %.12s, want %.12s", what, got, want)
				}
				var told []string
				for _, p := range s.Cfsboot.Problems {
					if p.Code == deploy.ProblemLoaderDefault {
						told = append(told, p.Message+" "+p.Hint)
					}
				}
				for _, list := range [][]string{told, texts} {
					if (x.told == "") != (len(list) == 0) || x.told != "" && !slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, x.told) }) {
						t.Errorf("%s: told %q, want %q", what, list, x.told)
					}
				}
			}
			c, err := w.upgrade(r3)
			must(t, err)
			check("upgrade", ids[1], c.Warnings)
			c, err = w.finalize()
			must(t, err)
			check("finalize", c.Deployment, c.Warnings)
			own := c.Deployment
			c, err = w.upgrade(r3)
			must(t, settled(c, err))
			check("upgrade again", own, c.Warnings)
			c, err = w.rollback("")
			must(t, err)
			check("rollback", c.Deployment, c.Warnings)
		})
	}
}

// TestForeignFirst: an entry of somebody else stands first in the menu.
func TestForeignFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.releases(release(t, "1"))
	must(t, os.WriteFile(filepath.Join(w.fat.Path(), esp.EntryDir, "arch.conf"), []byte("title A\nsort-key arch\nlinux /a\n"), 0o600))
	w.changed()
	r2 := release(t, "2")
	for range 2 {
		c, err := w.upgrade(r2)
		must(t, settled(c, err))
		if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "arch.conf") {
			t.Errorf("warnings %q", c.Warnings)
		}
		must(t, settled(w.finalize()))
	}
	if got := w.told(deploy.ProblemForeign); len(got) != 1 || w.status().Cfsboot.NextBoot != nil {
		t.Errorf("status: %q", got)
	}
	if got := len(entriesOf(t, w)); got != 3 {
		t.Errorf("%d entries", got)
	}
}

// TestLostEntryIsTold: as long as nothing is removed by rule, because an entry is
// lost, every command says so.
func TestLostEntryIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.releases(releasesOf(t, 3)...)
	for _, e := range entriesOf(t, w) {
		if e.ImageID() == ids[1] {
			must(t, os.Remove(filepath.Join(w.fat.Path(), esp.EntryDir, e.File)))
		}
	}
	w.changed()
	check := func(what string, warnings []string, want bool) {
		t.Helper()
		told := slices.ContainsFunc(warnings, func(s string) bool {
			return strings.Contains(s, "old deployments are not removed") && strings.Contains(s, "cfsboot delete "+ids[1][:12])
		})
		if told != want {
			t.Errorf("%s: warnings %q", what, warnings)
		}
	}
	c, err := w.upgrade(release(t, "4"))
	must(t, err)
	check("upgrade", c.Warnings, true)
	c, err = w.finalize()
	must(t, err)
	check("finalize", c.Warnings, true)
	w.boot()
	w.bless()
	c, err = w.upgrade(release(t, "4"))
	must(t, settled(c, err))
	check("upgrade without anything to do", c.Warnings, true)
	r, err := w.delete(ids[1])
	must(t, err)
	check("delete", r.Warnings, false)
	c, err = w.upgrade(release(t, "5"))
	must(t, err)
	check("upgrade after that", c.Warnings, false)
	if n := len(w.state().Deployments()); n > 4 {
		t.Errorf("%d deployments", n)
	}
}

// TestDefectIsTold: the kernel of the running default is gone. Commands say so, and
// an upgrade without anything newer puts it back; what is there and wrong is not
// changed, since an entry names it.
func TestDefectIsTold(t *testing.T) {
	t.Parallel()
	r2 := release(t, "2")
	base := newWorld(t)
	ids := base.releases(release(t, "1"), r2)
	for _, what := range []string{"payload", "kernel", "cut initrd"} {
		w := base.copy()
		w.take(what, ids[1])
		r, err := w.gc(0)
		must(t, err)
		if !slices.ContainsFunc(r.Warnings, func(s string) bool { return strings.Contains(s, "cannot boot") && strings.Contains(s, "boot file") }) {
			t.Errorf("%s: gc: %q", what, r.Warnings)
		}
		c, err := w.upgrade(r2)
		if what == "cut initrd" {
			var bad *esp.VerifyError
			if !errors.As(err, &bad) {
				t.Errorf("%s: upgrade: %v", what, err)
			}
			continue
		}
		if !errors.Is(err, deploy.ErrNothingToDo) || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "placed again") {
			t.Errorf("%s: upgrade: %+v, %v", what, c, err)
		}
		if got := w.boot(); got != ids[1] {
			t.Errorf("%s: booted %s", what, got)
		}
		if got := w.told(deploy.ProblemPayload); got != nil {
			t.Errorf("%s: status %q", what, got)
		}
	}
}

// TestRollbackToDefectiveDefault: what rollback has made the default loses a part
// without which it does not boot. With its ID the same command says so instead of
// having nothing to do, and without it goes to the running one.
func TestRollbackToDefectiveDefault(t *testing.T) {
	t.Parallel()
	base := newWorld(t)
	ids := base.releases(release(t, "1"), release(t, "2"))
	must(t, settled(base.rollback("")))
	for what := range defects {
		for _, id := range []string{"", ids[0]} {
			w := base.copy()
			w.take(what, ids[0])
			c, err := w.rollback(id)
			switch {
			case slices.Contains(harmless, what):
				if !errors.Is(err, deploy.ErrNothingToDo) || c.Deployment != ids[0] || !slices.ContainsFunc(c.Warnings, func(s string) bool { return strings.Contains(s, "boots, but") }) {
					t.Errorf("%s: %+v, %v", what, c, err)
				}
			case id == "":
				if err != nil || c.Deployment != ids[1] {
					t.Errorf("%s: %+v, %v", what, c, err)
				}
				if got := w.boot(); got != ids[1] {
					t.Errorf("%s: booted %s", what, got)
				}
				continue
			case err == nil || errors.Is(err, deploy.ErrNothingToDo):
				t.Errorf("%s: %v", what, err)
			}
			must(t, settled(w.rollback(ids[1]))) // the way back
			if got := w.boot(); got != ids[1] {
				t.Errorf("%s: booted %s", what, got)
			}
		}
	}
}
