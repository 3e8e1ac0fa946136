package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Key is an SSH key pair of this run.
type Key struct {
	Private string // file
	Public  string // file: one line
}

// NewKey makes a key pair.
func (l *Lab) NewKey(ctx context.Context) (Key, error) {
	k := Key{Private: filepath.Join(l.work, fmt.Sprintf("key-%d", l.count.Add(1)))}
	k.Public = k.Private + ".pub"
	out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", k.Private).CombinedOutput()
	if err != nil {
		return k, fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	return k, nil
}

// ListenSSH gives the machine a port for SSH; it is asked before Start.
func (m *Machine) ListenSSH(ctx context.Context) error {
	var lc net.ListenConfig
	s, err := lc.Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	m.SSHPort = s.Addr().(*net.TCPAddr).Port
	return s.Close()
}

// SSH runs a command on the machine as root, over the emulated network and with
// nothing but the key, and returns its output. It tries again until the server
// answers or limit has passed.
func (m *Machine) SSH(ctx context.Context, key Key, limit time.Duration, command string) (string, error) {
	args := []string{
		"-p", fmt.Sprint(m.SSHPort), "-i", key.Private, "-F", "none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "root@127.0.0.1", command,
	}
	for deadline := time.Now().Add(limit); ; time.Sleep(time.Second) {
		cmd := exec.CommandContext(ctx, "ssh", args...)
		cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK=")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err == nil {
			return string(out), nil
		}
		// 255 is ssh's own: no connection yet, or no permission.
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 255 || time.Now().After(deadline) || ctx.Err() != nil {
			return string(out), fmt.Errorf("ssh: %w: %s", err, stderr.String())
		}
	}
}
