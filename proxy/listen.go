package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// A countedConn gives its place among the open connections back when it is
// closed.
type countedConn struct {
	*net.TCPConn
	s    *Server
	once sync.Once

	// waiting is since when no request is in hand, in Unix nanoseconds, connBusy or
	// connShed.
	waiting atomic.Int64

	// claimed is the peer by the PROXY protocol, nil without it. It is set before
	// anything else is read.
	claimed net.Addr

	out      sync.Mutex     // held while writing
	held     *[maxHeld]byte // guarded by out: nil while nothing is held back
	gathered int            // guarded by out: bytes of held that wait
	broken   error          // guarded by out: why what was held back did not go out

	// Guarded by the crowd's mu.
	network netip.Addr // what the connection counts for, if it does
	left    bool       // it is closed
}

// RemoteAddr gives the other end, or whom a proxy named as that.
func (c *countedConn) RemoteAddr() net.Addr {
	if c.claimed != nil {
		return c.claimed
	}
	return c.TCPConn.RemoteAddr()
}

// Close closes the connection and frees its place. It may be called again.
func (c *countedConn) Close() error {
	err := c.TCPConn.Close()
	c.once.Do(func() {
		c.s.forget(c)
		c.s.crowd.leave(c)
		c.s.places.give()
	})
	return err
}

// A handedConn is a connection that the fast path has begun to read: what was
// read comes first. It also counts the requests that net/http refuses by itself.
type handedConn struct {
	net.Conn
	s       *Server
	unread  []byte
	framing framing
	over    bool // a body was given up in the middle
}

// lingering is how long a client whose body is not wanted any more has to take the
// answer. Closed at once, with its bytes unread, the connection would be reset and the
// answer lost.
const lingering = time.Second

// Read gives net/http what came, up to a head that it must not see the end of. From
// there on it gives an error that makes net/http answer 400. Called by one goroutine at a
// time, as net/http does.
func (c *handedConn) Read(b []byte) (int, error) {
	if c.framing.refused != "" {
		return 0, errFraming
	}
	if c.over {
		// net/http waits for the rest of the body, and without a deadline when it has cut off
		// a read of it. Its answer is written by now.
		_ = c.CloseWrite() // it may be closed already
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingering))
		_, _ = io.Copy(io.Discard, c.Conn) // nobody wants it
		return 0, io.EOF
	}
	n, err := c.read(b)
	c.over = err != nil && c.framing.body > 0
	n = c.framing.follow(b[:n])
	if c.framing.refused != "" {
		c.s.metrics.badInput(c.framing.refused)
		err = errFraming
	}
	return n, err
}

func (c *handedConn) read(b []byte) (int, error) {
	if len(c.unread) > 0 {
		n := copy(b, c.unread)
		if c.unread = c.unread[n:]; len(c.unread) == 0 {
			c.unread = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

// Write watches for the answers that net/http gives without asking a handler,
// which are always one write.
func (c *handedConn) Write(b []byte) (int, error) {
	if reason := refusedByLibrary(b); reason != "" && c.framing.refused == "" {
		c.s.metrics.badInput(reason)
	}
	return c.Conn.Write(b)
}

// CloseWrite lets net/http end an answer before it drops unread input.
func (c *handedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// A handedTLSConn tells net/http that the connection is encrypted.
type handedTLSConn struct {
	*handedConn
	state tls.ConnectionState
}

// ConnectionState is how net/http learns of TLS.
func (c *handedTLSConn) ConnectionState() tls.ConnectionState { return c.state }

// replay wraps a connection together with what was read from it.
func (s *Server) replay(conn net.Conn, unread []byte) net.Conn {
	handed := &handedConn{Conn: conn, s: s, unread: unread}
	if tlsConn, ok := conn.(*tls.Conn); ok {
		return &handedTLSConn{handedConn: handed, state: tlsConn.ConnectionState()}
	}
	return handed
}

// A handOff is the listener through which net/http gets its connections.
type handOff struct {
	address net.Addr
	conns   chan net.Conn // unbuffered: net/http takes a connection at once or never
	done    chan struct{} // closed by Close
	once    sync.Once
}

func newHandOff(address net.Addr) *handOff {
	return &handOff{address: address, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept blocks until a connection is handed over or the listener is closed.
func (l *handOff) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (l *handOff) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr gives one of the server's addresses.
func (l *handOff) Addr() net.Addr { return l.address }

// handOver gives a connection to net/http for the rest of its life, or closes it
// when net/http has ended.
func (s *Server) handOver(conn net.Conn) {
	select {
	case s.handed.conns <- conn:
		s.metrics.handed.Inc()
	case <-s.handed.done:
		_ = conn.Close() // the server is gone, and the client will see it
	}
}

const (
	minAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay = time.Second
)

// accept takes connections until the listener is closed, one goroutine for each.
// With all places taken, those who have waited longest for a request make room; with
// none to be shed one more client waits here and the others in the kernel.
func (s *Server) accept(ctx context.Context, listener net.Listener, config *tls.Config, conns *sync.WaitGroup) {
	delay := minAcceptDelay
	for {
		conn, err := listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, most likely: it passes when connections end.
			s.log.Warn("connection not accepted, will retry", "in", delay, "err", err)
			s.metrics.badInput("accept")
			wait(ctx, delay)
			delay = min(2*delay, maxAcceptDelay)
			continue
		}
		delay = minAcceptDelay
		// One that must wait cannot go back to the kernel, where the next process would find
		// it. A place becomes free while the server stops, as no other connection comes.
		if !s.takePlace(ctx) && !s.takePlace(s.hard) {
			_ = conn.Close() // it was never served, and the time to finish is over
			return
		}
		counted := &countedConn{TCPConn: conn.(*net.TCPConn), s: s}
		counted.waiting.Store(time.Now().UnixNano())
		s.remember(counted)
		var public net.Conn = counted
		if config != nil {
			public = tls.Server(counted, config)
		}
		// It ends with the connection, or when the connection is handed over.
		conns.Go(func() { s.serveConn(public) })
	}
}

// wait blocks for d or until ctx is done.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
