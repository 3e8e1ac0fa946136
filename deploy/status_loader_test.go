package deploy_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/testutil/peloader"
)

// toyLoader is the boot loader of the images in these tests.
var toyLoader = string(peloader.SystemdBoot("257.13-1"))

// withKey is a machine whose newest entry starts with this key.
func withKey(t *testing.T, key string) *statusMachine {
	m := newStatusMachine(t)
	upgraded(m)
	for i := range m.in.Entries {
		if e := &m.in.Entries[i]; e.Name.Seq == 2 && key != "linux" {
			path := e.Entry.Get("linux")
			e.Entry.Fields = slices.DeleteFunc(e.Entry.Fields, func(f bls.Field) bool { return f.Key == "linux" || f.Key == "initrd" })
			e.Entry.Set(key, path)
		}
	}
	return m
}

func loaderOf(version string) []esp.Loader {
	return []esp.Loader{
		{Path: "EFI/systemd/systemd-bootx64.efi", Product: esp.SystemdBoot, Version: version},
		{Path: "EFI/BOOT/BOOTX64.EFI", Product: esp.SystemdBoot, Version: version},
	}
}

// TestStatusLoader: what does not go together is a problem, and nothing else is.
func TestStatusLoader(t *testing.T) {
	differ := loaderOf("257.9-1")
	differ[1].Version = "262-1"
	missing := loaderOf("257.9-1")
	missing[1] = esp.Loader{Path: missing[1].Path, Err: fs.ErrNotExist}
	foreign := loaderOf("257.9-1")
	foreign[1] = esp.Loader{Path: foreign[1].Path, Err: &esp.LoaderError{Field: "section .sdmagic", Detail: "missing: this is not systemd-boot"}}
	old := loaderOf("239")
	for _, c := range []struct {
		name    string
		key     string
		counted bool
		running string
		loaders []esp.Loader
		want    []string // one problem each
		ukiKey  string
	}{
		{"whole", "linux", true, "systemd-boot 257.9-1", loaderOf("257.9-1"), nil, "efi"},
		{"newer", "linux", true, "systemd-boot 262-1", loaderOf("262-1"), nil, "uki"},
		{"XBOOTLDR", "linux", true, "systemd-boot 257.9-1", nil, nil, ""},
		{"running loader unknown", "linux", true, "", loaderOf("257.9-1"), nil, "efi"},
		{"copies differ", "linux", true, "systemd-boot 257.9-1", differ, []string{"the copies of the boot loader differ"}, ""},
		{"one is missing", "linux", true, "systemd-boot 257.9-1", missing, []string{`"EFI/BOOT/BOOTX64.EFI" of the boot loader is missing`}, ""},
		{"one is somebody else's", "linux", true, "systemd-boot 257.9-1", foreign, []string{"this is not systemd-boot"}, ""},
		{"another one runs", "linux", true, "systemd-boot 257.8-1", loaderOf("257.9-1"), []string{"started by systemd-boot 257.8-1, which is none of the copies"}, "efi"},
		{"too old", "linux", true, "systemd-boot 239", old, []string{`has the key "linux", whose tries systemd-boot 239 (EFI/systemd/systemd-bootx64.efi) does not count`}, ""},
		{"too old, but not counted", "linux", false, "systemd-boot 239", old, nil, ""},
		{"uki with an old one", "uki", true, "systemd-boot 257.9-1", loaderOf("257.9-1"), []string{`has the key "uki", which`}, "efi"},
		{"uki with a new one", "uki", true, "systemd-boot 258", loaderOf("258"), nil, "uki"},
		{"efi with a new one", "efi", true, "systemd-boot 262", loaderOf("262"), []string{`has the key "efi", whose tries`}, "uki"},
		{"efi with a new one, not counted", "efi", false, "systemd-boot 262", loaderOf("262"), nil, "uki"},
		{"efi with an old one", "efi", true, "systemd-boot 257", loaderOf("257"), nil, "efi"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := withKey(t, c.key)
			for i := range m.in.Entries {
				if e := &m.in.Entries[i]; e.Name.Seq == 2 {
					e.Name.Counter = bls.Counter{}
					if c.counted {
						e.Name.Counter = bls.Counter{Present: true, Left: 2, Done: 1}
					}
				}
			}
			m.in.Loader, m.in.Loaders = c.running, c.loaders
			s := deploy.NewStatus(m.in)
			statusSchema(t).Check(t, statusJSON(t, s))
			var got []string
			for _, p := range s.Cfsboot.Problems {
				if p.Code == deploy.ProblemLoader {
					got = append(got, p.Message)
				}
			}
			if !slices.EqualFunc(got, c.want, strings.Contains) {
				t.Errorf("problems %q, want %q", got, c.want)
			}
			key := ""
			if s.Cfsboot.Loader.UKIKey != nil {
				key = *s.Cfsboot.Loader.UKIKey
			}
			if key != c.ukiKey || len(s.Cfsboot.Loader.Copies) != len(c.loaders) {
				t.Errorf("loader %+v, key %q, want %q", s.Cfsboot.Loader, key, c.ukiKey)
			}
		})
	}
}

// TestLoaderOfMachine: the copies on the boot partition are read, a torn one is a problem, and so is the unit that replaces
// them unless it is masked. Commands that rely on the loader warn.
func TestLoaderOfMachine(t *testing.T) {
	const unit = "/usr/lib/systemd/system/systemd-boot-update.service"
	w := newWorld(t)
	w.releases(release(t, "1"))
	s := w.status()
	if n := len(s.Cfsboot.Loader.Copies); n != 2 || problemOf(s, deploy.ProblemLoader) != "" || problemOf(s, deploy.ProblemLoaderUpdate) != "" {
		t.Errorf("%d copies, problems %+v", n, s.Cfsboot.Problems)
	}
	w.writeRunning(unit, "[Service]\n")
	if p := problemOf(w.status(), deploy.ProblemLoaderUpdate); !strings.Contains(p, "not masked") {
		t.Errorf("problem %q", p)
	}
	must(t, os.MkdirAll(filepath.Join(w.running, "etc/systemd/system"), 0o755))
	must(t, os.Symlink("/dev/null", filepath.Join(w.running, "etc/systemd/system/systemd-boot-update.service")))
	if p := problemOf(w.status(), deploy.ProblemLoaderUpdate); p != "" {
		t.Errorf("masked: problem %q", p)
	}

	must(t, os.WriteFile(filepath.Join(w.fat.Path(), "EFI/BOOT/BOOTX64.EFI"), []byte(toyLoader)[:700], 0o600))
	w.changed()
	if p := problemOf(w.status(), deploy.ProblemLoader); !strings.Contains(p, "BOOTX64.EFI") {
		t.Errorf("torn: problem %q", p)
	}
	files := osTree("2")
	files["usr/lib/systemd/system/"] = ""
	files[strings.TrimPrefix(unit, "/")] = "[Service]\n"
	c, err := w.upgrade(buildImage(t, files))
	must(t, err)
	if text := fmt.Sprint(c.Warnings); !strings.Contains(text, "BOOTX64.EFI") || !strings.Contains(text, "does not mask systemd-boot-update.service") {
		t.Errorf("warnings %q", c.Warnings)
	}
}
