// Command init is process 1 of the lab's User Mode Linux guests: it mounts the
// host's root directory, runs one program in it, prints its exit status on the
// console and powers off. Everything it has to do is in a JSON file of
// the initial RAM disk.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

func main() {
	status, err := run()
	if err != nil {
		fmt.Println("lab-init:", err)
		status = 125
	}
	unix.Sync()
	fmt.Printf("\n%s%d\n", uml.StatusPrefix, status)
	// Nothing is left to do about an error of the last call.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func mount(source, target, fstype string, flags int, data string) error {
	if err := unix.Mount(source, target, fstype, uintptr(flags), data); err != nil {
		return fmt.Errorf("mount %s %q at %s: %w", fstype, source, target, err)
	}
	return nil
}

func run() (int, error) {
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return 0, err
	}
	data, err := os.ReadFile(uml.SpecFile)
	if err != nil {
		return 0, err
	}
	var spec uml.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return 0, fmt.Errorf("read %s: %w", uml.SpecFile, err)
	}
	for _, m := range []uml.Mount{
		{Source: "none", Target: "/h", Type: "hostfs", Data: "/"},
		{Source: "proc", Target: "/h/proc", Type: "proc"},
		{Source: "sysfs", Target: "/h/sys", Type: "sysfs"},
		{Source: "securityfs", Target: "/h/sys/kernel/security", Type: "securityfs"},
		{Source: "devtmpfs", Target: "/h/dev", Type: "devtmpfs"},
		{Source: "tmpfs", Target: "/h/run", Type: "tmpfs"},
	} {
		if err := mount(m.Source, m.Target, m.Type, m.Flags, m.Data); err != nil {
			return 0, err
		}
	}
	if err := unix.Chroot("/h"); err != nil {
		return 0, err
	}
	if err := unix.Chdir("/"); err != nil {
		return 0, err
	}
	// devtmpfs has the devices of drivers only.
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return 0, err
		}
	}
	for _, m := range spec.Mounts {
		if err := mount(m.Source, m.Target, m.Type, m.Flags, m.Data); err != nil {
			return 0, err
		}
	}
	return runProgram(spec)
}

// runProgram starts the program and waits for it, and for orphans as they end.
func runProgram(spec uml.Spec) (int, error) {
	cmd := exec.Command(spec.Args[0], spec.Args[1:]...)
	cmd.Dir, cmd.Env = spec.Dir, spec.Env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for %s: %w", spec.Args[0], err)
		case pid == cmd.Process.Pid && ws.Exited():
			return ws.ExitStatus(), nil
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), nil
		}
	}
}
