package deploy

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"strings"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
	"github.com/cfsboot/cfsboot/deploy/install"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/internal/durable"
)

// writeRootKeys adds public keys to those that root can be logged in to with, in
// the /var of all deployments: upgrades keep them. It can be repeated. The entry is
// written later, so no machine boots without them.
func (m *machine) writeRootKeys(root *tree.Node, policy *selabel.Policy, keys []byte) error {
	if keys == nil {
		return nil
	}
	keys, err := install.CheckAuthorizedKeys(keys)
	if err != nil {
		return &RefusedError{Code: CodeIdentity, Err: err}
	}
	home, err := rootHome(root)
	if err != nil {
		return err
	}
	// sshd wants a home and a .ssh that nobody else can write (StrictModes).
	at := path.Join("/var", home, ".ssh")
	ssh, err := makePrivate(m.top, policy, path.Join(sharedVar, home, ".ssh"), at)
	if err != nil {
		return err
	}
	defer ssh.Close() //nolint:errcheck // synced below
	const name = "authorized_keys"
	old, err := ssh.ReadFile(name, install.MaxKeys)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if bytes.Contains(append([]byte("\n"), old...), append([]byte("\n"), keys...)) {
		return nil
	}
	if len(old) > 0 && !bytes.HasSuffix(old, []byte("\n")) {
		old = append(old, '\n')
	}
	if err := ssh.WriteFile(name, append(old, keys...), 0o600); err != nil {
		return err
	}
	if err := labelNew(policy, ssh, name, path.Join(at, name), tree.Regular); err != nil {
		return err
	}
	return ssh.SyncFS() // and the directories above
}

// rootHome returns where below /var the home directory of root is. An image with a
// home on the read-only root is refused.
func rootHome(root *tree.Node) (string, error) {
	node := root.Lookup("root")
	if node != nil && node.Kind == tree.Symlink {
		if rest, ok := strings.CutPrefix(path.Join("/", node.Target), "/var/"); ok {
			return rest, nil
		}
	}
	return "", refuse(CodeImage, "the image's /root is no link into /var, so no key for root can be kept there")
}

// makePrivate opens a directory and makes what is missing of the last two parts of
// its name, for the owner alone. On the machine it is the directory at.
func makePrivate(top *durable.Dir, policy *selabel.Policy, name, at string) (*durable.Dir, error) {
	for _, x := range [][2]string{{path.Dir(name), path.Dir(at)}, {name, at}} {
		err := top.Mkdir(x[0], 0o700)
		if err == nil {
			err = labelNew(policy, top, x[0], x[1], tree.Directory)
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return top.Sub(name)
}

// writeHostname puts the name of the machine into the /etc that is being made in
// the directory name of dir. For later images it is a local change, and stays.
func writeHostname(dir *durable.Dir, name string, policy *selabel.Policy, hostname string) error {
	if hostname == "" {
		return nil
	}
	file := path.Join(name, "hostname")
	if err := dir.WriteFile(file, []byte(hostname+"\n"), 0o644); err != nil {
		return err
	}
	return labelNew(policy, dir, file, "/etc/hostname", tree.Regular)
}
