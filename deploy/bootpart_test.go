package deploy_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/deploy"
	"github.com/cfsboot/cfsboot/deploy/esp"
)

// fakeDisk makes a disk in the world's /sys and /dev, with partitions of these
// types from the first number on. Disks with one seed have the same identifiers.
func (w *world) fakeDisk(name string, major, seed int, types ...string) {
	w.t.Helper()
	link := func(target, name string) {
		must(w.t, os.MkdirAll(filepath.Dir(filepath.Join(w.running, name)), 0o755))
		must(w.t, os.Symlink(target, filepath.Join(w.running, name)))
	}
	dir := "sys/devices/" + name
	w.writeRunning(dir+"/dev", fmt.Sprintf("%d:0\n", major))
	link("../../devices/"+name, "sys/class/block/"+name)
	le := binary.LittleEndian
	table := make([]byte, 128*128)
	for i, typ := range types {
		part := fmt.Sprintf("%s%d", name, i+1)
		w.writeRunning(dir+"/"+part+"/partition", fmt.Sprintf("%d\n", i+1))
		w.writeRunning(dir+"/"+part+"/dev", fmt.Sprintf("%d:%d\n", major, i+1))
		link("../../devices/"+name+"/"+part, "sys/class/block/"+part)
		link("../../devices/"+name+"/"+part, fmt.Sprintf("sys/dev/block/%d:%d", major, i+1))
		e := table[i*128:]
		copy(e, mixedGUID(w.t, typ))
		e[16], e[17] = byte(seed), byte(i)
		le.PutUint64(e[32:], uint64(i+1)*2048)
		le.PutUint64(e[40:], uint64(i+2)*2048-1)
	}
	h := make([]byte, 512)
	copy(h, "EFI PART")
	le.PutUint32(h[12:], 92)
	le.PutUint64(h[72:], 2)
	le.PutUint32(h[80:], 128)
	le.PutUint32(h[84:], 128)
	le.PutUint32(h[88:], crc32.ChecksumIEEE(table))
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
	w.writeRunning("dev/"+name, string(make([]byte, 512))+string(h)+string(table))
}

// mixedGUID is a GUID as a partition table has it.
func mixedGUID(t *testing.T, s string) []byte {
	t.Helper()
	var a uint32
	var b, c uint16
	var d, e []byte
	_, err := fmt.Sscanf(s, "%8x-%4x-%4x-%4x-%12x", &a, &b, &c, &d, &e)
	must(t, err)
	out := binary.LittleEndian.AppendUint32(nil, a)
	out = binary.LittleEndian.AppendUint16(out, b)
	out = binary.LittleEndian.AppendUint16(out, c)
	return append(append(out, d...), e...)
}

const typeRoot = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"

// TestTwoCopiesOfTheDisk: a copy of the whole disk ends every command before it
// changes anything, also where the disk has no ESP; at a shutdown that is in the
// journal.
func TestTwoCopiesOfTheDisk(t *testing.T) {
	for _, types := range [][]string{{esp.TypeESP, typeRoot}, {typeRoot, typeRoot}} {
		w := newWorld(t)
		w.releases(release(t, "1"), release(t, "2"))
		must(t, settled(w.upgrade(release(t, "3"))))
		w.fakeDisk("vda", 254, 7, types...)
		w.fakeDisk("sda", 8, 7, types...)
		w.search = true
		rest := func() []string { // the journal has the reason now
			return slices.DeleteFunc(w.fingerprint(), func(s string) bool { return strings.Contains(s, "journal token") })
		}
		before := rest()
		for name, run := range opening(w) {
			err := run()
			var refused *deploy.RefusedError
			if !errors.As(err, &refused) || refused.Code != deploy.CodeTwins || !strings.Contains(err.Error(), "vda") || !strings.Contains(err.Error(), "sda") {
				t.Errorf("%s: got %v", name, err)
			}
			oneLine(t, err)
		}
		if got := w.told(deploy.ProblemFinalize); len(got) != 1 || !strings.Contains(got[0], "copies of each other") {
			t.Errorf("status says of finalize: %q", got)
		}
		if got := w.told(deploy.ProblemTwins); len(got) != 1 {
			t.Errorf("status: %q", got)
		}
		if d := cmp.Diff(before, rest()); d != "" {
			t.Errorf("something has changed: %s", d)
		}
	}
}

// TestFinalizeWithoutPartition: nothing that can be the boot partition is left at
// the shutdown. The journal says why, and the next one makes up for it.
func TestFinalizeWithoutPartition(t *testing.T) {
	w := newWorld(t)
	w.releases(release(t, "1"))
	must(t, settled(w.upgradeWith(deploy.UpgradeOptions{DownloadOnly: true})))
	must(t, settled(w.upgrade(release(t, "2"))))
	staged := w.state().Staged
	w.search = true
	_, err := w.finalize()
	var refused *deploy.RefusedError
	if !errors.As(err, &refused) || refused.Code != deploy.CodeNoESP {
		t.Errorf("got %v", err)
	}
	oneLine(t, err)
	w.search = false
	if st := w.state().Staged; st == nil || st.Deployment != staged.Deployment || !strings.Contains(st.Failure, "no EFI system partition") {
		t.Errorf("staged: %+v", st)
	}
	w.boot()
	if got := w.told(deploy.ProblemFinalize); len(got) != 1 {
		t.Errorf("status: %q", got)
	}
	must(t, settled(w.finalize()))
	if got := w.boot(); got != staged.Deployment || w.told(deploy.ProblemFinalize) != nil {
		t.Errorf("booted %s", short(got))
	}
}
