package splitstream_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/cfsboot/cfsboot/fsverity"
	"github.com/cfsboot/cfsboot/repo/splitstream"
)

// write adds pieces, by turns inline and external.
func write(t testing.TB, w *splitstream.Writer, pieces ...[]byte) {
	t.Helper()
	for i, p := range pieces {
		var err error
		if i%2 == 0 {
			_, err = w.Write(p)
		} else {
			err = w.External(fsverity.Sum(fsverity.SHA256, p), int64(len(p)))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func finish(t testing.TB, w *splitstream.Writer) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := w.Finish(&b)
	if err != nil {
		t.Fatal(err)
	}
	if n != int64(b.Len()) {
		t.Fatalf("Finish says %d bytes, wrote %d", n, b.Len())
	}
	return b.Bytes()
}

func pattern(n, seed int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((i + seed) % 251)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	hundred := [][]byte{pattern(100, 0), pattern(1000, 1)}
	for _, c := range []struct {
		name    string
		pieces  [][]byte // inline, external, inline, ...
		chunks  []int64
		objects int
	}{
		{"empty", nil, nil, 0},
		{"inline only", [][]byte{pattern(700, 0)}, []int64{-700}, 0},
		{"one external", [][]byte{nil, pattern(5000, 0)}, []int64{0}, 1},
		{"512 inline, 64 KiB external, 1024 inline", [][]byte{pattern(512, 0), pattern(65536, 1), pattern(1024, 2)}, []int64{-512, 0, -1024}, 1},
		{"several externals", [][]byte{nil, pattern(10, 1), nil, pattern(20, 2), nil, pattern(30, 3)}, []int64{0, 1, 2}, 3},
		{"four times two objects", [][]byte{{1}, pattern(80, 1), {2}, pattern(80, 2), {3}, pattern(80, 1), {4}, pattern(80, 2)},
			[]int64{-1, 0, -1, 1, -1, 0, -1, 1}, 2},
		{"boundary sizes", [][]byte{{1}, pattern(4095, 0), {2}, pattern(4096, 0), {3}, pattern(4097, 0), {4}, pattern(65535, 0), {5}, pattern(65536, 0), {6}, pattern(65537, 0)},
			[]int64{-1, 0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5}, 6},
		{"total size", hundred, []int64{-100, 0}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := splitstream.NewWriter(fsverity.SHA256, splitstream.WriterOptions{ContentType: splitstream.Layer})
			write(t, w, c.pieces...)
			want := bytes.Join(c.pieces, nil)
			if w.Size() != int64(len(want)) {
				t.Errorf("size of the writer: got %d, want %d", w.Size(), len(want))
			}
			b := finish(t, w)
			r := read(t, b, fsverity.SHA256)
			if r.Size() != int64(len(want)) || r.Objects() != c.objects {
				t.Errorf("got %d bytes and %d objects, want %d and %d", r.Size(), r.Objects(), len(want), c.objects)
			}
			var got bytes.Buffer
			if err := r.Cat(&got, opener(c.pieces...)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Error("the stream differs")
			}
			list, _ := chunks(t, read(t, b, fsverity.SHA256))
			if diff := cmp.Diff(c.chunks, list); diff != "" {
				t.Errorf("chunks mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNamedRefs(t *testing.T) {
	a, b := fsverity.Sum(fsverity.SHA512, []byte("a")), fsverity.Sum(fsverity.SHA512, []byte("b"))
	w := splitstream.NewWriter(fsverity.SHA512, splitstream.WriterOptions{})
	for _, n := range []splitstream.NamedRef{{"sha256:z", a}, {"config:sha256:x", b}, {"empty after:", a}, {"", b}, {"twice", a}, {"twice", b}} {
		if err := w.Named(n.Name, n.Digest); err != nil {
			t.Fatal(err)
		}
	}
	r := read(t, finish(t, w), fsverity.SHA512)
	want := []splitstream.NamedRef{{"", b}, {"config:sha256:x", b}, {"empty after:", a}, {"sha256:z", a}, {"twice", b}}
	if got := r.NamedRefs(); !equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if r.Objects() != 0 {
		t.Errorf("named references are among %d objects", r.Objects())
	}
	if _, err := r.Single(); err == nil {
		t.Error("Single without an object succeeded")
	}
}

func equal(a, b []splitstream.NamedRef) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func TestWriterRefuses(t *testing.T) {
	w := splitstream.NewWriter(fsverity.SHA256, splitstream.WriterOptions{})
	defer w.Close()
	d := fsverity.Sum(fsverity.SHA256, nil)
	for name, err := range map[string]error{
		"other algorithm":  w.External(fsverity.Sum(fsverity.SHA512, nil), 0),
		"no digest":        w.External(fsverity.Digest{}, 0),
		"negative size":    w.External(d, -1),
		"NUL in a name":    w.Named("a\x00b", d),
		"name not UTF-8":   w.Named("\xff", d),
		"named other hash": w.Named("a", fsverity.Sum(fsverity.SHA512, nil)),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := w.Finish(iotest.TruncateWriter(io.Discard, 0)); err != nil {
		t.Errorf("the refused calls broke the writer: %v", err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after Finish succeeded")
	}
}

// memory is a Temp that counts.
type memory struct {
	bytes.Buffer
	open *int
}

func (m *memory) ReadAt(p []byte, offset int64) (int, error) {
	return bytes.NewReader(m.Bytes()).ReadAt(p, offset)
}

func (m *memory) Close() error { *m.open--; return nil }

// TestSpool: long inline runs and long streams go to scratch space, which is
// dropped, and give the same bytes as in memory.
func TestSpool(t *testing.T) {
	noise := make([]byte, 5<<20)
	state := uint64(1)
	for i := range noise {
		state = state*6364136223846793005 + 1442695040888963407
		noise[i] = byte(state >> 56)
	}
	open, used := 0, 0
	temp := func() (splitstream.Temp, error) { open++; used++; return &memory{open: &open}, nil }
	run := func(opts splitstream.WriterOptions, step int) []byte {
		w := splitstream.NewWriter(fsverity.SHA256, opts)
		for i := 0; i < len(noise); i += step {
			write(t, w, noise[i:min(i+step, len(noise))])
		}
		write(t, w, nil, []byte("external"), noise[:3<<20])
		return finish(t, w)
	}
	want := run(splitstream.WriterOptions{}, 1<<20)
	if got := run(splitstream.WriterOptions{Temp: temp}, 4096); !bytes.Equal(got, want) {
		t.Error("the bytes depend on scratch space or on the size of writes")
	}
	if open != 0 || used < 2 {
		t.Errorf("%d of %d scratch files are left", open, used)
	}
	var got bytes.Buffer
	if err := read(t, want, fsverity.SHA256).Cat(&got, opener([]byte("external"))); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), append(append(bytes.Clone(noise), "external"...), noise[:3<<20]...)) {
		t.Error("the stream differs")
	}
	full := errors.New("disk full")
	w := splitstream.NewWriter(fsverity.SHA256, splitstream.WriterOptions{Temp: func() (splitstream.Temp, error) { return nil, full }})
	if _, err := w.Write(noise); !errors.Is(err, full) {
		t.Errorf("write: got %v, want the error of the scratch file", err)
	}
	if _, err := w.Finish(io.Discard); !errors.Is(err, full) {
		t.Errorf("finish: got %v, want the error of the scratch file", err)
	}
}

// file builds a splitstream from its parts, each valid unless a test changes it.
type file struct {
	head             []byte // 112 bytes
	streams, objects []byte
	named, stream    []byte
}

func compress(b []byte) []byte {
	enc, err := zstd.NewWriter(nil, zstd.WithZeroFrames(true))
	if err != nil {
		panic(err)
	}
	return enc.EncodeAll(b, nil)
}

func valid() file {
	return file{
		head:    make([]byte, 112),
		streams: bytes.Repeat([]byte{1}, 32),
		objects: bytes.Repeat([]byte{2}, 64),
		named:   compress([]byte("0:name\x00")),
		stream:  compress(append(chunk(-3), "abc"...)),
	}
}

func chunk(n int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(n)) }

func (f file) bytes() []byte {
	copy(f.head, "SplitStream\x00\x00\x00\x01\x0c")
	put := func(at, v int) { binary.LittleEndian.PutUint64(f.head[at:], uint64(v)) }
	put(16, 32)
	put(24, 112)
	at := 112
	for i, part := range [][]byte{f.streams, f.objects, f.named, f.stream} {
		field := []int{32, 48, 80, 64}[i]
		put(field, at)
		at += len(part)
		put(field+8, at)
	}
	put(104, 1000)
	return bytes.Join([][]byte{f.head, f.streams, f.objects, f.named, f.stream}, nil)
}

func readAll(b []byte) error {
	r, err := splitstream.NewReader(bytes.NewReader(b), int64(len(b)), fsverity.SHA256)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if _, err := r.Next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestRejects(t *testing.T) {
	if err := readAll(valid().bytes()); err != nil {
		t.Fatalf("the valid file: %v", err)
	}
	at := func(offset int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[offset:], v); return b }
	}
	set := func(offset int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[offset] = v; return b }
	}
	with := func(change func(*file)) func([]byte) []byte {
		return func([]byte) []byte { f := valid(); change(&f); return f.bytes() }
	}
	named := func(s string) func([]byte) []byte {
		return with(func(f *file) { f.named = compress([]byte(s)) })
	}
	stream := func(b ...byte) func([]byte) []byte { return with(func(f *file) { f.stream = compress(b) }) }
	for _, c := range []struct {
		name, field string
		change      func([]byte) []byte
	}{
		{"empty file", "header", func([]byte) []byte { return nil }},
		{"cut in the header", "header", func(b []byte) []byte { return b[:31] }},
		{"magic", "header.magic", set(3, 'x')},
		{"version", "header.version", set(11, 1)},
		{"algorithm of another repository", "header.algorithm", set(14, 2)},
		{"unknown algorithm", "header.algorithm", set(14, 0)},
		{"block size", "header.lg_blocksize", set(15, 13)},
		{"info reversed", "header.info", at(16, 113)},
		{"info beyond the end", "header.info", at(24, 1<<40)},
		{"info end near 2^64", "header.info", at(24, math.MaxUint64)},
		{"info too small", "header.info", at(24, 111)},
		{"cut in info", "header.info", func(b []byte) []byte { return b[:100] }},
		{"stream_refs beyond the end", "info.stream_refs", at(40, 1<<40)},
		{"object_refs reversed", "info.object_refs", at(48, 1<<20)},
		{"object_refs overlap stream_refs", "info.object_refs", at(48, 112)},
		{"stream overlaps the header", "info.stream", at(64, 0)},
		{"named_refs overlap stream", "info.named_refs", func(b []byte) []byte { return at(88, uint64(len(b)))(b) }},
		{"stream_size negative", "info.stream_size", at(104, 1<<63)},
		{"stream_refs odd", "stream_refs", with(func(f *file) { f.streams = f.streams[:31] })},
		{"object_refs odd", "object_refs", with(func(f *file) { f.objects = append(f.objects, 1) })},
		{"named_refs without frame", "named_refs", with(func(f *file) { f.named = nil })},
		{"stream without frame", "stream", with(func(f *file) { f.stream = nil })},
		{"named_refs not zstd", "named_refs", with(func(f *file) { f.named = []byte("plain text") })},
		{"named_refs cut", "named_refs", with(func(f *file) { f.named = f.named[:len(f.named)-3] })},
		{"named_refs bomb", "named_refs", with(func(f *file) { f.named = compress(make([]byte, 17<<20)) })},
		{"no NUL", "named_refs", named("0:name")},
		{"rest without NUL", "named_refs", named("0:name\x000:x")},
		{"no colon", "named_refs", named("0\x00")},
		{"index not a number", "named_refs", named("x:name\x00")},
		{"index negative", "named_refs", named("-1:name\x00")},
		{"index signed", "named_refs", named("+0:name\x00")},
		{"index empty", "named_refs", named(":name\x00")},
		{"index out of range", "named_refs", named("1:name\x00")},
		{"index huge", "named_refs", named("99999999999999999999:name\x00")},
		{"name not UTF-8", "named_refs", named("0:\xff\x00")},
		{"stream not zstd", "stream", with(func(f *file) { f.stream = []byte("plain text") })},
		{"stream cut", "stream", with(func(f *file) { f.stream = f.stream[:len(f.stream)-2] })},
		{"chunk head cut", "stream", stream(1, 2, 3)},
		{"object out of range", "stream", stream(chunk(2)...)},
		{"object huge", "stream", stream(chunk(math.MaxInt64)...)},
		{"inline chunk cut", "stream", stream(append(chunk(-4), "abc"...)...)},
		{"inline chunk of 2^62", "stream", stream(append(chunk(-(1 << 62)), "abc"...)...)},
		{"inline chunk of 2^63", "stream", stream(append(chunk(math.MinInt64), "abc"...)...)},
		{"inline chunk longer than the stream", "stream", stream(chunk(-1001)...)},
		{"more inline bytes than the stream has", "stream", stream(bytes.Repeat(append(chunk(-1), 'x'), 1<<20)...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := readAll(c.change(valid().bytes()))
			var f *splitstream.FormatError
			if !errors.As(err, &f) {
				t.Fatalf("got %v, want a FormatError", err)
			}
			if f.Field != c.field {
				t.Errorf("got %v, want the field %s", err, c.field)
			}
		})
	}
}

// TestAccepts: what other conforming writers may produce.
func TestAccepts(t *testing.T) {
	long := valid()
	b := long.bytes()
	if err := readAll(append(b, "junk behind the sections"...)); err != nil {
		t.Errorf("bytes behind the sections: %v", err)
	}
	f := valid()
	f.stream = append(compress(append(chunk(-3), 'a')), compress([]byte("bc"))...)
	if err := readAll(f.bytes()); err != nil {
		t.Errorf("two frames: %v", err)
	}
	f.named = compress([]byte("0:b\x000:a\x000:a\x00"))
	if err := readAll(f.bytes()); err != nil {
		t.Errorf("named references unsorted and twice: %v", err)
	}
	empty := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x20, 0x00, 0x01, 0x00, 0x00} // what libzstd writes for nothing
	f.named, f.stream = empty, empty
	if err := readAll(f.bytes()); err != nil {
		t.Errorf("empty frames: %v", err)
	}
}

func TestContentType(t *testing.T) {
	b := vector(t, "layer")
	if _, err := splitstream.NewReaderOf(bytes.NewReader(b), int64(len(b)), fsverity.SHA256, splitstream.Layer); err != nil {
		t.Error(err)
	}
	_, err := splitstream.NewReaderOf(bytes.NewReader(b), int64(len(b)), fsverity.SHA256, splitstream.Config)
	var f *splitstream.FormatError
	if !errors.As(err, &f) || f.Field != "info.content_type" {
		t.Errorf("got %v, want a FormatError about the content type", err)
	}
	for typ, want := range map[splitstream.ContentType]string{
		splitstream.Layer: "ocilayer", splitstream.Config: "ociconfg", splitstream.Manifest: "ocimanif", splitstream.Blob: "oci_blob", 0: "0x0",
	} {
		if got := typ.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestCatChecksLength(t *testing.T) {
	b := valid().bytes() // says 1000 bytes, has 3
	err := read(t, b, fsverity.SHA256).Cat(io.Discard, opener())
	var f *splitstream.FormatError
	if !errors.As(err, &f) || f.Field != "info.stream_size" {
		t.Errorf("got %v, want a FormatError about the length", err)
	}
	layer := read(t, vector(t, "layer"), fsverity.SHA256)
	if err := layer.Cat(io.Discard, opener()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing object: got %v", err)
	}
}

// TestCatStops: a small file that names an object again and again does not make
// us write it for ever.
func TestCatStops(t *testing.T) {
	f := valid() // says 1000 bytes
	f.stream = compress(make([]byte, 8<<20))
	content, opened := make([]byte, 300), 0
	err := read(t, f.bytes(), fsverity.SHA256).Cat(io.Discard, func(fsverity.Digest) (io.ReadCloser, error) {
		opened++
		return io.NopCloser(bytes.NewReader(content)), nil
	})
	var format *splitstream.FormatError
	if !errors.As(err, &format) || format.Field != "info.stream_size" || opened != 4 {
		t.Errorf("got %v after %d objects, want a FormatError after 4", err, opened)
	}
}

// holes is a file with zeros behind its content.
type holes []byte

func (h holes) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	if offset < int64(len(h)) {
		copy(p, h[offset:])
	}
	return len(p), nil
}

// TestTableLimit: a sparse file does not make us allocate what it claims.
func TestTableLimit(t *testing.T) {
	b := valid().bytes()
	binary.LittleEndian.PutUint64(b[48:], uint64(len(b)))
	binary.LittleEndian.PutUint64(b[56:], uint64(len(b)+1<<40))
	_, err := splitstream.NewReader(holes(b), int64(len(b)+1<<40), fsverity.SHA256)
	var f *splitstream.FormatError
	if !errors.As(err, &f) || f.Field != "object_refs" {
		t.Errorf("got %v, want a FormatError about object_refs", err)
	}
}

// failing is a file that cannot be read behind an offset.
type failing struct {
	b   []byte
	end int64
}

func (f failing) ReadAt(p []byte, offset int64) (int, error) {
	if offset+int64(len(p)) > f.end {
		return 0, fmt.Errorf("sector: %w", os.ErrPermission)
	}
	return bytes.NewReader(f.b).ReadAt(p, offset)
}

// TestReadErrors: an error of the medium is not a FormatError.
func TestReadErrors(t *testing.T) {
	b := vector(t, "layer")
	for end := range int64(len(b)) {
		r, err := splitstream.NewReader(failing{b, end}, int64(len(b)), fsverity.SHA256)
		if err == nil {
			err = r.Cat(io.Discard, opener())
		}
		var f *splitstream.FormatError
		if !errors.Is(err, os.ErrPermission) || errors.As(err, &f) {
			t.Fatalf("unreadable from byte %d: got %v", end, err)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, name := range []string{"hello", "layer", "config", "manifest"} {
		f.Add(vector(f, name))
	}
	f.Add(valid().bytes())
	f.Add(oldHeader(valid().bytes()))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := readAll(b)
		var format *splitstream.FormatError
		if err != nil && !errors.As(err, &format) {
			t.Fatalf("got %v, want a FormatError", err)
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	head := header("usr/share/doc/package/copyright", '0', 0o644, 4096, 1700000000, "")
	b.SetBytes(512 * 1000)
	b.ReportAllocs()
	for b.Loop() {
		w := splitstream.NewWriter(fsverity.SHA512, splitstream.WriterOptions{ContentType: splitstream.Layer})
		for i := range 1000 {
			d := fsverity.Sum(fsverity.SHA512, []byte{byte(i), byte(i >> 8)})
			if _, err := w.Write(head); err != nil {
				b.Fatal(err)
			}
			if err := w.External(d, 4096); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Finish(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
