package deploy_test

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
)

// neighbour is a file of somebody else; "dir/" is a directory, "-> x" a link.
type neighbours map[string]string

var foreignID, foreignPayload = strings.Repeat("f0", 64), strings.Repeat("f1", 32)

// espNeighbours share the boot partition: Windows, other Linux systems, a second cfsboot, and what nobody can read.
func espNeighbours() neighbours {
	out := neighbours{
		"EFI/Microsoft/Boot/bootmgfw.efi":        "PE windows",
		"EFI/Microsoft/Boot/BCD":                 "\x00regf",
		"EFI/debian/shimx64.efi":                 "PE shim",
		"EFI/debian/grub.cfg":                    "search.fs_uuid",
		"EFI/Linux/other-6.1.efi":                "PE uki",
		"EFI/Linux/bootc/bootc_composefs-1.efi":  "PE uki of bootc",
		"System Volume Information/WPSettings":   "\x01\x02",
		"startup.nsh":                            "fs0:",
		"loader/random-seed":                     "0123456789abcdef",
		"loader/keys/PK.auth":                    "signed",
		"loader/entries/windows.conf":            "title Windows\nsort-key windows\nefi /EFI/Microsoft/Boot/bootmgfw.efi\n",
		"loader/entries/debian-6.1+3-0.conf":     "title Debian\nsort-key debian\nlinux /debian/vmlinuz\noptions root=/dev/sda2 ro\n",
		"loader/entries/bootc_fedora-41-1.conf":  "title Fedora\nversion 41\nsort-key zz-bootc-fedora-0\nlinux /boot/x/vmlinuz\noptions composefs=" + foreignID + "\n",
		"loader/entries/zz-no-sort-key.conf":     "title other\nlinux /vmlinuz\n",
		"loader/entries/zz-malformed.conf":       "title odd\nsort-key zz\nlinux /vmlinuz\noptions composefs.digest=v9-md5:zz\n",
		"loader/entries/empty.conf":              "",
		"loader/entries/binary.conf":             "title \x00\x01\x02\nlinux /x\n",
		"loader/entries/latin1.conf":             "title Caf\xe9\nlinux /vmlinuz\n",
		"loader/entries/huge.conf":               "# " + strings.Repeat("x", 100<<10),
		"loader/entries/directory.conf/x":        "in a directory",
		"loader/entries/README.txt":              "not an entry",
		"loader/entries/cfsboot_.conf":           "title looks like ours\nlinux /x\nsort-key zz\n",
		"loader/entries/cfsboot_ab-7.conf":       "title looks like ours\nlinux /x\nsort-key zz\n",
		"cfsboot/README":                         "do not touch",
		"cfsboot/notes/todo":                     "a folder",
		"cfsboot/" + foreignPayload + "/vmlinuz": "kernel of the other installation",
		"cfsboot/" + foreignPayload + "/initrd":  "initrd of the other installation",
		"loader/entries/cfsboot_ffffffff-0000000003.conf": "title another cfsboot\nversion 0000000003.1\nsort-key cfsboot-zzzzzzzz\noptions composefs.digest=v1-sha512-12:" + foreignID +
			"\ninitrd /cfsboot/" + foreignPayload + "/initrd\nlinux /cfsboot/" + foreignPayload + "/vmlinuz\n",
	}
	for n := range 200 {
		out[fmt.Sprintf("loader/entries/zz-mine-%03d.conf", n)] = fmt.Sprintf("title number %d\nsort-key zz\nlinux /mine/%d\n", n, n)
	}
	return out
}

// rootNeighbours lie in the repository, the state and beside them: of bootc, of containers, of people.
func rootNeighbours() neighbours {
	return neighbours{
		"README":                                                  "a file",
		"ostree/repo/config":                                      "[core]",
		"composefs/README":                                        "do not touch",
		"composefs/.hidden":                                       "x",
		"composefs/bootc/storage/overlay/l/X":                     "a layer of containers-storage",
		"composefs/objects/README":                                "not an object",
		"composefs/objects/zz/short":                              "not an object",
		"composefs/images/README":                                 "not an image",
		"composefs/images/refs/bootc/x/":                          "",
		"composefs/images/refs/containers/gone":                   "-> ../../nothing",
		"composefs/images/refs/cfsboot/README":                    "not a deployment",
		"composefs/streams/README":                                "not a stream",
		"composefs/streams/refs/bootc/old":                        "-> ../../nothing",
		"state/README":                                            "x",
		"state/deploy/README":                                     "x",
		"state/deploy/backup/etc/hostname":                        "backup\n",
		"state/deploy/" + foreignID + "/etc/passwd":               "root",
		"state/deploy/" + foreignID + "/" + foreignID + ".origin": "[origin]\ncontainer-image-reference=ostree-unverified-registry:x\n",
		"state/os/fedora/var/lib/x":                               "var of another system",
		"state/cfsboot/README":                                    "x",
		"state/cfsboot/journal/README":                            "x",
		"state/cfsboot/journal/0000000001.json.bak":               "{",
	}
}

// put makes the files.
func (n neighbours) put(t *testing.T, root string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(n)) {
		path, text := filepath.Join(root, name), n[name]
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		switch target, link := strings.CutPrefix(text, "-> "); {
		case strings.HasSuffix(name, "/"):
			must(t, os.MkdirAll(path, 0o755))
		case link:
			must(t, os.Symlink(target, path))
		default:
			must(t, os.WriteFile(path, []byte(text), 0o644))
		}
	}
}

// check finds each as it was.
func (n neighbours) check(t *testing.T, when, root string) {
	t.Helper()
	got := neighbours{}
	for name := range n {
		path := filepath.Join(root, name)
		info, err := os.Lstat(path)
		if err != nil {
			t.Errorf("%s: %v", when, err)
			continue
		}
		switch {
		case info.IsDir():
			got[name] = ""
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			must(t, err)
			got[name] = "-> " + target
		default:
			data, err := os.ReadFile(path)
			must(t, err)
			got[name] = string(data)
		}
	}
	if diff := cmp.Diff(n, got); diff != "" {
		t.Errorf("%s: mismatch (-put +found):\n%s", when, diff)
	}
}

// TestNeighbours takes a machine that shares everything through all commands: foreign boot entries, unknown files and folders
// break none of them and are there afterwards, byte for byte.
func TestNeighbours(t *testing.T) { withNeighbours(t, newWorld(t)) }

// TestRootNeighbours does so on a real FAT and a real ext4.
func TestRootNeighbours(t *testing.T) { withNeighbours(t, realWorld(t, 64<<20)) }

func withNeighbours(t *testing.T, w *world) {
	onESP, onRoot := espNeighbours(), neighbours{}
	onESP.put(t, w.fat.Path())
	w.changed()
	step := func(name string, run func() error) {
		t.Helper()
		if err := run(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		onESP.check(t, name, w.fat.Path())
		onRoot.check(t, name, w.root.Path())
		for _, p := range w.status().Cfsboot.Problems {
			if strings.Contains(p.Message, "foreign") || p.Code == deploy.ProblemESP || p.Code == deploy.ProblemJournal {
				t.Errorf("%s: status has a problem %+v", name, p)
			}
		}
	}
	step("install", func() error { return settled(w.install(release(t, "1"))) })
	one := w.boot()
	onRoot = rootNeighbours()
	onRoot.put(t, w.root.Path())
	w.changed()

	step("upgrade", func() error { return settled(w.upgrade(release(t, "2"))) })
	step("finalize", func() error { return settled(w.finalize()) })
	two := w.boot()
	w.bless()
	if one == two {
		t.Fatal("the upgrade did not boot")
	}
	step("rollback", func() error { return settled(w.rollback("")) })
	if got := w.boot(); got != one {
		t.Fatalf("booted %s after the rollback", got)
	}
	for n := range 4 {
		step(fmt.Sprintf("upgrade %d", n+3), func() error { return settled(w.upgrade(release(t, fmt.Sprint(n+3)))) })
		step(fmt.Sprintf("finalize %d", n+3), func() error { return settled(w.finalize()) })
		w.boot()
		w.bless()
	}
	if got, want := len(w.status().Cfsboot.ForeignEntries), 200+12; got != want {
		t.Errorf("status lists %d foreign entries, want %d", got, want)
	}

	// Retirement on a partition that is full, with a payload of ours that a foreign entry names.
	named := entriesOf(t, w)[0].Payload()
	onESP["loader/entries/zz-debug.conf"] = "title debug\nsort-key zz\nlinux /CFSBOOT/" + strings.ToUpper(named) + "/VMLINUZ\n"
	neighbours{"loader/entries/zz-debug.conf": onESP["loader/entries/zz-debug.conf"]}.put(t, w.fat.Path())
	w.changed()
	if _, ok := w.root.(realDisk); !ok {
		w.limit = (used(w.fat.Path()) + 7*cluster - 2*cluster) * 8 / 7
		step("upgrade that makes room", func() error { return settled(w.upgrade(release(t, "9"))) })
		if n := used(w.fat.Path()); n > w.limit {
			t.Errorf("%d bytes are used of %d: nothing was removed, although the commands say that there is room", n, w.limit)
		}
		step("finalize that made room", func() error { return settled(w.finalize()) })
		w.boot()
		w.bless()
		w.limit = 0
	}
	step("check", func() error {
		w.tag = release(t, "10")
		_, err := deploy.Check(t.Context(), deploy.CheckOptions{Options: w.options(), PullOptions: w.pull()})
		return err
	})
	step("download only", func() error { return settled(w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})) })
	step("from downloaded", func() error { return settled(w.upgradeWith(deploy.UpgradeOptions{FromDownloaded: true})) })
	step("switch", func() error { return settled(w.switchTo(otherReference, release(t, "other"), deploy.SwitchOptions{})) })
	nothing := func(err error) error {
		if errors.Is(err, deploy.ErrNothingToDo) {
			return nil
		}
		return err
	}
	step("resume", func() error { _, err := w.resume(); return nothing(err) })
	step("finalize the switch", func() error { return settled(w.finalize()) })
	w.boot()
	w.bless()
	step("delete", func() error {
		for _, d := range w.status().Cfsboot.Deployments {
			if slices.Equal(d.Roles, []string{deploy.RoleOther}) {
				_, err := w.delete(d.ID)
				return err
			}
		}
		return nil
	})
	// Refs that lead to nothing are told by gc alone, which removes nothing then: it cannot say what they were to keep.
	var roots *repo.RootsError
	if _, err := w.gc(0); !errors.As(err, &roots) || len(roots.Problems) != 2 {
		t.Errorf("gc with two refs that lead to nothing: %v", err)
	}
	for _, name := range []string{"composefs/images/refs/containers/gone", "composefs/streams/refs/bootc/old"} {
		must(t, os.Remove(filepath.Join(w.root.Path(), name)))
		delete(onRoot, name)
	}
	w.changed()
	step("gc", func() error {
		_, err := w.gc(0)
		return nothing(err)
	})
	checkPayloads(t, w, []string{"README", "notes", foreignPayload, named})
	w.boot()
	if list, err := os.ReadDir(filepath.Join(w.fat.Path(), "cfsboot", named)); err != nil || len(list) != 2 {
		t.Errorf("the payload that a foreign entry names: %v, %v", list, err)
	}
}

// status is the document of the machine as it is.
func (w *world) status() deploy.Status {
	w.t.Helper()
	return deploy.ReadStatus(w.t.Context(), w.options())
}

// TestForeignDefault: an entry of somebody else that stands first in the menu decides what boots. That is told, and every command
// works all the same.
func TestForeignDefault(t *testing.T) {
	w := newWorld(t)
	one := w.releases(release(t, "1"))[0]
	foreign := neighbours{"loader/entries/first.conf": "title first\nsort-key aaa\nlinux /first\n"}
	foreign.put(t, w.fat.Path())
	w.changed()
	must(t, settled(w.upgrade(release(t, "2"))))
	must(t, settled(w.finalize()))
	s := w.status()
	if s.Cfsboot.NextBoot != nil || !slices.ContainsFunc(s.Cfsboot.Problems, func(p deploy.Problem) bool {
		return p.Code == deploy.ProblemForeign && strings.Contains(p.Message, "first.conf")
	}) {
		t.Errorf("next boot %v, problems %+v", s.Cfsboot.NextBoot, s.Cfsboot.Problems)
	}
	must(t, settled(w.rollback("")))
	foreign.check(t, "in the end", w.fat.Path())
	must(t, os.Remove(filepath.Join(w.fat.Path(), "loader/entries/first.conf")))
	w.changed()
	if got := w.boot(); got != one {
		t.Errorf("booted %s, want %s", got, one)
	}
}

// TestUsedESP: an installation leaves the fallback loader and the configuration of another system alone, names them, and has
// written nothing by then. (Every other file there may stay: TestNeighbours.)
func TestUsedESP(t *testing.T) {
	for _, tc := range []struct{ file, want string }{
		{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTX64.EFI"},
		{"EFI/systemd/systemd-bootx64.efi", "EFI/systemd/systemd-bootx64.efi"},
		{"loader/loader.conf", "loader/loader.conf"},
		{"loader/entries.srel", "loader/entries.srel"},
		{"EFI/BOOT/BOOTX64.EFI/x", "EFI/BOOT/BOOTX64.EFI"}, // a directory where a file belongs
		{"EFI", "EFI"}, // and the other way round
		{"EFI/BOOT", "EFI/BOOT"},
		{"loader", "loader"},
	} {
		w := newWorld(t)
		foreign := neighbours{tc.file: "of another system"}
		foreign.put(t, w.fat.Path())
		w.changed()
		var conflict *deploy.ConflictError
		if _, err := w.install(release(t, "1")); !errors.As(err, &conflict) || !slices.Equal(conflict.Paths, []string{tc.want}) {
			t.Errorf("%s: got %v, want a conflict that names %s", tc.file, err, tc.want)
		}
		foreign.check(t, tc.file, w.fat.Path())
		if tc.file == "loader" {
			// nothing can be listed
		} else if list := entriesOf(t, w); len(list) > 0 {
			t.Errorf("%s: entries were made: %v", tc.file, list)
		}
		must(t, os.RemoveAll(filepath.Join(w.fat.Path(), tc.want)))
		w.changed()
		must(t, settled(w.install(release(t, "1"))))
		w.boot()
	}
}

// TestLongForeignEntry: one file that is too long for an entry does not keep the
// kernels of deployments that are gone, and status names it.
func TestLongForeignEntry(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 0\n")
	w.releases(releasesOf(t, 2)...)
	long := neighbours{"loader/entries/long.conf": "# " + strings.Repeat("x", 100<<10)}
	long.put(t, w.fat.Path())
	w.changed()
	for n := range 3 {
		must(t, settled(w.upgrade(release(t, fmt.Sprint(n+3)))))
		must(t, settled(w.finalize()))
		w.boot()
		w.bless()
	}
	must(t, removed(w.gc(0)))
	checkPayloads(t, w, nil)
	long.check(t, "in the end", w.fat.Path())
	if !slices.ContainsFunc(w.status().Cfsboot.Problems, func(p deploy.Problem) bool {
		return p.Code == deploy.ProblemEntry && strings.Contains(p.Message, "long.conf")
	}) {
		t.Errorf("problems %+v", w.status().Cfsboot.Problems)
	}
}

// TestUnreadEntry: a file of which nobody knows what it names keeps every kernel. The
// error for want of room says which file that is, and so does status.
func TestUnreadEntry(t *testing.T) {
	w := newWorld(t)
	w.configure("keep = 9\n")
	w.releases(releasesOf(t, 3)...)
	must(t, settled(w.upgrade(release(t, "3")))) // the journal knows that it is good
	digits := strings.Repeat("0123456789abcdef", 32<<10)
	neighbours{"loader/entries/mine.conf": digits, "loader/entries/more.conf": digits}.put(t, w.fat.Path())
	w.changed()
	w.limit = (used(w.fat.Path()) + cluster) * 8 / 7
	before := w.state()
	_, err := w.upgrade(release(t, "4"))
	const want = `the file "loader/entries/mine.conf" cannot be read: boot entry: too many digests (and 1 file more)`
	var space *durable.SpaceError
	if !errors.As(err, &space) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a SpaceError with %s", err, want)
	}
	if d := cmp.Diff(before.Entries, w.state().Entries); d != "" {
		t.Errorf("entries (-before +after):\n%s", d)
	}
	if !slices.ContainsFunc(w.status().Cfsboot.Problems, func(p deploy.Problem) bool {
		return p.Code == deploy.ProblemEntry && p.Message == want
	}) {
		t.Errorf("problems %+v", w.status().Cfsboot.Problems)
	}
}

// TestForeignFlood: long files of somebody else cost neither memory nor much time.
func TestForeignFlood(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	for i := range 200 {
		path := filepath.Join(w.fat.Path(), "loader/entries", fmt.Sprintf("x%d.conf", i))
		must(t, os.WriteFile(path, []byte("title x\n"), 0o644))
		must(t, os.Truncate(path, 4<<20))
	}
	w.changed()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	must(t, settled(w.upgrade(release(t, "2"))))
	runtime.ReadMemStats(&after)
	// What was allocated in all, with the image that is made: more than is ever held.
	if got := (after.TotalAlloc - before.TotalAlloc) >> 20; got > 256 {
		t.Errorf("%d MiB were allocated", got)
	}
}

// TestLongPattern: a pattern in loader.conf or in a variable that is too long for one
// costs no time, and is not shown whole.
func TestLongPattern(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	for i := range 200 {
		path := filepath.Join(w.fat.Path(), "loader/entries", fmt.Sprintf("%0200d.conf", i))
		must(t, os.WriteFile(path, []byte("title x\nlinux /a\n"), 0o644))
	}
	pattern := "*" + strings.Repeat("[a", 32<<10-16)
	must(t, os.WriteFile(filepath.Join(w.fat.Path(), "loader/loader.conf"), []byte("default "+pattern+"\n"), 0o644))
	w.changed()
	check := func(what string, messages []string) {
		t.Helper()
		found := false
		for _, x := range messages {
			found = found || strings.Contains(x, "[a[a[…")
			if len(x) > 1000 {
				t.Errorf("%s: a message of %d bytes: %.80s", what, len(x), x)
			}
		}
		if !found {
			t.Errorf("%s does not say what the pattern is: %q", what, messages)
		}
	}
	var messages []string
	for _, p := range w.status().Cfsboot.Problems {
		messages = append(messages, p.Message)
	}
	check("status", messages)
	c, err := w.upgrade(release(t, "2"))
	must(t, settled(c, err))
	check("upgrade", c.Warnings)
}

// TestPayloadsThatStay: kernels that files of somebody else name make no room when
// their deployments go. So a new release that needs the room is refused before any
// deployment goes for it.
func TestPayloadsThatStay(t *testing.T) {
	for name, file := range map[string]func(w *world, payload string) (string, string){
		"entry of another installation with a number of ours": func(w *world, payload string) (string, string) {
			return "cfsboot_other-0000000001.conf", "title other\nsort-key zz\nlinux /cfsboot/" + payload + "/vmlinuz\n"
		},
		"initrd": func(w *world, payload string) (string, string) {
			return "mine.conf", "title mine\nsort-key zz\ninitrd /cfsboot/" + payload + "/initrd\nlinux /vmlinuz\n"
		},
		"backslashes": func(w *world, payload string) (string, string) {
			return "mine.conf", "title mine\nsort-key zz\nlinux \\cfsboot\\" + payload + "\\vmlinuz\n"
		},
		"long file": func(w *world, payload string) (string, string) {
			return "mine.conf", "# " + strings.Repeat("x", 100<<10) + "\nlinux /cfsboot/" + payload + "/vmlinuz\n"
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.configure("keep = 9\n")
			ids := w.releases(releasesOf(t, 3)...)
			must(t, settled(w.upgrade(release(t, "3")))) // the journal knows that it is good
			payload := w.state().LatestOf(ids[0]).BootDigest
			base, text := file(w, payload)
			foreign := neighbours{"loader/entries/" + base: text}
			foreign.put(t, w.fat.Path())
			w.changed()
			// Room for a payload less two clusters, and what rollback goes to may not go.
			must(t, removed(w.delete(ids[1])))
			w.limit = (used(w.fat.Path()) + 7*cluster - 2*cluster) * 8 / 7
			before := w.state()
			_, err := w.upgrade(release(t, "4"))
			var space *durable.SpaceError
			if !errors.As(err, &space) {
				t.Errorf("got %v, want a SpaceError", err)
			}
			if d := cmp.Diff(before.Entries, w.state().Entries); d != "" {
				t.Errorf("entries (-before +after):\n%s", d)
			}
			w.limit = 0
			must(t, removed(w.delete(ids[0])))
			checkPayloads(t, w, []string{payload})
			foreign.check(t, "in the end", w.fat.Path())
		})
	}
}

// checkPayloads compares the payloads on the boot partition with what deployments
// need, and what others name.
func checkPayloads(t *testing.T, w *world, others []string) {
	t.Helper()
	want := slices.Clone(others)
	s := w.state()
	for _, a := range s.Entries {
		want = append(want, a.BootDigest)
	}
	if s.Staged != nil {
		want = append(want, s.Staged.BootDigest)
	}
	list, err := os.ReadDir(filepath.Join(w.fat.Path(), esp.PayloadDir))
	must(t, err)
	var got []string
	for _, x := range list {
		got = append(got, x.Name())
	}
	slices.Sort(want)
	if d := cmp.Diff(slices.Compact(want), got); d != "" {
		t.Errorf("payloads, mismatch (-needed +found):\n%s", d)
	}
}
