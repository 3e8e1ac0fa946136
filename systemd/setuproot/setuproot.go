package setuproot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/bootimage/bls"
	"github.com/cfsboot/cfsboot/deploy/record"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// Options are the environment of Run. The zero value is that of an initramfs.
type Options struct {
	Sysroot  string // where the physical root is mounted and the new root will be; default "/sysroot"
	RunDir   string // default "/run/cfsboot"
	Cmdline  string // the kernel's command line
	Policy   Policy // from ParsePolicy; the zero value is not usable
	AnyRoot  bool   // do not insist on an initramfs: "/" may be any file system
	Volatile string // link for systemd's search for the disk; default "/run/systemd/volatile-root", "-" for none
	Devices  string // where run/udev and sys tell about block devices; default "/"

	// Modprobe loads kernel modules by name. It is called once, when a file system is missing; its error is only
	// logged. nil: none can be loaded.
	Modprobe func(ctx context.Context, names ...string) error
	Logger   *slog.Logger // nil: discard
}

func (o *Options) setDefaults() {
	if o.Sysroot == "" {
		o.Sysroot = "/sysroot"
	}
	if o.RunDir == "" {
		o.RunDir = filepath.Dir(record.BootedPath)
	}
	if o.Volatile == "" {
		o.Volatile = "/run/systemd/volatile-root"
	}
	if o.Devices == "" {
		o.Devices = "/"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// ErrNotComposefs is returned when the command line has no composefs parameter and the policy does not require one:
// there is nothing to do. RunDir then holds an empty file NotComposefs.
var ErrNotComposefs = errors.New("no composefs parameter on the kernel command line")

// NotComposefs is the name of the file below RunDir that says so to the units that guard the switch to the new root.
const NotComposefs = "not-composefs"

// Run assembles the root named by the command line and puts it at o.Sysroot, from where the init system switches to
// it. It returns what it wrote to booted.json. If o.Sysroot already is a composefs root, it returns the earlier record.
// The error is ErrNotComposefs or a *Failure.
func Run(ctx context.Context, o Options) (record.Booted, error) {
	o.setDefaults()
	start := time.Now()
	if err := checkPlace(o); err != nil {
		return record.Booted{}, err
	}
	list, err := candidates(o)
	if err != nil {
		return record.Booted{}, err
	}
	sysroot, err := os.OpenFile(o.Sysroot, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return record.Booted{}, &Failure{Code: CodeSysroot, Path: o.Sysroot, Err: cause(err)}
	}
	defer sysroot.Close()
	physical, err := checkSysroot(sysroot)
	if err != nil {
		return record.Booted{}, err
	}
	if _, ok := composefsDigest(physical); ok {
		return earlier(o)
	}
	loadModules(ctx, o)
	booted, err := assemble(ctx, o, list, sysroot, start)
	if err != nil {
		return record.Booted{}, noteTwins(o, asFailure(err), physical)
	}
	if err := volatileRoot(o.Volatile, sysroot); err != nil {
		o.Logger.Warn("link for systemd's search for the disk: " + err.Error())
	}
	return booted, nil
}

// assemble does what changes mounts. On error it leaves none of its own.
func assemble(ctx context.Context, o Options, list []bls.KargImage, sysroot *os.File, start time.Time) (booted record.Booted, err error) {
	repo, err := mnt.OpenBelow(sysroot, "composefs", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
	if err != nil {
		return booted, noRepository(sysroot, list[0], err)
	}
	defer repo.Close()
	img, err := openImage(ctx, repo, list)
	if err != nil {
		return booted, err
	}
	defer img.file.Close()
	w, err := openWorkshop(o.RunDir)
	if err != nil {
		return booted, &Failure{Code: CodePlace, Path: o.RunDir, Err: err}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.abandon())
		}
	}()
	if err := w.mountImage(img, repo, o.Policy); err != nil {
		return booted, err
	}
	booted, err = w.furnish(o, img, sysroot)
	if err != nil {
		return booted, err
	}
	booted.DurationMS = time.Since(start).Milliseconds()
	if err := writeRecord(o.RunDir, booted); err != nil {
		return booted, err
	}
	if err := w.publish(o.Sysroot, sysroot); err != nil {
		return booted, errors.Join(&Failure{Code: CodeMount, Param: img.karg.String(), Path: o.Sysroot, Err: err}, removeRecord(o.RunDir))
	}
	// The root is in its place: what cannot be tidied up does not stop the boot.
	if err := w.clear(); err != nil {
		o.Logger.Warn("remove private mounts: " + err.Error())
	}
	return booted, nil
}

// furnish checks the new root and attaches /etc, /var and /sysroot in it.
func (w *workshop) furnish(o Options, img *image, sysroot *os.File) (record.Booted, error) {
	root, err := os.OpenFile(w.path(dirRoot), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return record.Booted{}, mountFailure(img, err)
	}
	defer root.Close()
	init, _ := bls.ParseCmdline(o.Cmdline).Lookup("init")
	if err := preflight(root, init); err != nil {
		var f *Failure
		if errors.As(err, &f) {
			f.Param = img.karg.String()
		}
		return record.Booted{}, err
	}
	state, err := openState(sysroot, img)
	if err != nil {
		return record.Booted{}, err
	}
	defer state.Close()
	etcMode, varMode, err := stateModes(o, sysroot, img)
	if err != nil {
		return record.Booted{}, err
	}
	s := &stateMounts{w: w, sysroot: sysroot, state: state, root: root, img: img}
	if err := s.mountEtc(etcMode); err != nil {
		return record.Booted{}, err
	}
	if err := s.mountVar(varMode); err != nil {
		return record.Booted{}, err
	}
	note, err := w.attachSysroot(root, sysroot, o.Policy)
	if err != nil {
		return record.Booted{}, &Failure{Code: CodeMount, Param: img.karg.String(), Path: "/sysroot of the new root", Err: err}
	}
	if note != "" {
		o.Logger.Warn(note)
	}
	return describe(o, img, sysroot, etcMode, varMode), nil
}

// stateModes takes the policy's modes and applies what the command line and the disk say.
func stateModes(o Options, sysroot *os.File, img *image) (etc, variable MountMode, err error) {
	etc, variable = o.Policy.Etc, o.Policy.Var
	if v, _ := bls.ParseCmdline(o.Cmdline).Lookup("systemd.volatile"); !o.Policy.VarConfigured && (v == "state" || v == "overlay") {
		variable = MountNone // systemd provides it
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(sysroot.Fd()), &st); err != nil {
		return "", "", &Failure{Code: CodeSysroot, Path: sysroot.Name(), Err: err}
	}
	persistent := func(m MountMode) bool { return m == MountBind || m == MountOverlay }
	if st.Flags&unix.ST_RDONLY == 0 || !persistent(etc) && !persistent(variable) {
		return etc, variable, nil
	}
	if o.Policy.Sealed {
		return "", "", &Failure{
			Code: CodeReadOnly, Param: img.karg.String(), Path: sysroot.Name(), Err: errors.New("the physical root is read-only, /etc and /var need it writable"),
			Notes: []string{`the kernel command line needs "rw"; if it has it, the file system found an error`},
		}
	}
	o.Logger.Error(string(CodeReadOnly) + ": the physical root is read-only: changes of /etc and /var are lost at the next boot (is rw on the kernel command line?)")
	if persistent(etc) {
		etc = MountTransient
	}
	if persistent(variable) {
		variable = MountTransient
	}
	return etc, variable, nil
}

// checkPlace refuses to run anywhere but as root in an initramfs.
func checkPlace(o Options) error {
	if os.Geteuid() != 0 {
		return &Failure{Code: CodePlace, Err: fmt.Errorf("user ID %d, want 0", os.Geteuid())}
	}
	if o.AnyRoot {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return &Failure{Code: CodePlace, Path: "/", Err: err}
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return &Failure{Code: CodePlace, Path: "/", Err: fmt.Errorf("file system type %#x: this is not an initramfs", st.Type)}
	}
	return nil
}

// candidates reads the command line as the policy allows.
func candidates(o Options) ([]bls.KargImage, error) {
	if token, found := o.Policy.denied(bls.ParseCmdline(o.Cmdline)); found {
		return nil, &Failure{Code: CodeBadKarg, Param: token, Err: errors.New("this initramfs is sealed and refuses the parameter")}
	}
	list, err := bls.ParseKargs(o.Cmdline)
	if err == nil && o.Policy.Sealed {
		err = bls.CheckSealed(list)
	}
	var bad *bls.KargError
	switch {
	case errors.As(err, &bad):
		return nil, &Failure{Code: CodeBadKarg, Param: bad.Token, Err: errors.New(bad.Detail)}
	case err != nil:
		return nil, &Failure{Code: CodeBadKarg, Err: err}
	case len(list) > 0:
		return list, nil
	case o.Policy.RequireKarg || o.Policy.Sealed:
		return nil, &Failure{Code: CodeNoKarg, Param: "composefs.digest=", Err: errors.New("not on the kernel command line, and this initramfs boots nothing else")}
	}
	if err := markNotComposefs(o.RunDir); err != nil {
		return nil, &Failure{Code: CodePlace, Path: o.RunDir, Err: err}
	}
	return nil, ErrNotComposefs
}

// checkSysroot makes sure that something is mounted at the physical root's place and returns what.
func checkSysroot(sysroot *os.File) (mnt.Info, error) {
	mounted, err := mnt.IsRoot(sysroot)
	if err == nil && !mounted {
		err = errors.New("not a mount point: the physical root is not mounted")
	}
	var info mnt.Info
	if err == nil {
		info, err = mnt.Of(sysroot)
	}
	if err != nil {
		return mnt.Info{}, &Failure{Code: CodeSysroot, Path: sysroot.Name(), Err: err}
	}
	return info, nil
}

// composefsDigest returns what a composefs root that is mounted names as its image.
func composefsDigest(m mnt.Info) (digest string, ok bool) {
	if m.Type != "overlay" {
		return "", false
	}
	if digest, ok = strings.CutPrefix(m.Source, sourceReadOnly); ok {
		return digest, true
	}
	return strings.CutPrefix(m.Source, sourceTransient)
}

// earlier is the result of a second run: systemd may start the unit again.
func earlier(o Options) (record.Booted, error) {
	data, err := os.ReadFile(filepath.Join(o.RunDir, filepath.Base(record.BootedPath)))
	if err != nil {
		return record.Booted{}, &Failure{Code: CodePlace, Path: o.Sysroot, Err: fmt.Errorf("is a composefs root already, but not by this program: %w", err)}
	}
	b, err := record.ParseBooted(data)
	if err != nil {
		return record.Booted{}, &Failure{Code: CodePlace, Path: o.RunDir, Err: err}
	}
	o.Logger.Info("nothing to do: " + o.Sysroot + " is a composefs root already")
	return b, nil
}

// noteTwins says if the file system that was mounted may be the wrong one of two: a copy of the disk has the same UUID.
func noteTwins(o Options, err error, physical mnt.Info) error {
	var f *Failure
	if errors.As(err, &f) {
		if names := mnt.Twins(o.Devices, fmt.Sprintf("%d:%d", physical.Major, physical.Minor)); len(names) > 0 {
			f.Notes = append(f.Notes, fmt.Sprintf("%s have file systems with one UUID, and %s was mounted: detach the other, or give it another UUID", strings.Join(names, " and "), names[0]))
		}
	}
	return err
}

// noRepository says what is on the physical root instead.
func noRepository(sysroot *os.File, k bls.KargImage, err error) error {
	f := &Failure{Code: CodeSysroot, Param: k.String(), Path: sysroot.Name() + "/composefs", Err: cause(err)}
	info, infoErr := mnt.Of(sysroot)
	names, namesErr := sysroot.Readdirnames(100)
	if infoErr == nil && (namesErr == nil || errors.Is(namesErr, io.EOF)) {
		f.Notes = []string{fmt.Sprintf("%s is %s, type %s, UUID %q, with %d entries", sysroot.Name(), info.Source, info.Type, fsUUID(sysroot), len(names))}
	}
	return f
}

// loadModules asks for modules if the kernel does not know a file system yet.
func loadModules(ctx context.Context, o Options) {
	known, err := os.ReadFile("/proc/filesystems")
	if err == nil && hasFilesystem(string(known), "erofs") && hasFilesystem(string(known), "overlay") {
		return
	}
	if o.Modprobe == nil {
		return
	}
	if err := o.Modprobe(ctx, "erofs", "overlay"); err != nil {
		o.Logger.Warn("load modules erofs and overlay: " + err.Error())
	}
}

// hasFilesystem looks for a name in the text of /proc/filesystems.
func hasFilesystem(text, name string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return false
}

// asFailure makes sure that the caller gets a code.
func asFailure(err error) error {
	var f *Failure
	if errors.As(err, &f) {
		// What was joined to it came up while cleaning up.
		if more := strings.TrimPrefix(strings.TrimPrefix(err.Error(), f.Error()), "\n"); more != "" {
			f.Notes = append(f.Notes, "while cleaning up: "+strings.ReplaceAll(more, "\n", "; "))
		}
		return f
	}
	return &Failure{Code: CodePlace, Err: err}
}

// writeRecord writes booted.json, readable by everyone, so that `cfsboot status` needs no privilege.
func writeRecord(runDir string, b record.Booted) error {
	data, err := b.Encode()
	if err != nil {
		return &Failure{Code: CodePlace, Path: runDir, Err: err}
	}
	dir, err := durable.OpenDir(runDir)
	if err != nil {
		return &Failure{Code: CodePlace, Path: runDir, Err: err}
	}
	defer dir.Close() //nolint:errcheck // a directory descriptor
	if err := dir.WriteFile(filepath.Base(record.BootedPath), data, 0o644); err != nil {
		return &Failure{Code: CodePlace, Path: runDir, Err: err}
	}
	return nil
}

func removeRecord(runDir string) error {
	err := os.Remove(filepath.Join(runDir, filepath.Base(record.BootedPath)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func markNotComposefs(runDir string) error {
	if err := os.Mkdir(runDir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(runDir, NotComposefs), nil, 0o644)
}
