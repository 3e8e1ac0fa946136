package selabel_test

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/cfsboot/cfsboot/bootimage/selabel"
)

// largePolicy returns a policy of the size and the kinds of specs that distributions
// have, and 10,000 paths to ask it for, half of them with a label of their own.
func largePolicy() (selabel.Files, []string) {
	var text bytes.Buffer
	text.WriteString("/.* system_u:object_r:default_t:s0\n/ -d system_u:object_r:root_t:s0\n")
	for _, dir := range []string{"usr", "etc", "var", "opt", "home", "usr/lib", "usr/bin", "usr/share", "var/lib", "var/log"} {
		fmt.Fprintf(&text, "/%s(/.*)? system_u:object_r:%s_t:s0\n", dir, dir[len(dir)-3:])
	}
	var paths []string
	for i := range 1000 {
		fmt.Fprintf(&text, "/usr/s?bin/prog%d -- system_u:object_r:prog%d_exec_t:s0\n", i, i)
		fmt.Fprintf(&text, "/etc/rc\\.d/init\\.d/prog%d -- system_u:object_r:init_exec_t:s0\n", i)
		fmt.Fprintf(&text, "/usr/lib/(.*/)?libprog%d\\.so(\\.[^/]*)* -- system_u:object_r:lib_t:s0\n", i%40)
		fmt.Fprintf(&text, "/var/(lib|log)/prog%d(/.*)? system_u:object_r:prog%d_var_t:s0\n", i, i)
		fmt.Fprintf(&text, "/etc/prog%d\\.conf.* -- system_u:object_r:prog%d_etc_t:s0\n", i, i)
		fmt.Fprintf(&text, "/dev/prog[0-9]*%d -c system_u:object_r:prog%d_device_t:s0\n", i, i)
		for _, path := range []string{"/usr/bin/prog%d", "/etc/rc.d/init.d/prog%d", "/usr/lib/x86_64-linux-gnu/libprog%d.so.1", "/var/lib/prog%d/db/state", "/etc/prog%d.conf"} {
			paths = append(paths, fmt.Sprintf(path, i))
		}
		for _, path := range []string{"/usr/share/doc/package%d/copyright", "/usr/lib/python3/dist-packages/p%d/__init__.py", "/usr/share/zoneinfo/Area/City%d", "/usr/bin/other%d", "/etc/other.d/%d.conf"} {
			paths = append(paths, fmt.Sprintf(path, i))
		}
	}
	slices.Sort(paths) // as a walk gives them
	return selabel.Files{Contexts: text.Bytes()}, paths
}

// BenchmarkLookup is one path of a tree, with the tables as the first walk left them.
func BenchmarkLookup(b *testing.B) {
	files, paths := largePolicy()
	p, err := selabel.Parse(files)
	if err != nil {
		b.Fatal(err)
	}
	ask := func() {
		for _, path := range paths {
			if _, err := p.Lookup(path, selabel.Regular); err != nil {
				b.Fatal(err)
			}
		}
	}
	ask()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if _, err := p.Lookup(paths[n], selabel.Regular); err != nil {
			b.Fatal(err)
		}
		if n++; n == len(paths) {
			n = 0
		}
	}
}

// BenchmarkCold is a policy read and asked for all paths once, per path.
func BenchmarkCold(b *testing.B) {
	files, paths := largePolicy()
	b.ReportAllocs()
	for b.Loop() {
		p, err := selabel.Parse(files)
		if err != nil {
			b.Fatal(err)
		}
		for _, path := range paths {
			if _, err := p.Lookup(path, selabel.Regular); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(paths)), "ns/path")
}

// BenchmarkParse reads the policy.
func BenchmarkParse(b *testing.B) {
	files, _ := largePolicy()
	b.SetBytes(int64(len(files.Contexts)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := selabel.Parse(files); err != nil {
			b.Fatal(err)
		}
	}
}
