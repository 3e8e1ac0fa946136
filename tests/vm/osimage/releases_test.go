package osimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
)

func TestTarOf(t *testing.T) {
	files := []File{
		{Name: "/usr/lib/systemd/system/x.service", Data: "text"},
		{Name: "/usr/lib/systemd/system/a.target.wants/x.service", Link: "../x.service"},
		{Name: "/usr/bin/tool", Data: "#!/bin/sh\n", Mode: 0o755},
	}
	layer, err := tarOf(files)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(files)
	again, err := tarOf(files)
	if err != nil || !bytes.Equal(layer, again) {
		t.Errorf("the order of the files changes the layer, error %v", err)
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname+string(data))
	}
	want := "-rwxr-xr-x usr/bin/tool #!/bin/sh\n|drwxr-xr-x usr/lib/systemd/system/a.target.wants/ |" +
		"Lrwxrwxrwx usr/lib/systemd/system/a.target.wants/x.service ../x.service|-rw-r--r-- usr/lib/systemd/system/x.service text"
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got  %q\nwant %q", s, want)
	}
	// Readers want the two empty blocks at the end.
	if n := len(layer); n%512 != 0 || !bytes.Equal(layer[n-1024:], make([]byte, 1024)) {
		t.Errorf("the layer, %d bytes, does not end as a tar file does", n)
	}
}

func TestWithVersion(t *testing.T) {
	got := withVersion("PRETTY_NAME=\"a\"\nVERSION_ID=\"13.1\"\nOTHER_VERSION_ID=x\n", "14.2")
	if want := "PRETTY_NAME=\"cfsboot lab 14.2\"\nVERSION_ID=\"14.2\"\nOTHER_VERSION_ID=x\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNextSharesEverySecondPayload(t *testing.T) {
	var pads []int
	for n := 1; n <= 5; n++ {
		pads = append(pads, Next(n, 0).Pad)
	}
	if want := []int{512, 1024, 1024, 1536, 1536}; !slices.Equal(pads, want) {
		t.Errorf("got %v, want %v", pads, want)
	}
}
