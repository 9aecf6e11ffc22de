package proxy

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

const (
	proxyV1  = "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"
	proxyV16 = "PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n"
	unknown  = "PROXY UNKNOWN\r\n"
)

// proxyV2 makes a header of version 2.
func proxyV2(command, family byte, rest string) string {
	b := append([]byte(nil), proxyproto.SIGV2...)
	b = binary.BigEndian.AppendUint16(append(b, command, family), uint16(len(rest)))
	return string(b) + rest
}

var (
	v4Block  = "\xcb\x00\x71\x07\xc0\x00\x02\x01\x12\x67\x01\xbb"
	v6Block  = "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x07" + "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + "\x12\x67\x01\xbb"
	mapped   = strings.Repeat("\x00", 10) + "\xff\xff\xcb\x00\x71\x07" + strings.Repeat("\x00", 16) + "\x12\x67\x01\xbb"
	noopTLV  = "\x04\x00\x03abc"
	loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
)

func TestProxyProtocol(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ProxyProtocol = loopback })
	tests := []struct{ name, header, want string }{
		{"version 1", proxyV1, "203.0.113.7"},
		{"version 1 with IPv6", proxyV16, "2001:db8::7"},
		{"version 1 without an address", unknown, "127.0.0.1"},
		{"version 1 with an address of nobody", "PROXY UNKNOWN 203.0.113.7 192.0.2.1 1 2\r\n", "127.0.0.1"},
		{"version 2", proxyV2(0x21, 0x11, v4Block), "203.0.113.7"},
		{"version 2 with further fields", proxyV2(0x21, 0x11, v4Block+noopTLV), "203.0.113.7"},
		{"version 2 with IPv6", proxyV2(0x21, 0x21, v6Block), "2001:db8::7"},
		{"version 2 with IPv4 in IPv6", proxyV2(0x21, 0x21, mapped), "203.0.113.7"},
		{"version 2 of the balancer itself", proxyV2(0x20, 0x00, ""), "127.0.0.1"},
		{"version 2 of the balancer itself with an address", proxyV2(0x20, 0x11, v4Block), "127.0.0.1"},
		{"version 2 without an address", proxyV2(0x21, 0x00, noopTLV), "127.0.0.1"},
		{"version 2 of a local socket", proxyV2(0x21, 0x31, strings.Repeat("/", 216)), "127.0.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, e := range entrances {
				if got := r.storedAddress(t, e, tt.header); got != tt.want {
					t.Errorf("%s: stored for %s, want %s", e.name, got, tt.want)
				}
			}
		})
	}
	if n := r.count(`sluice_proxy_bad_input_total{reason="proxy_protocol"}`); n != 0 {
		t.Errorf("%d good headers are counted as bad", n)
	}
	t.Run("tells Matomo", func(t *testing.T) {
		for _, e := range entrances[2:] {
			res, err := r.enter(t, e, proxyV1, "/index.php")
			if err != nil || !strings.Contains(res.Header.Get("X-Seen"), " for=203.0.113.7 ") {
				t.Errorf("%s: got %v %v, want the address in X-Forwarded-For", e.name, res, err)
			}
		}
	})
	t.Run("in pieces and with the request behind it", func(t *testing.T) {
		for _, header := range []string{proxyV1, proxyV2(0x21, 0x11, v4Block)} {
			conn := r.dial(t)
			conn.(*net.TCPConn).SetNoDelay(true)
			for _, part := range []string{header[:3], header[3:20], header[20:] + get(okHit) + get(okHit)} {
				io.WriteString(conn, part)
			}
			reader := bufio.NewReader(conn)
			for range 2 {
				if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
					t.Errorf("got %s %v", a.status, err)
				}
			}
		}
	})
}

func TestProxyProtocolRefused(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ProxyProtocol = loopback })
	const counter = `sluice_proxy_bad_input_total{reason="proxy_protocol"}`
	tests := []struct{ name, header string }{
		{"no header", get(okHit)},
		{"another word", "PROXX TCP4 203.0.113.7 192.0.2.1 4711 443\r\n"},
		{"no space", "PROXYTCP4 203.0.113.7 192.0.2.1 4711 443\r\n"},
		{"an unknown family", "PROXY TCP5 203.0.113.7 192.0.2.1 4711 443\r\n"},
		{"the other family", "PROXY TCP4 2001:db8::7 2001:db8::1 4711 443\r\n"},
		{"no address", "PROXY TCP4 localhost localhost 4711 443\r\n"},
		{"a zone", "PROXY TCP6 fe80::1%lo fe80::2 4711 443\r\n"},
		{"no ports", "PROXY TCP4 203.0.113.7 192.0.2.1\r\n"},
		{"a port too large", "PROXY TCP4 203.0.113.7 192.0.2.1 65536 443\r\n"},
		{"a word too many", "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443 1\r\n"},
		{"only a line feed", "PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\n"},
		{"a line without an end", "PROXY UNKNOWN " + strings.Repeat("x", 200)},
		{"version 3", proxyV2(0x31, 0x11, v4Block)},
		{"an unknown command", proxyV2(0x22, 0x11, v4Block)},
		{"an unknown family of version 2", proxyV2(0x21, 0x41, v4Block)},
		{"datagrams", proxyV2(0x21, 0x12, v4Block)},
		{"a block too short", proxyV2(0x21, 0x11, v4Block[:8])},
		{"a block too long", proxyV2(0x21, 0x11, v4Block+strings.Repeat("\x00", maxProxyRest))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, e := range []entrance{entrances[0], {name: "TLS listener", secure: true}} {
				before := r.count(counter)
				address := r.http
				if e.secure {
					address = r.https
				}
				conn, err := net.Dial("tcp", address.String())
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				io.WriteString(conn, tt.header)
				if b, err := io.ReadAll(conn); len(b) > 0 || isTimeout(err) {
					t.Errorf("%s: got %q %v, want the end", e.name, b, err)
				}
				r.until(t, func() bool { return r.count(counter) == before+1 })
			}
		})
	}
	if sets := r.queue.take(); len(sets) > 0 {
		t.Errorf("%d hits are stored", len(sets))
	}
	t.Run("for its length alone", func(t *testing.T) {
		announced := string(proxyproto.SIGV2) + "\x21\x11\xff\xff"
		for _, header := range []string{announced, "PROXY UNKNOWN " + strings.Repeat("x", maxProxyLine)} {
			r := strings.NewReader(header + strings.Repeat("x", 1<<17))
			before := r.Len()
			if _, err := readProxyHeader(r); err != errProxyHeaderLong || before-r.Len() > maxProxyLine {
				t.Errorf("after %.20q: got %v, and %d bytes are read", header, err, before-r.Len())
			}
		}
	})
	t.Run("but not a silent health check", func(t *testing.T) {
		before := r.count(counter)
		for range 3 {
			r.dial(t).Close()
		}
		r.until(t, func() bool { return r.placesTaken() == 0 })
		if n := r.count(counter) - before; n != 0 {
			t.Errorf("%d are counted", n)
		}
	})
	t.Run("when it is slow", func(t *testing.T) {
		r := newRig(t, func(c *Config) {
			c.ProxyProtocol, c.Limits.HeaderTimeout = loopback, 100*time.Millisecond
		})
		for _, part := range []string{"", proxyV1[:20], proxyV2(0x21, 0x11, v4Block)[:20]} {
			before := r.count(counter)
			conn := r.dial(t)
			io.WriteString(conn, part)
			if b, err := io.ReadAll(conn); len(b) > 0 || isTimeout(err) {
				t.Errorf("after %q: got %q %v, want the end", part, b, err)
			}
			r.until(t, func() bool { return r.count(counter) == before+1 })
		}
		// Others are served meanwhile: nothing waits where connections are accepted.
		for range 20 {
			defer r.dial(t).Close()
		}
		if got := r.storedAddress(t, entrances[0], proxyV1); got != "203.0.113.7" {
			t.Errorf("stored for %s", got)
		}
	})
}

// A header from somebody who is not trusted is no header but a bad request.
func TestProxyProtocolOfStrangers(t *testing.T) {
	r := newRig(t, func(c *Config) { c.ProxyProtocol = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")} })
	for header, reason := range map[string]string{proxyV1: "request", proxyV16: "request", unknown: "request", proxyV2(0x21, 0x11, v4Block): "bare_lf"} {
		counter := `sluice_proxy_bad_input_total{reason="` + reason + `"}`
		before := r.count(counter)
		if a := r.exchange(t, header+get(okHit)); !strings.Contains(a.status, " 400 ") {
			t.Errorf("after %q: got %s, want 400", header, a.status)
		}
		r.until(t, func() bool { return r.count(counter) == before+1 })
		before = r.count(`sluice_proxy_bad_input_total{reason="tls"}`)
		if _, err := r.dialWith(t, entrances[1], header); err == nil {
			t.Errorf("after %q: the handshake succeeds", header)
		}
		r.until(t, func() bool { return r.count(`sluice_proxy_bad_input_total{reason="tls"}`) == before+1 })
	}
	if sets := r.queue.take(); len(sets) > 0 {
		t.Errorf("%d hits are stored", len(sets))
	}
	t.Run("until a reload trusts them", func(t *testing.T) {
		tunables := r.cfg.tunables()
		tunables.ProxyProtocol = loopback
		if err := r.Reload(tunables); err != nil {
			t.Fatal(err)
		}
		if got := r.storedAddress(t, entrances[0], proxyV1); got != "203.0.113.7" {
			t.Errorf("stored for %s", got)
		}
	})
}

// What is limited by address is limited by the address of the header.
func TestProxyProtocolLimits(t *testing.T) {
	other := strings.Replace(proxyV1, "203.0.113.7", "203.0.113.8", 1)
	r := newRig(t, func(c *Config) {
		c.ProxyProtocol, c.Limits.PerAddress = loopback, 1
		c.RateLimits = RateLimits{PerAddress: 1, AddressBurst: 1}
	})
	first, err := r.dialWith(t, entrances[0], proxyV1)
	if err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(first)
	for _, want := range []string{" 200 ", " 429 "} {
		io.WriteString(first, get(okHit))
		if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, want) {
			t.Fatalf("got %s %v, want%s", a.status, err, want)
		}
	}
	if res, err := r.enter(t, entrances[0], proxyV1, okHit); err == nil {
		t.Errorf("a second connection of the address: got %s, want the end", res.Status)
	}
	if n := r.count(`sluice_proxy_bad_input_total{reason="connections"}`); n != 1 {
		t.Errorf("%d connections are counted, want 1", n)
	}
	if got := r.storedAddress(t, entrances[0], other); got != "203.0.113.8" {
		t.Errorf("stored for %s", got)
	}
	r.until(t, func() bool { return r.placesTaken() == 1 })
	if res, err := r.enter(t, entrances[4], other, okHit); err != nil || res.StatusCode != http.StatusTooManyRequests {
		t.Errorf("over HTTP/2: got %v %v, want 429", res, err)
	}
	first.Close()
	r.until(t, func() bool {
		r.crowd.mu.Lock()
		defer r.crowd.mu.Unlock()
		return len(r.crowd.count) == 0
	})
}

// FuzzProxyHeader gives any bytes as a header. Nothing is read behind a header that is
// taken, and what is taken says an address or nothing.
func FuzzProxyHeader(f *testing.F) {
	for _, header := range []string{
		proxyV1, proxyV16, unknown, proxyV2(0x21, 0x11, v4Block), proxyV2(0x21, 0x21, v6Block), proxyV2(0x20, 0x00, ""),
		proxyV2(0x21, 0x00, noopTLV), proxyV2(0x21, 0x31, strings.Repeat("/", 216)), get(okHit),
	} {
		f.Add([]byte(header))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const behind = "GET / HTTP/1.1\r\n"
		whole := append(bytes.Clone(b), behind...)
		r := bytes.NewReader(whole)
		from, err := readProxyHeader(r)
		if read := len(whole) - r.Len(); read > proxyFixed+maxProxyRest {
			t.Fatalf("%d bytes are read", read)
		}
		if err != nil {
			return
		}
		if address, ok := from.(*net.TCPAddr); from != nil && (!ok || !address.AddrPort().IsValid()) {
			t.Fatalf("taken with the address %v", from)
		}
		// The same header alone says the same.
		again, err := readProxyHeader(bytes.NewReader(whole[:len(whole)-r.Len()]))
		if err != nil || (again == nil) != (from == nil) || from != nil && again.String() != from.String() {
			t.Fatalf("alone it says %v and %v, want %v", again, err, from)
		}
	})
}
