package dump_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/dump"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/randtree"
	"github.com/cfsboot/cfsboot/internal/testutil/vectors"
)

const rootLine = "/ 0 40755 2 0 0 0 0.0 - - -\n"

func imageID(t *testing.T, root *tree.Node) string {
	t.Helper()
	h := fsverity.NewHasher(fsverity.SHA256)
	if err := erofs.Encode(h, root, erofs.V1); err != nil {
		t.Fatal(err)
	}
	return h.Sum().Hex()
}

// TestCases: small inputs where the peers are lenient or disagree, with the
// result that we want.
func TestCases(t *testing.T) {
	var cases []struct{ Name, Dump, Want, Why string }
	vectors.JSON(t, "dumpfile-cases.json", &cases)
	if len(cases) != 37 {
		t.Fatalf("got %d cases, want 37", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			root, err := dump.Read(strings.NewReader(c.Dump))
			if c.Want == "reject" {
				var fe *dump.FormatError
				if !errors.As(err, &fe) {
					t.Fatalf("got %v, want a FormatError: %s", err, c.Why)
				}
				if want := strings.Count(strings.TrimSuffix(c.Dump, "\n"), "\n") + 1; fe.Line < 1 || fe.Line > want {
					t.Errorf("line %d of %d", fe.Line, want)
				}
				return
			}
			if err != nil {
				t.Fatalf("%v, want it accepted: %s", err, c.Why)
			}
			if id := imageID(t, root); id != c.Want {
				t.Errorf("image ID: got %s, want %s", id, c.Want)
			}
		})
	}
}

// TestRedump: reading and writing gives the canonical text of composefs-rs.
func TestRedump(t *testing.T) {
	for name, v := range vectors.Load(t).Images {
		if v.RedumpSHA256 == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			text := vectors.Read(t, v.Dump)
			root, err := dump.Compat.Read(bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := dump.Write(&out, root); err != nil {
				t.Fatal(err)
			}
			if v.Canonical && !bytes.Equal(out.Bytes(), text) {
				t.Error("a canonical dump changed")
			}
			got := out.String()
			if name == "no-verity" {
				// composefs-rs writes a digest that the file does not have in the image.
				if !strings.Contains(got, "3a - -\n") {
					t.Errorf("the file without verity got a digest:\n%s", got)
				}
				return
			}
			if sum := sha256.Sum256([]byte(got)); hex.EncodeToString(sum[:]) != v.RedumpSHA256 {
				t.Errorf("canonical dump differs from that of composefs-rs:\n%.2000s", got)
			}
		})
	}
}

func TestRejects(t *testing.T) {
	hex64 := strings.Repeat("5a", 32)
	long := func(n int) string { return strings.Repeat("n", n) }
	var manyNames strings.Builder
	for i := range 300 {
		fmt.Fprintf(&manyNames, " user.%s%03d=", long(240), i)
	}
	for name, c := range map[string]struct{ text, field string }{
		"empty":                 {"", "PATH"},
		"blank only":            {"\n\n", "PATH"},
		"root is hard link":     {"/ 0 @120000 - - - - 0.0 /a - -\n", "MODE"},
		"root twice":            {rootLine + rootLine, "PATH"},
		"relative":              {rootLine + "a 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"empty field":           {rootLine + "/a 0  2 0 0 0 0.0 - - -\n", "MODE"},
		"dot":                   {rootLine + "/. 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"dot dot":               {rootLine + "/.. 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"trailing slash":        {rootLine + "/a/ 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"escaped NUL in path":   {rootLine + `/a\x00 0 40755 2 0 0 0 0.0 - - -` + "\n", "PATH"},
		"NUL":                   {rootLine + "/a\x00 0 40755 2 0 0 0 0.0 - - -\n", "line"},
		"carriage return":       {"/ 0 40755 2 0 0 0 0.0 - - -\r\n", "line"},
		"path too long":         {rootLine + "/" + long(4096) + " 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"no parent":             {rootLine + "/a/b 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"parent is file":        {rootLine + "/a 0 100644 1 0 0 0 0.0 - - -\n/a/b 0 40755 2 0 0 0 0.0 - - -\n", "PATH"},
		"no type":               {rootLine + "/a 0 755 2 0 0 0 0.0 - - -\n", "MODE"},
		"unknown type":          {rootLine + "/a 0 150755 2 0 0 0 0.0 - - -\n", "MODE"},
		"mode not octal":        {rootLine + "/a 0 40958 2 0 0 0 0.0 - - -\n", "MODE"},
		"uid":                   {rootLine + "/a 0 40755 2 4294967296 0 0 0.0 - - -\n", "UID"},
		"gid":                   {rootLine + "/a 0 40755 2 0 -1 0 0.0 - - -\n", "GID"},
		"size overflow":         {rootLine + "/a 18446744073709551616 100644 2 0 0 0 0.0 - - -\n", "SIZE"},
		"rdev of a file":        {rootLine + "/a 0 100644 1 0 0 5 0.0 - - -\n", "RDEV"},
		"rdev too large":        {rootLine + "/a 0 20644 1 0 0 4294967296 0.0 - - -\n", "RDEV"},
		"whiteout nlink":        {rootLine + "/a 0 20644 2 0 0 0 0.0 - - -\n", "NLINK"},
		"content of directory":  {rootLine + "/a 0 40755 2 0 0 0 0.0 - x -\n", "CONTENT"},
		"digest of fifo":        {rootLine + "/a 0 10755 2 0 0 0 0.0 - - " + hex64 + "\n", "DIGEST"},
		"payload of socket":     {rootLine + "/a 0 140755 2 0 0 0 0.0 x - -\n", "PAYLOAD"},
		"symlink no target":     {rootLine + "/a 0 120777 1 0 0 0 0.0 - - -\n", "PAYLOAD"},
		"symlink too long":      {rootLine + "/a 1025 120777 1 0 0 0 0.0 " + long(1025) + " - -\n", "PAYLOAD"},
		"NUL in target":         {rootLine + `/a 1 120777 1 0 0 0 0.0 \x00 - -` + "\n", "PAYLOAD"},
		"inline too long":       {rootLine + "/a 513 100644 1 0 0 0 0.0 - " + long(513) + " -\n", "CONTENT"},
		"content and payload":   {rootLine + "/a 1 100644 1 0 0 0 0.0 5a/" + hex64[2:] + " x -\n", "CONTENT"},
		"payload other digest":  {rootLine + "/a 9 100644 1 0 0 0 0.0 5b/" + hex64[2:] + " - " + hex64 + "\n", "PAYLOAD"},
		"digest too short":      {rootLine + "/a 9 100644 1 0 0 0 0.0 5a/" + hex64[2:] + " - " + hex64[2:] + "\n", "DIGEST"},
		"digest not hex":        {rootLine + "/a 9 100644 1 0 0 0 0.0 5a/" + hex64[2:] + " - zz" + hex64[2:] + "\n", "DIGEST"},
		"external too large":    {rootLine + "/a 9007199254740993 100644 1 0 0 0 0.0 5a/" + hex64[2:] + " - -\n", "SIZE"},
		"link without target":   {rootLine + "/a 0 @120000 - - - - 0.0 - - -\n", "PAYLOAD"},
		"link target absent":    {rootLine + "/a 0 @120000 - - - - 0.0 /b - -\n", "PAYLOAD"},
		"link to itself":        {rootLine + "/a 0 @120000 - - - - 0.0 /a - -\n", "PAYLOAD"},
		"link mode directory":   {rootLine + "/b 0 100644 1 0 0 0 0.0 - - -\n/a 0 @40000 - - - - 0.0 /b - -\n", "MODE"},
		"link mode":             {rootLine + "/b 0 100644 1 0 0 0 0.0 - - -\n/a 0 @ - - - - 0.0 /b - -\n", "MODE"},
		"xattr twice":           {rootLine + "/a 0 100644 1 0 0 0 0.0 - - - user.a=1 user.a=2\n", "XATTR"},
		"xattr double space":    {rootLine + "/a 0 100644 1 0 0 0 0.0 - - - user.a=1  user.b=2\n", "XATTR"},
		"xattr name NUL":        {rootLine + `/a 0 100644 1 0 0 0 0.0 - - - user.\x00=1` + "\n", "XATTR"},
		"xattr value too long":  {rootLine + "/a 0 100644 1 0 0 0 0.0 - - - user.a=" + long(65536) + "\n", "XATTR"},
		"xattr names too long":  {rootLine + "/a 0 100644 1 0 0 0 0.0 - - -" + manyNames.String() + "\n", "XATTR"},
		"xattr bad escape":      {rootLine + `/a 0 100644 1 0 0 0 0.0 - - - user.a=\x4` + "\n", "XATTR"},
		"backslash at the end":  {rootLine + `/a\ 0 100644 1 0 0 0 0.0 - - -` + "\n", "PATH"},
		"second line is broken": {rootLine + "/a\n", "SIZE"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := dump.Read(strings.NewReader(c.text))
			var fe *dump.FormatError
			if !errors.As(err, &fe) || fe.Field != c.field {
				t.Errorf("got %v, want a FormatError for %s", err, c.field)
			}
		})
	}
}

func TestCompatLimits(t *testing.T) {
	text := rootLine + "/a 5000 100644 1 0 0 0 0.0 - " + strings.Repeat("x", 5000) + " -\n" +
		"/b 4095 120777 1 0 0 0 0.0 " + strings.Repeat("x", 4095) + " - -\n"
	if _, err := dump.Compat.Read(strings.NewReader(text)); err != nil {
		t.Error(err)
	}
	if _, err := dump.Read(strings.NewReader(text)); err == nil {
		t.Error("accepted with the limits of composefs-rs")
	}
}

// TestOrder: parents come first, nothing else about the order matters.
func TestOrder(t *testing.T) {
	lines := []string{
		"/z 0 40755 2 0 0 0 0.0 - - -\n", "/a 0 40755 2 0 0 0 0.0 - - -\n", "/z/k 0 40755 2 0 0 0 0.0 - - -\n",
		"/a/x 1 100644 1 0 0 0 0.0 - x -\n", "/z/k/y 1 100644 1 0 0 0 0.0 - y -\n", "/a/b 1 100644 1 0 0 0 0.0 - b -\n",
		"/ab 1 100644 1 0 0 0 0.0 - b -\n", "/z/j 1 100644 1 0 0 0 0.0 - j -\n",
	}
	sorted := []int{1, 5, 3, 6, 0, 7, 2, 4}
	text := rootLine
	for _, i := range sorted {
		text += lines[i]
	}
	want, err := dump.Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	got, err := dump.Read(strings.NewReader(rootLine + strings.Join(lines, "")))
	if err != nil {
		t.Fatal(err)
	}
	if a, b := write(t, got), write(t, want); a != b {
		t.Errorf("got\n%s\nwant\n%s", a, b)
	}
}

func write(t *testing.T, root *tree.Node) string {
	t.Helper()
	var out bytes.Buffer
	if err := dump.Write(&out, root); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestReaders(t *testing.T) {
	text := vectors.Read(t, "os-tree.dump")
	root, err := dump.Read(iotest.OneByteReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	want, err := dump.Read(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if write(t, root) != write(t, want) {
		t.Error("byte by byte gives another tree")
	}
	broken := io.MultiReader(bytes.NewReader(text[:1000]), iotest.ErrReader(io.ErrClosedPipe))
	if _, err := dump.Read(broken); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
	}
}

// TestLongLine: lines above the buffer's size work, endless ones do not eat the
// memory of the machine.
func TestLongLine(t *testing.T) {
	var text strings.Builder
	text.WriteString(rootLine + "/a 0 100644 1 0 0 0 0.0 - - -")
	for i := range 60 {
		fmt.Fprintf(&text, " user.%d=%s", i, strings.Repeat(`\x01`, 65535))
	}
	root, err := dump.Read(strings.NewReader(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(root.Lookup("a").Xattrs); n != 60 {
		t.Errorf("got %d attributes, want 60", n)
	}
	endless := io.MultiReader(strings.NewReader(rootLine), io.LimitReader(letters{}, 1<<30))
	var fe *dump.FormatError
	if _, err := dump.Read(endless); !errors.As(err, &fe) || fe.Line != 2 {
		t.Errorf("endless line: got %v, want a FormatError for line 2", err)
	}
}

type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	root, err := dump.Read(bytes.NewReader(vectors.Read(t, "os-tree.dump")))
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	r.Close()
	if err := dump.Write(w, root); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v, want %v", err, io.ErrClosedPipe)
	}
	root.Set("bad", new(tree.Node))
	if err := dump.Write(io.Discard, root); err == nil || !strings.Contains(err.Error(), "/bad") {
		t.Errorf("node without a kind: got %v", err)
	}
}

// FuzzRead: no input makes the reader panic, and what it accepts survives a round
// trip.
func FuzzRead(f *testing.F) {
	for _, name := range []string{"one-of-each", "hardlinks", "hex-names", "overlay-escapes", "no-verity", "whiteouts", "xattrs-shared"} {
		f.Add(vectors.Read(f, name+".dump"))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		root, err := dump.Read(bytes.NewReader(text))
		if err != nil {
			var fe *dump.FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("got %T %v, want a FormatError", err, err)
			}
			return
		}
		first := write(t, root)
		again, err := dump.Read(strings.NewReader(first))
		if err != nil {
			t.Fatalf("%v in our own text:\n%s", err, first)
		}
		if second := write(t, again); first != second {
			t.Fatalf("round trip: got\n%s\nwant\n%s", second, first)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	var text bytes.Buffer
	if err := dump.Write(&text, randtree.Large(200_000)); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(text.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := dump.Read(bytes.NewReader(text.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	root := randtree.Large(200_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := dump.Write(io.Discard, root); err != nil {
			b.Fatal(err)
		}
	}
}
