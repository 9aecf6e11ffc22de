package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"io"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var idleClients = flag.Int("idle", 2000, "idle clients of TestManyIdleClients, of which half use TLS")

const okHit = "/matomo.php?idsite=1&rec=1"

func TestNetworkOf(t *testing.T) {
	for _, tt := range []struct{ address, want string }{
		{"192.0.2.1", "192.0.2.1"},
		{"::ffff:192.0.2.1", "192.0.2.1"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"},
		{"fe80::1%eth0", "fe80::"},
	} {
		if got := networkOf(netip.MustParseAddr(tt.address)).String(); got != tt.want {
			t.Errorf("networkOf(%s) = %s, want %s", tt.address, got, tt.want)
		}
	}
}

func TestConnectionsPerAddress(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.PerAddress = 2 })
	first, second := r.dial(t), r.dial(t)
	for _, conn := range []net.Conn{first, second} {
		io.WriteString(conn, get(okHit))
		if a, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Fatalf("got %s %v", a.status, err)
		}
	}
	secure, plain := r.Addrs()
	for _, address := range []net.Addr{plain, secure} {
		conn, err := net.Dial("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
			t.Errorf("one more: got %d bytes and %v, want the end", n, err)
		}
	}
	if n := r.count(`sluice_proxy_bad_input_total{reason="connections"}`); n != 2 {
		t.Errorf("%d connections are counted, want 2", n)
	}
	first.Close()
	r.until(t, func() bool { return r.placesTaken() == 1 })
	if a := r.exchange(t, get(okHit)); !strings.Contains(a.status, " 200 ") {
		t.Errorf("after one has gone: got %s", a.status)
	}

	t.Run("not for trusted peers, nor with a negative limit", func(t *testing.T) {
		for _, change := range []func(*Config){
			func(c *Config) {
				c.Limits.PerAddress, c.Trusted = 1, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
			},
			func(c *Config) { c.Limits.PerAddress = -1 },
		} {
			r := newRig(t, change)
			for range 3 {
				conn := r.dial(t)
				io.WriteString(conn, get(okHit))
				if a, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
					t.Errorf("got %s %v", a.status, err)
				}
			}
		}
	})
	t.Run("leave nothing behind", func(t *testing.T) {
		r := newRig(t, nil)
		for range 5 {
			r.exchange(t, get(okHit))
			r.exchangeByLibrary(t, get("/-/livez"))
		}
		r.until(t, func() bool {
			r.crowd.mu.Lock()
			defer r.crowd.mu.Unlock()
			return len(r.crowd.count) == 0
		})
	})
}

// until waits for a condition that nothing announces.
func (r *rig) until(t testing.TB, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(10 * time.Second); !condition(); <-ticker.C {
		if time.Now().After(deadline) {
			t.Fatal("waited for 10 s")
		}
	}
}

func (r *rig) placesTaken() int {
	r.places.mu.Lock()
	defer r.places.mu.Unlock()
	return r.places.taken
}

// A phase is a way to hold a connection.
type phase struct {
	name   string
	secure bool
	alpn   string // of a completed handshake; "" leaves TLS alone
	raw    string
	drip   string // sent again and again
	reads  bool   // one answer is read first
}

var phases = []phase{
	{name: "silent"},
	{name: "before TLS", secure: true},
	{name: "within the handshake", secure: true, raw: "\x16\x03\x01\x00\xc8\x01"},
	{name: "after TLS", secure: true, alpn: "http/1.1"},
	{name: "dripping a head", raw: "GET " + okHit + " HTTP/1.1\r\nX: ", drip: "a"},
	{name: "dripping a head for net/http", raw: "PUT " + okHit + " HTTP/1.1\r\nX: ", drip: "a"},
	{name: "idle after a hit", raw: get(okHit), reads: true},
	{name: "idle in net/http", raw: get("/-/livez"), reads: true},
	{name: "dripping a body", raw: "POST " + okHit + " HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n", drip: "a"},
	{name: "dripping a body for net/http", raw: "POST " + okHit + " HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", drip: "1\r\na\r\n"},
	{name: "idle in HTTP/2", secure: true, alpn: "h2", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"},
	{name: "within the preface of HTTP/2", secure: true, alpn: "h2", raw: "PRI * HT"},
	{name: "within a frame of HTTP/2", secure: true, alpn: "h2", raw: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x40\x01", drip: "\x00"},
}

// hold opens a connection in a phase.
func (r *rig) hold(t testing.TB, p phase) net.Conn {
	t.Helper()
	address, plain := r.Addrs()
	if !p.secure {
		address = plain
	}
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if p.alpn != "" {
		secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{p.alpn}})
		if err := secured.Handshake(); err != nil {
			t.Fatal(err)
		}
		conn = secured
	}
	io.WriteString(conn, p.raw)
	if p.reads {
		if _, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// TestSlowClientsEnd holds connections in every phase and sees each end within its
// limit, while another client is served.
func TestSlowClientsEnd(t *testing.T) {
	const limit = 400 * time.Millisecond
	r := newRig(t, func(c *Config) {
		c.Limits.HeaderTimeout, c.Limits.BodyTimeout, c.Limits.IdleTimeout, c.Limits.WriteTimeout = limit, limit, limit, limit
	})
	for _, p := range phases {
		if p.name == "within the preface of HTTP/2" {
			continue // 10 s are fixed in net/http
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			for range 5 {
				conn := r.hold(t, p)
				ctx, done := context.WithCancel(t.Context())
				dripped := make(chan struct{})
				go func() { // ends with done
					defer close(dripped)
					for p.drip != "" && ctx.Err() == nil {
						wait(ctx, limit/10)
						if _, err := io.WriteString(conn, p.drip); err != nil {
							return
						}
					}
				}()
				began := time.Now()
				_, err := io.Copy(io.Discard, conn)
				if took := time.Since(began); isTimeout(err) || took > 10*limit {
					t.Errorf("ended after %v with %v, want %v", took, err, limit)
				}
				done()
				<-dripped
				if a := r.exchange(t, get(okHit)); !strings.Contains(a.status, " 200 ") {
					t.Errorf("another client: got %s", a.status)
				}
			}
		})
	}
	t.Run("not reading answers", func(t *testing.T) {
		t.Parallel()
		for _, first := range []string{"", get("/-/livez")} {
			// With the client's window closed its kernel may drop the acknowledgements, too: then
			// the server waits for a request, not for its answer to be taken.
			r := newRig(t, func(c *Config) {
				c.Limits.BodyTimeout, c.Limits.WriteTimeout, c.Limits.IdleTimeout = limit, limit, limit
			})
			conn := r.dial(t).(*net.TCPConn)
			conn.SetReadBuffer(4096)
			io.WriteString(conn, first)
			one := []byte(strings.Repeat(get("/matomo.php", "Connection: keep-alive"), 100))
			for err := error(nil); err == nil; {
				// It blocks when the kernel holds all that it can, and may not see the end.
				conn.SetWriteDeadline(time.Now().Add(5 * limit))
				_, err = conn.Write(one)
			}
			r.until(t, func() bool { return r.placesTaken() == 0 })
		}
	})
}

// TestShed fills all places in each phase and sees a new client served all the same.
func TestShed(t *testing.T) {
	const slots = 8
	for _, p := range phases {
		if strings.Contains(p.name, "body") {
			continue // a request is in hand: BodyTimeout bounds it
		}
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(c *Config) {
				c.Limits.Connections, c.Limits.HeaderTimeout, c.Limits.IdleTimeout = slots, time.Hour, time.Hour
			})
			for range slots {
				r.hold(t, p)
			}
			r.until(t, func() bool { return r.placesTaken() == slots })
			for range slots {
				if a := r.exchange(t, get(okHit)); !strings.Contains(a.status, " 200 ") {
					t.Errorf("got %s", a.status)
				}
			}
			if n := r.count("sluice_proxy_shed_connections_total"); n == 0 || n > slots {
				t.Errorf("%d connections were shed", n)
			}
		})
	}
	t.Run("spares requests in hand", func(t *testing.T) {
		t.Parallel()
		for _, first := range []string{"", get("/-/livez")} {
			r := newRig(t, func(c *Config) { c.Limits.Connections = 1 })
			q := &slowQueue{make(chan struct{}), make(chan struct{})}
			r.endpoint.queue = q
			conn := r.dial(t)
			reader := bufio.NewReader(conn)
			if first != "" {
				io.WriteString(conn, first)
				readAnswer(reader, "GET")
			}
			io.WriteString(conn, get(okHit))
			<-q.entered
			if n := r.shed(time.Now().Add(time.Hour)); n != 0 {
				t.Errorf("%d connections were shed, want none", n)
			}
			close(q.release)
			if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
				t.Errorf("got %s %v", a.status, err)
			}
			r.until(t, func() bool { return r.shed(time.Now().Add(time.Hour)) == 1 })
			if _, err := reader.ReadByte(); err == nil || isTimeout(err) {
				t.Errorf("got %v, want the end", err)
			}
		}
	})
	t.Run("spares the young and takes the oldest", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		old := r.hold(t, phases[0])
		r.until(t, func() bool { return r.placesTaken() == 1 })
		young := r.hold(t, phases[0])
		r.until(t, func() bool { return r.placesTaken() == 2 })
		if n := r.shed(time.Now()); n != 0 {
			t.Errorf("%d connections were shed at once", n)
		}
		if n := r.shed(time.Now().Add(time.Hour)); n != 1 {
			t.Errorf("%d connections were shed, want 1", n)
		}
		if _, err := old.Read(make([]byte, 1)); err == nil || isTimeout(err) {
			t.Errorf("the oldest: got %v, want the end", err)
		}
		io.WriteString(young, get(okHit))
		if a, err := readAnswer(bufio.NewReader(young), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Errorf("the younger: got %s %v", a.status, err)
		}
	})
}

// TestShedRaces sends hits while connections are shed all the time: whatever is
// stored is answered.
func TestShedRaces(t *testing.T) {
	for _, first := range []string{"", get("/-/livez")} {
		r := newRig(t, nil)
		answered := 0
		for answered < 300 {
			conn := r.dial(t)
			reader := bufio.NewReader(conn)
			if first != "" {
				io.WriteString(conn, first)
				readAnswer(reader, "GET")
			}
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() { // ends with stop
				defer close(stopped)
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					if n%50 == 49 {
						r.shed(time.Now().Add(time.Hour))
					}
					runtime.Gosched()
				}
			}()
			for range 100 {
				if _, err := io.WriteString(conn, get(okHit)); err != nil {
					break
				}
				if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
					break
				}
				answered++
			}
			close(stop)
			<-stopped
			conn.Close()
		}
		if stored := len(r.queue.take()); stored != answered {
			t.Errorf("%d hits are stored and %d answered", stored, answered)
		}
	}
}

// TestManyIdleClients states what an idle connection takes, and that others are
// served quickly meanwhile.
func TestManyIdleClients(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Limits.PerAddress = -1
		c.Limits.IdleTimeout = time.Hour
		c.Limits.HeaderTimeout = time.Hour
	})
	memory := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	before := memory()
	conns := make([]net.Conn, *idleClients)
	for _, p := range []phase{{name: "plain", raw: get(okHit), reads: true}, {name: "TLS", secure: true, alpn: "http/1.1", raw: get(okHit), reads: true}} {
		for i := range len(conns) / 2 {
			conns[i] = r.hold(t, p)
		}
		after := memory()
		t.Logf("%d idle connections, %s: %d bytes each, with the client's end", len(conns)/2, p.name, (after-before)/int64(len(conns)/2))
		before = after
	}
	var took []time.Duration
	for range 200 {
		began := time.Now()
		if a := r.exchange(t, get(okHit)); !strings.Contains(a.status, " 200 ") {
			t.Fatalf("got %s", a.status)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("new clients meanwhile: median %v, p99 %v", took[100], took[198])
	if took[100] > 100*time.Millisecond {
		t.Errorf("new clients wait for %v", took[100])
	}
}
