package record_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
)

var sha = "sha256:" + strings.Repeat("0f", 32)

func TestOrigin(t *testing.T) {
	o := record.Origin{
		Image:    record.ImageReference{Transport: "registry", Image: "registry.example/os:1"},
		BootType: "bls", BootDigest: bd1, ManifestDigest: sha,
	}
	data, err := o.Format()
	if err != nil {
		t.Fatal(err)
	}
	want := "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://registry.example/os:1\n\n" +
		"[boot]\nboot_type=bls\ndigest=" + bd1 + "\n\n[image]\nmanifest_digest=" + sha + "\n"
	if diff := cmp.Diff(want, string(data)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	for _, o := range []record.Origin{
		{Image: record.ImageReference{Transport: "oci", Image: "/dir:tag"}, BootType: "uki", BootDigest: bd1},
		{Image: record.ImageReference{Transport: "registry", Image: "a"}, Signed: true, BootType: "bls", BootDigest: bd1},
	} {
		data, err := o.Format()
		if err != nil {
			t.Fatal(err)
		}
		got, err := record.ParseOrigin(data)
		if err != nil {
			t.Fatal(err)
		}
		if got != o {
			t.Errorf("got %+v, want %+v", got, o)
		}
	}
}

// TestParseOriginOfOthers reads what other tools write.
func TestParseOriginOfOthers(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want record.Origin
	}{
		"blanks and foreign keys": {
			"# comment\n; comment\n[origin]\r\ncontainer-image-reference = ostree-unverified-image:docker://q.io/x\nrefspec=y\n[libostree-transient]\npinned=true\n[boot]\nboot_type = uki\ndigest = " + bd1 + "\n",
			record.Origin{Image: record.ImageReference{Transport: "registry", Image: "q.io/x"}, BootType: "uki", BootDigest: bd1},
		},
		"short registry": {
			"[origin]\ncontainer-image-reference=ostree-unverified-registry:q.io/x:y\n",
			record.Origin{Image: record.ImageReference{Transport: "registry", Image: "q.io/x:y"}},
		},
		"remote": {
			"[origin]\ncontainer-image-reference=ostree-remote-image:fedora:docker://q.io/x\n",
			record.Origin{Image: record.ImageReference{Transport: "registry", Image: "q.io/x"}, Signed: true},
		},
		"remote registry": {
			"[origin]\ncontainer-image-reference=ostree-remote-registry:fedora:q.io/x\n",
			record.Origin{Image: record.ImageReference{Transport: "registry", Image: "q.io/x"}, Signed: true},
		},
	} {
		got, err := record.ParseOrigin([]byte(tc.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: mismatch (-want +got):\n%s", name, diff)
		}
	}
}

func TestParseOriginRejects(t *testing.T) {
	const ref = "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://x\n"
	for _, tc := range []struct{ name, field, text string }{
		{"empty", "origin/container-image-reference", ""},
		{"no prefix", "origin/container-image-reference", "[origin]\ncontainer-image-reference=docker://x\n"},
		{"no name", "origin/container-image-reference", "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://\n"},
		{"white space", "origin/container-image-reference", "[origin]\ncontainer-image-reference=ostree-unverified-image:docker://a b\n"},
		{"boot type", "boot/boot_type", ref + "[boot]\nboot_type=grub\ndigest=" + bd1},
		{"boot section without keys", "boot/boot_type", ref + "[boot]\n"},
		{"boot digest", "boot/digest", ref + "[boot]\nboot_type=bls\ndigest=xyz"},
		{"manifest digest", "image/manifest_digest", ref + "[image]\nmanifest_digest=sha256:00"},
		{"key outside of a section", "", "a=b\n"},
		{"no key", "", "[origin]\nx\n"},
		{"no section", "", "[origin\n"},
		{"no utf-8", "", "[origin]\nx=\xff\n"},
		{"too large", "", ref + strings.Repeat("#\n", 40000)},
	} {
		_, err := record.ParseOrigin([]byte(tc.text))
		var fe *record.FormatError
		if !errors.As(err, &fe) || fe.Field != tc.field {
			t.Errorf("%s: got %v, want a *FormatError of %q", tc.name, err, tc.field)
		}
	}
	for name, o := range map[string]record.Origin{
		"line break": {Image: record.ImageReference{Transport: "registry", Image: "x\n[boot]"}, BootType: "bls", BootDigest: bd1},
		"no digest":  {Image: record.ImageReference{Transport: "registry", Image: "x"}, BootType: "bls"},
	} {
		if _, err := o.Format(); err == nil {
			t.Errorf("%s: was written", name)
		}
	}
}

func TestImageReference(t *testing.T) {
	for s, want := range map[string][3]string{
		"docker://a/b:c":      {"registry", "a/b:c", "docker://a/b:c"},
		"a/b:c":               {"registry", "a/b:c", "docker://a/b:c"},
		"localhost:5000/os":   {"registry", "localhost:5000/os", "docker://localhost:5000/os"},
		"registry:a/b":        {"registry", "a/b", "docker://a/b"},
		"oci:/dir:tag":        {"oci", "/dir:tag", "oci:/dir:tag"},
		"oci-archive:/x.tar":  {"oci-archive", "/x.tar", "oci-archive:/x.tar"},
		"docker://a/b@" + sha: {"registry", "a/b@" + sha, "docker://a/b@" + sha},
	} {
		r, err := record.ParseImageReference(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if got := [3]string{r.Transport, r.Image, r.String()}; got != want {
			t.Errorf("%s: got %q, want %q", s, got, want)
		}
	}
	for _, s := range []string{"", "docker://", "oci:", "a b", "a\n"} {
		if _, err := record.ParseImageReference(s); err == nil {
			t.Errorf("%q was accepted", s)
		}
	}
}

func sampleDeployment() record.Deployment {
	return record.Deployment{
		ID: id1, PlainID: id2, Reference: "docker://r/os:1", ManifestDigest: sha, IndexDigest: sha, ConfigDigest: sha,
		Architecture: "amd64", ImageVersion: "1.0", ImageCreated: "2026-11-25T10:00:00Z", OSID: "debian", OSVersion: "13",
		Title: "Debian GNU/Linux 13 (trixie)", Kernel: "6.12.1-amd64", BootType: "bls", BootDigest: bd1,
		BootFiles: []record.BootFile{{Name: "vmlinuz", Size: 6}, {Name: "initrd", Size: 7}},
		Options:   "root=UUID=x rw", Transaction: "t1", Created: start,
		Kargs: []record.Karg{{Argument: "root=UUID=x", Source: record.KargCfsboot}, {Argument: "rw", Source: record.KargSite, File: "/etc/cfsboot/kargs.d/a.toml"}},
	}
}

func TestDeployment(t *testing.T) {
	d := sampleDeployment()
	data, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.ParseDeployment(data)
	if err != nil {
		t.Fatal(err)
	}
	d.Schema = record.DeploymentSchema
	if diff := cmp.Diff(d, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	for field, change := range map[string]func(m map[string]any){
		"schema":          func(m map[string]any) { m["schema"] = "cfsboot.deployment/2" },
		"id":              func(m map[string]any) { m["id"] = "../x" },
		"plain_id":        func(m map[string]any) { m["plain_id"] = strings.Repeat("0", 64) },
		"manifest_digest": func(m map[string]any) { m["manifest_digest"] = "" },
		"index_digest":    func(m map[string]any) { m["index_digest"] = "x" },
		"config_digest":   func(m map[string]any) { m["config_digest"] = "md5:00" },
		"boot_type":       func(m map[string]any) { m["boot_type"] = "" },
		"boot_digest":     func(m map[string]any) { m["boot_digest"] = strings.Repeat("G", 64) },
		"boot_files[0]":   func(m map[string]any) { m["boot_files"] = []any{map[string]any{"name": "../x", "size": 1}} },
		"boot_files[1]": func(m map[string]any) {
			m["boot_files"] = []any{map[string]any{"name": "vmlinuz", "size": 1}, map[string]any{"name": "initrd", "size": -1}}
		},
		"created":   func(m map[string]any) { delete(m, "created") },
		"reference": func(m map[string]any) { m["reference"] = "a b" },
		"":          func(m map[string]any) { m["title"] = 7 },
	} {
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		change(m)
		bad, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = record.ParseDeployment(bad)
		var fe *record.FormatError
		if !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestBooted(t *testing.T) {
	seq := uint64(42)
	b := record.Booted{
		Digest: id1, Algorithm: "sha512-12", Karg: "composefs.digest=v1-sha512-12:" + id1, Secure: true, Gate: "digest",
		EntrySequence: &seq, Sysroot: record.BootedSysroot{Dev: "254:2", UUID: "u"}, Etc: "bind", Var: "bind", Root: "ro",
		Erofs: "file", Kernel: "6.12.1", Tried: []record.BootedTry{{Digest: id2, Result: "missing"}}, DurationMS: 41,
	}
	data, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := record.ParseBooted(data)
	if err != nil {
		t.Fatal(err)
	}
	b.Version = record.BootedVersion
	if diff := cmp.Diff(b, got); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"version", "digest", "algorithm", "karg", "secure", "gate", "signer", "entry_sequence", "image_version",
		"sysroot", "etc", "var", "root", "erofs", "kernel", "tried", "duration_ms"} {
		if _, ok := m[key]; !ok {
			t.Errorf("no key %s", key)
		}
		delete(m, key)
	}
	if len(m) > 0 {
		t.Errorf("keys that the format does not have: %v", m)
	}
	for field, change := range map[string]func(b *record.Booted){
		"version":        func(b *record.Booted) { b.Version = 2 },
		"digest":         func(b *record.Booted) { b.Digest = "x" },
		"algorithm":      func(b *record.Booted) { b.Algorithm = "sha256-12" },
		"entry_sequence": func(b *record.Booted) { b.EntrySequence = new(uint64) },
		"tried":          func(b *record.Booted) { b.Tried = make([]record.BootedTry, 100) },
		"duration_ms":    func(b *record.Booted) { b.DurationMS = -1 },
	} {
		bad := b
		change(&bad)
		_, err := bad.Encode()
		var fe *record.FormatError
		if !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
	for name, data := range map[string]string{"empty": "", "cut": string(data[:50]), "more": string(data) + "{}", "list": "[]"} {
		var fe *record.FormatError
		if _, err := record.ParseBooted([]byte(data)); !errors.As(err, &fe) {
			t.Errorf("%s: got %v, want a *FormatError", name, err)
		}
	}
}

func TestEntryName(t *testing.T) {
	for name, want := range map[string]record.EntryName{
		"cfsboot_0123abcd-0000000042+3-0.conf": {Token: "0123abcd", Seq: 42, Counter: bls.Counter{Present: true, Left: 3}},
		"cfsboot_0123abcd-0000000042.conf":     {Token: "0123abcd", Seq: 42},
		"cfsboot_a-b-9999999999+0-3.conf":      {Token: "a-b", Seq: 9999999999, Counter: bls.Counter{Present: true, Done: 3}},
		"cfsboot_x-0000000001+2.conf":          {Token: "x", Seq: 1, Counter: bls.Counter{Present: true, Left: 2}},
		"CFSBOOT_X-0000000001+2-1.CONF":        {Token: "x", Seq: 1, Counter: bls.Counter{Present: true, Left: 2, Done: 1}},
	} {
		got, ok := record.ParseEntryName(name)
		if !ok || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, ok, want)
		}
		if again, ok := record.ParseEntryName(got.String()); !ok || again != want {
			t.Errorf("%s does not read back", got)
		}
	}
	for _, name := range []string{
		"", "cfsboot_.conf", "cfsboot_x-42.conf", "cfsboot_x-0000000000.conf", "cfsboot_x-0000000042.efi", "cfsboot_-0000000042.conf",
		"bootc_x-0000000042.conf", "cfsboot_x 0000000042.conf", "cfsboot_x-00000000042.conf", "cfsboot_x-0000000042+x.conf",
		"cfsboot_x-0000000042", "cfsboot_" + strings.Repeat("x", 33) + "-0000000042.conf", "cfsboot_x/../-0000000042.conf",
	} {
		if n, ok := record.ParseEntryName(name); ok {
			t.Errorf("%q: got %+v", name, n)
		}
	}
	n := record.EntryName{Token: "x", Seq: 7, Counter: bls.Counter{Present: true, Left: record.DefaultTries}}
	if n.String() != "cfsboot_x-0000000007+3-0.conf" {
		t.Errorf("got %s", n)
	}
}

func TestNewEntry(t *testing.T) {
	e, err := record.NewEntry(record.EntrySpec{
		Token: "0123abcd", Seq: 42, Title: "Debian\nGNU/Linux  13 ", OSVersion: "13 (trixie)",
		Linux: "/cfsboot/x/vmlinuz", Initrd: "/cfsboot/x/initrd", Options: bls.ParseCmdline("root=UUID=1 rw"),
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Format()
	if err != nil {
		t.Fatal(err)
	}
	want := "title Debian GNU/Linux 13\nversion 0000000042.13__trixie_\nsort-key cfsboot-0123abcd\n" +
		"options root=UUID=1 rw\ninitrd /cfsboot/x/initrd\nlinux /cfsboot/x/vmlinuz\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
	if _, _, err := e.Kind(); err != nil {
		t.Error(err)
	}
	// A file that was cut before the path of the kernel starts nothing.
	for n := range len(got) - len("/cfsboot/x/vmlinuz\n") {
		torn, err := bls.ParseEntry(got[:n])
		if err != nil {
			t.Fatal(err)
		}
		if key, path, err := torn.Kind(); err == nil {
			t.Errorf("cut to %d bytes it starts %s %s", n, key, path)
		}
	}
	good := record.EntrySpec{Token: "x", Seq: 1, Linux: "/a", Initrd: "/b"}
	for field, change := range map[string]func(s *record.EntrySpec){
		"token":    func(s *record.EntrySpec) { s.Token = "A" },
		"sequence": func(s *record.EntrySpec) { s.Seq = 0 },
		"linux":    func(s *record.EntrySpec) { s.Linux = "a" },
		"initrd":   func(s *record.EntrySpec) { s.Initrd = "" },
		"":         func(s *record.EntrySpec) { s.Linux = "/a\nefi /x" },
	} {
		bad := good
		change(&bad)
		_, err := record.NewEntry(bad)
		var fe *record.FormatError
		if !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

// TestEntryOrder: whatever the OS versions are, the entry with the higher
// number stands first, and one that failed stands last.
func TestEntryOrder(t *testing.T) {
	item := func(seq uint64, osVersion string, c bls.Counter) bls.MenuItem {
		e, err := record.NewEntry(record.EntrySpec{Token: "x", Seq: seq, OSVersion: osVersion, Linux: "/a", Initrd: "/b"})
		if err != nil {
			t.Fatal(err)
		}
		m, ok := bls.MenuItemOf(record.EntryName{Token: "x", Seq: seq, Counter: c}.String(), e)
		if !ok {
			t.Fatal("not listed")
		}
		return m
	}
	newest := item(10, "1", bls.Counter{Present: true, Left: 1, Done: 2})
	older := item(9, "99~rc", bls.Counter{})
	failed := item(11, "2", bls.Counter{Present: true, Done: 3})
	if bls.CompareMenu(newest, older) >= 0 || bls.CompareMenu(older, failed) >= 0 || bls.CompareMenu(newest, failed) >= 0 {
		t.Error("wrong order")
	}
}

func FuzzParseOrigin(f *testing.F) {
	f.Add([]byte("[origin]\ncontainer-image-reference=ostree-unverified-image:docker://x\n[boot]\nboot_type=bls\ndigest=" + bd1))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := record.ParseOrigin(data)
		if err != nil {
			return
		}
		if o.BootType == "" {
			return // of an old tool, cannot be written
		}
		if _, err := o.Format(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseDeployment(f *testing.F) {
	data, err := sampleDeployment().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := record.ParseDeployment(data)
		if err != nil {
			return
		}
		if _, err := d.Encode(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseBooted(f *testing.F) {
	data, err := record.Booted{Digest: id1, Algorithm: "sha512-12"}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := record.ParseBooted(data)
		if err != nil {
			return
		}
		if _, err := b.Encode(); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseEntryName(f *testing.F) {
	f.Add("cfsboot_0123abcd-0000000042+3-0.conf")
	f.Fuzz(func(t *testing.T, name string) {
		n, ok := record.ParseEntryName(name)
		if !ok {
			return
		}
		if again, ok := record.ParseEntryName(n.String()); !ok || again != n {
			t.Errorf("%q: %+v reads back as %+v", name, n, again)
		}
	})
}
