package registry

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"time"
)

// source serves size bytes to every connection, after it has read one byte.
func source(t *testing.T, size int) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := c.Read(make([]byte, 1)); err == nil {
					_, _ = c.Write(bytes.Repeat([]byte("x"), size))
				}
			}()
		}
	}()
	return l.Addr().String()
}

func relayTo(t *testing.T, backend string) (*Relay, string) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := newRelay(l, backend)
	t.Cleanup(func() { _ = r.Close() })
	return r, l.Addr().String()
}

func fetch(t *testing.T, addr string) (int64, time.Duration, error) {
	t.Helper()
	start := time.Now()
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, c)
	return n, time.Since(start), err
}

func TestRelayCountsAndLimits(t *testing.T) {
	const size = 256 << 10
	r, addr := relayTo(t, source(t, size))
	if n, _, err := fetch(t, addr); n != size || err != nil {
		t.Fatalf("got %d bytes, error %v, want %d", n, err, size)
	}
	if r.Sent() != size {
		t.Errorf("sent %d, want %d", r.Sent(), size)
	}
	r.SetRate(size * 4) // a quarter of a second
	if n, d, err := fetch(t, addr); n != size || err != nil || d < 200*time.Millisecond {
		t.Errorf("limited: %d bytes in %v, error %v", n, d, err)
	}
}

func TestRelayCuts(t *testing.T) {
	const size = 64 << 20
	r, addr := relayTo(t, source(t, size))
	r.SetRate(1 << 20)
	go func() {
		for r.Sent() < 64<<10 {
			time.Sleep(time.Millisecond)
		}
		r.Cut()
	}()
	if n, _, _ := fetch(t, addr); n == 0 || n >= size {
		t.Errorf("got %d of %d bytes, want a part", n, size)
	}
}

func TestVMRegistry(t *testing.T) {
	if os.Getenv("CFSBOOT_VM_TESTS") != "1" {
		t.Skip("starts docker-registry: CFSBOOT_VM_TESTS is not 1")
	}
	var ports [2][]int
	for i := range ports {
		r, err := Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d, err := r.Digest(t.Context(), "no/such", "image"); d != "" || err != nil {
			t.Errorf("missing image: digest %q, error %v", d, err)
		}
		for _, relay := range r.Relays {
			ports[i] = append(ports[i], relay.Port)
		}
		auth, err := r.AuthFile()
		if err != nil || !json.Valid(auth) {
			t.Errorf("auth file %q, error %v", auth, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if len(ports[0]) != relays || !slices.Equal(ports[0], ports[1]) {
		t.Errorf("ports %v, want the same ones twice", ports)
	}
}
