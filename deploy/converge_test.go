package deploy_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable/durabletest"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// convergence is a command that, hit by a fault anywhere and then repeated, must
// leave the machine as if it had not been hit.
type convergence struct {
	name string
	// prepare brings an empty machine to where the command starts.
	prepare func(t *testing.T, w *world)
	// run is the command. Repeated on a machine on which it has succeeded it must
	// return nil.
	run func(w *world) error
}

// faults are what a mutating call may meet. A process that is killed before a call
// leaves what one leaves that is killed after the call before.
var faults = []fault{
	{"EIO", unix.EIO}, {"ENOSPC", unix.ENOSPC}, {"killed", nil},
}

type fault struct {
	name string
	err  error // nil: the process is killed after the call
}

// at is the fault at the n-th call.
func (f fault) at(n int) *killer { return &killer{at: n, err: f.err, after: f.err == nil} }

// converge runs a command with every fault at each mutating call (at every
// stride-th one of a long command, unless CFSBOOT_CRASH_ALL=1), repeats it as a
// new process, and compares boot partition, state, journal and repository with
// those of an uninterrupted run. What may differ is masked: sequence numbers keep
// their order only, transactions and times not even that.
func converge(t *testing.T, c convergence) {
	t.Helper()
	base := newWorld(t)
	c.prepare(t, base)
	whole := base.copy()
	whole.killer = &killer{at: -1}
	must(t, c.run(whole))
	calls := whole.killer.n
	whole.killer = nil
	want := whole.fingerprint()
	must(t, c.run(whole))
	if d := cmp.Diff(want, whole.fingerprint()); d != "" {
		t.Fatalf("the command is not idempotent, mismatch (-once +twice):\n%s", d)
	}
	stride := sampled(calls, 8)
	fired := 0
	for n := 0; n < calls; n += stride {
		for i, f := range faults {
			at := min(n+i*stride/len(faults), calls-1) // each kind looks at other calls of a sample
			w := base.copy()
			w.killer = f.at(at)
			err := c.run(w)
			if !w.killer.fired {
				continue // fewer calls this time
			}
			fired++
			t.Run(fmt.Sprintf("%s at %d", f.name, at), func(t *testing.T) {
				t.Logf("at %s: %v", w.killer.op, err)
				w.killer = nil
				again := w.restarted(t)
				if err2 := c.run(again); err2 != nil {
					t.Fatalf("repeated: %v (before: %v)", err2, err)
				}
				if d := cmp.Diff(want, again.fingerprint()); d != "" {
					t.Errorf("mismatch (-uninterrupted +interrupted and repeated) after %v:\n%s", err, d)
				}
				checkQuiet(t, again)
			})
		}
	}
	if fired < calls/stride {
		t.Errorf("%d faults for %d calls", fired, calls)
	}
}

// sampled is the step that takes about n of so many calls, or every one if
// CFSBOOT_CRASH_ALL=1.
func sampled(calls, n int) int {
	if os.Getenv("CFSBOOT_CRASH_ALL") == "1" {
		return 1
	}
	return max(1, calls/n)
}

// restarted is the same machine for a new process: the disks hold what was
// written, synced or not.
func (w *world) restarted(t *testing.T) *world {
	t.Helper()
	c := *w
	c.t, c.systemd = t, &fakeSystemd{}
	c.root, c.fat = realDisk{t, w.root.Path()}, durabletest.OverFAT(t, w.fat.Path()) // what FAT refuses it goes on refusing
	return &c
}

var (
	transaction = regexp.MustCompile(`"transaction": *"[^"]*"`)
	created     = regexp.MustCompile(`"created": *"[^"]*"`)
	printOfEtc  = regexp.MustCompile(`"fingerprint": *"[^"]*"`)
)

// fingerprint lists everything that makes the machine, one line each, without
// what two runs may do differently.
func (w *world) fingerprint() []string {
	w.t.Helper()
	mask := w.maskSequence()
	var out []string
	list := func(part, root string, skip func(name string) bool) {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			if skip != nil && skip(name) {
				if e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			line, err := describe(path, e, mask)
			out = append(out, part+" "+mask(name)+" "+line)
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	list("esp", w.fat.Path(), nil)
	list("repo", filepath.Join(w.root.Path(), "composefs"), func(name string) bool {
		// Links that got no name, and memories of layers that were compared: gc takes them.
		dir, base := filepath.Split(name)
		return dir == "" && strings.HasPrefix(base, ".symlink-") || dir == "cfsboot/images/" || dir == "cfsboot/verified/"
	})
	list("state", filepath.Join(w.root.Path(), "state"), func(name string) bool {
		switch name {
		case "cfsboot/trash", "cfsboot/staged": // there from the first use on
			return empty(filepath.Join(w.root.Path(), "state", name))
		}
		dir, base := filepath.Split(name)
		_, ok := record.ParseRecordName(base)
		return ok && dir == "cfsboot/journal/" // the state after the last one counts, see below
	})
	slices.Sort(out)
	return append(out, "journal "+w.maskedState(mask))
}

func empty(path string) bool {
	list, err := os.ReadDir(path)
	return err == nil && len(list) == 0
}

// describe is what of a file counts: type, mode, content or target.
func describe(path string, e fs.DirEntry, mask func(string) string) (string, error) {
	info, err := e.Info()
	if err != nil {
		return "", err
	}
	line := info.Mode().String()
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return line + " -> " + target, err
	case !info.Mode().IsRegular():
		return line, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	data = []byte(mask(string(data)))
	for _, x := range []struct {
		name string
		mask *regexp.Regexp
	}{{record.DeploymentName, transaction}, {record.DeploymentName, created}, {"etc-merge.json", transaction}, {"etc-merge.json", printOfEtc}} {
		if filepath.Base(path) == x.name {
			data = x.mask.ReplaceAll(data, nil)
		}
	}
	if len(data) > 400 || bytes.ContainsFunc(data, func(r rune) bool { return r != '\n' && r < ' ' }) {
		return fmt.Sprintf("%s %d bytes %x", line, len(data), sha256.Sum256(data)), nil
	}
	return fmt.Sprintf("%s %q", line, data), nil
}

// maskSequence replaces the sequence numbers of boot entries by their ranks.
func (w *world) maskSequence() func(string) string {
	w.t.Helper()
	s := w.state()
	var seqs []uint64
	for _, a := range s.Entries {
		seqs = append(seqs, a.Seq)
	}
	if s.Staged != nil {
		seqs = append(seqs, s.Staged.Entry)
	}
	for _, e := range entriesOf(w.t, w) {
		if e.Ours && !slices.Contains(seqs, e.Name.Seq) {
			seqs = append(seqs, e.Name.Seq)
		}
	}
	slices.Sort(seqs)
	ranks := map[string]string{}
	for i, seq := range seqs {
		ranks[fmt.Sprintf("%010d", seq)] = fmt.Sprintf("#%d", i+1)
	}
	return func(text string) string {
		for number, rank := range ranks {
			text = strings.ReplaceAll(text, number, rank)
		}
		return text
	}
}

// maskedState is the journal's state without numbers and times.
func (w *world) maskedState(mask func(string) string) string {
	w.t.Helper()
	s := w.state()
	rank := func(seq uint64) string { return mask(fmt.Sprintf("%010d", seq)) }
	var b strings.Builder
	fmt.Fprintf(&b, "token %s transaction %v orphans %v", s.Token, s.Transaction, s.Orphans)
	if st := s.Staged; st != nil {
		fmt.Fprintf(&b, " staged %s %s %s %q", rank(st.Entry), short(st.Deployment), short(st.BootDigest), st.Failure)
	}
	for _, a := range s.Entries {
		fmt.Fprintf(&b, " entry %s %s %s tries %d blessed %v failed %v retiring %v", rank(a.Seq), short(a.Deployment), short(a.BootDigest), a.Tries, a.Blessed, a.Failed, a.Retiring)
	}
	for _, f := range s.Failed {
		fmt.Fprintf(&b, " failed %s %q", short(f.Deployment), f.Reason)
	}
	return b.String()
}

// relabelled is another manifest of a release.
func relabelled(t *testing.T, name string) *ocitest.Image {
	t.Helper()
	img, err := ocitest.Build(ocitest.Spec{
		Layers: []ocitest.Layer{{Tar: tarOf(t, osTree(name)), Compression: ocitest.Gzip}}, Labels: map[string]string{"x": "y"},
	})
	must(t, err)
	return img
}

func short(id string) string { return id[:min(len(id), 12)] }

func convergences(t *testing.T) []convergence {
	r1, r2, r3 := release(t, "1"), release(t, "2"), release(t, "3")
	sameFiles := relabelled(t, "1")
	first := func(t *testing.T, w *world) {
		t.Helper()
		w.releases(r1)
		w.edit("hostname", "mine\n")
	}
	return []convergence{
		{"upgrade", first, func(w *world) error { return settled(w.upgrade(r2)) }},
		{"upgrade that replaces a staged one", func(t *testing.T, w *world) {
			first(t, w)
			must(t, settled(w.upgrade(r2)))
		}, func(w *world) error { return settled(w.upgrade(r3)) }},
		{"upgrade that drops a staged one", func(t *testing.T, w *world) {
			first(t, w)
			must(t, settled(w.upgrade(r2)))
		}, func(w *world) error { return settled(w.upgrade(r1)) }},
		{"finalize", func(t *testing.T, w *world) {
			first(t, w)
			must(t, settled(w.upgrade(r2)))
			w.edit("conf.d/app.conf", "level=2\n")
		}, func(w *world) error { return settled(w.finalize()) }},
		{"switch", first, func(w *world) error { return settled(w.switchTo(otherReference, r2, deploy.SwitchOptions{})) }},
		{"switch over a staged one", func(t *testing.T, w *world) {
			first(t, w)
			must(t, settled(w.upgrade(r2)))
		}, func(w *world) error { return settled(w.switchTo(otherReference, r3, deploy.SwitchOptions{})) }},
		{"switch to the image that runs", first, func(w *world) error { return settled(w.switchTo(otherReference, r1, deploy.SwitchOptions{})) }},
		{"switch to the image that is staged", func(t *testing.T, w *world) {
			first(t, w)
			must(t, settled(w.upgrade(r2)))
		}, func(w *world) error { return settled(w.switchTo(otherReference, r2, deploy.SwitchOptions{})) }},
		{"upgrade to the same files", first, func(w *world) error {
			return settled(w.upgrade(sameFiles))
		}},
		{"download", first, func(w *world) error {
			w.tag = r2
			return settled(w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true}))
		}},
		{"upgrade from what was downloaded", func(t *testing.T, w *world) {
			first(t, w)
			w.tag = r2
			must(t, settled(w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})))
		}, func(w *world) error { return settled(w.upgradeWith(deploy.UpgradeOptions{FromDownloaded: true})) }},
		{"finalize over an older state of the same", func(t *testing.T, w *world) {
			w.releases(r1, r2)
			must(t, settled(w.rollback("")))
			w.boot()
			w.edit("hostname", "again\n")
			must(t, settled(w.upgrade(r2)))
		}, func(w *world) error { return settled(w.finalize()) }},
		{"rollback", func(t *testing.T, w *world) {
			w.releases(r1, r2)
			must(t, settled(w.upgrade(r3)))
		}, func(w *world) error { return settled(w.rollback("")) }},
	}
}

// TestConverges: see converge.
func TestConverges(t *testing.T) {
	for _, c := range convergences(t) {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			converge(t, c)
		})
	}
}

// TestFingerprint: what converge compares by is no rubber stamp.
func TestFingerprint(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"), release(t, "2"))
	before := w.fingerprint()
	if len(before) < 50 {
		t.Fatalf("%d lines", len(before))
	}
	id := w.booted()
	entries := entriesOf(t, w)
	for name, change := range map[string]func() error{
		"etc": func() error {
			return os.WriteFile(filepath.Join(w.root.Path(), "state/deploy", id, "etc/motd"), []byte("other\n"), 0o644)
		},
		"mode":  func() error { return os.Chmod(filepath.Join(w.root.Path(), "state/deploy", id, "etc/motd"), 0o600) },
		"entry": func() error { return os.Remove(filepath.Join(w.fat.Path(), "loader/entries", entries[0].File)) },
		"ref": func() error {
			return os.Remove(filepath.Join(w.root.Path(), "composefs/images/refs/cfsboot", id, "boot"))
		},
		"payload": func() error {
			return os.WriteFile(filepath.Join(w.fat.Path(), "cfsboot", entries[0].Payload(), "initrd"), []byte("x"), 0o644)
		},
		"extra": func() error { return os.WriteFile(filepath.Join(w.root.Path(), "state/cfsboot/x"), nil, 0o644) },
		"journal": func() error {
			w.note(record.Event{Kind: record.EventFailed, Entry: entries[0].Name.Seq, Reason: "x"})
			return nil
		},
	} {
		last := w.fingerprint()
		must(t, change())
		if cmp.Equal(last, w.fingerprint()) {
			t.Errorf("%s: the change does not show", name)
		}
	}
}
