package debian

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cfsboot/cfsboot/tests/vm/cache"
	"github.com/cfsboot/cfsboot/tests/vm/uml"
)

// kernelSource is the package with the source of the OS images' kernel.
const kernelSource = "linux-source-6.12"

// UMLKernel makes the cache entry of the User Mode Linux kernel (some minutes)
// and makes it the one that uml.FindKernel returns. Output of the build goes to
// log. The file "version" beside the kernel names the source package.
func UMLKernel(ctx context.Context, apt func() (*Apt, error), log io.Writer) (string, error) {
	libc, err := run(ctx, nil, "getconf", "GNU_LIBC_VERSION")
	if err != nil {
		return "", err
	}
	name := uml.KernelName(kernelSource, strings.TrimSpace(libc))
	dir, err := cache.Make(filepath.Dir(name), func(tmp string) error {
		a, err := apt()
		if err != nil {
			return err
		}
		return buildUML(ctx, a, tmp, log)
	})
	if err != nil {
		return "", err
	}
	pointer, err := cache.Path("uml")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(pointer, []byte(name+"\n"), 0o644); err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(name)), nil
}

func buildUML(ctx context.Context, a *Apt, out string, log io.Writer) error {
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	// 1.6 GB for some minutes: beside the cache, which may be larger than /tmp.
	work, err := os.MkdirTemp(filepath.Dir(out), "uml-build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	deb, err := a.Download(ctx, kernelSource, Stable, work)
	if err != nil {
		return err
	}
	src, obj := filepath.Join(work, "src"), filepath.Join(work, "obj")
	for _, d := range []string{src, obj} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	const unpack = `set -e; dpkg-deb --fsys-tarfile "$1" | tar -xO ./usr/src/` + kernelSource + `.tar.xz | xz -dc -T0 | tar -x --strip-components=1 -C "$2"; rm "$1"`
	if _, err := run(ctx, nil, "sh", "-c", unpack, "sh", deb, src); err != nil {
		return err
	}
	patch, frag := filepath.Join(work, "kernel.patch"), filepath.Join(obj, "fragment")
	if err := os.WriteFile(patch, []byte(uml.Patch), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(frag, []byte(uml.Fragment), 0o644); err != nil {
		return err
	}
	if _, err := run(ctx, nil, "patch", "-p1", "-d", src, "-i", patch); err != nil {
		return err
	}
	mk := []string{"-s", "-C", src, "O=" + obj, "ARCH=um"}
	for _, step := range [][]string{
		append([]string{"make"}, append(mk, "tinyconfig")...),
		{src + "/scripts/kconfig/merge_config.sh", "-m", "-O", obj, obj + "/.config", frag},
		append([]string{"make"}, append(mk, "olddefconfig")...),
	} {
		if err := logged(ctx, log, obj, step); err != nil {
			return err
		}
	}
	if err := checkConfig(filepath.Join(obj, ".config")); err != nil {
		return err
	}
	if err := logged(ctx, log, obj, append([]string{"make"}, append(mk, "-j"+jobs(), "linux")...)); err != nil {
		return err
	}
	if _, err := run(ctx, nil, "strip", "-o", filepath.Join(out, "linux"), filepath.Join(obj, "linux")); err != nil {
		return err
	}
	version := strings.TrimSuffix(filepath.Base(deb), ".deb") + "\n"
	return os.WriteFile(filepath.Join(out, "version"), []byte(version), 0o644)
}

func jobs() string {
	out, err := exec.Command("nproc").Output()
	if n, aerr := strconv.Atoi(strings.TrimSpace(string(out))); err == nil && aerr == nil {
		return strconv.Itoa(n)
	}
	return "2"
}

// checkConfig compares the made configuration with the wanted one: kconfig drops
// an option with an unmet dependency without a word.
func checkConfig(path string) error {
	made, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for line := range strings.Lines(string(made)) {
		have[strings.TrimSpace(line)] = true
	}
	var lost []string
	for line := range strings.Lines(uml.Fragment) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "CONFIG_") && !strings.HasSuffix(line, "=n") && !have[line] {
			lost = append(lost, line)
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("kernel configuration lacks %s", strings.Join(lost, ", "))
	}
	return nil
}

func logged(ctx context.Context, log io.Writer, dir string, args []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	return nil
}
