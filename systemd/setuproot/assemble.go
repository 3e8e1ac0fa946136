package setuproot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/internal/mnt"
)

// workshop is the private directory in which the root is put together. All mounts are attached in it, so that no
// kernel feature younger than overlay's verity=require is needed, and none of them spreads to another namespace.
type workshop struct {
	run string // /run/cfsboot
	dir string // run + "/private", a mount of its own
}

const (
	dirMeta    = "meta"    // EROFS of the boot image
	dirObjects = "objects" // read-only clone of the repository's objects
	dirRoot    = "root"    // the new root
	dirRW      = "rw"      // tmpfs of a transient root
	dirRWEtc   = "rw-etc"  // tmpfs of a transient /etc
	dirRWVar   = "rw-var"  // tmpfs of a transient /var
)

// The source of the root's mount, before the digest; the peers' tools know these spellings.
const (
	sourceReadOnly  = "composefs:"
	sourceTransient = "transient:composefs="
)

// openWorkshop makes the directories. What an interrupted earlier run left is removed first. On error nothing is left.
func openWorkshop(run string) (_ *workshop, err error) {
	w := &workshop{run: run, dir: filepath.Join(run, "private")}
	if err := w.clear(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.abandon())
		}
	}()
	if err := os.Mkdir(run, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		return nil, err
	}
	if err := mnt.PrivateDir(w.dir); err != nil {
		return nil, err
	}
	for _, name := range []string{dirMeta, dirObjects, dirRoot, dirRW, dirRWEtc, dirRWVar} {
		if err := os.Mkdir(w.path(name), 0o700); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

// clear unmounts whatever is at or below the private directory and removes it. A missing one is no error.
func (w *workshop) clear() error {
	for range 16 { // mounts may be stacked
		d, err := os.Open(w.dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		mounted, err := mnt.IsRoot(d)
		if err := errors.Join(err, d.Close()); err != nil {
			return err
		}
		if !mounted {
			// Only empty mount points are left; anything else is not ours.
			for _, name := range []string{dirMeta, dirObjects, dirRoot, dirRW, dirRWEtc, dirRWVar} {
				if err := os.Remove(w.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			return os.Remove(w.dir)
		}
		if err := mnt.Detach(w.dir); err != nil {
			return err
		}
	}
	return fmt.Errorf("%q is still a mount point after 16 unmounts", w.dir)
}

// abandon removes everything of ours below /run.
func (w *workshop) abandon() error {
	err := w.clear()
	if rm := os.Remove(w.run); rm != nil && !errors.Is(rm, fs.ErrNotExist) && !errors.Is(rm, unix.ENOTEMPTY) {
		err = errors.Join(err, rm)
	}
	return err
}

// mountImage attaches the verified image and the objects, and the overlay over both as the new root.
func (w *workshop) mountImage(img *image, repo *os.File, p Policy) error {
	meta, err := mnt.EROFS(img.file)
	if err != nil {
		return mountFailure(img, err)
	}
	defer meta.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := meta.Attach(w.path(dirMeta)); err != nil {
		return mountFailure(img, err)
	}
	if err := w.attachObjects(repo); err != nil {
		return mountFailure(img, err)
	}
	o := mnt.Overlay{
		Source: sourceReadOnly + img.id().Hex(),
		Lower:  w.path(dirMeta),
		Data:   w.path(dirObjects),
		Verity: !img.karg.Insecure,
	}
	if p.TransientRoot {
		// The tmpfs becomes the upper layer of the composefs overlay itself: an overlay over an overlay would use up
		// both levels that the kernel allows, and /etc may need one.
		o.Source = sourceTransient + img.id().Hex()
		if o.Upper, o.Work, err = w.transientLayers(dirRW, w.path(dirMeta), 0o755); err != nil {
			return mountFailure(img, err)
		}
	}
	root, err := o.Mount()
	if err != nil {
		return mountFailure(img, err)
	}
	defer root.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := root.Attach(w.path(dirRoot)); err != nil {
		return mountFailure(img, err)
	}
	return nil
}

func (w *workshop) attachObjects(repo *os.File) error {
	dir, err := mnt.OpenBelow(repo, "objects", unix.O_RDONLY|unix.O_DIRECTORY, unix.RESOLVE_BENEATH)
	if err != nil {
		return err
	}
	defer dir.Close()
	m, err := mnt.Clone(dir)
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := m.SetAttr(mnt.ReadOnly|mnt.NoDev|mnt.NoSuid|mnt.NoExec, 0); err != nil {
		return err
	}
	return m.Attach(w.path(dirObjects))
}

// transientLayers mounts a tmpfs at name and makes an upper directory that looks like the directory model (owner,
// permissions, labels) and a work directory in it.
func (w *workshop) transientLayers(name, model string, perm os.FileMode) (upper, work string, err error) {
	m, err := mnt.Tmpfs("cfsboot-"+name, 0o700)
	if err != nil {
		return "", "", err
	}
	defer m.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	if err := m.Attach(w.path(name)); err != nil {
		return "", "", err
	}
	upper, work = filepath.Join(w.path(name), "upper"), filepath.Join(w.path(name), "work")
	if err := os.Mkdir(upper, perm); err != nil {
		return "", "", err
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		return "", "", err
	}
	return upper, work, copyAttributes(model, upper)
}

// mountFailure gives a refused mount its code.
func mountFailure(img *image, err error) error {
	f := &Failure{Code: CodeMount, Param: img.karg.String(), Path: img.file.Name(), Err: err}
	if errors.Is(err, unix.EIO) {
		// The digest was right, but a block below it is not: the kernel refuses to read it.
		f.Code, f.Want, f.Got, f.Err = CodeDigest, img.id().String(), "a block that does not belong to it, or a broken disk", unix.EIO
	}
	if errors.Is(err, unix.ENODEV) { // of fsopen: it does not know the type of file system
		f.Code = CodeNoModule
	}
	return f
}

// preflight reads what the system needs to start: it is an operating system, and its first program can be read, so
// that a missing or altered object ends the boot here and not in a kernel panic after the switch. init is the path of
// the program, "" for the usual ones.
func preflight(root *os.File, init string) error {
	if err := readAny(root, "usr/lib/os-release", "etc/os-release"); err != nil {
		return err
	}
	if init != "" {
		return readAny(root, init)
	}
	return readAny(root, "sbin/init", "etc/init", "bin/init")
}

// readAny reads the first page of the first of the files that exists.
func readAny(root *os.File, names ...string) error {
	var first error
	for _, name := range names {
		f, err := mnt.OpenBelow(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, unix.RESOLVE_IN_ROOT)
		if err == nil {
			_, err = io.ReadFull(f, make([]byte, 4096))
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = nil
			}
			if err = errors.Join(err, f.Close()); err == nil {
				return nil
			}
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return &Failure{Code: CodeObject, Path: "/" + strings.TrimPrefix(name, "/") + " of the new root", Err: cause(err)}
		}
		if first == nil {
			first = err
		}
	}
	return &Failure{
		Code: CodeObject, Path: "/" + strings.TrimPrefix(names[0], "/") + " of the new root", Err: cause(first),
		Notes: []string{"the image lacks the file, or the repository lacks its object"},
	}
}

// attachSysroot puts a copy of the physical root at /sysroot of the new root. An image without that directory is
// accepted, with a note.
func (w *workshop) attachSysroot(root, sysroot *os.File, p Policy) (note string, err error) {
	m, err := mnt.Clone(sysroot)
	if err != nil {
		return "", err
	}
	defer m.Close()               //nolint:errcheck // a mount descriptor: nothing is written through it
	set := mnt.NoSuid | mnt.NoDev // nothing is run or opened as a device through it
	if p.SysrootRO {
		set |= mnt.ReadOnly
	}
	if err := m.SetAttr(set, 0); err != nil {
		return "", err
	}
	err = m.AttachAt(root, "sysroot")
	if errors.Is(err, fs.ErrNotExist) {
		return "the image has no directory /sysroot: the physical root is not visible in the new root", nil
	}
	return "", err
}

// publish moves the new root to the place of the physical root. On error the physical root is back at its place.
func (w *workshop) publish(sysroot string, physical *os.File) error {
	back, err := mnt.Clone(physical)
	if err != nil {
		return err
	}
	defer back.Close() //nolint:errcheck // a mount descriptor: nothing is written through it
	for _, name := range []string{dirRW, dirRWEtc, dirRWVar, dirMeta, dirObjects} {
		if err := w.detachIfMounted(name); err != nil {
			return err
		}
	}
	// Lazily, and before the move: a new root that covers the mount its own /sysroot was copied from cannot be
	// unmounted at shutdown.
	if err := mnt.Detach(sysroot); err != nil {
		return err
	}
	if err := mnt.Move(w.path(dirRoot), sysroot); err != nil {
		return errors.Join(err, back.Attach(sysroot))
	}
	return nil
}

func (w *workshop) detachIfMounted(name string) error {
	d, err := os.Open(w.path(name))
	if err != nil {
		return err
	}
	mounted, err := mnt.IsRoot(d)
	if err := errors.Join(err, d.Close()); err != nil || !mounted {
		return err
	}
	return mnt.Detach(w.path(name))
}
