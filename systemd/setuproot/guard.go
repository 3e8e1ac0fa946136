package setuproot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cfsboot/cfsboot/deploy/record"
)

// Guard is asked right before the switch to the new root, whatever the reason for it: it refuses unless o.Sysroot is
// the root that Run assembled, or Run found that there was nothing to assemble. Without it, a unit that was skipped
// would end in a system on the bare physical root.
func Guard(o Options) error {
	o.setDefaults()
	data, err := os.ReadFile(filepath.Join(o.RunDir, filepath.Base(record.BootedPath)))
	if errors.Is(err, fs.ErrNotExist) {
		if _, statErr := os.Lstat(filepath.Join(o.RunDir, NotComposefs)); statErr == nil {
			return nil
		}
		// What can be said in one line, since notes do not reach a quiet console.
		return &Failure{Code: CodeSysroot, Path: o.Sysroot, Err: errors.New("no composefs root was assembled here: cfsboot-setup-root.service failed, is masked, or the kernel command line lacks root=")}
	}
	if err != nil {
		return &Failure{Code: CodeSysroot, Path: o.Sysroot, Err: cause(err)}
	}
	booted, err := record.ParseBooted(data)
	if err != nil {
		return &Failure{Code: CodePlace, Path: o.RunDir, Err: err}
	}
	dir, err := os.Open(o.Sysroot)
	if err != nil {
		return &Failure{Code: CodeSysroot, Path: o.Sysroot, Err: cause(err)}
	}
	defer dir.Close()
	info, err := checkSysroot(dir)
	if err != nil {
		return err
	}
	if digest, ok := composefsDigest(info); !ok || digest != booted.Digest {
		return &Failure{Code: CodeSysroot, Path: o.Sysroot, Err: fmt.Errorf("the mount there is %q of type %s, want the composefs root %s", info.Source, info.Type, booted.Digest)}
	}
	return nil
}
