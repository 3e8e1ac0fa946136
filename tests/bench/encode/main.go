// Command encode measures the way from a dumpfile to an image and its ID against
// C mkcomposefs: a tree of 200,000 files that it makes up, and the tree of a
// directory of this machine. Each run is a process of its own, the two programs
// take turns, and the median counts.
//
//	encode [-n RUNS] [-nodes N] [-tree DIR] [-mkcomposefs PROGRAM] [-json]
//	encode -image DUMP IMAGE     what is measured: encode DUMP to IMAGE, print the ID
//
// The images must have the same ID, or the command fails. Without mkcomposefs only
// our own numbers are printed.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/cfsboot/cfsboot/erofs"
	"github.com/cfsboot/cfsboot/erofs/dump"
	"github.com/cfsboot/cfsboot/erofs/tree"
	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/randtree"
)

func main() {
	var o options
	flag.IntVar(&o.runs, "n", 10, "measured runs of each program")
	flag.IntVar(&o.nodes, "nodes", 200_000, "entries of the tree that is made up")
	flag.StringVar(&o.dir, "tree", "/usr", "directory whose tree is the second input, empty for none")
	flag.StringVar(&o.peer, "mkcomposefs", "", "program to compare with, default from PATH or the cache")
	flag.BoolVar(&o.json, "json", false, "print the result as JSON")
	image := flag.Bool("image", false, "encode DUMP to IMAGE and print the image ID")
	profile := flag.String("cpuprofile", "", "with -image: write a CPU profile")
	flag.Parse()
	var err error
	if *image {
		err = profiled(*profile, func() error { return encode(flag.Arg(0), flag.Arg(1)) })
	} else {
		err = compare(os.Stdout, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "encode:", err)
		os.Exit(1)
	}
}

func profiled(path string, run func() error) error {
	if path == "" {
		return run()
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return run()
}

// encode is the program that is measured.
func encode(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	root, err := dump.Compat.Read(in)
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	h := fsverity.NewHasher(fsverity.SHA256)
	if err := erofs.Encode(io.MultiWriter(out, h), root, erofs.V1); err != nil {
		return err
	}
	fmt.Println(h.Sum().Hex())
	return out.Close()
}

type options struct {
	runs, nodes int
	dir, peer   string
	json        bool
}

// row is one line of the result.
type row struct {
	Tree          string  `json:"tree"`
	Entries       int     `json:"entries"`
	DumpBytes     int64   `json:"dump_bytes"`
	ImageBytes    int64   `json:"image_bytes"`
	OurSeconds    float64 `json:"our_seconds"`
	OurCPU        float64 `json:"our_cpu_seconds"`
	OurRSSBytes   int64   `json:"our_peak_rss_bytes"`
	PeerSeconds   float64 `json:"mkcomposefs_seconds"`
	PeerCPU       float64 `json:"mkcomposefs_cpu_seconds"`
	PeerRSSBytes  int64   `json:"mkcomposefs_peak_rss_bytes"`
	Ratio         float64 `json:"ratio"` // ours to mkcomposefs, wall
	SameID        bool    `json:"same_id"`
	ImageIDSHA256 string  `json:"image_id_sha256"`
}

func compare(out io.Writer, o options) error {
	work, err := os.MkdirTemp("", "cfsboot-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.peer == "" {
		o.peer = findPeer()
	}
	inputs := []struct {
		name string
		make func() (*tree.Node, error)
	}{{"made up", func() (*tree.Node, error) { return randtree.Large(o.nodes), nil }}}
	if o.dir != "" {
		inputs = append(inputs, struct {
			name string
			make func() (*tree.Node, error)
		}{o.dir, func() (*tree.Node, error) { return scan(o.dir) }})
	}
	var rows []row
	for _, in := range inputs {
		root, err := in.make()
		if err != nil {
			return fmt.Errorf("tree %s: %w", in.name, err)
		}
		path := filepath.Join(work, "dump")
		r := row{Tree: in.name, Entries: count(root)}
		if r.DumpBytes, err = writeDump(path, root); err != nil {
			return err
		}
		if err := measure(&r, o, path, work); err != nil {
			return fmt.Errorf("tree %s: %w", in.name, err)
		}
		rows = append(rows, r)
	}
	return render(out, rows, o)
}

func findPeer() string {
	if path, err := exec.LookPath("mkcomposefs"); err == nil {
		return path
	}
	if cache, err := os.UserCacheDir(); err == nil {
		if path, err := exec.LookPath(filepath.Join(cache, "cfsboot/mkcomposefs/bin/mkcomposefs")); err == nil {
			return path
		}
	}
	return ""
}

func writeDump(path string, root *tree.Node) (int64, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := dump.Write(f, root); err != nil {
		return 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), f.Close()
}

// result is one run of one program.
type result struct {
	id        string
	wall, cpu time.Duration
	rss       int64
}

func run(args ...string) (result, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	var stdout strings.Builder
	cmd.Stdout = &stdout
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("%s: %w", args[0], err)
	}
	r := result{id: strings.TrimSpace(stdout.String()), wall: time.Since(start), cpu: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		r.rss = usage.Maxrss << 10
	}
	return r, nil
}

// measure lets the programs take turns, after one run each that does not count.
func measure(r *row, o options, path, work string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	image, peerImage := filepath.Join(work, "image"), filepath.Join(work, "image.peer")
	var ours, peers []result
	for i := range o.runs + 1 {
		a, err := run(self, "-image", path, image)
		if err != nil {
			return err
		}
		if i > 0 {
			ours = append(ours, a)
		}
		r.ImageIDSHA256 = a.id
		if o.peer == "" {
			continue
		}
		b, err := run(o.peer, "--min-version=1", "--max-version=1", "--print-digest", "--from-file", path, peerImage)
		if err != nil {
			return err
		}
		if i > 0 {
			peers = append(peers, b)
		}
		if r.SameID = a.id == b.id; !r.SameID {
			return fmt.Errorf("image IDs differ: ours %s, %s says %s", a.id, o.peer, b.id)
		}
	}
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	r.ImageBytes = info.Size()
	r.OurSeconds, r.OurCPU, r.OurRSSBytes = median(ours)
	if len(peers) > 0 {
		r.PeerSeconds, r.PeerCPU, r.PeerRSSBytes = median(peers)
		r.Ratio = r.OurSeconds / r.PeerSeconds
	}
	return nil
}

// median returns the medians of wall and CPU time in seconds, and the largest
// resident size.
func median(list []result) (wall, cpu float64, rss int64) {
	mid := func(of func(result) time.Duration) float64 {
		var v []time.Duration
		for _, r := range list {
			v = append(v, of(r))
		}
		slices.Sort(v)
		return ((v[len(v)/2] + v[(len(v)-1)/2]) / 2).Seconds()
	}
	for _, r := range list {
		rss = max(rss, r.rss)
	}
	return mid(func(r result) time.Duration { return r.wall }), mid(func(r result) time.Duration { return r.cpu }), rss
}

func render(out io.Writer, rows []row, o options) error {
	if o.json {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(map[string]any{"schema": "cfsboot.bench-encode/1", "runs": o.runs, "trees": rows})
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "TREE\tENTRIES\tDUMP\tIMAGE\tOURS\tCPU\tRSS\tMKCOMPOSEFS\tCPU\tRSS\tRATIO")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%.3f s\t%.3f s\t%s", r.Tree, r.Entries, mib(r.DumpBytes), mib(r.ImageBytes), r.OurSeconds, r.OurCPU, mib(r.OurRSSBytes))
		if r.SameID {
			fmt.Fprintf(w, "\t%.3f s\t%.3f s\t%s\t%.2f\n", r.PeerSeconds, r.PeerCPU, mib(r.PeerRSSBytes), r.Ratio)
		} else {
			fmt.Fprintln(w, "\tnot installed\t\t\t")
		}
	}
	return w.Flush()
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
