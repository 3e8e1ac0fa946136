package systemd_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/systemd"
)

func TestPanicLine(t *testing.T) {
	for _, c := range []struct{ name, lines, want string }{
		{"none", "a\nb", ""},
		{"panic", "a\n[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\nCPU: 0", "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)"},
		{
			"cause", "[ 9.1] sysrq: Trigger a crash\n[ 9.2] Kernel panic - not syncing: sysrq triggered crash",
			"Kernel panic - not syncing: sysrq triggered crash ([ 9.1] sysrq: Trigger a crash)",
		},
		{"with the caller", "[   14.1][    T1] Kernel panic - not syncing: x", "Kernel panic - not syncing: x"},
		{"of the system's log", "[    9.0] kernel: Kernel panic - not syncing: Fatal exception", "Kernel panic - not syncing: Fatal exception"},
		{"what a program says", "[ 9.0] app[7]: Kernel panic - not syncing: password=1", ""},
		{"what a program said before", "[ 8.0] app[7]: BUG: password=1\n[ 9.0] Kernel panic - not syncing: x", "Kernel panic - not syncing: x"},
		{"only a warning", "[ 1.0] BUG: soft lockup", ""},
	} {
		if got := systemd.PanicLine(strings.Split(c.lines, "\n")); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leave writes a file that a dead kernel left, age after a fixed time.
func leave(t *testing.T, root, name, text string, age time.Duration) {
	t.Helper()
	path := filepath.Join(root, name)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o600))
	at := pstoreTime.Add(age)
	must(t, os.Chtimes(path, at, at))
}

var pstoreTime = time.Date(2026, 11, 25, 10, 0, 0, 0, time.UTC)

// TestReadPstore: one text for what belongs together, whether systemd-pstore.service has put it together or not.
func TestReadPstore(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"dmesg-efi_pstore-176300000001001": "Panic#1 Part1\n<0>[ 2.0] third\n", // part 01 has the end
		"dmesg-efi_pstore-176300000002001": "Panic#1 Part2\n<6>[ 1.0] second\n",
		"dmesg-efi_pstore-176300000001002": "another one of that second\n",
		"dmesg-ramoops-0":                  "ramoops 0\n",
		"dmesg-ramoops-1":                  "ramoops 1\n",
		"console-ramoops-0":                "no message of the end",
	} {
		leave(t, root, "sys/fs/pstore/"+name, text, time.Duration(len(text))*time.Second)
	}
	moved := "var/lib/systemd/pstore/1763000000/001/"
	leave(t, root, moved+"dmesg.txt", "<6>whole 1\n<0>whole 2", time.Hour)
	leave(t, root, moved+"dmesg-efi_pstore-176300000001001", "<0>whole 2", time.Minute)
	texts, err := systemd.ReadPstore(root)
	must(t, err)
	var got []string
	for i, x := range texts {
		got = append(got, strings.Join(x.Lines, "|"))
		if i > 0 && x.Time.After(texts[i-1].Time) {
			t.Errorf("text %d is newer than the one before it", i)
		}
	}
	slices.Sort(got)
	want := []string{
		"Panic#1 Part2|[ 1.0] second|Panic#1 Part1|[ 2.0] third", "another one of that second", "ramoops 0", "ramoops 1", "whole 1|whole 2",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if !texts[0].Time.Equal(pstoreTime.Add(time.Hour)) {
		t.Errorf("the newest is of %v", texts[0].Time)
	}
	if texts, err := systemd.ReadPstore(t.TempDir()); err != nil || len(texts) != 0 {
		t.Errorf("a machine without: %v, %v", texts, err)
	}
}
