package testkit

import (
	"net"
	"sync"
	"testing"
	"time"
)

// A Fault is what a [Proxy] does to one exchange: what a client sends until it is
// answered, and that answer. The zero Fault passes everything on.
type Fault struct {
	Name string
	// Drop keeps the client's bytes from the upstream.
	Drop bool
	// Mute keeps the upstream's answer from the client.
	Mute bool
	// End says what happens when the exchange has come as far as Drop and Mute let
	// it: at the client's first byte with Drop, at the answer's first byte with
	// Mute, after CutAfter bytes of the answer otherwise.
	End End
	// CutAfter is how many bytes of the answer pass before End; used without Drop
	// and Mute.
	CutAfter int
	// Delay passes before the client's first byte is handled.
	Delay time.Duration
	// AnswerDelay passes before the answer's first byte is handled.
	AnswerDelay time.Duration
}

// End is how an exchange with a fault ends.
type End uint8

const (
	// Stay leaves the connection as it is: silent for ever with Drop or Mute.
	Stay End = iota
	// Cut closes both sides in an orderly way.
	Cut
	// Break resets the client's side; the upstream's is closed.
	Break
)

// Pass does nothing to the exchange.
func Pass() Fault { return Fault{Name: "pass"} }

// CutBefore cuts the connection and the upstream never sees the request.
func CutBefore() Fault { return Fault{Name: "cut before", Drop: true, End: Cut} }

// ResetBefore is CutBefore with a reset.
func ResetBefore() Fault { return Fault{Name: "reset before", Drop: true, End: Break} }

// LoseAnswer delivers the request and cuts when the upstream has answered: the
// client cannot know that it was heard.
func LoseAnswer() Fault { return Fault{Name: "lose answer", Mute: true, End: Cut} }

// LoseAnswerByReset is LoseAnswer with a reset.
func LoseAnswerByReset() Fault { return Fault{Name: "lose answer by reset", Mute: true, End: Break} }

// CutAnswer passes n > 0 bytes of the answer and cuts.
func CutAnswer(n int) Fault { return Fault{Name: "cut answer", End: Cut, CutAfter: n} }

// BlackHole swallows the request and is silent until the client gives up.
func BlackHole() Fault { return Fault{Name: "black hole", Drop: true} }

// Silence delivers the request, swallows the answer, and is silent until the
// client gives up.
func Silence() Fault { return Fault{Name: "silence", Mute: true} }

// Late delivers the request after d.
func Late(d time.Duration) Fault { return Fault{Name: "late", Delay: d} }

// LateAnswer holds the answer back for d.
func LateAnswer(d time.Duration) Fault { return Fault{Name: "late answer", AnswerDelay: d} }

// A Proxy stands between a client and a TCP upstream, and can fail between the
// two as only something that sees both directions can. It knows no protocol but
// that a client speaks and an upstream answers, so it fits HTTP/1 without TLS,
// and MySQL after the upstream's greeting. Requests that a client sends before it
// has the last answer are one exchange.
type Proxy struct {
	target string
	addr   string

	mu     sync.Mutex
	ln     net.Listener // nil while down
	next   []Fault
	always Fault
	conns  map[*proxied]bool
	seen   []string // names of the faults of all exchanges
	done   bool

	wg sync.WaitGroup
}

// proxied is one connection and where it stands.
type proxied struct {
	client, upstream net.Conn
	stop             chan struct{} // closed by end

	mu       sync.Mutex
	ended    bool
	asking   bool // the last byte was the client's
	fault    Fault
	answered int // bytes of the answer passed on
}

// NewProxy listens on loopback for connections to target ("host:port"); it ends
// with the test.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	p := &Proxy{target: target, always: Pass(), conns: make(map[*proxied]bool)}
	if err := p.listen("127.0.0.1:0"); err != nil {
		tb.Fatalf("start proxy: %v", err)
	}
	tb.Cleanup(func() {
		p.mu.Lock()
		p.done = true
		p.mu.Unlock()
		p.Down()
		p.wg.Wait()
	})
	return p
}

// Addr is the proxy's own host and port.
func (p *Proxy) Addr() string { return p.addr }

// Next gives faults to the next exchanges on any connection, one each.
func (p *Proxy) Next(faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = append(p.next, faults...)
}

// Always gives f to every exchange for which Next has nothing.
func (p *Proxy) Always(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.always = f
}

// Exchanges returns the names of the faults of all exchanges so far.
func (p *Proxy) Exchanges() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.seen...)
}

// Down cuts all connections and refuses new ones.
func (p *Proxy) Down() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil {
		_ = p.ln.Close() // only its end matters
		p.ln = nil
	}
	for c := range p.conns {
		c.end(Cut)
	}
}

// Up listens again on the same address after Down.
func (p *Proxy) Up() error { return p.listen(p.addr) }

func (p *Proxy) listen(addr string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ln != nil || p.done {
		return nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	p.ln, p.addr = ln, ln.Addr().String()
	p.wg.Go(func() { // ends when the listener is closed
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.serve(client) })
		}
	})
	return nil
}

// serve copies until one side ends, a fault ends both, or the proxy does.
func (p *Proxy) serve(client net.Conn) {
	upstream, err := net.Dial("tcp", p.target)
	if err != nil {
		_ = client.Close() // the upstream's refusal, as near as a proxy can show it
		return
	}
	c := &proxied{client: client, upstream: upstream, stop: make(chan struct{})}
	p.mu.Lock()
	if p.ln == nil {
		c.end(Cut)
	}
	p.conns[c] = true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { c.copy(upstream, client, func(n int) (int, End, bool) { return c.asked(p, n) }) })
	both.Go(func() { c.copy(client, upstream, c.answer) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// copy moves bytes from src to dst; pass says how many of n to move and whether
// the connection ends then. Either side's end is the end of both, unless the client is
// to be left in silence.
func (c *proxied) copy(dst, src net.Conn, pass func(n int) (int, End, bool)) {
	const chunk = 32 << 10
	b := make([]byte, chunk)
	for {
		n, err := src.Read(b)
		if n > 0 {
			keep, end, ends := pass(n)
			if _, err := dst.Write(b[:keep]); err != nil {
				c.end(Cut)
				return
			}
			if ends {
				c.end(end)
				return
			}
		}
		if err != nil {
			if src == c.client || !c.silent() {
				c.end(Cut)
			}
			return
		}
	}
}

// silent says whether the client is to hear nothing, not even the upstream's end.
func (c *proxied) silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return (c.fault.Drop || c.fault.Mute) && c.fault.End == Stay
}

// asked handles n bytes from the client.
func (c *proxied) asked(p *Proxy, n int) (keep int, end End, ends bool) {
	c.mu.Lock()
	first, f := !c.asking, c.fault
	c.mu.Unlock()
	if first {
		f = p.take() // takes the proxy's mutex, which comes before the connection's
		c.mu.Lock()
		c.asking, c.answered, c.fault = true, 0, f
		c.mu.Unlock()
		c.wait(f.Delay)
	}
	if f.Drop {
		return 0, f.End, f.End != Stay
	}
	return n, Stay, false
}

// answer handles n bytes from the upstream. What it says unasked, such as a
// greeting, passes.
func (c *proxied) answer(n int) (keep int, end End, ends bool) {
	c.mu.Lock()
	first, f := c.asking, c.fault
	c.asking = false
	c.answered += n
	answered := c.answered
	c.mu.Unlock()
	if first {
		c.wait(f.AnswerDelay)
	}
	if f.Mute {
		return 0, f.End, f.End != Stay
	}
	if over := answered - f.CutAfter; f.CutAfter > 0 && over >= 0 {
		return n - over, f.End, f.End != Stay
	}
	return n, Stay, false
}

// take gives the next exchange its fault.
func (p *Proxy) take() Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.always
	if len(p.next) > 0 {
		f, p.next = p.next[0], p.next[1:]
	}
	p.seen = append(p.seen, f.Name)
	return f
}

func (c *proxied) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-time.After(d):
	case <-c.stop:
	}
}

// end closes both sides once.
func (c *proxied) end(how End) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.ended = true
	close(c.stop)
	if tcp, ok := c.client.(*net.TCPConn); ok && how == Break {
		_ = tcp.SetLinger(0) // without it the client sees an orderly end
	}
	_ = c.client.Close() // only their end matters
	_ = c.upstream.Close()
}
