package systemd

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cfsboot/cfsboot/internal/durable"
)

// InitrdOptions say what AppendInitrd adds.
type InitrdOptions struct {
	Program []byte // cfsboot-setup-root, a static ELF program
	Config  []byte // initramfs.toml; nil for none
	Modules string // /usr/lib/modules/<version> of the kernel, to add modules that the initrd lacks; "" for none
}

// InitrdResult says what AppendInitrd found and did.
type InitrdResult struct {
	Changed     bool     `json:"changed"`     // false: the initrd has the hook already, output equals input
	Compression []string `json:"compression"` // of the parts of the initrd in their order: "none", "gzip", "zstd", "xz", …
	Modules     []string `json:"modules"`     // kernel modules that were added, paths below the modules folder
	SizeBytes   int64    `json:"size_bytes"`  // of the output
}

// InitrdError says why a hook cannot be added to an initrd.
type InitrdError struct {
	Missing string // what the initrd lacks, for example "systemd"
	Detail  string
}

func (e *InitrdError) Error() string { return "initrd lacks " + e.Missing + ": " + e.Detail }

// The hook is one archive behind the initrd. Its last member says how long the initrd was without it, so that it is
// found again from the end of the file, whatever compression the initrd has.
const (
	hookMarker     = "usr/lib/cfsboot/initrd-hook"
	hookText       = "cfsboot-hook 1 %016x\n"
	hookTextSize   = 32 // bytes of hookText with its number
	hookMarkerSize = (cpioHeaderSize+len(hookMarker)+1+3)&^3 + hookTextSize
	hookTailSize   = hookMarkerSize + (cpioHeaderSize+len(cpioTrailer)+1+3)&^3
)

// AppendInitrd writes initrd to w, followed by an archive that makes it assemble a composefs root: program, units,
// configuration, and the kernel modules erofs and overlay if they are missing. The output depends on the arguments
// only. A hook that an earlier call added is replaced, so that a second call changes nothing; what it has of a
// configuration or of modules stays unless o names others. An initrd that got the hook from the dracut module is copied
// as it is.
//
// An initrd that is not run by systemd, or lacks modules that o.Modules does not have, is an *InitrdError.
func AppendInitrd(ctx context.Context, w io.Writer, initrd io.ReaderAt, size int64, o InitrdOptions) (*InitrdResult, error) {
	if !bytes.HasPrefix(o.Program, []byte("\x7fELF")) {
		return nil, errors.New("cfsboot-setup-root is not an ELF program")
	}
	base, err := baseSize(initrd, size)
	if err != nil {
		return nil, err
	}
	c, err := scanInitrd(ctx, io.NewSectionReader(initrd, 0, base))
	if err != nil {
		return nil, err
	}
	if err := c.checkSystemd(); err != nil {
		return nil, err
	}
	result := &InitrdResult{Compression: c.compression, Modules: []string{}, SizeBytes: size}
	if c.has(SetupRootProgram) && base == size {
		_, err := io.Copy(w, io.NewSectionReader(initrd, 0, size))
		return result, err
	}
	earlier, err := readHook(initrd, base, size)
	if err != nil {
		return nil, err
	}
	files, modules, err := hookFiles(c, earlier, o)
	if err != nil {
		return nil, err
	}
	result.Modules = modules
	var hook bytes.Buffer
	hook.Write(make([]byte, -base&3))
	if err := writeHook(&hook, c, files, base); err != nil {
		return nil, err
	}
	result.SizeBytes = base + int64(hook.Len())
	result.Changed = !sameTail(initrd, base, size, hook.Bytes())
	if _, err := io.Copy(w, io.NewSectionReader(initrd, 0, base)); err != nil {
		return nil, err
	}
	_, err = w.Write(hook.Bytes())
	return result, err
}

// AppendInitrdFile does AppendInitrd from the file in to the file out, which may be the same. The output is complete
// or absent, and durable; a file that would not change is not written.
func AppendInitrdFile(ctx context.Context, in, out string, o InitrdOptions) (*InitrdResult, error) {
	dir, err := durable.OpenDir(filepath.Dir(out))
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // a directory descriptor
	return appendInitrdAt(ctx, in, dir, filepath.Base(out), o)
}

// appendInitrdAt writes the output as name below dir.
func appendInitrdAt(ctx context.Context, in string, dir *durable.Dir, name string, o InitrdOptions) (*InitrdResult, error) {
	f, err := os.Open(in)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	temp, err := dir.CreateTemp(0o600) // an initrd may hold secrets
	if err != nil {
		return nil, err
	}
	result, err := AppendInitrd(ctx, temp, f, st.Size(), o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", in, err), temp.Discard())
	}
	if same, err := sameFile(in, filepath.Join(dir.Path(), name)); err != nil || same && !result.Changed {
		return result, errors.Join(err, temp.Discard())
	}
	if err := errors.Join(temp.Chmod(uint32(st.Mode().Perm())), temp.Sync()); err != nil {
		return nil, errors.Join(err, temp.Discard())
	}
	if err := temp.Replace(dir, name); err != nil {
		return nil, errors.Join(err, temp.Discard())
	}
	return result, dir.Sync()
}

func sameFile(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(sa, sb), err
}

// baseSize returns the size of the initrd without our hook.
func baseSize(initrd io.ReaderAt, size int64) (int64, error) {
	if size < int64(hookTailSize) {
		return size, nil
	}
	tail := make([]byte, hookTailSize)
	if _, err := initrd.ReadAt(tail, size-int64(hookTailSize)); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if !bytes.HasPrefix(tail, []byte("070701")) || string(tail[cpioHeaderSize:cpioHeaderSize+len(hookMarker)]) != hookMarker {
		return size, nil
	}
	text := string(tail[hookMarkerSize-hookTextSize : hookMarkerSize])
	base, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(text, "cfsboot-hook 1 "), "\n"), 16, 64)
	if err != nil || base < 0 || base+(-base&3) > size-int64(hookTailSize) || fmt.Sprintf(hookText, base) != text {
		return 0, fmt.Errorf("the marker of an earlier hook is damaged: %q", text)
	}
	var magic [6]byte
	if _, err := initrd.ReadAt(magic[:], base+(-base&3)); err != nil || string(magic[:]) != "070701" {
		return 0, fmt.Errorf("an earlier hook should begin at byte %d, but no archive does", base+(-base&3))
	}
	return base, nil
}

func sameTail(initrd io.ReaderAt, base, size int64, tail []byte) bool {
	if size != base+int64(len(tail)) {
		return false
	}
	old := make([]byte, len(tail))
	_, err := initrd.ReadAt(old, base)
	return (err == nil || errors.Is(err, io.EOF)) && bytes.Equal(old, tail)
}

// earlierHook is what stays of a hook that is replaced.
type earlierHook struct {
	config  []byte          // nil: it has none
	modules []InitramfsFile // with their indexes
}

// hookSizeLimit bounds the hook that is read back, in bytes. Ours are below 5 MiB without modules.
const hookSizeLimit = 64 << 20

// readHook reads the hook that begins at base, if there is one.
func readHook(initrd io.ReaderAt, base, size int64) (earlierHook, error) {
	var h earlierHook
	start := base + (-base & 3)
	if base == size {
		return h, nil
	}
	if size-start > hookSizeLimit {
		return h, fmt.Errorf("an earlier hook of %d bytes, want at most %d", size-start, hookSizeLimit)
	}
	_, err := readCpio(bufio.NewReader(io.NewSectionReader(initrd, start, size-start)), func(m cpioMember) error {
		isConfig, isModule := "/"+m.name == InitramfsConfig, strings.HasPrefix(strings.TrimPrefix(m.name, "usr/"), "lib/modules/")
		if m.mode&cpioTypeMask != cpioRegular || !isConfig && !isModule {
			return nil
		}
		data, err := io.ReadAll(m.data)
		if isConfig {
			h.config = data
		} else {
			h.modules = append(h.modules, InitramfsFile{Path: "/" + m.name, Data: data})
		}
		return err
	})
	return h, err
}

// hookFiles lists the regular files and links of the hook by their path.
func hookFiles(c *initrdContent, earlier earlierHook, o InitrdOptions) (map[string]InitramfsFile, []string, error) {
	units, err := InitramfsFiles()
	if err != nil {
		return nil, nil, err
	}
	files := map[string]InitramfsFile{}
	for _, f := range units {
		files[strings.TrimPrefix(f.Path, "/")] = f
	}
	files[strings.TrimPrefix(SetupRootProgram, "/")] = InitramfsFile{Path: SetupRootProgram, Data: o.Program}
	config := o.Config
	if config == nil {
		config = earlier.config
	}
	if config != nil {
		files[strings.TrimPrefix(InitramfsConfig, "/")] = InitramfsFile{Path: InitramfsConfig, Data: config}
	}
	modules, err := missingModules(c, earlier.modules, o.Modules)
	if err != nil {
		return nil, nil, err
	}
	names := []string{}
	for _, m := range modules {
		files[strings.TrimPrefix(m.Path, "/")] = m
		if !strings.HasPrefix(path.Base(m.Path), "modules.") {
			names = append(names, m.Path[strings.Index(m.Path, "/kernel/")+1:])
		}
	}
	return files, names, nil
}

// writeHook writes the archive: folders that the initrd lacks, then the files in the order of their names.
func writeHook(w io.Writer, c *initrdContent, files map[string]InitramfsFile, base int64) error {
	dirs := map[string]bool{}
	for name := range files {
		for d := path.Dir(name); d != "."; d = path.Dir(d) {
			if !c.has(d) {
				dirs[d] = true
			}
		}
	}
	for d := path.Dir(hookMarker); d != "."; d = path.Dir(d) {
		if !c.has(d) {
			dirs[d] = true
		}
	}
	cw := &cpioWriter{w: w}
	for _, d := range slices.Sorted(maps.Keys(dirs)) { // a parent sorts before its children
		cw.dir(d)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		switch {
		case f.Link != "":
			cw.symlink(name, f.Link)
		case name == strings.TrimPrefix(SetupRootProgram, "/"):
			cw.file(name, 0o755, f.Data)
		default:
			cw.file(name, 0o644, f.Data)
		}
	}
	cw.file(hookMarker, 0o444, fmt.Appendf(nil, hookText, base))
	return cw.close()
}

// initrdContent is what AppendInitrd needs to know of an initrd.
type initrdContent struct {
	compression []string
	names       map[string]bool   // of all members
	builtin     map[string]string // kernel version -> text of modules.builtin
}

// has looks for an absolute or relative path as it stands in the archive.
func (c *initrdContent) has(name string) bool { return c.names[strings.TrimPrefix(name, "/")] }

// checkSystemd refuses an initrd in which our units would never be started.
func (c *initrdContent) checkSystemd() error {
	const advice = "; cfsboot's hook is a systemd unit, so make the initrd with dracut (module systemd-initrd) or mkosi-initrd"
	switch {
	case !c.has("usr/lib/systemd/systemd") && !c.has("lib/systemd/systemd"):
		return &InitrdError{"systemd", "there is no usr/lib/systemd/systemd in it" + advice}
	case !c.has("etc/initrd-release") && !c.has("usr/lib/initrd-release"):
		return &InitrdError{"etc/initrd-release", "systemd does not take it for an initramfs without that file" + advice}
	case !c.has("usr/lib/systemd/system/initrd-root-fs.target") && !c.has("lib/systemd/system/initrd-root-fs.target"):
		return &InitrdError{"initrd-root-fs.target", "there is nothing for the unit to be started by" + advice}
	}
	return nil
}

// scanInitrd lists the members of all parts of an initrd: archives, plain or compressed, one after the other with zeros
// between them, as the kernel unpacks them.
func scanInitrd(ctx context.Context, r *io.SectionReader) (*initrdContent, error) {
	c := &initrdContent{names: map[string]bool{}, builtin: map[string]string{}}
	for offset := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		offset = skipZeroBytes(r, offset)
		if offset >= r.Size() {
			break
		}
		n, name, err := c.scanPart(ctx, io.NewSectionReader(r, offset, r.Size()-offset))
		if err != nil {
			return nil, fmt.Errorf("initrd part at byte %d (%s): %w", offset, name, err)
		}
		c.compression = append(c.compression, name)
		offset += n
	}
	if len(c.names) == 0 {
		return nil, errors.New("initrd is empty")
	}
	return c, nil
}

func skipZeroBytes(r io.ReaderAt, offset int64) int64 {
	buf := make([]byte, 4096)
	for {
		n, err := r.ReadAt(buf, offset)
		for i := range n {
			if buf[i] != 0 {
				return offset + int64(i)
			}
		}
		offset += int64(n)
		if err != nil {
			return offset
		}
	}
}

// scanPart reads one archive or one compressed stream and returns its length in the file.
func (c *initrdContent) scanPart(ctx context.Context, r *io.SectionReader) (n int64, compression string, err error) {
	var magic [6]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return 0, "", err
	}
	switch {
	case string(magic[:4]) == "0707":
		n, err := readCpio(bufio.NewReader(r), c.visit)
		return n, "none", err
	case magic[0] == 0x1f && (magic[1] == 0x8b || magic[1] == 0x9e):
		n, err := c.scanGzip(r)
		return n, "gzip", err
	case string(magic[:4]) == "\x28\xb5\x2f\xfd":
		n, err := c.scanZstd(r)
		return n, "zstd", err
	}
	for _, t := range externalTools {
		if strings.HasPrefix(string(magic[:]), t.magic) {
			return r.Size(), t.name, c.scanExternal(ctx, r, t)
		}
	}
	return 0, "unknown", fmt.Errorf("magic %x is none of cpio, gzip, zstd, xz, lzma, bzip2, lz4, lzo", magic)
}

func (c *initrdContent) scanGzip(r *io.SectionReader) (int64, error) {
	in := bufio.NewReader(r)
	pos := &countingByteReader{r: in}
	z, err := gzip.NewReader(pos)
	if err != nil {
		return 0, err
	}
	z.Multistream(false)
	if err := c.scanUncompressed(z); err != nil {
		return 0, err
	}
	return pos.n, z.Close()
}

// scanUncompressed reads archives to the end of a decompressed stream.
func (c *initrdContent) scanUncompressed(r io.Reader) error {
	in := bufio.NewReader(r)
	if _, err := readCpio(in, c.visit); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, in); err != nil {
		return err
	} else if n > 0 {
		return fmt.Errorf("%d bytes that are no archive behind the last one", n)
	}
	return nil
}

// countingByteReader counts what a decompressor consumes; as an io.ByteReader it is never read ahead of need.
type countingByteReader struct {
	r *bufio.Reader
	n int64
}

func (c *countingByteReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// ReadByte makes flate read no further than it must.
func (c *countingByteReader) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

func (c *initrdContent) visit(m cpioMember) error {
	c.names[m.name] = true
	version, ok := strings.CutSuffix(m.name, "/modules.builtin")
	if !ok || m.mode&cpioTypeMask != cpioRegular {
		return nil
	}
	text, err := io.ReadAll(io.LimitReader(m.data, 1<<20))
	if err != nil {
		return err
	}
	c.builtin[path.Base(version)] = string(text)
	return nil
}
