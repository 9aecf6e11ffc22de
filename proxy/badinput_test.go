package proxy

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// badInputs are requests that must be refused, each with the reason that is counted.
var badInputs = []struct{ name, raw, status, reason string }{
	{"length and chunks", post("/x", "0\r\n\r\n", "Transfer-Encoding: chunked"), "400", "length_and_encoding"},
	{"chunks and length", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "400", "length_and_encoding"},
	{"a hit with length and chunks", post("/matomo.php", "0\r\n\r\n", "Transfer-Encoding: chunked"), "400", "length_and_encoding"},
	{"length and an unknown coding", post("/x", "0\r\n\r\n", "transfer-encoding:\txchunked"), "400", "length_and_encoding"},
	{"chunks in HTTP/1.0", "POST /x HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400", "transfer_encoding"},
	{"another coding", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "501", "transfer_encoding"},
	{"chunks with a wrong control", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\vchunked\r\n\r\n0\r\n\r\n", "400", "request"},
	{"chunks twice", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501", "transfer_encoding"},
	{"a space before the colon", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400", "request"},
	{"two lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", "400", "content_length"},
	{"two equal lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "400", "content_length"},
	{"a list of lengths", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", "400", "content_length"},
	{"a length with a sign", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", "400", "content_length"},
	{"a length in hex", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", "400", "content_length"},
	{"a huge length", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nhello", "400", "content_length"},
	{"a bare CR", "GET /x HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", "400", "request"},
	{"bare LFs", "GET /x HTTP/1.1\nHost: a\n\n", "400", "bare_lf"},
	{"one bare LF", "GET /x HTTP/1.1\r\nHost: a\r\nX: y\nZ: z\r\n\r\n", "400", "bare_lf"},
	{"a bare LF as the end of the head", "GET /x HTTP/1.1\r\nHost: a\r\n\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n", "400", "bare_lf"},
	{"a folded line", "GET /x HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", "400", "folded_header"},
	{"a folded coding", "POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "400", "folded_header"},
	{"NUL in a value", "GET /x HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", "400", "request"},
	{"NUL in a name", "GET /x HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n", "400", "request"},
	{"NUL in a path", "GET /x\x00y HTTP/1.1\r\nHost: a\r\n\r\n", "400", "request"},
	{"a huge header", "GET /x HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", "431", "header_too_large"},
	{"a huge cookie of a hit", get(okHit, "Cookie: "+strings.Repeat("a=b; ", 16<<10)), "431", "header_too_large"},
	{"a huge request line", "GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", "431", "header_too_large"},
	{"many headers", "GET /x HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: y\r\n", 16<<10) + "\r\n", "431", "header_too_large"},
	{"a way through", "CONNECT evil.example:80 HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", "405", "method"},
	{"an echo", "TRACE /x HTTP/1.1\r\nHost: a\r\n\r\n", "405", "method"},
	{"no path", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "405", "method"},
	{"no path with chunks", "OPTIONS * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "405", "method"},
	{"HTTP/0.9", "GET /x\r\n\r\n", "400", "request"},
	{"version 0.9 in words", "GET /x HTTP/0.9\r\nHost: a\r\n\r\n", "505", "version"},
	{"version 2 in words", "GET /x HTTP/2.0\r\nHost: a\r\n\r\n", "505", "version"},
	{"the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "405", "method"},
	{"no host", "GET /x HTTP/1.1\r\n\r\n", "400", "request"},
	{"two hosts", "GET /x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", "request"},
	{"TLS within", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", "400", "request"},
}

// TestBadInputOverSockets sends each as the first request of a connection, behind a hit and behind
// a request of net/http, in the clear and over TLS. A good client beside is served.
func TestBadInputOverSockets(t *testing.T) {
	r := newRig(t, nil)
	beside := r.dial(t)
	besideReader := bufio.NewReader(beside)
	for _, tt := range badInputs {
		t.Run(tt.name, func(t *testing.T) {
			counter := `sluice_proxy_bad_input_total{reason="` + tt.reason + `"}`
			for _, e := range entrances[:2] {
				for _, first := range []string{"", get(okHit), get("/-/livez")} {
					before, seen := r.count(counter), r.matomoN()
					conn, err := r.dialWith(t, e, "")
					if err != nil {
						t.Fatal(err)
					}
					reader := bufio.NewReader(conn)
					if first != "" {
						io.WriteString(conn, first)
						if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
							t.Fatalf("the request in front: got %s %v", a.status, err)
						}
					}
					r.queue.take()
					go io.WriteString(conn, tt.raw) // ends with conn, which may be closed before all is sent
					a, err := readAnswer(reader, "GET")
					if err != nil || !strings.Contains(a.status, " "+tt.status) {
						t.Errorf("%s behind %.10q: got %q %v, want %s", e.name, first, a.status, err, tt.status)
					}
					r.until(t, func() bool { return r.count(counter) == before+1 })
					if tt.status != "405" {
						if b, err := io.ReadAll(reader); strings.Contains(string(b), "HTTP/1.") || isTimeout(err) {
							t.Errorf("%s behind %.10q: got %q %v after the answer's head, want its text and the end", e.name, first, b, err)
						}
					}
					conn.Close()
					if n := r.matomoN() - seen; n != 0 {
						t.Errorf("%s behind %.10q: %d requests reached Matomo", e.name, first, n)
					}
					if sets := r.queue.take(); len(sets) != 0 {
						t.Errorf("%s behind %.10q: %d sets are stored", e.name, first, len(sets))
					}
				}
			}
			io.WriteString(beside, get(okHit))
			if a, err := readAnswer(besideReader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
				t.Errorf("the client beside: got %s %v", a.status, err)
			}
		})
	}
}

// A rawUpstream is a server that records every byte. It answers each connection's
// first request and then reads on, so that what is behind it is seen.
type rawUpstream struct {
	address string
	mu      sync.Mutex
	bytes   []string   // guarded by mu: one a connection
	conns   []net.Conn // guarded by mu
}

func newRawUpstream(t *testing.T) *rawUpstream {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &rawUpstream{address: listener.Addr().String()}
	var conns sync.WaitGroup
	conns.Go(func() { // ends when Cleanup closes the listener
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			at := len(u.bytes)
			u.bytes, u.conns = append(u.bytes, ""), append(u.conns, conn)
			u.mu.Unlock()
			conns.Go(func() { u.serve(conn, at) }) // ends when Cleanup closes conn
		}
	})
	t.Cleanup(func() {
		listener.Close()
		u.mu.Lock()
		for _, conn := range u.conns {
			conn.Close()
		}
		u.mu.Unlock()
		conns.Wait()
	})
	return u
}

func (u *rawUpstream) serve(conn net.Conn, at int) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 4<<10)
	for answered := false; ; {
		n, err := conn.Read(b)
		u.mu.Lock()
		u.bytes[at] += string(b[:n])
		whole := strings.Contains(u.bytes[at], "\r\n\r\n")
		u.mu.Unlock()
		if err != nil {
			return
		}
		if whole && !answered {
			answered = true
			io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}
}

// requests gives the first lines of the requests that an obliging reader finds in what
// came: every line that looks like one.
func (u *rawUpstream) requests() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	var found []string
	for _, b := range u.bytes {
		found = append(found, requestLine.FindAllString(b, -1)...)
	}
	return found
}

var requestLine = regexp.MustCompile(`(?m)[A-Z]+ \S+ HTTP/1\.\d\r?$`)

// TestNothingIsSmuggled hides a request behind or in one whose end is in doubt. The
// upstream sees at most one request, and the hidden one only as a request of its own
// that every reader would find.
func TestNothingIsSmuggled(t *testing.T) {
	const hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
	const head = "POST /open HTTP/1.1\r\nHost: a\r\n"
	type shape struct{ name, raw string }
	shapes := []shape{
		{"CL.TE", head + "Content-Length: 39\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE.CL", head + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n22\r\n" + hidden + "\r\n0\r\n\r\n"},
		{"CL.0", head + "Content-Length: 0\r\nContent-Length: 34\r\n\r\n" + hidden},
		{"CL.CL", head + "Content-Length: 34\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"a GET with a body", "GET /open HTTP/1.1\r\nHost: a\r\nContent-Length: 34, 0\r\n\r\n" + hidden},
		{"TE in HTTP/1.0", strings.Replace(head, "1.1", "1.0", 1) + "Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"an end of the head in bare LFs", "GET /open HTTP/1.1\r\nHost: a\n\n" + hidden},
		{"behind chunks", head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"behind chunks and CL.TE", head + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"in a trailer", head + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n" + hidden},
		{"in a chunk's extension", head + "Transfer-Encoding: chunked\r\n\r\n0;x\n" + hidden + "\r\n0\r\n\r\n"},
		{"a chunk with a bad size", head + "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + hidden},
		{"behind an upgrade", "GET /open HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"behind no path", "OPTIONS * HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"in the request line", "GET /open HTTP/1.1\rHost: a\r\r" + hidden},
		{"in the host", "GET /open HTTP/1.1\r\nHost: a\r\n\tGET /hidden HTTP/1.1\r\n\r\n"},
	}
	for _, coding := range []string{
		" chunked", "\tchunked", "chunked ", "\vchunked", "\x00chunked", "Chunked", "chunked, identity", "identity, chunked", "x", "\"chunked\"", "chunked\r\n ", "\r\n chunked", "chunk\xffed",
	} {
		shapes = append(shapes, shape{"coding " + coding, head + "Content-Length: 39\r\nTransfer-Encoding:" + coding + "\r\n\r\n0\r\n\r\n" + hidden})
	}
	for _, name := range []string{"Transfer-Encoding ", " Transfer-Encoding", "Transfer_Encoding", "X: y\nTransfer-Encoding", "X: y\rTransfer-Encoding", "Transfer-Encoding\x00", "Content-Length: 0\r\nX"} {
		shapes = append(shapes, shape{"name " + name, head + "Content-Length: 39\r\n" + name + ": chunked\r\n\r\n0\r\n\r\n" + hidden})
	}
	for _, tt := range shapes {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			u := newRawUpstream(t)
			r := newRig(t, func(c *Config) {
				c.Upstream = &url.URL{Scheme: "http", Host: u.address}
				// The server must end the connection: a client that does makes it drop requests.
				c.Limits.HeaderTimeout, c.Limits.IdleTimeout, c.Limits.ProxyTimeout = time.Second, time.Second, time.Second
			})
			conn := r.dial(t)
			io.WriteString(conn, tt.raw)
			if _, err := io.ReadAll(conn); isTimeout(err) {
				t.Errorf("the connection stays open: %v", err)
			}
			conn.Close()
			r.until(t, func() bool { return r.placesTaken() == 0 })
			// A body of ours may hold anything, but is framed once and for all: it has no
			// length of another kind.
			found := u.requests()
			for _, line := range found {
				if strings.Contains(line, "/hidden") && !strings.Contains(tt.name, "Transfer_Encoding") {
					t.Errorf("the upstream finds %q", line)
				}
			}
			if len(found) > 1 && !strings.Contains(tt.name, "Transfer_Encoding") {
				t.Errorf("the upstream finds %q, want at most one request", found)
			}
		})
	}
}

// TestHalfOpenConnections leaves connections in every unfinished state. They end by
// themselves, and others are served meanwhile.
func TestHalfOpenConnections(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Limits.HeaderTimeout, c.Limits.IdleTimeout, c.Limits.BodyTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
		c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	})
	var open []net.Conn
	for range 20 {
		for _, p := range phases {
			if p.alpn != "" || p.reads {
				continue
			}
			address := r.http
			if p.secure {
				address = r.https
			}
			conn, err := net.Dial("tcp", address.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, p.raw)
			open = append(open, conn)
		}
	}
	if res, err := r.enter(t, entrances[4], "", okHit); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the client beside: got %v %v", res, err)
	}
	for _, conn := range open {
		if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
			t.Fatal("a connection stays open")
		}
	}
	r.until(t, func() bool { return r.placesTaken() == 0 })

	t.Run("TLS garbage", func(t *testing.T) {
		before := r.count(`sluice_proxy_bad_input_total{reason="tls"}`)
		garbage := []string{"\x00\x00\x00\x00\x00", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 100), "\x80\x2e\x01\x03\x01", get(okHit), "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", strings.Repeat("\xff", 4<<10)}
		for _, raw := range garbage {
			conn, err := net.Dial("tcp", r.https.String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(20 * time.Second))
			io.WriteString(conn, raw)
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("%.10q: the connection stays open", raw)
			}
		}
		r.until(t, func() bool {
			return r.count(`sluice_proxy_bad_input_total{reason="tls"}`) == before+len(garbage)
		})
	})
}
