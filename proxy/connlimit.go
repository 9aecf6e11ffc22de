package proxy

import (
	"cmp"
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// minIdle is how long a connection must have waited for a request before it may
	// be shed: the request of a younger one is likely under way.
	minIdle = time.Second
	// shedShare is the part of all connections that is shed at a time, so that looking
	// for the oldest is paid for by many new clients.
	shedShare = 64
	// shedInterval is how often an acceptor without a place looks for connections to
	// shed.
	shedInterval = 100 * time.Millisecond
)

// places counts the open connections up to a limit. All methods may be called from
// any goroutine.
type places struct {
	freed chan struct{} // a place may be free; one is enough, since who takes it passes it on

	mu    sync.Mutex
	limit int // guarded by mu
	taken int // guarded by mu
}

func newPlaces(limit int) *places { return &places{limit: limit, freed: make(chan struct{}, 1)} }

func (p *places) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.limit {
		return false
	}
	p.taken++
	if p.taken < p.limit {
		p.wake()
	}
	return true
}

func (p *places) give() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	p.wake()
}

// resize changes the limit. Connections beyond a smaller one stay.
func (p *places) resize(limit int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	p.wake()
}

func (p *places) wake() {
	select {
	case p.freed <- struct{}{}:
	default:
	}
}

// takePlace blocks until there is a place for one more connection, for which
// connections may be shed. It answers false when ctx is done before.
func (s *Server) takePlace(ctx context.Context) bool {
	for !s.places.take() {
		if s.shed(time.Now()) > 0 {
			continue
		}
		timer := time.NewTimer(shedInterval)
		select {
		case <-s.places.freed:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
		timer.Stop()
	}
	return true
}

// shed closes the connections that have waited longest for a request: idle ones,
// and those whose TLS handshake or head does not get on. None has a request in
// hand, and none will have: see begin.
func (s *Server) shed(now time.Time) int {
	type waiting struct {
		conn  *countedConn
		since int64
	}
	var all []waiting
	s.mu.Lock()
	share := max(1, len(s.conns)/shedShare)
	for c := range s.conns {
		if since := c.waiting.Load(); since > 0 && now.UnixNano()-since >= int64(minIdle) {
			all = append(all, waiting{c, since})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b waiting) int { return cmp.Compare(a.since, b.since) })
	n := 0
	for _, w := range all {
		if n == share {
			break
		}
		if w.conn.waiting.CompareAndSwap(w.since, connShed) {
			_ = w.conn.Close() // nothing was to be written to it
			n++
		}
	}
	s.metrics.shed.Add(n)
	return n
}

// What countedConn.waiting says besides the time since when.
const (
	connBusy = 0
	connShed = -1
)

// begin says that a request's head is there. It answers false when the connection
// was shed meanwhile: the request must then not be looked at. A connection that is
// not counted is nil and is never shed.
func (c *countedConn) begin() bool {
	for c != nil {
		switch since := c.waiting.Load(); since {
		case connBusy: // another stream of the same connection
			return true
		case connShed:
			return false
		default:
			if c.waiting.CompareAndSwap(since, connBusy) {
				return true
			}
		}
	}
	return true
}

// rest says that no request is in hand any more.
func (c *countedConn) rest(now time.Time) {
	if c != nil {
		c.waiting.CompareAndSwap(connBusy, now.UnixNano())
	}
}

// countedOf finds the counted connection under TLS and other wraps, nil if there is
// none.
func countedOf(conn net.Conn) *countedConn {
	for {
		switch c := conn.(type) {
		case *countedConn:
			return c
		case *tls.Conn:
			conn = c.NetConn()
		case *handedConn:
			conn = c.Conn
		case *handedTLSConn:
			conn = c.Conn
		default:
			inner, ok := conn.(interface{ NetConn() net.Conn })
			if !ok {
				return nil
			}
			conn = inner.NetConn()
		}
	}
}

// A crowd counts the connections of each address.
type crowd struct {
	mu    sync.Mutex
	count map[netip.Addr]int // guarded by mu; only addresses that have connections
}

// admit counts a connection for its peer. It answers false when the peer has as
// many as it may; then the caller closes the connection. Called once for each.
func (s *Server) admit(c *countedConn, peer netip.Addr) bool {
	v := s.tuned()
	if c == nil || v.Limits.PerAddress < 0 || contains(v.Trusted, peer) {
		return true
	}
	key := networkOf(peer)
	s.crowd.mu.Lock()
	defer s.crowd.mu.Unlock()
	if c.left {
		return false
	}
	if s.crowd.count[key] >= v.Limits.PerAddress {
		s.metrics.badInput("connections")
		return false
	}
	s.crowd.count[key]++
	c.network = key
	return true
}

// leave takes a connection out of the count.
func (w *crowd) leave(c *countedConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c.left = true
	if !c.network.IsValid() {
		return
	}
	if w.count[c.network]--; w.count[c.network] == 0 {
		delete(w.count, c.network)
	}
}

// customerBits is what one customer gets of IPv6: all addresses below count as one.
const customerBits = 64

// networkOf gives what limits count as one address: an IPv4 address, an IPv6 /64.
func networkOf(a netip.Addr) netip.Addr {
	if !a.Is6() || a.Is4In6() {
		return a.Unmap()
	}
	prefix, _ := a.WithZone("").Prefix(customerBits) // an IPv6 address has them
	return prefix.Addr()
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
