package kargs

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/cfsboot/cfsboot/bootimage/bls"
)

// Directories of kernel arguments, absolute in the running system. A later one
// masks the files of an earlier one.
const (
	BootcDir = "/usr/lib/bootc/kargs.d"
	ImageDir = "/usr/lib/cfsboot/kargs.d"
	SiteDir  = "/etc/cfsboot/kargs.d"
)

// Suffix is that of the files that count.
const Suffix = ".toml"

// Limits.
const (
	MaxFile  = 64 << 10 // bytes of a file
	MaxFiles = 128      // files of a directory
	MaxLine  = 2047     // bytes of the command line: what kernels keep of it (COMMAND_LINE_SIZE of x86 and arm64 without the NUL)
)

// FormatError says what is wrong with a file of kernel arguments.
type FormatError struct {
	Path   string // absolute, in the running system
	Detail string // what was found and what was expected; one line
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("kernel arguments in %q: %s", e.Path, e.Detail)
}

// File is one file of a kargs.d directory.
type File struct {
	Path string // absolute, in the running system
	Data []byte // empty: it only masks others
}

// Config is what a file says.
type Config struct {
	Kargs         []string // one token each, quotes included
	Architectures []string // that it is for, as written; nil: for all
}

// Applies tells whether the file is for a machine of this architecture, in the
// spelling of Go and of OCI ("amd64"). Files use that of Rust ("x86_64"); both
// count.
func (c Config) Applies(arch string) bool {
	return c.Architectures == nil || slices.Contains(c.Architectures, arch) || slices.Contains(c.Architectures, rustArch(arch))
}

// rustArch gives Rust's name of an architecture (std::env::consts::ARCH).
func rustArch(arch string) string {
	if name, ok := map[string]string{
		"386": "x86", "amd64": "x86_64", "arm64": "aarch64", "loong64": "loongarch64", "ppc64": "powerpc64", "ppc64le": "powerpc64",
	}[arch]; ok {
		return name
	}
	return arch // arm, riscv64, s390x
}

// Parse reads the text of a file. It is strict: an unknown key, a wrong type or
// an argument that a file must not have is an error. A text without keys is a
// file that only masks others. name is for errors, all of which are *FormatError.
func Parse(name string, data []byte) (Config, error) {
	fail := func(format string, args ...any) (Config, error) {
		return Config{}, &FormatError{name, fmt.Sprintf(format, args...)}
	}
	if len(data) > MaxFile {
		return fail("%d bytes, limit %d", len(data), MaxFile)
	}
	if !utf8.Valid(data) {
		return fail("not UTF-8")
	}
	var doc struct {
		Kargs         *[]string `toml:"kargs"`
		Architectures *[]string `toml:"match-architectures"`
	}
	md, err := toml.Decode(string(data), &doc)
	var syntax toml.ParseError
	switch {
	case errors.As(err, &syntax):
		return fail("line %d: %s", syntax.Position.Line, oneLine(syntax.Message))
	case err != nil:
		return fail("%s", oneLine(err.Error()))
	}
	if extra := md.Undecoded(); len(extra) > 0 {
		return fail("unknown key %q, want kargs or match-architectures", extra[0].String())
	}
	var c Config
	if doc.Architectures != nil {
		c.Architectures = append([]string{}, *doc.Architectures...)
	}
	if doc.Kargs == nil {
		if doc.Architectures != nil {
			return fail("match-architectures without kargs")
		}
		return c, nil
	}
	for i, text := range *doc.Kargs {
		tokens := bls.ParseCmdline(text)
		if err := check(text, tokens); err != nil {
			return fail("kargs[%d] %q %s", i, text, err)
		}
		c.Kargs = append(c.Kargs, tokens...)
	}
	return c, nil
}

// protected are the arguments that decide which root is mounted and how. They are
// cfsboot's and the installation's.
var protected = []string{"composefs", "composefs.digest", "root", "rootflags", "rootfstype", "ro"}

// check refuses an argument that a file must not have.
func check(text string, tokens bls.Cmdline) error {
	switch {
	case len(tokens) == 0:
		return errors.New("is empty")
	case strings.ContainsFunc(text, unicode.IsControl):
		return errors.New("has a control character")
	case strings.Count(text, `"`)%2 != 0:
		return errors.New("has a quote that is not closed")
	}
	for _, token := range tokens {
		key, _, _ := bls.SplitToken(token)
		// The kernel takes '-' for '_' in names of parameters (kernel/params.c).
		switch name := strings.ReplaceAll(key, "-", "_"); {
		case key == "":
			return errors.New("has no name")
		case key == "--":
			return errors.New("ends the arguments of the kernel")
		case slices.Contains(protected, name):
			return fmt.Errorf("sets %s, which the image and the installation decide", key)
		}
	}
	return nil
}

// oneLine makes a parser's message fit for the one line of an error.
func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// Select returns the files that count, image files by name, then those of the
// site by name: a file masks every one of its name in an earlier directory.
// image holds those of BootcDir and ImageDir, in any order.
func Select(image, site []File) []File {
	later := func(f File) bool { // whether a file of the image is masked
		name := path.Base(f.Path)
		same := func(x File) bool { return path.Base(x.Path) == name }
		return slices.ContainsFunc(site, same) ||
			path.Dir(f.Path) == BootcDir && slices.ContainsFunc(image, func(x File) bool { return same(x) && path.Dir(x.Path) == ImageDir })
	}
	byName := func(a, b File) int { return strings.Compare(path.Base(a.Path), path.Base(b.Path)) }
	out := slices.DeleteFunc(slices.SortedFunc(slices.Values(image), byName), later)
	return append(out, slices.SortedFunc(slices.Values(site), byName)...)
}
