package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
)

var updateGolden = flag.Bool("update", false, "rewrite the golden files from what the code does")

// A machine for the status document: release 1 and 2, a third one staged.
var (
	rel1 = strings.Repeat("11", 64)
	rel2 = strings.Repeat("22", 64)
	rel3 = strings.Repeat("33", 64)

	statusTime = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)
)

type statusMachine struct {
	t  *testing.T
	in deploy.StatusInput
}

func newStatusMachine(t *testing.T) *statusMachine {
	m := &statusMachine{t: t}
	m.in.Now = statusTime
	m.in.Deployments = map[string]record.Deployment{}
	return m
}

func (m *statusMachine) event(e record.Event) {
	m.t.Helper()
	s, err := m.in.State.Apply(e, statusTime)
	if err != nil {
		m.t.Fatal(err)
	}
	m.in.State, m.in.Journal = s, true
}

func payloadOf(id string) string { return id[:64] }

func (m *statusMachine) deployment(id, version string) {
	m.in.Deployments[id] = record.Deployment{
		Schema: record.DeploymentSchema, ID: id, PlainID: strings.Repeat("f"+id[:1], 64), Reference: "docker://registry.example/os:stable",
		ManifestDigest: "sha256:" + payloadOf(id), IndexDigest: "sha256:" + strings.Repeat("e"+id[:1], 32), ConfigDigest: "sha256:" + strings.Repeat("c"+id[:1], 32),
		Architecture: "amd64", ImageVersion: version, ImageCreated: "2026-11-24T09:00:00Z", OSID: "debian", OSVersion: "13",
		Title: "Debian GNU/Linux 13 (trixie)", Kernel: "6.12.57+deb13-amd64", BootType: "bls", BootDigest: payloadOf(id),
		Options: "root=UUID=4f68 composefs.digest=v1-sha512-12:" + id + " rw", Transaction: "t" + version, Created: statusTime,
		Kargs: []record.Karg{
			{Argument: "root=UUID=4f68", Source: record.KargCfsboot}, {Argument: "composefs.digest=v1-sha512-12:" + id, Source: record.KargCfsboot},
			{Argument: "rw", Source: record.KargImage, File: "/usr/lib/bootc/kargs.d/10-root.toml"},
		},
	}
}

// begin makes a deployment up to the target event.
func (m *statusMachine) begin(op record.Op, id string) {
	m.event(record.Event{Kind: record.EventBegin, Transaction: "t", Op: op, Reference: "docker://registry.example/os:stable"})
	m.event(record.Event{Kind: record.EventTarget, Transaction: "t", Deployment: id, BootDigest: payloadOf(id)})
}

func (m *statusMachine) install() {
	m.event(record.Event{Kind: record.EventInit, Token: "0123abcd"})
	m.deployment(rel1, "1")
	m.begin(record.OpInstall, rel1)
	m.event(record.Event{Kind: record.EventArmed, Deployment: rel1, Entry: 1, Tries: 3})
}

func (m *statusMachine) stage(id, version string) {
	m.deployment(id, version)
	m.begin(record.OpUpgrade, id)
	m.event(record.Event{Kind: record.EventPrepared, Transaction: "t"})
}

func (m *statusMachine) arm(id string) {
	m.event(record.Event{Kind: record.EventArmed, Deployment: id, Entry: m.in.State.Staged.Entry, Tries: 3})
}

func (m *statusMachine) bless(seq uint64) {
	m.event(record.Event{Kind: record.EventBlessed, Entry: seq})
}

func (m *statusMachine) boot(id string) {
	m.in.Booted = &record.Booted{
		Version: 1, Digest: id, Algorithm: "sha512-12", Karg: "composefs.digest=v1-sha512-12:" + id, Secure: true, Gate: "digest",
		Sysroot: record.BootedSysroot{Dev: "254:2", UUID: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"}, Etc: "bind", Var: "bind", Root: "ro",
		Erofs: "file", Kernel: "6.12.57+deb13-amd64", Tried: []record.BootedTry{}, DurationMS: 41,
	}
	m.in.Root = &deploy.RootStatus{Source: "composefs:" + id, Digest: id, Verity: "require"}
	m.in.Loader = "systemd-boot 257.9-1"
}

// files puts entries "seq counter id" on the boot partition, in the order of
// the menu.
func (m *statusMachine) files(lines ...string) {
	m.in.EntriesRead = true
	for _, line := range lines {
		var (
			seq         uint64
			counter, id string
		)
		if _, err := fmt.Sscan(line, &seq, &counter, &id); err != nil {
			m.t.Fatalf("%q: %v", line, err)
		}
		m.in.Entries = append(m.in.Entries, entryFileOf(m.t, seq, strings.Trim(counter, "."), id))
	}
}

func entryFileOf(t *testing.T, seq uint64, counter, id string) esp.Entry {
	t.Helper()
	name, data := entryBytes(t, seq, counter, id)
	n, ok := record.ParseEntryName(name)
	if !ok {
		t.Fatalf("bad name %q", name)
	}
	e, err := bls.ParseEntry(data)
	if err != nil {
		t.Fatal(err)
	}
	return esp.Entry{File: name, Ours: true, Name: n, Entry: e, Named: esp.NamesIn(data)}
}

func entryBytes(t *testing.T, seq uint64, counter, id string) (string, []byte) {
	t.Helper()
	e, err := record.NewEntry(record.EntrySpec{
		Token: "0123abcd", Seq: seq, Title: "Debian", Linux: "/" + esp.Path(payloadOf(id), "vmlinuz"), Initrd: "/" + esp.Path(payloadOf(id), "initrd"),
		Options: bls.ParseCmdline("root=UUID=4f68 composefs.digest=v1-sha512-12:" + id + " rw"),
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := e.Format()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("cfsboot_0123abcd-%010d%s.conf", seq, counter), data
}

// statusCases are machines in the states of their lives.
var statusCases = map[string]func(m *statusMachine){
	"unmanaged": func(*statusMachine) {},
	"other-program": func(m *statusMachine) {
		m.in.Root = &deploy.RootStatus{Source: "composefs:" + rel1, Digest: rel1, Verity: "require"}
	},
	"installed": func(m *statusMachine) {
		m.install()
		m.boot(rel1)
		m.files("1 . " + rel1) // blessed by systemd-bless-boot, the journal does not know yet
	},
	"staged": func(m *statusMachine) {
		m.install()
		m.bless(1)
		m.boot(rel1)
		m.stage(rel2, "2")
		m.files("1 . " + rel1)
	},
	"upgraded":        upgraded,
	"rollback-queued": rollbackQueued,
	"rolled-back-and-staged": func(m *statusMachine) {
		rollbackQueued(m)
		m.boot(rel1)
		m.stage(rel3, "3")
		m.event(record.Event{Kind: record.EventFinalizeFailed, Deployment: rel3, Reason: "no space on the boot partition: need 64 MiB, have 12 MiB"})
	},
	"fell-back": func(m *statusMachine) {
		m.install()
		m.bless(1)
		m.stage(rel2, "2")
		m.arm(rel2)
		m.boot(rel1)
		m.files("1 . "+rel1, "2 +0-3 "+rel2)
		x := record.BootFailure{
			BootID: failedBootID, Time: statusTime, Stage: record.StageInitramfs, Deployment: rel2, Entry: 2, Code: "CFS-B12",
			Reason: "CFS-B12: /usr/lib/os-release: input/output error", Units: []string{}, Action: "reboot",
		}
		m.in.BootFailures = append(m.in.BootFailures, x)
		m.in.BootLogs = append(m.in.BootLogs, deploy.BootLog{Name: x.Name(), Lines: []string{"[    2.1] fs-verity (vda2, inode 12): FILE CORRUPTED!", "cfsboot-setup-root[80]: CFS-B12"}})
	},
	"without-privileges": func(m *statusMachine) {
		upgraded(m)
		m.in.Entries, m.in.EntriesRead = nil, false
		m.in.Problems = []deploy.Problem{{Code: deploy.ProblemESP, Message: "open /boot: permission denied", Hint: "run as root"}}
	},
	"damaged": func(m *statusMachine) {
		rollbackQueued(m)
		delete(m.in.Deployments, rel1)
		m.boot(rel2)
		m.in.Booted.Secure = false
		m.in.Root.Verity = ""
		m.in.Root.Digest = rel3
		m.in.Root.Source = "composefs:" + rel3
		m.begin(record.OpUpgrade, rel3)
		debian := bls.Entry{Fields: []bls.Field{{Key: "linux", Value: "/vmlinuz"}}}
		m.in.Entries = slices.Delete(m.in.Entries, 1, 2)                                                                                    // of sequence 2
		m.in.Entries[0].Entry, m.in.Entries[0].Err = bls.Entry{}, &bls.EntryError{Detail: "empty file"}                                     // of sequence 3
		m.in.Entries = append(m.in.Entries, entryFileOf(m.t, 77, "", rel3))                                                                 // not in the journal
		m.in.Entries = slices.Insert(m.in.Entries, 1, esp.Entry{File: "debian.conf", Entry: debian, Named: esp.NamesIn([]byte("title x"))}) // somebody else's
		m.in.Problems = []deploy.Problem{{Code: deploy.ProblemTornRecord, Message: "0000000099.json: cut"}}                                 // while reading
	},
	"no-journal": func(m *statusMachine) {
		m.boot(rel1)
		m.in.Problems = []deploy.Problem{{Code: deploy.ProblemJournal, Message: "no journal: file does not exist"}}
	},
}

func rollbackQueued(m *statusMachine) {
	m.install()
	m.bless(1)
	m.stage(rel2, "2")
	m.arm(rel2)
	m.bless(2)
	m.boot(rel2)
	m.begin(record.OpRollback, rel1)
	m.event(record.Event{Kind: record.EventArmed, Deployment: rel1, Entry: 3})
	m.files("3 . "+rel1, "2 . "+rel2, "1 . "+rel1)
}

func upgraded(m *statusMachine) {
	m.install()
	m.bless(1)
	m.stage(rel2, "2")
	m.arm(rel2)
	m.boot(rel2)
	m.files("2 +2-1 "+rel2, "1 . "+rel1)
}

// goldenStatus compares with testdata/status/<name>; -update rewrites it.
func goldenStatus(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", "status", name)
	if *updateGolden {
		if err := os.WriteFile(path, got, 0o644); err != nil { //nolint:gosec // a source file
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

func statusJSON(t *testing.T, s deploy.Status) []byte {
	t.Helper()
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// tableText prints a table as the command does, but with " | " for columns.
func tableText(table deploy.StatusTable) []byte {
	var b bytes.Buffer
	for _, line := range table.Lines {
		b.WriteString(line + "\n")
	}
	for _, row := range table.Rows {
		b.WriteString(strings.Join(row, " | ") + "\n")
	}
	for _, row := range table.Kargs {
		b.WriteString("k " + strings.Join(row, " | ") + "\n")
	}
	for _, p := range table.Problems {
		b.WriteString("! " + p + "\n")
	}
	for _, line := range table.Log {
		fmt.Fprintf(&b, "> %s\n", line)
	}
	return b.Bytes()
}

func TestStatus(t *testing.T) {
	schema := statusSchema(t)
	for name, prepare := range statusCases {
		t.Run(name, func(t *testing.T) {
			m := newStatusMachine(t)
			prepare(m)
			s := deploy.NewStatus(m.in)
			data := statusJSON(t, s)
			schema.Check(t, data)
			goldenStatus(t, name+".json", data)
			goldenStatus(t, name+".txt", tableText(s.Table()))
		})
	}
}

// TestStatusRoles says in words what the golden files must not get wrong.
func TestStatusRoles(t *testing.T) {
	for _, tc := range []struct {
		name                             string
		booted, staged, rollback, others string
		queued                           bool
		order                            string
		problems                         []string
	}{
		{name: "unmanaged", order: "default"},
		{name: "other-program", order: "default"},
		{name: "installed", booted: rel1, order: "default"},
		{name: "staged", booted: rel1, staged: rel2, order: "default"},
		{name: "upgraded", booted: rel2, rollback: rel1, order: "default"},
		{name: "rollback-queued", booted: rel2, rollback: rel1, queued: true, order: "rollback"},
		{name: "rolled-back-and-staged", booted: rel1, staged: rel3, rollback: rel2, order: "default", problems: []string{deploy.ProblemFinalize}},
		{name: "fell-back", booted: rel1, others: rel2, order: "default", problems: []string{deploy.ProblemFallback, deploy.ProblemNoRollback}},
		{name: "without-privileges", booted: rel2, rollback: rel1, order: "default", problems: []string{deploy.ProblemESP}},
		{name: "no-journal", booted: rel1, order: "default", problems: []string{deploy.ProblemJournal}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newStatusMachine(t)
			statusCases[tc.name](m)
			s := deploy.NewStatus(m.in)
			id := func(e *deploy.BootEntry) string {
				if e == nil {
					return ""
				}
				return e.Composefs.Verity
			}
			others := ""
			for _, e := range s.Status.OtherDeployments {
				others += e.Composefs.Verity
			}
			got := []string{id(s.Status.Booted), id(s.Status.Staged), id(s.Status.Rollback), others, s.Spec.BootOrder}
			if diff := cmp.Diff([]string{tc.booted, tc.staged, tc.rollback, tc.others, tc.order}, got); diff != "" {
				t.Errorf("roles (-want +got):\n%s", diff)
			}
			if s.Status.RollbackQueued != tc.queued {
				t.Errorf("rollback queued: %v", s.Status.RollbackQueued)
			}
			var codes []string
			for _, p := range s.Cfsboot.Problems {
				codes = append(codes, p.Code)
			}
			if diff := cmp.Diff(tc.problems, codes); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// writeMachine puts a machine on the disk: sysroot, boot partition, /run, /proc.
func writeMachine(t *testing.T, m *statusMachine, events int) (root string, sysroot, boot string) {
	t.Helper()
	root, sysroot, boot = t.TempDir(), t.TempDir(), t.TempDir()
	write := func(path string, data []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil { //nolint:gosec // as on a machine
			t.Fatal(err)
		}
	}
	if m.in.Booted != nil {
		data, err := m.in.Booted.Encode()
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(root, record.BootedPath), data)
	}
	mounts := "22 1 0:20 / / ro,relatime shared:1 - overlay composefs:" + rel2 + " ro,lowerdir+=/x,verity=require\n"
	write(filepath.Join(root, "proc/self/mountinfo"), []byte(mounts))
	for id, d := range m.in.Deployments {
		data, err := d.Encode()
		if err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(sysroot, record.StateDir, id, record.DeploymentName), data)
		write(filepath.Join(sysroot, record.StateDir, id, "etc/os-release"), nil)
		write(filepath.Join(sysroot, "state/os/default/var/x"), nil)
		if err := os.Symlink("../../os/default/var", filepath.Join(sysroot, record.StateDir, id, "var")); err != nil {
			t.Fatal(err)
		}
		write(filepath.Join(sysroot, "composefs/images", id), nil)
		for _, name := range []string{"vmlinuz", "initrd"} {
			write(filepath.Join(boot, esp.Path(payloadOf(id), name)), []byte(name))
		}
	}
	r := record.Record{Format: record.JournalFormat, Seq: uint64(events), Time: statusTime, BootID: "b", Event: record.Event{Kind: record.EventBlessed, Entry: 1}, State: m.in.State}
	data, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(sysroot, record.JournalDir, r.Name()), data)
	write(filepath.Join(sysroot, "composefs/meta.json"), nil)
	for _, e := range m.in.Entries {
		name, data := entryBytes(t, e.Name.Seq, e.Name.Counter.String(), e.ImageID())
		write(filepath.Join(boot, esp.EntryDir, name), data)
	}
	return root, sysroot, boot
}

type noVars struct{}

func (noVars) Loader(string) (string, error) { return "", os.ErrNotExist }

type fixedClock struct{}

func (fixedClock) Now() time.Time { return statusTime }

func statusOptions(t *testing.T, root, sysroot, boot string) deploy.Options {
	t.Helper()
	open := func(path string) *durable.Dir {
		dir, err := durable.OpenDir(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dir.Close() })
		return dir
	}
	return deploy.Options{Root: root, Sysroot: open(sysroot), ESP: open(boot), Vars: noVars{}, Clock: fixedClock{}}
}

func TestReadStatus(t *testing.T) {
	m := newStatusMachine(t)
	statusCases["upgraded"](m)
	root, sysroot, boot := writeMachine(t, m, 9)
	got := deploy.ReadStatus(t.Context(), statusOptions(t, root, sysroot, boot))
	m.in.Loader = ""
	want := deploy.NewStatus(m.in)
	if diff := cmp.Diff(string(statusJSON(t, want)), string(statusJSON(t, got))); diff != "" {
		t.Errorf("mismatch (-want +got):\n%s", diff)
	}
}

// TestReadStatusWithoutPrivileges reads as a user who may not look at the boot
// partition: everything else is there.
func TestReadStatusWithoutPrivileges(t *testing.T) {
	m := newStatusMachine(t)
	statusCases["upgraded"](m)
	root, sysroot, boot := writeMachine(t, m, 9)
	o := statusOptions(t, root, sysroot, boot)
	if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.Chmod(boot, 0)); err != nil { //nolint:gosec // as on a machine
		t.Fatal(err)
	}
	done := make(chan deploy.Status)
	go func() {
		// As root this thread gives up the privileges over files; it ends with the
		// goroutine because it stays locked.
		runtime.LockOSThread()
		if os.Getuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				t.Error(err)
			}
		}
		done <- deploy.ReadStatus(t.Context(), o)
	}()
	s := <-done
	if len(s.Cfsboot.Problems) != 1 || s.Cfsboot.Problems[0].Code != deploy.ProblemESP || !strings.Contains(s.Cfsboot.Problems[0].Hint, "root") {
		t.Errorf("problems: %+v", s.Cfsboot.Problems)
	}
	if s.Status.Booted == nil || s.Status.Rollback == nil || s.Status.Rollback.Composefs.Verity != rel1 {
		t.Errorf("got %s", statusJSON(t, s))
	}
}

// TestReadStatusWithoutRepository: nothing can be pulled any more.
func TestReadStatusWithoutRepository(t *testing.T) {
	m := newStatusMachine(t)
	statusCases["upgraded"](m)
	root, sysroot, boot := writeMachine(t, m, 9)
	must(t, os.RemoveAll(filepath.Join(sysroot, "composefs")))
	for _, kind := range []string{"gone", "no directory"} {
		s := deploy.ReadStatus(t.Context(), statusOptions(t, root, sysroot, boot))
		if p := s.Cfsboot.Problems; len(p) != 1 || p[0].Code != deploy.ProblemRepository || !strings.Contains(p[0].Message, "composefs") {
			t.Errorf("%s: problems %+v", kind, p)
		}
		must(t, os.WriteFile(filepath.Join(sysroot, "composefs"), nil, 0o600))
	}
}

// TestReadStatusElsewhere: a machine that has nothing of cfsboot says so.
func TestReadStatusElsewhere(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "proc/self"), 0o755),
		os.WriteFile(filepath.Join(root, "proc/self/mountinfo"), []byte("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s := deploy.ReadStatus(t.Context(), deploy.Options{Root: root, Vars: noVars{}})
	if s.Cfsboot.Managed || len(s.Cfsboot.Problems) > 0 || s.Status.Booted != nil {
		t.Errorf("got %+v", s.Cfsboot)
	}
	if text := string(tableText(s.Table())); text != "This machine is not managed by cfsboot.\n" {
		t.Errorf("got %q", text)
	}
}

// TestReadStatusNeverFails damages a machine at random: the document stays
// valid, and whatever is damaged shows up as a problem or as a missing field.
func TestReadStatusNeverFails(t *testing.T) {
	schema := statusSchema(t)
	for seed := range uint64(150) {
		m := newStatusMachine(t)
		statusCases["rolled-back-and-staged"](m)
		root, sysroot, boot := writeMachine(t, m, 20)
		r := rand.New(rand.NewPCG(seed, 3))
		for _, top := range []string{root, sysroot, boot} {
			err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
				if err != nil || path == top || r.IntN(4) > 0 {
					return err
				}
				switch r.IntN(5) {
				case 0:
					if err := os.RemoveAll(path); err != nil {
						return err
					}
					if d.IsDir() {
						return filepath.SkipDir
					}
					return nil
				case 1:
					if err := errors.Join(os.RemoveAll(path), os.Symlink("/dev/null", path)); err != nil {
						return err
					}
					if d.IsDir() {
						return filepath.SkipDir
					}
				}
				if !d.Type().IsRegular() {
					return nil
				}
				data, err := os.ReadFile(path)
				if err != nil || len(data) == 0 {
					return err
				}
				switch r.IntN(3) {
				case 0:
					data = data[:r.IntN(len(data))]
				case 1:
					data[r.IntN(len(data))] ^= 1 << r.IntN(8)
				case 2:
					data = bytes.Repeat([]byte{byte(r.IntN(256))}, r.IntN(3000))
				}
				return os.WriteFile(path, data, 0o600)
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		s := deploy.ReadStatus(t.Context(), statusOptions(t, root, sysroot, boot))
		schema.Check(t, statusJSON(t, s))
		s.Table()
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
