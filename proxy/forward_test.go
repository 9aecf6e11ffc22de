package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// passTo runs a server in front of a Matomo of the test's own, below /base.
func passTo(t *testing.T, matomo http.HandlerFunc, change func(*Config)) *rig {
	t.Helper()
	upstream := httptest.NewServer(matomo)
	t.Cleanup(upstream.Close)
	return passToAddress(t, upstream.URL, change)
}

func passToAddress(t *testing.T, address string, change func(*Config)) *rig {
	t.Helper()
	at, err := url.Parse(address + "/base")
	if err != nil {
		t.Fatal(err)
	}
	return newRig(t, func(c *Config) {
		c.Upstream, c.Host = at, HostUpstream
		if change != nil {
			change(c)
		}
	})
}

func trustLoopback(c *Config) { c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }

func TestForwardedHeaders(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(*Config)
		headers []string
		want    map[string]string // "" is absent
	}{
		{"a stranger tells nothing", nil,
			[]string{"X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Forwarded-Port: 6", "X-Forwarded-Uri: /x",
				"X-Forwarded-Prefix: /x", "X-Forwarded-Scheme: https", "X-Forwarded-Server: evil", "Forwarded: for=6.6.6.6", "Client-IP: 6.6.6.6", "X-Real-IP: 6.6.6.6",
				"CF-Connecting-IP: 6.6.6.6", "True-Client-IP: 6.6.6.6", "X-Client-IP: 6.6.6.6", "X-Url-Scheme: https", "Front-End-Https: on", "X-Original-Url: /x"},
			map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "stats.example", "X-Forwarded-Port": "80",
				"X-Forwarded-Uri": "", "X-Forwarded-Prefix": "", "X-Forwarded-Scheme": "", "X-Forwarded-Server": "", "Forwarded": "", "Client-Ip": "", "X-Real-Ip": "",
				"Cf-Connecting-Ip": "", "True-Client-Ip": "", "X-Client-Ip": "", "X-Url-Scheme": "", "Front-End-Https": "", "X-Original-Url": ""}},
		{"a trusted peer's chain becomes the one visitor", trustLoopback,
			[]string{"X-Forwarded-For: 6.6.6.6, 192.0.2.7, 127.0.0.9", "X-Forwarded-Proto: https", "X-Forwarded-Host: shop.example:8443", "CF-Connecting-IP: 192.0.2.7"},
			map[string]string{"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example:8443",
				"X-Forwarded-Port": "8443", "Cf-Connecting-Ip": "192.0.2.7"}},
		{"what a trusted peer says badly is not kept", trustLoopback,
			[]string{"X-Forwarded-For: nonsense", "X-Forwarded-Proto: gopher", "X-Forwarded-Host: a/b", "X-Forwarded-Port: 0"},
			map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "stats.example", "X-Forwarded-Port": "80"}},
		{"names with other signs pass from nobody", trustLoopback,
			[]string{"X_Forwarded_For: 6.6.6.6", "X.Real.IP: 6.6.6.6", "Proxy: http://evil", "Accept-Language: de"},
			map[string]string{"X_forwarded_for": "", "X.real.ip": "", "Proxy": "", "Accept-Language": "de"}},
		{"Connection cannot take headers off", nil,
			[]string{"Connection: close, X-Forwarded-For, X-Forwarded-Host, X-Request-Id"},
			map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "stats.example"}},
		{"the operator's own header is set and no client's", func(c *Config) { c.AddressHeader = "X-Edge-Client-IP" },
			[]string{"x-edge-client-ip: 6.6.6.6"}, map[string]string{"X-Edge-Client-Ip": "127.0.0.1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got http.Header
			r := passTo(t, func(_ http.ResponseWriter, in *http.Request) { got = in.Header.Clone() }, tt.change)
			if a := r.exchange(t, get("/index.php?a=1", tt.headers...)); !strings.Contains(a.status, " 200 ") {
				t.Fatalf("got %s", a)
			}
			for name, want := range tt.want {
				if v := strings.Join(got[name], "|"); v != want {
					t.Errorf("%s: got %q, want %q", name, v, want)
				}
			}
		})
	}
}

func TestHostHeader(t *testing.T) {
	for mode, want := range map[string]string{HostUpstream: "127.0.0.1", HostClient: "stats.example"} {
		r := passTo(t, func(w http.ResponseWriter, in *http.Request) {
			if told := in.Header.Get("X-Forwarded-Host"); (told == "stats.example") != (mode == HostUpstream) {
				t.Errorf("%s: X-Forwarded-Host is %q", mode, told)
			}
			io.WriteString(w, in.Host+" "+in.URL.RawQuery)
		}, func(c *Config) { c.Host = mode })
		a := r.exchange(t, get("/index.php?a=1;b=%zz"))
		if host, _, _ := strings.Cut(a.body, ":"); host != want && !strings.HasPrefix(a.body, want+" ") {
			t.Errorf("%s: Matomo was asked as %q, want %q", mode, a.body, want)
		}
		if !strings.HasSuffix(a.body, "a=1;b=%zz") {
			t.Errorf("the query became %q", a.body)
		}
		if a := r.exchange(t, "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n"); !strings.Contains(a.status, " 400 ") {
			t.Errorf("a bad host: got %s, want 400", a.status)
		}
	}
}

// brokenMatomo answers nothing to the first requests of a way and closes.
func brokenMatomo(t *testing.T, breaks int32) (address string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		_, _ = io.Copy(io.Discard, in.Body)
		if asked.Add(1) <= breaks {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "fine")
	}))
	t.Cleanup(server.Close)
	return server.URL, asked
}

func TestRetries(t *testing.T) {
	for _, tt := range []struct {
		name, raw string
		breaks    int32
		asked     int32
		status    string
	}{
		{"GET is sent once more", get("/x"), 1, 2, " 200 "},
		{"HEAD is sent once more", strings.Replace(get("/x"), "GET", "HEAD", 1), 1, 2, " 200 "},
		{"GET is not sent a third time", get("/x"), 9, 2, " 502 "},
		{"POST is not", post("/x", "a=1"), 1, 1, " 502 "},
		{"POST without a body is not, whatever it says of itself", post("/x", "", "Idempotency-Key: 1", "X-Idempotency-Key: 1"), 1, 1, " 502 "},
		{"GET with a body is not", strings.Replace(post("/x", "a=1"), "POST", "GET", 1), 1, 1, " 502 "},
		{"DELETE is not", strings.Replace(get("/x"), "GET", "DELETE", 1), 1, 1, " 502 "},
		{"OPTIONS is not", strings.Replace(get("/x"), "GET", "OPTIONS", 1), 1, 1, " 502 "},
	} {
		for _, kept := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, kept connection %t", tt.name, kept), func(t *testing.T) {
				address, asked := brokenMatomo(t, tt.breaks)
				r := passToAddress(t, address, nil)
				if kept {
					asked.Store(100)
					r.exchange(t, get("/x"))
					asked.Store(0)
				}
				if a := r.exchange(t, tt.raw); !strings.Contains(a.status, tt.status) {
					t.Errorf("got %s, want%s", a.status, tt.status)
				}
				if n := asked.Load(); n != tt.asked {
					t.Errorf("Matomo was asked %d times, want %d", n, tt.asked)
				}
			})
		}
	}
}

// TestHitsPassOnce: Matomo could have recorded the first.
func TestHitsPassOnce(t *testing.T) {
	address, asked := brokenMatomo(t, 1)
	r := passToAddress(t, address, func(c *Config) { c.PassThrough = func(int64) bool { return true } })
	r.queue.fail(errFull)
	for _, exchange := range []func(testing.TB, string) rawAnswer{r.exchange, r.exchangeByLibrary} {
		asked.Store(0)
		if a := exchange(t, get(okHit)); !strings.Contains(a.status, " 503 ") || asked.Load() != 1 {
			t.Errorf("got %s, and Matomo was asked %d times", a.status, asked.Load())
		}
	}
}

// TestConnectionsAreKept: many clients at once do not dial for each request.
func TestConnectionsAreKept(t *testing.T) {
	const clients, rounds = 100, 5
	var dialled atomic.Int32
	r := passTo(t, func(http.ResponseWriter, *http.Request) {}, nil)
	r.usePaths(func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	})
	for range rounds {
		var all sync.WaitGroup
		for range clients {
			all.Go(func() { r.exchange(t, get("/x")) })
		}
		all.Wait()
	}
	if n := dialled.Load(); n > clients {
		t.Errorf("%d connections for %d clients", n, clients)
	}
}

func TestUpstreamErrors(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	var hung atomic.Int32
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, in *http.Request) { hung.Add(1); <-in.Context().Done() }))
	t.Cleanup(hang.Close)
	broken, _ := brokenMatomo(t, 1000)
	for _, tt := range []struct {
		name, address, cause, status string
		change                       func(*Config)
	}{
		{"no connection", "http://" + closed.Addr().String(), causeConnect, " 502 ", nil},
		{"no answer in time", hang.URL, causeTimeout, " 504 ", func(c *Config) { c.Way.ResponseTimeout = 50 * time.Millisecond }},
		{"too long in all", hang.URL, causeTimeout, " 504 ", func(c *Config) { c.Limits.ProxyTimeout = 100 * time.Millisecond }},
		{"a broken connection", broken, causeBroken, " 502 ", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := passToAddress(t, tt.address, tt.change)
			for _, accept := range []string{"text/html,*/*", "*/*"} {
				raw := get("/x?secret=1", "Accept: "+accept)
				a := r.exchange(t, raw)
				html := accept != "*/*"
				if !strings.Contains(a.status, tt.status) || a.line("Cache-Control") != "no-store" || a.line("Retry-After") == "" ||
					strings.HasPrefix(a.line("Content-Type"), "text/html") != html || strings.HasPrefix(a.body, "<!DOCTYPE html>") != html {
					t.Errorf("got\n%s", a)
				}
				if id := a.line(requestIDHeader); len(id) != 2*newIDBytes || !strings.Contains(a.body, id) {
					t.Errorf("request id %q and page\n%s", id, a.body)
				}
				if strings.Contains(a.body, "127.0.0.1") || strings.Contains(a.body, "secret") {
					t.Errorf("the page tells too much:\n%s", a.body)
				}
				head := r.exchange(t, strings.Replace(raw, "GET", "HEAD", 1))
				if !strings.Contains(head.status, tt.status) || head.line("Content-Length") == "" {
					t.Errorf("HEAD: got\n%s", head)
				}
			}
			if n := hung.Swap(0); tt.address == hang.URL && n != 4 {
				t.Errorf("Matomo was asked %d times, want 4: what is late is not repeated", n)
			}
			if n := r.count(`sluice_proxy_upstream_errors_total{cause="` + tt.cause + `"}`); n != 4 {
				t.Errorf("counted %d, want 4", n)
			}
		})
	}
}

// TestBusy: with all connections taken one more waits and others are told so.
func TestBusy(t *testing.T) {
	inside, free := make(chan struct{}, 8), make(chan struct{})
	r := passTo(t, func(http.ResponseWriter, *http.Request) { inside <- struct{}{}; <-free }, func(c *Config) {
		c.Way.Connections, c.Way.ConnectTimeout = 1, time.Hour
	})
	var first sync.WaitGroup
	first.Go(func() { r.exchange(t, get("/a")) })
	<-inside
	first.Go(func() { r.exchange(t, get("/b")) })
	r.until(t, func() bool { return r.gate.waiting.Load() == 1 })
	if a := r.exchange(t, get("/c")); !strings.Contains(a.status, " 503 ") || a.line("Retry-After") == "" {
		t.Errorf("got\n%s\nwant 503", a)
	}
	if n := r.count(`sluice_proxy_upstream_errors_total{cause="busy"}`); n != 1 {
		t.Errorf("counted %d, want 1", n)
	}
	close(free)
	first.Wait()

	short := &turnstile{places: make(chan struct{}, 1), patience: time.Millisecond}
	if err := short.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := short.enter(t.Context()); !errors.Is(err, errBusy) {
		t.Errorf("waiting ended with %v, want %v", err, errBusy)
	}
}

func TestRequestIDs(t *testing.T) {
	seen := func(w http.ResponseWriter, in *http.Request) {
		w.Header().Set(requestIDHeader, "matomo's")
		io.WriteString(w, in.Header.Get(requestIDHeader))
	}
	for _, tt := range []struct {
		name, id string
		change   func(*Config)
		kept     bool
	}{
		{"a stranger's is replaced", "abc-1", nil, false},
		{"a trusted peer's is kept", "abc-1", trustLoopback, true},
		{"one of 128 characters is kept", strings.Repeat("a", 128), trustLoopback, true},
		{"a longer one is replaced", strings.Repeat("a", 129), trustLoopback, false},
		{"one with other signs is replaced", "<b>", trustLoopback, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := passTo(t, seen, tt.change).exchange(t, get("/x", "X-Request-Id: "+tt.id))
			if n := strings.Count(strings.Join(a.lines, "\n"), requestIDHeader); n != 1 {
				t.Errorf("%d ids in the answer", n)
			}
			if got := a.line(requestIDHeader); got != a.body || (got == tt.id) != tt.kept || !tt.kept && len(got) != 2*newIDBytes {
				t.Errorf("Matomo got %q, the client %q", a.body, got)
			}
		})
	}
	if a := passTo(t, seen, nil).exchangeByLibrary(t, get(okHit)); a.line(requestIDHeader) != "" {
		t.Errorf("a hit's answer has an id:\n%s", a)
	}
}

// TestOnlyUpstreamIsDialled: whatever is asked for, in whatever form.
func TestOnlyUpstreamIsDialled(t *testing.T) {
	var mu sync.Mutex
	dialled, paths := map[string]bool{}, []string{}
	r := passTo(t, func(_ http.ResponseWriter, in *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		paths = append(paths, in.RequestURI)
	}, nil)
	r.usePaths(func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		dialled[address] = true
		mu.Unlock()
		return new(net.Dialer).DialContext(ctx, network, address)
	})
	for target, status := range map[string]string{
		"http://evil.example/x": " 200 ", "//evil.example/x": " 200 ", "///evil.example/x": " 200 ", "/ok/%20/a;b=1": " 200 ", "/a..b/...c": " 200 ",
		"http://user:pw@evil.example/x": " 400 ", "ftp://evil.example/x": " 400 ", "http:evil": " 400 ",
		"/../secret": " 400 ", "/a/../../secret": " 400 ", "/%2e%2e/secret": " 400 ", "/.%2E/secret": " 400 ", "/%252e%252e/secret": " 400 ", "/..;/secret": " 400 ",
		"/..%3b/secret": " 400 ", "/..;x=1/secret": " 400 ", "/a%2fb": " 400 ", "/..%2fsecret": " 400 ", "/..%5csecret": " 400 ", `/..\secret`: " 400 ", "/./x": " 400 ",
		"/%25252e%25252e/x": " 400 ", "/a%00b": " 400 ", "/.../x": " 400 ", "/..%20/x": " 400 ",
	} {
		before := r.count(`sluice_proxy_bad_input_total{reason="path"}`)
		a := r.exchange(t, get(target))
		if !strings.Contains(a.status, status) {
			t.Errorf("%s: got %s, want%s", target, a.status, status)
		}
		if n := r.count(`sluice_proxy_bad_input_total{reason="path"}`) - before; (n == 1) != (status == " 400 ") {
			t.Errorf("%s: counted %d", target, n)
		}
	}
	for target := range dialled {
		if target != r.cfg.Upstream.Host {
			t.Errorf("dialled %s", target)
		}
	}
	for _, p := range paths {
		if !strings.HasPrefix(p, "/base/") || strings.HasPrefix(p, "/base//") {
			t.Errorf("Matomo was asked for %q", p)
		}
	}
	// A hit that passes the queue by stays below the base path, too.
	r.queue.fail(errFull)
	r.endpoint.cfg.PassThrough = func(int64) bool { return true }
	paths = nil
	r.exchange(t, get("/../../matomo.php?idsite=1&rec=1"))
	if len(paths) != 1 || !strings.HasPrefix(paths[0], "/base/matomo.php?") {
		t.Errorf("a hit went to %q", paths)
	}
}

func TestRedirect(t *testing.T) {
	for _, tt := range []struct {
		name, raw, status, location string
		change                      func(*Config)
	}{
		{"GET", get("/index.php?a=%20b"), " 301 ", "https://stats.example/index.php?a=%20b", nil},
		{"a file", get("/matomo.js"), " 301 ", "https://stats.example/matomo.js", nil},
		{"POST keeps its method", post("/index.php", "a"), " 308 ", "https://stats.example/index.php", nil},
		{"another port", "GET / HTTP/1.1\r\nHost: stats.example:8080\r\n\r\n", " 301 ", "https://stats.example:8443/", func(c *Config) { c.HTTPSPort = 8443 }},
		{"a bad host", "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", " 400 ", "", nil},
		{"no host", "GET / HTTP/1.0\r\n\r\n", " 400 ", "", nil},
		{"a hit is taken", get(okHit), " 200 ", "", nil},
		{"health is told", get("/-/livez"), " 200 ", "", nil},
		{"a stranger's word does not count", get("/x", "X-Forwarded-Proto: https"), " 301 ", "https://stats.example/x", nil},
		{"behind a balancer that ends TLS", get("/x", "X-Forwarded-Proto: https"), " 418 ", "", trustLoopback},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, func(c *Config) {
				c.HTTP, c.Files = HTTPRedirect, wiredFiles{}
				if tt.change != nil {
					tt.change(c)
				}
			})
			a := r.exchange(t, tt.raw)
			if !strings.Contains(a.status, tt.status) || a.line("Location") != tt.location {
				t.Errorf("got\n%s\nwant%sto %s", a, tt.status, tt.location)
			}
		})
	}
}

// readHead reads an answer's status line and skips its headers.
func readHead(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	status := ""
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("read a head: %v", err)
		}
		if status == "" {
			status = line
		}
		if line == "\r\n" {
			return status
		}
	}
}
