package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// screen is what a terminal shows after some output: enough of one for what the progress display sends.
func screen(t *testing.T, out string) string {
	t.Helper()
	lines, row, column := []string{""}, 0, 0
	for len(out) > 0 {
		switch {
		case out[0] == '\n':
			row, column = row+1, 0
			if row == len(lines) {
				lines = append(lines, "")
			}
			out = out[1:]
		case out[0] == '\r':
			column, out = 0, out[1:]
		case strings.HasPrefix(out, "\x1b[J"):
			lines[row] = lines[row][:min(column, len(lines[row]))]
			lines, out = lines[:row+1], out[len("\x1b[J"):]
		case strings.HasPrefix(out, "\x1b["):
			number, rest, ok := strings.Cut(out[len("\x1b["):], "A")
			n, err := strconv.Atoi(number)
			if !ok || err != nil || n > row {
				t.Fatalf("sequence %q in row %d", out[:min(8, len(out))], row)
			}
			row, out = row-n, rest
		default:
			line := lines[row]
			if column < len(line) {
				line = line[:column] + out[:1] + line[column+1:]
			} else {
				line += out[:1]
			}
			lines[row], column, out = line, column+1, out[1:]
		}
	}
	return strings.Join(lines, "\n")
}

// TestTerminalKeepsResult: after a command that showed its progress on a terminal the whole result stands there, alone.
func TestTerminalKeepsResult(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	img, err := buildImage("")
	if err == nil {
		err = img.WriteLayout("images", "one")
	}
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// command runs one with both streams on one terminal.
	command := func(args ...string) (status int, raw string) {
		t.Helper()
		tty, err := os.Create(filepath.Join(dir, "tty"))
		if err != nil {
			t.Fatal(err)
		}
		defer tty.Close()
		status = run(args, null, tty, tty)
		out, err := os.ReadFile(tty.Name())
		if err != nil {
			t.Fatal(err)
		}
		return status, string(out)
	}
	if status, out := command("--progress=tty", "repo", "init", "--repo", "r", "--insecure"); status != 0 || strings.Contains(out, "\x1b") {
		t.Errorf("a command without progress: status %d, %q", status, out)
	}
	status, raw := command("--progress=tty", "oci", "pull", "oci:images:one", "os", "--bootable", "--repo", "r", "--platform", "linux/amd64")
	if status != 0 || !strings.Contains(raw, "layer 1 of 1") {
		t.Fatalf("status %d, no progress in %q", status, raw)
	}
	lines := strings.Split(screen(t, raw), "\n")
	if len(lines) != 8 || !strings.HasPrefix(lines[0], "name      os") || !strings.HasPrefix(lines[6], "objects   ") || lines[7] != "" {
		t.Errorf("the terminal shows\n%s", strings.Join(lines, "\n"))
	}
	// A failure leaves the error, once, and no progress line.
	status, raw = command("--progress=tty", "oci", "pull", "oci:images:two", "os", "--repo", "r")
	if text := screen(t, raw); status != 1 || strings.Count(text, "oci:images:two") != 1 {
		t.Errorf("status %d, the terminal shows\n%s", status, text)
	}
}
