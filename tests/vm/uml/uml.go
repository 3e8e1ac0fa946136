// Package uml runs programs under User Mode Linux: a Linux kernel as an ordinary
// process, with fs-verity, EROFS, overlayfs, ext4 and FAT, whatever the kernel
// of the build host lacks. It starts in a fraction of a second.
//
// The guest's root is the host's root directory (hostfs), with fresh /proc,
// /sys, /dev, /run and /tmp; a program runs as root in it with the host's
// files at their usual paths. Block devices are files of the host
// (/dev/ubda, /dev/ubdb, ...).
//
// Several guests may run at the same time. There is one processor per guest.
package uml

import (
	"bufio"
	"bytes"
	"context"
	_ "embed" // the kernel configuration
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Fragment is the kernel configuration, on top of "make ARCH=um tinyconfig".
//
//go:embed kernel.frag
var Fragment string

// Patch is applied to the kernel source: without it the guest dies at its first
// program on a processor with AMX, whose register set is larger than Linux 6.12
// expects.
//
//go:embed kernel.patch
var Patch string

// Mount asks for a file system before the program starts.
type Mount struct {
	Source string `json:"source"`          // for example /dev/ubda
	Target string `json:"target"`          // existing directory of the host
	Type   string `json:"type"`            // for example ext4
	Flags  int    `json:"flags,omitempty"` // MS_…
	Data   string `json:"data,omitempty"`
}

// Config describes one run. Kernel, Init and Args are required.
type Config struct {
	Kernel string        // the User Mode Linux program
	Init   string        // static program made from the package tests/vm/uml/init
	Memory string        // "1024M" if empty
	Disks  []string      // files for /dev/ubda, /dev/ubdb, ...
	Mounts []Mount       // made in this order
	Dir    string        // working directory of the program
	Env    []string      // whole environment of the program
	Args   []string      // program (absolute path) and arguments
	Limit  time.Duration // the guest is killed after it; 5 minutes if 0
	Output io.Writer     // console: kernel messages and all output of the program; nil discards it
}

// SpecFile is the file of the initial RAM disk that holds the Spec.
const SpecFile = "/spec.json"

// Spec is what the init program of the guest reads.
type Spec struct {
	Mounts []Mount  `json:"mounts"`
	Dir    string   `json:"dir"`
	Env    []string `json:"env"`
	Args   []string `json:"args"`
}

// StatusPrefix begins the console line that carries the exit status.
const StatusPrefix = "lab-init: exit status "

// ErrTimeLimit is returned when a guest was killed because its limit was over.
var ErrTimeLimit = errors.New("time limit exceeded")

// Run starts a guest, waits until it powered off and returns the exit status of
// the program (128+n for a signal). An error means that the status is not known.
func Run(ctx context.Context, c Config) (int, error) {
	if c.Memory == "" {
		c.Memory = "1024M"
	}
	if c.Limit == 0 {
		c.Limit = 5 * time.Minute
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	work, err := os.MkdirTemp(memoryDir(), "cfsboot-uml-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	spec, err := json.Marshal(Spec{Mounts: c.Mounts, Dir: c.Dir, Env: c.Env, Args: c.Args})
	if err != nil {
		return 0, err
	}
	initrd := filepath.Join(work, "initrd")
	if err := writeInitrd(initrd, c.Init, spec); err != nil {
		return 0, err
	}

	args := []string{"mem=" + c.Memory, "initrd=" + initrd, "con=null", "con0=fd:0,fd:1", "ssl=null", "quiet", "panic=-1"}
	for i, d := range c.Disks {
		args = append(args, fmt.Sprintf("ubd%d=%s", i, d))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Limit, ErrTimeLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Kernel, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+work)
	// The guest's processes are processes of the host: one group, ended as one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start User Mode Linux: %w", err)
	}
	status, found := copyConsole(c.Output, out)
	waitErr := cmd.Wait()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	if ctx.Err() != nil {
		return 0, fmt.Errorf("user mode linux after %v: %w", c.Limit, context.Cause(ctx))
	}
	if !found {
		return 0, errors.Join(fmt.Errorf("user mode linux ended without an exit status of %q", c.Args), waitErr)
	}
	return status, nil
}

// memoryDir returns the directory for the file that is the guest's memory:
// one in memory if possible. It has to allow executable mappings.
func memoryDir() string {
	var st unix.Statfs_t
	const shm = "/dev/shm"
	if err := unix.Statfs(shm, &st); err != nil || st.Type != unix.TMPFS_MAGIC || st.Flags&unix.ST_NOEXEC != 0 ||
		int64(st.Bavail)*st.Bsize < 2<<30 || unix.Access(shm, unix.W_OK) != nil {
		return ""
	}
	return shm
}

// copyConsole copies lines without their carriage returns and picks out the status.
func copyConsole(w io.Writer, r io.Reader) (status int, found bool) {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadBytes('\n')
		line = bytes.ReplaceAll(line, []byte("\r"), nil)
		if i := bytes.Index(line, []byte(StatusPrefix)); i >= 0 {
			if n, aerr := strconv.Atoi(strings.TrimSpace(string(line[i+len(StatusPrefix):]))); aerr == nil {
				status, found = n, true
				line = line[:i]
			}
		}
		// A reader that went away must not stop the guest.
		_, _ = w.Write(line)
		if err != nil {
			return status, found
		}
	}
}
