// Command pull measures pulling a bootable image from an OCI layout into a fresh
// repository, by cfsboot and by cfsctl of composefs-rs where that is installed:
// wall time, CPU time and peak resident memory of the process. The two programs
// take turns, and the median counts.
//
//	pull [-n RUNS] [-layout DIR[:TAG] | -tree DIR [-size MIB]] [-cfsboot PROGRAM] [-cfsctl PROGRAM] [-dir DIR]
//
// The image is release 1 of the lab's OS image, which is built if need be (root,
// and what the lab needs, see docs/lab.md); or one in a layout; or the first SIZE
// MiB of a directory tree of this machine in four gzip layers. The image IDs must
// be the same, or the command fails. With -make DIR the layout is made there, and
// nothing is measured.
// With -cpuprofile FILE or -memprofile FILE this process pulls once and writes the
// profile.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/internal/durable"
	"github.com/cfsboot/cfsboot/repo"
	"github.com/cfsboot/cfsboot/repo/oci"
)

type options struct {
	runs                              int
	layout, tree, cfsboot, cfsctl, at string
	size                              int64
}

func main() {
	var o options
	flag.IntVar(&o.runs, "n", 3, "measured runs of each program")
	flag.StringVar(&o.layout, "layout", "", "OCI layout to pull from, DIR or DIR:TAG")
	flag.StringVar(&o.tree, "tree", "", "directory to make a layout of")
	flag.Int64Var(&o.size, "size", 428, "size of the layout of a directory before compression, in MiB")
	flag.StringVar(&o.cfsboot, "cfsboot", "", "program to measure; empty: build it")
	flag.StringVar(&o.cfsctl, "cfsctl", "", "program to compare with; empty: from PATH or the cache")
	flag.StringVar(&o.at, "dir", "", "where repositories are made; empty: ~/.cache/cfsboot, since a temporary directory may be memory")
	only := flag.String("make", "", "make the layout in this directory and stop")
	cpu := flag.String("cpuprofile", "", "pull once and write a CPU profile to this file")
	heap := flag.String("memprofile", "", "pull once and write a profile of allocations to this file")
	flag.Parse()
	if o.at == "" {
		if cache, err := os.UserCacheDir(); err == nil {
			o.at = filepath.Join(cache, "cfsboot")
			if err := os.MkdirAll(o.at, 0o755); err != nil {
				o.at = ""
			}
		}
	}
	if *cpu != "" || *heap != "" {
		if err := profile(context.Background(), o, *cpu, *heap); err != nil {
			fmt.Fprintln(os.Stderr, "pull:", err)
			os.Exit(1)
		}
		return
	}
	if *only != "" {
		if err := o.makeLayout(context.Background(), *only); err != nil {
			fmt.Fprintln(os.Stderr, "pull:", err)
			os.Exit(1)
		}
		return
	}
	if err := compare(context.Background(), os.Stdout, o); err != nil {
		fmt.Fprintln(os.Stderr, "pull:", err)
		os.Exit(1)
	}
}

// run is what one process used.
type run struct {
	wall, cpu time.Duration
	peak      int64 // bytes
}

// program is one of the two.
type program struct {
	name string
	path string
	init []string
	runs []run
	ids  string // "plain boot"
}

func compare(ctx context.Context, out io.Writer, o options) (err error) {
	work, remove, err := o.workDir(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()
	programs, err := o.programs(ctx, work)
	if err != nil {
		return err
	}
	// Repositories are removed at the end only: for a minute ext4 looks at each
	// inode that was just freed before it takes another one, which costs seconds.
	var files int
	for i := range o.runs {
		for _, p := range programs {
			at := filepath.Join(work, fmt.Sprintf("%s-%d", p.name, i))
			r, err := p.pull(ctx, at, o.layout)
			if err != nil {
				return err
			}
			p.runs = append(p.runs, r)
			if files, err = count(ctx, at); err != nil {
				return err
			}
		}
	}
	for _, p := range programs[1:] {
		if p.ids != programs[0].ids {
			return fmt.Errorf("image IDs differ: %s has %s, %s has %s", programs[0].name, programs[0].ids, p.name, p.ids)
		}
	}
	return report(out, programs, files)
}

// workDir makes a directory for repositories and, unless there is one to pull
// from, the layout.
func (o *options) workDir(ctx context.Context) (path string, remove func() error, err error) {
	if path, err = os.MkdirTemp(o.at, "cfsboot-bench-"); err != nil {
		return "", nil, err
	}
	remove = func() error { return os.RemoveAll(path) }
	if o.layout == "" {
		o.layout = filepath.Join(path, "layout")
		if err := o.makeLayout(ctx, o.layout); err != nil {
			return "", nil, errors.Join(err, remove())
		}
	}
	return path, remove, nil
}

func (o *options) programs(ctx context.Context, work string) ([]*program, error) {
	if o.cfsboot == "" {
		o.cfsboot = filepath.Join(work, "cfsboot")
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", o.cfsboot, "github.com/cfsboot/cfsboot/cmd/cfsboot")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return nil, fmt.Errorf("build cfsboot: %w", err)
		}
	}
	list := []*program{{name: "cfsboot", path: o.cfsboot, init: []string{"repo", "init", "--insecure"}}}
	if o.cfsctl == "" {
		home, _ := os.UserHomeDir()
		for _, name := range []string{"cfsctl", filepath.Join(home, ".cache/cfsboot/cfsctl/bin/cfsctl")} {
			if path, err := exec.LookPath(name); err == nil {
				o.cfsctl = path
				break
			}
		}
	}
	if o.cfsctl != "" {
		list = append(list, &program{name: "cfsctl", path: o.cfsctl, init: []string{"init", "--insecure"}})
	}
	return list, nil
}

// pull makes a repository and pulls into it. Everything that others wrote is
// synced before, so that nobody waits for it.
func (p *program) pull(ctx context.Context, at, layout string) (run, error) {
	if _, _, err := p.call(ctx, at, p.init...); err != nil {
		return run{}, err
	}
	syscall.Sync()
	r, _, err := p.call(ctx, at, "oci", "pull", "--bootable", "oci:"+layout, "bench")
	if err != nil {
		return run{}, err
	}
	inspect := []string{"oci", "inspect", "bench"}
	if p.name == "cfsboot" {
		inspect = append(inspect, "--json")
	}
	_, text, err := p.call(ctx, at, inspect...)
	if err != nil {
		return run{}, err
	}
	var ids struct {
		Plain string `json:"composefs_erofs"`
		Boot  string `json:"composefs_boot_erofs"`
	}
	if err := json.Unmarshal(text, &ids); err != nil {
		return run{}, fmt.Errorf("%s oci inspect: %w", p.name, err)
	}
	p.ids = ids.Plain + " " + ids.Boot
	return r, nil
}

func (p *program) call(ctx context.Context, repository string, args ...string) (run, []byte, error) {
	if err := os.MkdirAll(repository, 0o700); err != nil {
		return run{}, nil, err
	}
	cmd := exec.CommandContext(ctx, p.path, append([]string{"--repo", repository}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return run{}, nil, fmt.Errorf("%s %s: %w\n%s", p.name, strings.Join(args, " "), err, errs.String())
	}
	r := run{wall: time.Since(start), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.peak = u.Maxrss << 10
	}
	return r, out.Bytes(), nil
}

// count returns the number of files of the image, in a repository of either
// program.
func count(ctx context.Context, path string) (_ int, err error) {
	dir, err := durable.OpenDir(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	r, err := repo.Open(ctx, dir, repo.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	manifest, err := oci.Resolve(r, "bench")
	if err != nil {
		return 0, err
	}
	img, err := oci.OpenImage(ctx, r, manifest)
	if err != nil {
		return 0, err
	}
	plain, _ := img.Default(r)
	f, err := r.OpenImage(ctx, plain)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	root, err := erofs.Decode(f, st.Size())
	if err != nil {
		return 0, err
	}
	return nodes(root), nil
}

func nodes(n *tree.Node) int {
	total := 1
	if n.IsDir() {
		for _, c := range n.All() {
			total += nodes(c)
		}
	}
	return total
}

func (p *program) median() run {
	m := func(of func(run) int64) int64 {
		v := make([]int64, len(p.runs))
		for i, r := range p.runs {
			v[i] = of(r)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return run{
		wall: time.Duration(m(func(r run) int64 { return int64(r.wall) })), cpu: time.Duration(m(func(r run) int64 { return int64(r.cpu) })),
		peak: m(func(r run) int64 { return r.peak }),
	}
}

func report(out io.Writer, programs []*program, files int) error {
	const mib = 1 << 20
	limit := float64(96*mib+400*files) / mib
	fmt.Fprintf(out, "pull of a bootable image with %d files from an OCI layout, median of %d\n", files, len(programs[0].runs))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "program\twall s\tCPU s\tpeak MiB")
	for _, p := range programs {
		m := p.median()
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%.1f\n", p.name, m.wall.Seconds(), m.cpu.Seconds(), float64(m.peak)/mib)
	}
	if len(programs) == 2 {
		a, b := programs[0].median(), programs[1].median()
		fmt.Fprintf(w, "ratio\t%.2f\t%.2f\t%.2f\n", a.wall.Seconds()/b.wall.Seconds(), a.cpu.Seconds()/b.cpu.Seconds(), float64(a.peak)/float64(b.peak))
		fmt.Fprintf(w, "goal\t0.90\t0.90\t%.1f MiB\n", limit)
	} else {
		fmt.Fprintf(w, "goal\t\t\t%.1f MiB\n", limit)
	}
	return w.Flush()
}
