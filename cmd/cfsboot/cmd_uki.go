package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/bootimage/uki"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/progress"
)

// ukiSection is a section in what `uki build` and `uki inspect` print.
type ukiSection struct {
	Name             string `json:"name"`
	SizeBytes        int64  `json:"size_bytes"` // of the content
	OffsetBytes      uint32 `json:"offset_bytes"`
	FileSizeBytes    uint32 `json:"file_size_bytes"`
	VirtualSizeBytes uint32 `json:"virtual_size_bytes"`
	Digest           string `json:"digest"` // of the content
}

func newUKISection(s uki.Section, digest [32]byte) ukiSection {
	return ukiSection{s.Name, s.Size(), s.Offset, s.RawSize, s.VirtualSize, sha256Name(digest)}
}

func sha256Name(digest [32]byte) string { return "sha256:" + hex.EncodeToString(digest[:]) }

func ukiColumns(p *page, sections []ukiSection) {
	rows := [][]string{{"SECTION", "OFFSET", "SIZE", "IN FILE", "VIRTUAL", "SHA-256"}}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, s := range sections {
		rows = append(rows, []string{s.Name, number(int64(s.OffsetBytes)), number(s.SizeBytes), number(int64(s.FileSizeBytes)), number(int64(s.VirtualSizeBytes)), short(s.Digest)})
	}
	p.columns(rows...)
}

// ukiBuildResult is what `uki build` prints.
type ukiBuildResult struct {
	Schema     string       `json:"schema"` // cfsboot.uki-build/1
	Output     string       `json:"output"`
	SizeBytes  int64        `json:"size_bytes"`
	Digest     string       `json:"digest"` // of the file
	Machine    string       `json:"machine"`
	Uname      string       `json:"uname"`
	Stub       string       `json:"stub"` // its file
	StubDigest string       `json:"stub_digest"`
	Sections   []ukiSection `json:"sections"`
}

func (r ukiBuildResult) table(p *page) {
	p.line("%s: %s, kernel %s, %s", r.Output, progress.FormatSize(r.SizeBytes, 1), r.Uname, r.Digest)
}

// ukiInputs is the command line of `uki build`.
type ukiInputs struct {
	kernel, microcode, splash, stub   string
	initrds                           []string
	cmdline, osRelease, uname, output string
}

func newUKIBuildCommand(e *env) *cobra.Command {
	var in ukiInputs
	cmd := &cobra.Command{
		Use:   "build --kernel FILE --initrd FILE --cmdline TEXT --os-release TEXT --output FILE",
		Short: "Build a unified kernel image",
		Long: `Build a unified kernel image: one file for the firmware that holds kernel, initrd and command line behind the stub
of systemd. The same input gives the same bytes, those that ukify of systemd 257 makes of it. The file is not signed.
Of a TEXT that begins with @ the rest names a file, which is taken as it is; of a command line that is given as text
white space at the ends and doubled blanks are left out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, f := range [][2]string{{"kernel", in.kernel}, {"cmdline", in.cmdline}, {"os-release", in.osRelease}, {"output", in.output}} {
				if f[1] == "" {
					return usageErrorf(cmd, "--%s is required", f[0])
				}
			}
			if base := filepath.Base(in.output); strings.HasSuffix(in.output, "/") || base == "." || base == ".." {
				return usageErrorf(cmd, "--output: %q names a directory, want a file", in.output)
			}
			e.room = roomOfFile
			r, err := in.build(cmd.Context())
			if err != nil {
				return err
			}
			return e.render(r)
		},
	}
	f := cmd.Flags()
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "linux" { // ukify's name
			name = "kernel"
		}
		return pflag.NormalizedName(name)
	})
	f.StringVar(&in.kernel, "kernel", "", "kernel `FILE` (--linux, too)")
	f.StringArrayVar(&in.initrds, "initrd", nil, "initrd `FILE`; repeated, they follow each other")
	f.StringVar(&in.microcode, "microcode", "", "microcode `FILE`, an uncompressed cpio archive that comes before the initrds")
	f.StringVar(&in.splash, "splash", "", "picture `FILE` (BMP) to show at start")
	f.StringVar(&in.cmdline, "cmdline", "", "kernel command line, `TEXT` or @FILE")
	f.StringVar(&in.osRelease, "os-release", "", "os-release of the system, `TEXT` or @FILE")
	f.StringVar(&in.uname, "uname", "", "`RELEASE` of the kernel (default: what a kernel for x86 tells)")
	f.StringVar(&in.stub, "stub", "", "stub `FILE` (default: systemd's for the kernel's machine, in "+stubDir+")")
	f.StringVarP(&in.output, "output", "o", "", "`FILE` to write")
	return cmd
}

// stubDir is where systemd has its stubs.
const stubDir = "/usr/lib/systemd/boot/efi"

// build reads what the flags name and writes the output.
func (in ukiInputs) build(ctx context.Context) (_ ukiBuildResult, err error) {
	var none ukiBuildResult
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	open := func(path string) uki.Content {
		if path == "" || err != nil {
			return nil
		}
		f, size, ferr := openRegular(path)
		if err = ferr; err != nil {
			return nil
		}
		files = append(files, f)
		return io.NewSectionReader(f, 0, size)
	}
	input := uki.Input{Kernel: open(in.kernel), Microcode: open(in.microcode), Splash: open(in.splash), Uname: in.uname}
	for _, path := range in.initrds {
		input.Initrds = append(input.Initrds, open(path))
	}
	if err != nil {
		return none, err
	}
	if input.Cmdline, err = textOrFile(in.cmdline); err != nil {
		return none, err
	}
	if !strings.HasPrefix(in.cmdline, "@") {
		input.Cmdline = strings.Join(strings.Fields(input.Cmdline), " ")
	}
	if input.OSRelease, err = textOrFile(in.osRelease); err != nil {
		return none, err
	}
	stub := in.stub
	if stub == "" {
		k, err := uki.ReadKernel(input.Kernel)
		if err != nil {
			return none, fmt.Errorf("%s: %w", in.kernel, err)
		}
		stub = filepath.Join(stubDir, "linux"+k.Machine.Name()+".efi.stub")
	}
	if input.Stub = open(stub); err != nil {
		return none, fmt.Errorf("the stub: %w; name it with --stub", err)
	}
	dir, err := durable.OpenDir(filepath.Dir(in.output))
	if err != nil {
		return none, err
	}
	defer dir.Close() //nolint:errcheck // a directory descriptor
	b, err := uki.BuildFile(ctx, dir, filepath.Base(in.output), input)
	if err != nil {
		return none, fmt.Errorf("build %s: %w", in.output, err)
	}
	r := ukiBuildResult{"cfsboot.uki-build/1", in.output, b.Size, sha256Name(b.Digest), b.Machine.String(), b.Uname, stub, sha256Name(b.StubDigest), nil}
	for _, s := range b.Sections {
		r.Sections = append(r.Sections, newUKISection(s.Section, s.Digest))
	}
	return r, nil
}

// openRegular opens a regular file and tells its size. It does not wait for the other end of a pipe.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, st.Size(), nil
}

// maxFlagText is the most that is read of a file with a text, in bytes; uki has limits of its own below it.
const maxFlagText = 1 << 20

// textOrFile is the text of a flag, or that of the file which it names with "@". That may be a pipe.
func textOrFile(value string) (string, error) {
	path, ok := strings.CutPrefix(value, "@")
	if !ok {
		return value, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFlagText+1))
	if err == nil && len(text) > maxFlagText {
		err = fmt.Errorf("%s has more than %d bytes, want a short text", path, maxFlagText)
	}
	return string(text), err
}

// ukiInspectResult is what `uki inspect` prints.
type ukiInspectResult struct {
	Schema    string       `json:"schema"` // cfsboot.uki-inspect/1
	Path      string       `json:"path"`
	SizeBytes int64        `json:"size_bytes"`
	Machine   string       `json:"machine"`
	Signed    bool         `json:"signed"` // has signatures; nothing says that they are good
	Sections  []ukiSection `json:"sections"`
	Profiles  []ukiProfile `json:"profiles"` // at least one
	Problems  []string     `json:"problems"` // why it would not start, or not be shown; never null
}

type ukiProfile struct {
	Number    int            `json:"number"`
	ID        string         `json:"id"`
	Title     string         `json:"title"`
	Cmdline   string         `json:"cmdline"`
	OSRelease ukiOSRelease   `json:"os_release"`
	Uname     string         `json:"uname"`
	Composefs []ukiComposefs `json:"composefs"` // in the order of the command line; never null
}

type ukiOSRelease struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

// ukiComposefs is a root image that the command line names.
type ukiComposefs struct {
	Parameter string `json:"parameter"` // as cfsboot writes it
	Algorithm string `json:"algorithm"`
	Digest    string `json:"digest"`
	Insecure  bool   `json:"insecure"` // the image may lack fs-verity
}

func (r ukiInspectResult) warnings() []string { return r.Problems }

func (r ukiInspectResult) table(p *page) {
	signed := "not signed"
	if r.Signed {
		signed = "has signatures, which were not checked"
	}
	p.line("%s: unified kernel image for %s, %s, %s", r.Path, r.Machine, progress.FormatSize(r.SizeBytes, 1), signed)
	for _, f := range r.Profiles {
		if len(r.Profiles) > 1 || f.ID != "" {
			p.line("profile %d: %s", f.Number, strings.TrimSpace(f.ID+" "+f.Title))
		}
		for _, l := range [][2]string{{"os-release", strings.TrimSpace(f.OSRelease.Name + " (" + f.OSRelease.ID + ") " + f.OSRelease.Version)}, {"uname", f.Uname}, {"cmdline", f.Cmdline}} {
			p.line("%-11s %s", l[0]+":", l[1])
		}
		for _, c := range f.Composefs {
			p.line("%-11s %s", "composefs:", c.Parameter)
		}
	}
	ukiColumns(p, r.Sections)
}

func newUKIInspectCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is in a unified kernel image, and which root it starts",
		Long: `Show the sections of a unified kernel image, its command line, release and name, and the composefs images
that its command line names, in the order in which the initramfs tries them. Files are checked strictly, and
an ambiguous one is refused (status 8). Signatures are not checked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := inspectUKI(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return e.render(r)
		},
	}
}

// inspectUKI reads a file.
func inspectUKI(ctx context.Context, path string) (ukiInspectResult, error) {
	var none ukiInspectResult
	f, size, err := openRegular(path)
	if err != nil {
		return none, err
	}
	defer f.Close()
	pe, err := uki.Parse(f, size)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	img, err := uki.Inspect(pe)
	if err != nil {
		return none, fmt.Errorf("%s: %w", path, err)
	}
	r := ukiInspectResult{Schema: "cfsboot.uki-inspect/1", Path: path, SizeBytes: size, Machine: img.Machine.String(), Signed: img.Certificates > 0, Problems: []string{}}
	for i, s := range img.Sections {
		d, err := img.Digest(ctx, i)
		if err != nil {
			return none, fmt.Errorf("%s: %w", path, err)
		}
		r.Sections = append(r.Sections, newUKISection(s, d))
	}
	for n, p := range img.Profiles {
		r.addProfile(n, p)
		if !slices.Equal(r.Profiles[n].Composefs, r.Profiles[0].Composefs) {
			r.Problems = append(r.Problems, fmt.Sprintf("profile %d: its command line names other composefs images than that of profile 0", n))
		}
	}
	return r, nil
}

func (r *ukiInspectResult) addProfile(n int, p uki.Profile) {
	f := ukiProfile{Number: n, ID: p.ID, Title: p.Title, Cmdline: p.Cmdline, Uname: p.Uname, Composefs: []ukiComposefs{}}
	problem := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		if len(r.Profiles) > 0 {
			text = fmt.Sprintf("profile %d: %s", n, text)
		}
		r.Problems = append(r.Problems, text)
	}
	if p.OSRelease != nil {
		f.OSRelease = ukiOSRelease{p.OSRelease.ID(), p.OSRelease.Title(), p.OSRelease.Version()}
	}
	if f.OSRelease.Name == "" {
		problem("no os-release with a name: systemd-boot does not show it")
	}
	if f.Uname == "" {
		problem("no .uname: add-ons cannot tell whether they belong to its kernel")
	}
	images, err := p.Composefs()
	var karg *bls.KargError
	switch {
	case errors.As(err, &karg):
		problem("%v: no initramfs starts with it", err)
	case len(images) == 0:
		problem("the command line names no composefs image")
	}
	for _, k := range images {
		f.Composefs = append(f.Composefs, ukiComposefs{k.String(), k.Digest.Algorithm().Name(), k.Digest.Hex(), k.Insecure})
	}
	r.Profiles = append(r.Profiles, f)
}
