package mnt

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Overlay describes an overlay mount. All layers must lie on attached mounts and are given by path; a path that
// the kernel cannot take (longer than 255 bytes) can be given as /proc/self/fd/N.
type Overlay struct {
	Source string // first column of the mount table, for example "composefs:<hex>"
	Lower  string // lower layer
	Data   string // data-only layer that the metadata in Lower redirects to; empty: none, and no metacopy
	Upper  string // writable layer; empty: the mount is read-only
	Work   string // needed with Upper, on the same file system
	Verity bool   // verity=require: a file of Data is opened only if its fs-verity digest is the one in Lower
	Joined bool   // give the layers in one "lowerdir" string, as kernels before 6.8 need; tried by itself when they refuse
}

// Mount returns a detached mount of o. A kernel without verity=require is a *FeatureError.
func (o Overlay) Mount() (*Mount, error) {
	m, err := o.mount(o.Joined)
	if err != nil && !o.Joined && errors.Is(err, errNoLayerKey) {
		return o.mount(true)
	}
	return m, err
}

// errNoLayerKey marks the refusal of the key "lowerdir+".
var errNoLayerKey = errors.New("kernel has no lowerdir+")

func (o Overlay) mount(joined bool) (*Mount, error) {
	c, err := openContext("overlay", fmt.Sprintf("mount overlay %q", o.Source))
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.set("source", o.Source); err != nil {
		return nil, err
	}
	attr := Attr(0)
	if o.Upper == "" {
		if err := c.flag("ro"); err != nil {
			return nil, err
		}
		attr = ReadOnly
	}
	if err := o.configure(c, joined); err != nil {
		return nil, err
	}
	return c.mount(attr)
}

// configure gives all options but source and ro, in the order of the peers.
func (o Overlay) configure(c *fsContext, joined bool) error {
	type option struct{ key, value string }
	var opts []option
	if o.Data != "" {
		opts = append(opts, option{"metacopy", "on"}, option{"redirect_dir", "on"})
	}
	if o.Verity {
		opts = append(opts, option{"verity", "require"})
	}
	if o.Upper != "" {
		opts = append(opts, option{"upperdir", escape(o.Upper, `\`)}, option{"workdir", escape(o.Work, `\`)})
	}
	switch {
	case joined && o.Data != "":
		opts = append(opts, option{"lowerdir", escape(o.Lower, `\:`) + "::" + escape(o.Data, `\:`)})
	case joined:
		opts = append(opts, option{"lowerdir", escape(o.Lower, `\:`)})
	default:
		opts = append(opts, option{"lowerdir+", o.Lower})
		if o.Data != "" {
			opts = append(opts, option{"datadir+", o.Data})
		}
	}
	for _, opt := range opts {
		err := c.set(opt.key, opt.value)
		switch {
		case err == nil:
		case opt.key == "verity" && errors.Is(err, unix.EINVAL):
			return &FeatureError{Feature: "overlay verity=require", Option: "CONFIG_OVERLAY_FS and CONFIG_FS_VERITY, Linux 6.6", Err: err}
		case opt.key == "lowerdir+" && errors.Is(err, unix.EINVAL):
			return errors.Join(errNoLayerKey, err)
		default:
			return err
		}
	}
	return nil
}

// escape puts a backslash before the bytes of special, which the kernel would otherwise read as syntax.
func escape(path, special string) string {
	if !strings.ContainsAny(path, special) {
		return path
	}
	var b strings.Builder
	for i := range len(path) {
		if strings.IndexByte(special, path[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(path[i])
	}
	return b.String()
}
