package selabel_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

// lookupProgram asks libselinux. Lines of input: "P FILE" opens a policy, "S MODE PATH"
// asks for a path (mode in octal). One line of output for each.
const lookupProgram = `
#include <selinux/selinux.h>
#include <selinux/label.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
static int quiet(int type, const char *format, ...) { (void)type; (void)format; return 0; }
int main(void) {
	union selinux_callback cb = { .func_log = quiet };
	selinux_set_callback(SELINUX_CB_LOG, cb);
	struct selabel_handle *h = NULL;
	char line[70000];
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0] == 'P') {
			struct selinux_opt opt[] = { { SELABEL_OPT_PATH, line + 2 } };
			if (h) selabel_close(h);
			h = selabel_open(SELABEL_CTX_FILE, opt, 1);
			puts(h ? "ok" : "bad");
		} else {
			char *path, *con = NULL;
			int mode = strtol(line + 2, &path, 8);
			if (selabel_lookup_raw(h, &con, path + 1, mode) != 0) puts("-");
			else { puts(con); freecon(con); }
		}
		fflush(stdout);
	}
	return 0;
}
`

// libselinux is a running lookupProgram.
type libselinux struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
	dir string
	n   int
}

func startLibselinux(t *testing.T) *libselinux {
	t.Helper()
	skip := func(why any) {
		if os.Getenv("CFSBOOT_REQUIRE_ORACLES") == "1" {
			t.Fatal("libselinux is required: ", why)
		}
		t.Skip("no libselinux: ", why)
	}
	cc, err := exec.LookPath("cc")
	if err != nil {
		skip(err)
	}
	dir := t.TempDir()
	source, program := filepath.Join(dir, "lookup.c"), filepath.Join(dir, "lookup")
	if err := os.WriteFile(source, []byte(lookupProgram), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), cc, "-o", program, source, "-lselinux").CombinedOutput(); err != nil {
		skip(fmt.Sprintf("%v: %.300s", err, out))
	}
	cmd := exec.CommandContext(t.Context(), program)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	return &libselinux{t: t, in: in, out: bufio.NewReader(out), dir: dir}
}

func (l *libselinux) ask(format string, args ...any) string {
	l.t.Helper()
	fmt.Fprintf(l.in, format+"\n", args...)
	line, err := l.out.ReadString('\n')
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}

// open makes the library use a policy, and reports whether it does.
func (l *libselinux) open(text string) bool {
	l.t.Helper()
	l.n++
	path := filepath.Join(l.dir, fmt.Sprintf("file_contexts%d", l.n))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return l.ask("P %s", path) == "ok"
}

var modes = map[selabel.Type]uint32{'-': 0o100000, 'd': 0o40000, 'l': 0o120000, 'c': 0o20000, 'b': 0o60000, 'p': 0o10000, 's': 0o140000}

// label returns the library's answer as Lookup gives it. The library returns <<none>>
// as an error, like no match.
func (l *libselinux) label(path string, typ selabel.Type) string {
	l.t.Helper()
	answer := l.ask("S %o %s", modes[typ], path)
	if answer == "-" {
		return ""
	}
	return answer
}

// TestOracleExpressions: single specs match what they match in libselinux. Left out
// is what composefs-rs reads in another way: the end of the path, where it puts the
// type letter, and newlines.
func TestOracleExpressions(t *testing.T) {
	l := startLibselinux(t)
	r := rand.New(rand.NewPCG(5, 3))
	asked, matched := 0, 0
	for range 4000 {
		text := "/" + randomExpression(r, 1) + "b?"
		switch r.IntN(4) {
		case 0:
			text = "/(?!A)" + randomExpression(r, 1) // A is no type
		case 1:
			text += "(?<=b)" + randomExpression(r, 1)
		}
		if strings.ContainsAny(text, "$^") || strings.IndexByte("/?*+{", text[1]) >= 0 { // the library takes "/x/" for a fixed stem
			continue
		}
		typ := []string{"", "--", "-d", "-l", "-c", "-b", "-p", "-s"}[r.IntN(8)]
		line := text + " " + typ + " u:r:t:s0\n"
		p, err := selabel.Parse(selabel.Files{Contexts: []byte(line)})
		if err != nil {
			continue // an assertion with a quantifier, for example
		}
		if !l.open(line) {
			t.Errorf("libselinux refuses %q", line)
			continue
		}
		for range 10 {
			path := "/" + strings.Trim(strings.ReplaceAll(randomPath(r), "\n", ""), "/") // no slash at the end: the library drops it
			if strings.Contains(path, "//") {
				continue
			}
			asked++
			typ := selabel.Type("-dlcbps"[r.IntN(7)])
			want := l.label(path, typ)
			if want != "" {
				matched++
			}
			if got := label(t, p, path, typ); got != want {
				t.Errorf("%q on %q -%c: got %q, libselinux %q", line, path, typ, got, want)
			}
		}
	}
	if matched < 100 {
		t.Errorf("%d matches among %d questions: the test shows little", matched, asked)
	}
}

// policyFiles returns the policies of this machine, and one that was put into the
// cache for tests.
func policyFiles(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("/etc/selinux/*/contexts/files/file_contexts")
	if err != nil {
		t.Fatal(err)
	}
	if cache, err := os.UserCacheDir(); err == nil {
		more, _ := filepath.Glob(filepath.Join(cache, "cfsboot/selinux-policy/file_contexts"))
		found = append(found, more...)
	}
	return found
}

// literalsLast returns a policy in the order in which libselinux searches it: specs
// without special characters behind the others.
func literalsLast(text []byte) []byte {
	var first, last bytes.Buffer
	for line := range bytes.Lines(text) {
		to := &last
		fields := bytes.Fields(line)
		for i := 0; len(fields) > 0 && i < len(fields[0]); i++ {
			if fields[0][i] == '\\' {
				i++
			} else if bytes.IndexByte([]byte(".^$?*+|[({"), fields[0][i]) >= 0 {
				to = &first
			}
		}
		to.Write(append(bytes.TrimSpace(line), '\n'))
	}
	return append(first.Bytes(), last.Bytes()...)
}

// TestOraclePolicies: distributions' policies give the paths of this machine the
// labels that libselinux gives them, once the order of specs is the library's.
func TestOraclePolicies(t *testing.T) {
	files := policyFiles(t)
	if len(files) == 0 {
		t.Skip("no policy in /etc/selinux or ~/.cache/cfsboot/selinux-policy")
	}
	l := startLibselinux(t)
	paths := []string{"/", "/etc/shadow", "/usr/bin/passwd", "/var/log/audit/audit.log", "/home/u", "/dev/null", "/run/lock"}
	for _, dir := range []string{"/etc", "/usr/bin", "/usr/sbin", "/usr/lib/systemd", "/var"} {
		filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if len(paths)%3000 == 2999 {
				return fs.SkipAll
			}
			if err == nil && !strings.ContainsAny(path, "\n") {
				paths = append(paths, path)
			}
			return nil
		})
		paths = append(paths, dir)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p, err := selabel.Parse(selabel.Files{Contexts: literalsLast(text)})
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if !l.open(string(bytes.TrimSpace(text)) + "\n") {
			t.Errorf("libselinux refuses %s", file)
			continue
		}
		bad := 0
		for i, path := range paths {
			typ := selabel.Type("--dl"[i%4])
			if got, want := label(t, p, path, typ), l.label(path, typ); got != want && bad < 20 {
				bad++
				t.Errorf("%s: %q -%c: got %q, libselinux %q", file, path, typ, got, want)
			}
		}
		t.Logf("%s: %d specs, %d paths", file, p.Specs(), len(paths))
	}
}
