package pull_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/internal/testutil/cfsctl"
	"github.com/cfsboot/cfsboot/internal/testutil/repotest"
	"github.com/cfsboot/cfsboot/keyring"
	"github.com/cfsboot/cfsboot/repo/oci/ocitest"
)

// labelled collects the members of a layer; directories come before what is in them.
type labelled struct {
	t     *testing.T
	out   bytes.Buffer
	tar   *tar.Writer
	kind  map[string]byte // by name, without a slash at the end
	files []string        // what hard links can lead to
}

func newLabelled(t *testing.T) *labelled {
	t.Helper()
	l := &labelled{t: t, kind: map[string]byte{}}
	l.tar = tar.NewWriter(&l.out)
	for _, name := range []string{"usr", "boot", "sysroot", "etc", "run"} {
		l.add(name, tar.TypeDir, "")
	}
	return l
}

// add enters a member unless something else is there or in its way. text is the
// contents, or the target of a link.
func (l *labelled) add(name string, kind byte, text string) {
	l.t.Helper()
	if _, there := l.kind[name]; there {
		return
	}
	if dir := path.Dir(name); dir != "." {
		if l.add(dir, tar.TypeDir, ""); l.kind[dir] != tar.TypeDir {
			return
		}
	}
	h := &tar.Header{Name: name, Typeflag: kind, Mode: 0o755, ModTime: time.Unix(1700000000, 0), Format: tar.FormatPAX}
	switch kind {
	case tar.TypeReg:
		h.Size = int64(len(text))
	case tar.TypeSymlink, tar.TypeLink:
		h.Linkname = text
	case tar.TypeChar, tar.TypeBlock:
		h.Devmajor, h.Devminor = 1, 3
	}
	if err := l.tar.WriteHeader(h); err != nil {
		l.t.Fatal(err)
	}
	if kind == tar.TypeReg {
		if _, err := l.tar.Write([]byte(text)); err != nil {
			l.t.Fatal(err)
		}
	}
	l.kind[name] = kind
	if kind == tar.TypeReg {
		l.files = append(l.files, name)
	}
}

func (l *labelled) policy(suffix, text string) {
	l.add("etc/selinux/config", tar.TypeReg, "SELINUXTYPE=toy\n")
	l.add("etc/selinux/toy/contexts/files/file_contexts"+suffix, tar.TypeReg, text)
}

// layout writes the image.
func (l *labelled) layout() string {
	l.t.Helper()
	if err := l.tar.Close(); err != nil {
		l.t.Fatal(err)
	}
	img := build(l.t, ocitest.Spec{Layers: []ocitest.Layer{{Tar: l.out.Bytes()}}})
	dir := l.t.TempDir()
	if err := img.WriteLayout(dir, ""); err != nil {
		l.t.Fatal(err)
	}
	return dir
}

// randomPolicy has files of every type, hard links, and specs and aliases that are
// about them, of all kinds that both programs take.
func randomPolicy(t *testing.T, r *rand.Rand) string {
	t.Helper()
	l := newLabelled(t)
	parts := []string{"a", "b", "ab", "a.b", "lib", "lib64", "x-1", "é", "A", "c d", "d\n"}
	name := func() string {
		var at []string
		for range r.IntN(4) + 1 {
			at = append(at, parts[r.IntN(len(parts))])
		}
		return strings.Join(at, "/")
	}
	for range 60 {
		kind := []byte{tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock, tar.TypeLink}[r.IntN(9)]
		text := "t"
		if kind == tar.TypeLink {
			if len(l.files) == 0 {
				continue
			}
			text = l.files[r.IntN(len(l.files))]
		}
		l.add(name(), kind, text)
	}
	pieces := []string{
		"/a", "/b", "/[ab]+", "/.*", "/[^/]+", "(/.*)?", "/lib(64)?", `/a\.b`, "/x-[0-9]{1,2}", "/é?", "/(?i:a)", "/(?!b).*", "/.*(?<!b)", "/[[:alpha:]]*", `/\w+`,
		`/c\sd`, "/.*b", "/a*+", `/(a|ab|lib)\b.*`, "/[é]+", "/[]-a]", "/d.", "/(?=l)lib.*", "/{", "/a{", `/\S+`, "/(?>a*)b?", "^/ab", "/a$",
	}
	spec := func() string {
		text := ""
		for range r.IntN(3) + 1 {
			text += pieces[r.IntN(len(pieces))]
		}
		return text + " " + []string{"", "", "", "--", "-d", "-l", "-p", "-c", "-b", "-s"}[r.IntN(10)] + " " + []string{"u:r:one_t:s0", "u:r:two_t:s0", "u:r:three_t:s0", "<<none>>"}[r.IntN(4)] + "\n"
	}
	plain := strings.NewReplacer(" ", "", "\n", "")
	alias := func() string { return "/" + plain.Replace(name()) + " /" + plain.Replace(name()) + "\n" }
	several := func(line func() string, n int) string {
		text := ""
		for range n {
			text += line()
		}
		return text
	}
	l.policy("", "/.* u:r:default_t:s0\n"+several(spec, r.IntN(12)))
	if r.IntN(2) == 0 {
		l.policy(".local", several(spec, 2))
		l.policy(".homedirs", several(spec, 2))
	}
	l.policy(".subs", several(alias, 2))
	l.policy(".subs_dist", several(alias, 3))
	return l.layout()
}

// TestOracleLabels: cfsctl gives the boot images of random trees and policies the IDs
// that we give them.
func TestOracleLabels(t *testing.T) {
	tool := cfsctl.Find(t)
	layouts := map[string]string{}
	for seed := range uint64(12) {
		layouts[fmt.Sprintf("random%d", seed)] = randomPolicy(t, rand.New(rand.NewPCG(seed, 5)))
	}
	ours, theirs := repotest.New(t, fsverity.SHA256), t.TempDir()
	p := peer{t, tool, theirs}
	p.must("init", "--insecure", "--algorithm", "fsverity-sha256-12", theirs)
	accepted := 0
	for name, dir := range layouts {
		res, ourErr := pullLayout(t, ours, dir, name)
		_, theirErr := p.run("oci", "pull", "--bootable", "oci:"+dir, name)
		if (ourErr == nil) != (theirErr == nil) {
			t.Errorf("%s: we say %v, cfsctl %v", name, ourErr, theirErr)
		}
		if ourErr != nil || theirErr != nil {
			continue
		}
		accepted++
		boot, _ := res.Verified.Digest(keyring.Boot)
		if want := inspect(t, p, name); boot.Hex() != want.Boot {
			t.Errorf("%s: boot image %s, cfsctl has %s", name, boot.Hex(), want.Boot)
		}
	}
	if accepted < len(layouts)*3/4 {
		t.Errorf("only %d of %d images were taken", accepted, len(layouts))
	}
}
