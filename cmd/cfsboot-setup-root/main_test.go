package main

import (
	"debug/elf"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build makes the program as it is shipped.
func build(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return out
}

// TestProgram holds the program to what an initramfs can take: static, and small.
func TestProgram(t *testing.T) {
	const maxSize = 4 << 20 // bytes
	path := build(t)
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", st.Size())
	if st.Size() >= maxSize {
		t.Errorf("%d bytes, want less than %d", st.Size(), maxSize)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("the program has a %v segment, want a static one", p.Type)
		}
	}

	run := func(args ...string) (string, int) {
		cmd := exec.Command(path, args...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	for _, args := range [][]string{{"--help"}, {"extra"}, {"--guard", "x"}} {
		if out, code := run(args...); code != 2 || !strings.HasPrefix(out, "usage: ") {
			t.Errorf("%v: exit %d, %q", args, code, out)
		}
	}
}

// TestNoSocket: the program cannot even name a socket: it links no package that opens one.
func TestNoSocket(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("only %d packages", len(deps))
	}
	for _, d := range deps {
		if d == "net" || strings.HasPrefix(d, "net/") || d == "os/user" || strings.HasPrefix(d, "crypto/tls") || d == "log/syslog" {
			t.Errorf("links %s", d)
		}
	}
	src, err := exec.Command("grep", "-rlE", `unix\.(Socket|Connect|Bind|Listen)\b`, "../../systemd/setuproot", "../../internal/mnt", "../../internal/durable", "../../keyring", "../../deploy/record", "../../bootimage/bls", "../../fsverity", "--include=*.go").Output()
	if len(src) > 0 || err == nil {
		t.Errorf("sockets in %s", src)
	}
}
