package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// An entrance is one of the ways on which a request comes in.
type entrance struct {
	name    string
	secure  bool
	library bool // net/http reads it
	http2   bool
}

var entrances = []entrance{
	{name: "fast path"},
	{name: "fast path over TLS", secure: true},
	{name: "net/http", library: true},
	{name: "net/http over TLS", secure: true, library: true},
	{name: "HTTP/2", secure: true, library: true, http2: true},
}

// dialWith opens a connection whose first bytes are preamble, in the clear.
func (r *rig) dialWith(t testing.TB, e entrance, preamble string) (net.Conn, error) {
	t.Helper()
	secure, address := r.Addrs()
	if e.secure {
		address = secure
	}
	conn, err := net.Dial("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, preamble); err != nil {
		return nil, err
	}
	if !e.secure {
		return conn, nil
	}
	protocol := "http/1.1"
	if e.http2 {
		protocol = "h2"
	}
	client := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: "stats.example", NextProtos: []string{protocol}})
	return client, client.Handshake()
}

// enter asks for target and gives the answer, with its header names in lower case
// where HTTP/2 has them so. Lines are "Name: value".
func (r *rig) enter(t testing.TB, e entrance, preamble, target string, lines ...string) (*http.Response, error) {
	t.Helper()
	if e.http2 {
		return r.enterHTTP2(t, e, preamble, target, lines)
	}
	conn, err := r.dialWith(t, e, preamble)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if e.library {
		lines = append(lines, "TE: trailers") // it means nothing, and the fast path leaves it
	}
	if _, err := io.WriteString(conn, get(target, lines...)); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
	}
	return res, err
}

func (r *rig) enterHTTP2(t testing.TB, e entrance, preamble, target string, lines []string) (*http.Response, error) {
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return r.dialWith(t, e, preamble) },
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://stats.example"+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ":")
		req.Header.Add(name, strings.Trim(value, " "))
	}
	res, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.ProtoMajor != 2 {
		t.Errorf("answered with %s, want HTTP/2", res.Proto)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return res, err
}

// storedAddress sends a hit and gives the address that is stored with it. It fails
// the test when the hit did not come in on the way that e says.
func (r *rig) storedAddress(t testing.TB, e entrance, preamble string, lines ...string) string {
	t.Helper()
	r.queue.take()
	before := r.count("sluice_proxy_fast_requests_total")
	res, err := r.enter(t, e, preamble, okHit, lines...)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: got %v %v, want 200", e.name, res, err)
	}
	if fast := r.count("sluice_proxy_fast_requests_total") > before; fast && e.library {
		t.Errorf("%s: the fast path answered", e.name)
	}
	sets := r.queue.take()
	if len(sets) != 1 {
		t.Fatalf("%s: %d sets are stored, want 1", e.name, len(sets))
	}
	return sets[0].Environment.ClientIP
}
