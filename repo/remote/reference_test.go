package remote_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cfsboot/cfsboot/repo/remote"
)

func TestParseReference(t *testing.T) {
	t.Parallel()
	type ref = remote.ParsedReference
	for in, want := range map[string]ref{
		"oci:/p/oci":                     {Layout: true, Path: "/p/oci"},
		"oci:/p/oci:v1":                  {Layout: true, Path: "/p/oci", Tag: "v1", HasTag: true},
		"oci:/p/x:tag:with:colons":       {Layout: true, Path: "/p/x:tag:with", Tag: "colons", HasTag: true},
		"oci:/p:q/oci":                   {Layout: true, Path: "/p:q/oci"},
		"oci:dir:":                       {Layout: true, Path: "dir", HasTag: true},
		"oci:dir:v\nb":                   {},
		"oci:dir:\x1b[2J":                {},
		"docker://quay.io/x/y:z":         {Name: "quay.io/x/y:z"},
		"registry:quay.io/x/y":           {Name: "quay.io/x/y"},
		"quay.io/x/y@sha256:0":           {Name: "quay.io/x/y@sha256:0"},
		"localhost:5000/x":               {Name: "localhost:5000/x"},
		"docker:5000/x":                  {Name: "docker:5000/x"},
		"dir:5000/x":                     {Name: "dir:5000/x"},
		"debian":                         {Name: "debian"},
		"":                               {},
		"oci:":                           {},
		"registry:":                      {},
		"docker://":                      {},
		"docker:debian":                  {},
		"dir:/x":                         {},
		"containers-storage:localhost/x": {},
		"oci-archive:/x.tar":             {},
		"https://quay.io/x":              {},
		"docker://http://quay.io/x":      {},
		"registry:https://quay.io/x":     {},
		"debian:12@sha256:0":             {Name: "debian:12@sha256:0"},
		"alice:secret@quay.io/x":         {},
		"docker://alice@quay.io/x":       {},
	} {
		got, err := remote.ParseReference(in)
		if (err != nil) != (want == ref{}) {
			t.Errorf("%q: error %v", in, err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%q mismatch (-want +got):\n%s", in, d)
		}
	}
}

// TestURL: a reference that is a URL gets an answer in words of the command line.
func TestURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"http://h/x": "use docker://", "docker://http://h/x": "without http://", "https://h/x": "use docker://"} {
		if _, err := remote.ParseReference(in); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "name.Insecure") {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}

// TestCheckReference: what Open would refuse, without asking anybody.
func TestCheckReference(t *testing.T) {
	for s, good := range map[string]bool{
		"docker://registry.example/os:1": true, "registry.example:5000/a/os": true, "registry:os": true, "oci:dir:Tag": true, "oci:/Dir": true,
		"registry.example/os@sha256:" + strings.Repeat("1", 64): true,
		"docker://UPPER/Name:t":                                 false,
		"docker://a:b:c:d":                                      false,
		"docker://-":                                            false,
		"docker://host/name@sha256:12":                          false,
		"oci-archive:/x.tar":                                    false,
		"oci:":                                                  false,
		"":                                                      false,
		"docker://alice:secret@host/os:1":                       false,
	} {
		err := remote.CheckReference(s)
		e, is := errors.AsType[*remote.ReferenceError](err)
		if is == good || err != nil != is {
			t.Errorf("%q: got %v", s, err)
		}
		if is && strings.Contains(e.Error(), "secret") {
			t.Errorf("%q: the error has the password: %v", s, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"7": 7 * time.Second, "0": 0, "Fri, 02 Jan 2026 03:04:15 GMT": 10 * time.Second, "Fri, 02 Jan 2026 03:04:00 GMT": 0,
		"": -1, "-3": -1, "soon": -1, "99999999999": -1,
	} {
		got, ok := remote.RetryAfter(in, now)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %v, want %v", in, got, want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	for _, s := range []string{"oci:/a:b", "docker://x/y@sha256:00", "", "a:b:c", "dir:9", "registry:", "registry:a@b://c", "alice:secret@quay.io/x@y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := remote.ParseReference(s)
		if err == nil && r.Layout == (r.Name != "") {
			t.Errorf("%q is %+v: want either a layout or a name", s, r)
		}
		if err == nil {
			return
		}
		var e *remote.ReferenceError
		if _, err := remote.Open(t.Context(), s, remote.Options{}); !errors.As(err, &e) {
			t.Errorf("%q: got %v, want a *ReferenceError", s, err)
		}
	})
}
