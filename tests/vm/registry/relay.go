package registry

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Relay passes TCP connections on to the registry. It sees ciphertext only: it
// counts, delays and cuts, it does not change anything.
type Relay struct {
	Port     int // on loopback
	listener net.Listener
	backend  string
	sent     atomic.Int64 // bytes from the registry to clients
	rate     atomic.Int64 // bytes per second and connection, 0 = no limit
	mu       sync.Mutex
	open     map[net.Conn]bool
	closed   bool
	wg       sync.WaitGroup
}

func newRelay(l net.Listener, backend string) *Relay {
	r := &Relay{Port: l.Addr().(*net.TCPAddr).Port, listener: l, backend: backend, open: map[net.Conn]bool{}}
	r.wg.Add(1)
	go r.accept()
	return r
}

// GuestReference names an image in the registry as a guest sees it that uses this relay.
func (r *Relay) GuestReference(name string) string {
	return fmt.Sprintf("%s:%d/%s", GuestAddress, r.Port, name)
}

// Sent returns how many bytes went to clients so far.
func (r *Relay) Sent() int64 { return r.sent.Load() }

// SetRate limits each connection's way to the client, in bytes per second; 0
// takes the limit back. It holds for connections that are open, too.
func (r *Relay) SetRate(bytesPerSecond int64) { r.rate.Store(bytesPerSecond) }

// Cut closes all open connections.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.open {
		_ = c.Close()
	}
}

// Close ends the relay.
func (r *Relay) Close() error {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	err := r.listener.Close()
	r.Cut()
	r.wg.Wait()
	return err
}

func (r *Relay) accept() {
	defer r.wg.Done()
	for {
		c, err := r.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, say
			continue
		}
		r.wg.Add(1)
		go r.handle(c)
	}
}

// track remembers a connection until the returned function is called; false
// after Close.
func (r *Relay) track(c net.Conn) (func(), bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		_ = c.Close()
		return nil, false
	}
	r.open[c] = true
	return func() {
		_ = c.Close()
		r.mu.Lock()
		delete(r.open, c)
		r.mu.Unlock()
	}, true
}

func (r *Relay) handle(client net.Conn) {
	defer r.wg.Done()
	release, ok := r.track(client)
	if !ok {
		return
	}
	defer release()
	server, err := net.Dial("tcp4", r.backend) // ends with the registry
	if err != nil {
		return
	}
	release, ok = r.track(server)
	if !ok {
		return
	}
	defer release()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(server, client) // a connection that broke is what the client sees
		_ = server.(*net.TCPConn).CloseWrite()
	}()
	r.toClient(client, server)
	_ = client.(*net.TCPConn).CloseWrite()
	<-done
}

// toClient copies in small pieces, so that a limit takes effect at once.
func (r *Relay) toClient(client, server net.Conn) {
	buf := make([]byte, 16<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			if rate := r.rate.Load(); rate > 0 {
				time.Sleep(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
			}
			if _, werr := client.Write(buf[:n]); werr != nil {
				return
			}
			r.sent.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}
