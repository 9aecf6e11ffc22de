package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestBadInput(t *testing.T) {
	r := newRig(t, func(c *Config) {
		c.Limits.HeaderBytes = 4096
		c.Limits.BodyBytes = 100_000
	})
	long := strings.Repeat("x", 20_000)
	tests := []struct{ name, raw, want, reason string }{
		{"a header beyond the limit", get("/matomo.php?idsite=1&rec=1", "X: "+long), " 431 ", "header_too_large"},
		{"a request line beyond the limit", get("/matomo.php?idsite=1&rec=1&a=" + long), " 431 ", "header_too_large"},
		{"no host", "GET /matomo.php?idsite=1&rec=1 HTTP/1.1\r\n\r\n", " 400 ", "request"},
		{"two hosts", get("/matomo.php?idsite=1&rec=1", "Host: b"), " 400 ", "request"},
		{"a space before the colon", get("/matomo.php?idsite=1&rec=1", "Content-Length : 0"), " 400 ", "request"},
		{"a NUL in a header", get("/matomo.php?idsite=1&rec=1", "X: a\x00"), " 400 ", "request"},
		{"a length and another length", post("/matomo.php?idsite=1&rec=1", "abc", "Content-Length: 5"), " 400 ", "content_length"},
		{"an unknown transfer coding", get("/matomo.php?idsite=1&rec=1", "Transfer-Encoding: gzip"), " 501 ", "transfer_encoding"},
		{"a version of the future", "GET /matomo.php HTTP/3.0\r\nHost: a\r\n\r\n", " 505 ", "version"},
		{"noise", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", " 400 ", "request"},
		{"a body beyond the limit", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nContent-Length: 100001\r\n\r\n", " 413 ", "body_too_large"},
		{"chunks beyond the limit", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n186a1\r\n" + strings.Repeat("x", 100_001) + "\r\n0\r\n\r\n", " 413 ", "body_too_large"},
		{"a broken chunk", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", " 400 ", "broken_body"},
		{"broken JSON", post("/matomo.php", `{"requests":[`), " 200 ", "json"},
		{"a privileged parameter", get("/matomo.php?idsite=1&rec=1&cip=1"), " 400 ", "privileged"},
		{"a time that is not understood", get("/matomo.php?idsite=1&rec=1&cdt=soon"), " 200 ", "cdt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := `sluice_proxy_bad_input_total{reason="` + tt.reason + `"}`
			before := r.count(name)
			if a := r.exchange(t, tt.raw); !strings.Contains(a.status, tt.want) {
				t.Errorf("got\n%.300s\nwant %s", a, tt.want)
			}
			if got := r.count(name) - before; got != 1 {
				t.Errorf("%s rose by %d, want 1", name, got)
			}
		})
	}
	t.Run("chunks with a good hit", func(t *testing.T) {
		a := r.exchange(t, "POST /matomo.php HTTP/1.1\r\nHost: a\r\n"+formType+"\r\nTransfer-Encoding: chunked\r\n\r\n8\r\nidsite=1\r\n6\r\n&rec=1\r\n0\r\n\r\n")
		if !strings.Contains(a.status, " 200 ") || len(r.queue.take()) == 0 {
			t.Errorf("got %s, want 200 and a stored hit", a.status)
		}
	})
	t.Run("10000 parameters", func(t *testing.T) {
		a := r.exchange(t, post("/matomo.php", "idsite=1&rec=1"+strings.Repeat("&a=1", 10_000)+"&cip=1.1.1.1", formType))
		if !strings.Contains(a.status, " 200 ") {
			t.Errorf("got %s, want 200: PHP reads no more than 1000", a.status)
		}
	})
}

func TestSlowClients(t *testing.T) {
	const short = 60 * time.Millisecond
	r := newRig(t, func(c *Config) {
		c.Limits.HeaderTimeout, c.Limits.BodyTimeout, c.Limits.IdleTimeout = short, short, short
	})
	tests := []struct{ name, raw, want string }{
		{"silent", "", ""},
		{"idle after an answer", get("/matomo.php?idsite=1&rec=1"), "HTTP/1.1 200 "},
		{"in the middle of a head", "GET /matomo.php?idsite=1 HTTP/1.1\r\nHo", ""},
		{"in the middle of a body", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc", "HTTP/1.1 408 "},
		{"in the middle of chunks", "POST /matomo.php HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "HTTP/1.1 408 "},
		{"in the middle of a head for net/http", "PUT /matomo.php HTTP/1.1\r\nHo", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := r.dial(t)
			io.WriteString(conn, tt.raw)
			all, err := io.ReadAll(conn) // ends only when the server closes
			if err != nil || !bytes.HasPrefix(all, []byte(tt.want)) || tt.want == "" && len(all) > 0 {
				t.Errorf("got %q %v, want %q and the end", all, err, tt.want)
			}
		})
	}
	secure, _ := r.Addrs()
	conn, err := net.Dial("tcp", secure.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if all, err := io.ReadAll(conn); err != nil || len(all) != 0 {
		t.Errorf("silent before TLS: got %q %v, want the end", all, err)
	}
}

func TestBodyMemory(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.BodyMemory = 100_000 })
	body := "idsite=1&rec=1&a=" + strings.Repeat("x", 200_000)
	for _, exchange := range []func(testing.TB, string) rawAnswer{r.exchange, r.exchangeByLibrary} {
		if a := exchange(t, post("/matomo.php", body, formType)); !strings.Contains(a.status, " 503 ") || a.line("Connection") != "close" {
			t.Errorf("got\n%s\nwant 503 and the end", a)
		}
		if a := exchange(t, post("/matomo.php", body[:60_000], formType)); !strings.Contains(a.status, " 200 ") {
			t.Errorf("a smaller body: got %s, want 200", a.status)
		}
	}
	r.stop()
	<-r.done
	r.done <- nil
	if used := r.bodies.used.Load(); used != 0 {
		t.Errorf("%d bytes of body memory are still taken", used)
	}
}

func TestConnectionCap(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Limits.Connections = 2 })
	first, second, third := r.dial(t), r.dial(t), r.dial(t)
	for _, conn := range []net.Conn{first, second, third} {
		io.WriteString(conn, get("/matomo.php?idsite=1&rec=1"))
	}
	for _, conn := range []net.Conn{first, second} {
		if a, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Fatalf("got %s %v", a.status, err)
		}
	}
	if got := r.count("sluice_proxy_connections"); got != 2 {
		t.Errorf("%d connections, want 2", got)
	}
	first.Close()
	if a, err := readAnswer(bufio.NewReader(third), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
		t.Errorf("after a place was free: got %s %v", a.status, err)
	}
}
