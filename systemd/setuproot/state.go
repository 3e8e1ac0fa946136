package setuproot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/internal/mnt"
)

// openState opens state/deploy/<hex> on the physical root.
func openState(sysroot *os.File, img *image) (*os.File, error) {
	name := "state/deploy/" + img.id().Hex()
	dir, err := mnt.OpenBelow(sysroot, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, &Failure{
			Code: CodeNoState, Param: img.karg.String(), Path: sysroot.Name() + "/" + name, Err: cause(err),
			Notes: []string{"the image was not deployed on this machine, or its state was removed; boot another entry"},
		}
	}
	return dir, nil
}

// stateMounts provides /etc and /var of the new root.
type stateMounts struct {
	w       *workshop
	sysroot *os.File // physical root
	state   *os.File // state/deploy/<hex>
	root    *os.File // the new root
	img     *image
}

// mountEtc provides /etc.
func (s *stateMounts) mountEtc(mode MountMode) error {
	switch mode {
	case MountBind:
		dir, err := mnt.OpenBelow(s.state, "etc", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return s.fail(CodeNoState, "etc", err)
		}
		defer dir.Close()
		if err := checkFullEtc(dir); err != nil {
			return s.fail(CodeNoState, "etc", err)
		}
		return s.bind(dir, "etc", false)
	case MountOverlay:
		return s.overlay("etc")
	case MountTransient:
		return s.transient("etc", dirRWEtc)
	}
	return nil
}

// mountVar provides /var. The deployment's entry is a link to the directory that all deployments share.
func (s *stateMounts) mountVar(mode MountMode) error {
	switch mode {
	case MountBind:
		name := "state/deploy/" + s.img.id().Hex() + "/var"
		dir, err := mnt.OpenBelow(s.sysroot, name, unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
		if err != nil {
			return s.fail(CodeNoState, "var", err)
		}
		defer dir.Close()
		return s.bind(dir, "var", true)
	case MountOverlay:
		return s.overlay("var")
	case MountTransient:
		return s.transient("var", dirRWVar)
	}
	return nil
}

// fail makes the Failure for an entry of the state directory.
func (s *stateMounts) fail(code Code, name string, err error) error {
	return &Failure{Code: code, Param: s.img.karg.String(), Path: s.state.Name() + "/" + name, Err: cause(err)}
}

// checkFullEtc refuses a directory that would start a system without accounts: an empty one, or one that holds the
// layers of an overlay.
func checkFullEtc(dir *os.File) error {
	names, err := dir.Readdirnames(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(names) == 0 {
		return errors.New("the directory is empty, want a complete /etc")
	}
	for _, n := range names {
		if n != "upper" && n != "work" {
			return nil
		}
	}
	return errors.New("the directory holds the layers of an overlay (upper, work), want a complete /etc; the deployment was made for etc.mount = \"overlay\"")
}

// bind attaches dir at name of the new root, writable even if the physical root was mounted with restrictions.
func (s *stateMounts) bind(dir *os.File, name string, slave bool) error {
	m, err := mnt.Clone(dir)
	if err != nil {
		return s.fail(CodeMount, name, err)
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := m.SetAttr(0, mnt.ReadOnly|mnt.NoExec|mnt.NoSuid|mnt.NoDev); err != nil {
		return s.fail(CodeMount, name, err)
	}
	if err := s.attach(m, name); err != nil {
		return err
	}
	if !slave {
		return nil
	}
	// What is mounted below /var must not show up in the state directory of the physical root.
	if err := errors.Join(m.SetPropagation(mnt.Slave), m.SetPropagation(mnt.Shared)); err != nil {
		return s.fail(CodeMount, name, err)
	}
	return nil
}

func (s *stateMounts) attach(m *mnt.Mount, name string) error {
	err := m.AttachAt(s.root, name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return &Failure{Code: CodeNoDir, Param: s.img.karg.String(), Path: "/" + name + " of the new root", Err: fmt.Errorf("the image needs a directory there: %w", cause(err))}
	}
	if err != nil {
		return s.fail(CodeMount, name, err)
	}
	return nil
}

// overlay mounts the image's directory with the deployment's upper and work directories. They are made by the deploy
// step; if they are missing, they are made here with the attributes of the image's directory.
func (s *stateMounts) overlay(name string) error {
	lower := filepath.Join(s.w.path(dirRoot), name)
	if err := s.prepareUpper(name, lower); err != nil {
		return err
	}
	// Layers are named by descriptor: the path of the state directory is longer than the kernel takes.
	upper, err := mnt.OpenBelow(s.state, name+"/upper", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return s.fail(CodeNoState, name+"/upper", err)
	}
	defer upper.Close()
	work, err := mnt.OpenBelow(s.state, name+"/work", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return s.fail(CodeNoState, name+"/work", err)
	}
	defer work.Close()
	return s.mountOverlay("overlay", name, lower, fdPath(upper), fdPath(work))
}

func (s *stateMounts) transient(name, tmpfs string) error {
	lower := filepath.Join(s.w.path(dirRoot), name)
	upper, work, err := s.w.transientLayers(tmpfs, lower, 0o755)
	if err != nil {
		return s.fail(CodeMount, name, err)
	}
	return s.mountOverlay("transient", name, lower, upper, work)
}

func (s *stateMounts) mountOverlay(source, name, lower, upper, work string) error {
	m, err := mnt.Overlay{Source: source, Lower: lower, Upper: upper, Work: work}.Mount()
	if err != nil {
		return s.fail(stateCode(err), name, err)
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	return s.attach(m, name)
}

// prepareUpper makes upper and work where they are missing, so that the merged directory keeps owner, permissions,
// labels and time of the image's.
func (s *stateMounts) prepareUpper(name, model string) error {
	dup, err := unix.FcntlInt(s.state.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return s.fail(CodeNoState, name, err)
	}
	state := durable.NewDir(dup, s.state.Name())
	defer state.Close() //nolint:errcheck // a directory descriptor
	if entries, err := state.ReadSubDir(name); err == nil {
		for _, e := range entries {
			if e.Name != "upper" && e.Name != "work" {
				return s.fail(CodeNoState, name, fmt.Errorf("the directory holds %q, want only upper and work; the deployment was made for %s.mount = \"bind\"", e.Name, name))
			}
		}
	}
	for _, dir := range []struct {
		name string
		perm uint32
	}{{name, 0o755}, {name + "/work", 0o700}} {
		if err := state.Mkdir(dir.name, dir.perm); err != nil && !errors.Is(err, fs.ErrExist) {
			return s.fail(stateCode(err), dir.name, err)
		}
	}
	exists, err := state.Exists(name + "/upper")
	if err != nil || exists {
		return err
	}
	// Under another name until it is complete, so that an interrupted boot does not leave it half made.
	const half = "upper.new"
	if err := state.RemoveAll(name + "/" + half); err != nil {
		return s.fail(stateCode(err), name, err)
	}
	if err := state.Mkdir(name+"/"+half, 0o700); err != nil {
		return s.fail(stateCode(err), name, err)
	}
	if err := copyAttributes(model, filepath.Join(fdPath(s.state), name, half)); err != nil {
		return s.fail(stateCode(err), name, err)
	}
	if err := state.Rename(name+"/"+half, state, name+"/upper"); err != nil {
		return s.fail(stateCode(err), name, err)
	}
	return nil
}

// stateCode separates a file system that takes no writes and state that is in use from other refusals.
func stateCode(err error) Code {
	switch {
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return CodeReadOnly
	case errors.Is(err, unix.EBUSY):
		return CodeBusy
	}
	return CodeMount
}

// copyAttributes gives the directory to the owner, permissions, time and security and ACL attributes of from.
func copyAttributes(from, to string) error {
	var st unix.Stat_t
	if err := unix.Stat(from, &st); err != nil {
		return &os.PathError{Op: "stat", Path: from, Err: err}
	}
	attrs, err := securityAttributes(from)
	if err != nil {
		return err
	}
	if err := os.Chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	for _, a := range attrs {
		if err := unix.Lsetxattr(to, a.name, a.value, 0); err != nil {
			return &os.PathError{Op: "set " + a.name + " of", Path: to, Err: err}
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "set times of", Path: to, Err: err}
	}
	return nil
}

type attribute struct {
	name  string
	value []byte
}

// securityAttributes reads the security.* and ACL attributes of a file.
func securityAttributes(path string) ([]attribute, error) {
	names, err := readAttr(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "list attributes of", Path: path, Err: err}
	}
	var out []attribute
	for _, n := range bytes.Split(names, []byte{0}) {
		name := string(n)
		if !bytes.HasPrefix(n, []byte("security.")) && !bytes.HasPrefix(n, []byte("system.posix_acl_")) {
			continue
		}
		value, err := readAttr(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, &os.PathError{Op: "read " + name + " of", Path: path, Err: err}
		}
		out = append(out, attribute{name, value})
	}
	return out, nil
}

// readAttr calls get with the largest buffer an attribute or a list of them can need.
func readAttr(get func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 64<<10) // XATTR_SIZE_MAX, XATTR_LIST_MAX
	n, err := get(buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
