package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// baseBuffer holds nearly every tracking request; each open connection has
	// one.
	baseBuffer = 4 << 10
	// keptBuffer is the largest buffer that a connection keeps while it is idle.
	// Bodies beyond it are charged to Limits.BodyMemory.
	keptBuffer = 64 << 10
	// maxHeadReads is in how many pieces a head may arrive before net/http, which
	// is made for slow clients, takes over.
	maxHeadReads = 8
	// maxBodyBytes bounds Limits.BodyBytes on the fast path.
	maxBodyBytes = 1 << 30
	// firstRequest is how long a stop waits for the first request of a connection that
	// was accepted just before: its client has had no answer yet, and does not try again
	// as it would on a connection that has served it.
	firstRequest = time.Second
	// keptHits is how many hits a connection keeps memory for.
	keptHits = 16
)

var bufferPool = sync.Pool{New: func() any { b := make([]byte, baseBuffer); return &b }}

// A fastConn is one connection while the fast path reads it. It belongs to one
// goroutine, but for idle and fresh.
type fastConn struct {
	s    *Server
	conn net.Conn // plain, or a *tls.Conn whose handshake is done

	counted *countedConn // beneath conn

	buf        []byte
	start, end int // the bytes read and not yet used

	request request
	scratch scratch
	out     []byte

	// The deadlines that the connection has now. They are renewed only when a
	// quarter of the allowance is used up, since setting one costs as much as
	// parsing a request.
	readDeadline, writeDeadline time.Time

	charged int64 // bytes of buf that count towards Limits.BodyMemory

	// idle is true while nothing of a request has been read.
	idle atomic.Bool
	// fresh is true while no request has been answered.
	fresh atomic.Bool
}

// errDeclined says that the connection belongs to net/http from here on.
var errDeclined = errors.New("not for the fast path")

// serveConn reads a connection until it ends, and hands it to net/http at the
// first request that the fast path does not take. It runs in its own goroutine,
// which ends when the client goes, a deadline passes, the server stops or the
// connection is handed on.
func (s *Server) serveConn(conn net.Conn) {
	defer func() {
		if fault := recover(); fault != nil {
			// A fault of ours must not cost other connections their hits.
			s.log.Error("connection given up after a fault in the program", "fault", fault)
			s.metrics.badInput("fault")
			_ = conn.Close()
		}
	}()
	peer := peerOf(conn)
	counted := countedOf(conn)
	if contains(s.tuned().ProxyProtocol, peer) {
		if !s.takeProxyHeader(counted) {
			_ = conn.Close() // nobody knows whose it is
			return
		}
		peer = peerOf(conn)
	}
	if !s.admit(counted, peer) {
		_ = conn.Close() // nothing was read from it
		return
	}
	https := false
	if tlsConn, ok := conn.(*tls.Conn); ok {
		https = true
		if !s.handshake(tlsConn) {
			_ = conn.Close() // the handshake's error is counted
			return
		}
		switch tlsConn.ConnectionState().NegotiatedProtocol {
		case "", "http/1.1":
		case "acme-tls/1":
			_ = conn.Close() // the authority has seen what it asked for in the handshake
			return
		default:
			s.handOver(conn)
			return
		}
	}

	buffer := bufferPool.Get().(*[]byte)
	c := &fastConn{s: s, conn: conn, counted: counted, buf: *buffer}
	c.request.peer, c.request.peerText, c.request.https = peer, peer.String(), https
	c.request.keep, c.request.files = s.cfg.KeepHeaders, s.cfg.Files
	c.fresh.Store(true)
	if s.cfg.HTTP == HTTPRedirect && !https {
		c.request.files = nil
	}
	err := c.serve()

	if err == errDeclined {
		// net/http sets its own deadlines, and some of its states have none.
		_ = conn.SetDeadline(time.Time{}) // a dead connection shows itself to net/http
		s.handOver(s.replay(conn, c.buf[c.start:c.end]))
		return
	}
	if len(c.buf) == baseBuffer {
		*buffer = c.buf
		bufferPool.Put(buffer)
	}
	_ = conn.Close() // the client is gone or has its answer
}

// handshake completes TLS within the time for headers.
func (s *Server) handshake(conn *tls.Conn) bool {
	ctx, cancel := context.WithTimeout(s.hard, s.limits().HeaderTimeout)
	defer cancel()
	err := conn.HandshakeContext(ctx)
	if err == nil {
		return true
	}
	s.metrics.badInput("tls")
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok && record.Conn != nil {
		// A browser that speaks plain HTTP to this port is told so. It may be gone.
		_ = record.Conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(record.Conn, "HTTP/1.0 400 Bad Request\r\nConnection: close\r\n"+
			"Content-Type: text/plain\r\n\r\nThis port speaks HTTPS only.\n")
	}
	return false
}

func peerOf(conn net.Conn) netip.Addr {
	if address, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return canonical(address.AddrPort().Addr())
	}
	if ap, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		return canonical(ap.Addr())
	}
	return netip.IPv4Unspecified()
}

// serve answers request after request. It returns nil when the connection is
// done with, errDeclined when it is for net/http with all unread bytes still in
// the buffer, and otherwise what ended it.
func (c *fastConn) serve() error {
	c.s.track(c)
	defer c.s.untrack(c)
	defer c.discharge()
	for {
		if c.start == c.end {
			c.shrink()
			if err := c.awaitRequest(); err != nil {
				return err
			}
		}
		h, err := c.readHead()
		if err != nil {
			return err
		}
		if !c.counted.begin() {
			return net.ErrClosed
		}
		c.request.stored = 0
		tuned := c.s.tuned()
		format := tuned.access
		var began time.Time
		if format != nil {
			began = time.Now()
		}
		if h.file {
			ok, last, err := c.serveFile(h, tuned, began)
			if !ok {
				return errDeclined
			}
			if err != nil || last {
				return err
			}
			c.used()
			continue
		}
		var a answer
		if fault, ok := c.readBody(&h); ok {
			a = c.handle(h)
		} else {
			a = fault
			// The bytes may have moved, and the log reads them.
			_, _ = parseHead(c.buf[c.start:c.end], &c.request, maxBodyBytes) // it was taken before
		}
		a.extra = tuned.extra(c.request.https)
		last := a.close || c.s.stopping.Load()
		c.out = a.append(c.out[:0], c.request.origin, c.s.date(c.request.receivedAt), last)
		err = c.write(c.out, nil)
		if format != nil {
			c.log(format, &a, began)
		}
		if err != nil || last {
			return err
		}
		c.used()
		c.start += h.size + h.length
	}
}

// used says that the connection has had an answer.
func (c *fastConn) used() {
	if c.fresh.Load() { // reading is cheaper than writing
		c.fresh.Store(false)
	}
}

// handle has the request answered that stands complete in the buffer.
func (c *fastConn) handle(h head) answer {
	r := &c.request
	r.head = c.buf[c.start : c.start+h.size]
	r.body = c.buf[c.start+h.size : c.start+h.size+h.length]
	a := c.s.receive(r, &c.scratch)
	c.s.metrics.fast.Inc()
	c.s.metrics.code(a.status)
	return a
}

// awaitRequest reads the first bytes of a request.
func (c *fastConn) awaitRequest() error {
	c.idle.Store(true)
	defer c.idle.Store(false)
	allowance := c.s.limits().IdleTimeout
	now := time.Now()
	c.counted.rest(now)
	if c.readDeadline.Sub(now) < allowance*3/4 || c.readDeadline.Sub(now) > allowance {
		if err := c.allowReading(now.Add(allowance)); err != nil {
			return err
		}
	}
	// The flag is read after idle was set: either this sees the stop, or the stop
	// sees an idle connection and ends its wait.
	if c.s.draining.Load() {
		if !c.fresh.Load() {
			return net.ErrClosed
		}
		if err := c.allowReading(time.Now().Add(firstRequest)); err != nil {
			return err
		}
	}
	n, err := c.conn.Read(c.buf[c.end:])
	c.end += n
	if n > 0 {
		return nil
	}
	return err
}

// readHead parses the request at the front of the buffer, and reads on while its
// head is not complete.
func (c *fastConn) readHead() (head, error) {
	limits := c.s.limits()
	maxBody := int(min(limits.BodyBytes, maxBodyBytes))
	var deadline time.Time
	for range maxHeadReads {
		h, result := parseHead(c.buf[c.start:c.end], &c.request, maxBody)
		if result == headTaken || result == headFile {
			return h, nil
		}
		if result == headDecline || c.end-c.start >= limits.HeaderBytes {
			return head{}, errDeclined
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(limits.HeaderTimeout)
			if err := c.allowReading(deadline); err != nil {
				return head{}, err
			}
		}
		c.makeRoom(c.end - c.start + 1)
		if err := c.read(deadline); err != nil {
			if isTimeout(err) {
				c.s.metrics.badInput("slow_header")
			}
			return head{}, err
		}
	}
	return head{}, errDeclined
}

// readBody reads until the whole body is in the buffer. When it cannot be had,
// it answers false with what to tell the client.
func (c *fastConn) readBody(h *head) (failure answer, ok bool) {
	total := h.size + h.length
	if c.end-c.start >= total {
		return answer{}, true
	}
	limits := c.s.limits()
	get := c.request.method == "GET"
	c.request.receivedAt = c.s.now(time.Now())
	deadline := time.Now().Add(limits.BodyTimeout)
	if err := c.allowReading(deadline); err != nil {
		return c.s.lostBody(err, get), false
	}
	for c.end-c.start < total {
		// Memory is taken as the bytes arrive, not as the client announces them.
		want := min(total, max(2*(c.end-c.start), baseBuffer))
		if want > keptBuffer && !c.charge(int64(want)) {
			return c.s.noMemory(get), false
		}
		c.makeRoom(want)
		if err := c.read(deadline); err != nil {
			return c.s.lostBody(err, get), false
		}
	}
	// The bytes may have moved, and the request points to them.
	if again, result := parseHead(c.buf[c.start:c.end], &c.request, h.length); result != headTaken || again != *h {
		return c.s.lostBody(errDeclined, get), false
	}
	return answer{}, true
}

// read reads once. A deadline that passes before its time was set by the stop,
// which took the connection for idle: the request is finished all the same.
func (c *fastConn) read(deadline time.Time) error {
	for {
		n, err := c.conn.Read(c.buf[c.end:])
		c.end += n
		if n > 0 || err == nil {
			return nil
		}
		if !isTimeout(err) || !time.Now().Before(deadline) {
			return err
		}
		if err := c.allowReading(deadline); err != nil {
			return err
		}
	}
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func (c *fastConn) allowReading(until time.Time) error {
	c.readDeadline = until
	return c.conn.SetReadDeadline(until)
}

// write sends an answer as one write where it comes in one piece.
func (c *fastConn) write(b, more []byte) error {
	allowance := c.s.limits().WriteTimeout
	now := time.Now()
	if c.writeDeadline.Sub(now) < allowance*3/4 {
		c.writeDeadline = now.Add(allowance)
		if err := c.conn.SetWriteDeadline(c.writeDeadline); err != nil {
			return err
		}
	}
	_, err := c.conn.Write(b)
	if err == nil && len(more) > 0 {
		_, err = c.conn.Write(more)
	}
	return err
}

// makeRoom makes the buffer hold so many unread bytes, and one more read.
func (c *fastConn) makeRoom(want int) {
	if c.start > 0 && (c.start+want > len(c.buf) || c.end == len(c.buf)) {
		c.end = copy(c.buf, c.buf[c.start:c.end])
		c.start = 0
	}
	if want > len(c.buf) || c.end == len(c.buf) {
		bigger := make([]byte, max(want, 2*len(c.buf)))
		c.end = copy(bigger, c.buf[c.start:c.end])
		c.start, c.buf = 0, bigger
	}
}

// shrink makes the empty buffer ready for the next request, and gives back what
// only a large request needed.
func (c *fastConn) shrink() {
	c.start, c.end = 0, 0
	if len(c.buf) > keptBuffer {
		c.buf = make([]byte, baseBuffer)
		c.discharge()
	}
	if cap(c.scratch.set.Hits) > keptHits {
		c.scratch.set.Hits = nil
	}
}

// charge counts a buffer of n bytes towards the memory of all bodies. It answers
// false when there is none left.
func (c *fastConn) charge(n int64) bool {
	more := n - c.charged
	if more <= 0 {
		return true
	}
	if !c.s.bodies.take(more) {
		return false
	}
	c.charged = n
	return true
}

func (c *fastConn) discharge() {
	c.s.bodies.give(c.charged)
	c.charged = 0
}
