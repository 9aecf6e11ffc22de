package proxy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestQueueRefuses(t *testing.T) {
	r := newRig(t, nil)
	rows := map[string]string{
		"GET": get("/matomo.php?idsite=1&rec=1"), "POST": post("/matomo.php?idsite=1&rec=1&send_image=0", ""),
		"bulk": post("/matomo.php", `{"requests":["?idsite=1&rec=1","?idsite=1&rec=1"],"send_image":0}`),
	}
	t.Run("a full queue is 503", func(t *testing.T) {
		r.queue.fail(errFull)
		for name, raw := range rows {
			for _, a := range []rawAnswer{r.exchange(t, raw), r.exchangeByLibrary(t, raw)} {
				if !strings.Contains(a.status, " 503 ") || a.line("Retry-After") != "5" || a.line("Cache-Control") != "no-store" {
					t.Errorf("%s: got\n%s\nwant 503 with Retry-After: 5 and no-store", name, a)
				}
			}
		}
		if got := r.count(`sluice_proxy_hits_total{answer="refused"}`); got != 8 {
			t.Errorf("refused hits %d, want 8", got)
		}
		if got := r.count(`sluice_proxy_hits_total{answer="stored"}`); got != 0 {
			t.Errorf("stored hits %d, want 0", got)
		}
	})
	t.Run("a set too large for it is 413", func(t *testing.T) {
		r.queue.fail(errors.Join(errors.New("append"), tooLargeError{errFull}))
		for name, raw := range rows {
			if a := r.exchange(t, raw); !strings.Contains(a.status, " 413 ") {
				t.Errorf("%s: got %s, want 413", name, a.status)
			}
		}
		if got := r.count(`sluice_proxy_bad_input_total{reason="set_too_large"}`); got != 3 {
			t.Errorf("too large sets %d, want 3", got)
		}
	})
	t.Run("hits that Matomo would drop are success all the same", func(t *testing.T) {
		r.queue.fail(errFull)
		if a := r.exchange(t, get("/matomo.php?idsite=1&rec=0")); !strings.Contains(a.status, " 200 ") {
			t.Errorf("got %s, want 200", a.status)
		}
	})
	if n := r.matomoN(); n != 0 {
		t.Errorf("%d requests reached Matomo, want none", n)
	}
}

func TestPassThrough(t *testing.T) {
	r := newRig(t, func(c *Config) { c.PassThrough = func(site int64) bool { return site == 1 } })
	r.queue.fail(errFull)
	bulk := `{"requests":["?idsite=1&rec=1"],"send_image":0}`
	for _, way := range []struct {
		name     string
		exchange func(testing.TB, string) rawAnswer
	}{{"fast", r.exchange}, {"library", r.exchangeByLibrary}} {
		t.Run(way.name, func(t *testing.T) {
			before := r.count(`sluice_proxy_hits_total{answer="passed"}`)
			a := way.exchange(t, post("/x/matomo.php?q=1", bulk, formType, "X-Forwarded-For: 6.6.6.6"))
			if !strings.Contains(a.status, " 418 ") || a.body != "matomo got "+bulk {
				t.Errorf("got\n%s\nwant Matomo's own answer", a)
			}
			if want := "POST /base/x/matomo.php?q=1 for=127.0.0.1 proto=http host=stats.example"; a.line("X-Seen") != want {
				t.Errorf("Matomo saw %q, want %q", a.line("X-Seen"), want)
			}
			if got := r.count(`sluice_proxy_hits_total{answer="passed"}`) - before; got != 1 {
				t.Errorf("passed hits %d, want 1", got)
			}
		})
	}
	t.Run("not for every site", func(t *testing.T) {
		before := r.matomoN()
		a := r.exchange(t, post("/matomo.php", `{"requests":["?idsite=1&rec=1","?idsite=2&rec=1"]}`))
		if !strings.Contains(a.status, " 503 ") || r.matomoN() != before {
			t.Errorf("got %s with %d requests to Matomo, want 503 with none", a.status, r.matomoN()-before)
		}
	})
	t.Run("not when the hit may be on disk", func(t *testing.T) {
		r.queue.fail(uncertainError{errFull})
		defer r.queue.fail(errFull)
		before := r.matomoN()
		a := r.exchange(t, get("/matomo.php?idsite=1&rec=1"))
		if !strings.Contains(a.status, " 503 ") || r.matomoN() != before {
			t.Errorf("got %s with %d requests to Matomo, want 503 with none", a.status, r.matomoN()-before)
		}
	})
	t.Run("503 when Matomo is away", func(t *testing.T) {
		r.matomo.CloseClientConnections()
		r.matomo.Close()
		if a := r.exchange(t, get("/matomo.php?idsite=1&rec=1")); !strings.Contains(a.status, " 503 ") {
			t.Errorf("got %s, want 503", a.status)
		}
		if a := r.exchange(t, get("/index.php")); !strings.Contains(a.status, " 502 ") || !strings.HasPrefix(a.body, "Matomo does not answer.\nRequest: ") {
			t.Errorf("another path: got\n%s\nwant 502", a)
		}
	})
}

func TestOtherPaths(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} })
	a := r.exchange(t, get("/index.php?module=API", "X-Forwarded-For: 1.2.3.4", "X-Forwarded-Proto: https"))
	if want := "GET /base/index.php?module=API for=1.2.3.4 proto=https host=stats.example"; a.line("X-Seen") != want {
		t.Errorf("Matomo saw %q, want %q", a.line("X-Seen"), want)
	}
	if a := r.exchange(t, get("/js/")); !strings.Contains(a.status, " 418 ") {
		t.Errorf("js/ without data: got %s, want it forwarded", a.status)
	}
	if a := r.exchange(t, strings.Replace(get("/"), "GET", "TRACE", 1)); !strings.Contains(a.status, " 405 ") {
		t.Errorf("TRACE: got %s, want 405", a.status)
	}
	closed := newRig(t, func(c *Config) { c.Expose = ExposeTrackingOnly })
	if a := closed.exchange(t, get("/index.php")); !strings.Contains(a.status, " 404 ") || closed.matomoN() != 0 {
		t.Errorf("tracking only: got %s, want 404", a.status)
	}
	if a := closed.exchange(t, get("/matomo.php?idsite=1&rec=1")); !strings.Contains(a.status, " 200 ") {
		t.Errorf("tracking only, a hit: got %s, want 200", a.status)
	}
}

func TestHealth(t *testing.T) {
	var mu sync.Mutex
	var why error
	r := newRig(t, func(c *Config) { c.Ready = func() error { mu.Lock(); defer mu.Unlock(); return why } })
	for path, want := range map[string]string{"/-/livez": "live\n", "/-/readyz": "ready\n"} {
		if a := r.exchange(t, get(path)); !strings.Contains(a.status, " 200 ") || a.body != want {
			t.Errorf("%s: got\n%s\nwant %q", path, a, want)
		}
		if a := r.exchange(t, strings.Replace(get(path), "GET", "HEAD", 1)); !strings.Contains(a.status, " 200 ") || a.body != "" {
			t.Errorf("HEAD %s: got\n%s", path, a)
		}
		if a := r.exchange(t, post(path, "")); !strings.Contains(a.status, " 405 ") {
			t.Errorf("POST %s: got %s, want 405", path, a.status)
		}
	}
	mu.Lock()
	why = errors.New("disk is full")
	mu.Unlock()
	if a := r.exchange(t, get("/-/readyz")); !strings.Contains(a.status, " 503 ") || a.body != "unready\n" {
		t.Errorf("not ready: got\n%s", a)
	}
	if a := r.exchange(t, get("/-/livez")); !strings.Contains(a.status, " 200 ") {
		t.Errorf("live though not ready: got %s", a.status)
	}
	if a := r.exchange(t, get("/-/metrics")); !strings.Contains(a.status, " 404 ") {
		t.Errorf("another own path: got %s, want 404", a.status)
	}
}

func TestFastConnection(t *testing.T) {
	r := newRig(t, nil)
	t.Run("answers requests sent at once in order", func(t *testing.T) {
		conn := r.dial(t)
		io.WriteString(conn, get("/matomo.php?idsite=1&rec=1")+post("/matomo.php", "idsite=99999&rec=1", formType)+get("/matomo.php?idsite=2&rec=1&send_image=0"))
		reader := bufio.NewReader(conn)
		for _, want := range []string{" 200 ", " 400 ", " 204 "} {
			if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, want) {
				t.Fatalf("got %s %v, want %s", a.status, err, want)
			}
		}
	})
	t.Run("takes a request in pieces", func(t *testing.T) {
		before := r.count("sluice_proxy_fast_requests_total")
		conn := r.dial(t)
		for _, piece := range []string{"POST /matomo.php HT", "TP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 14\r\n\r", "\nids", "ite=1&rec=1"} {
			io.WriteString(conn, piece)
			time.Sleep(2 * time.Millisecond) // only makes it likely that the pieces arrive apart
		}
		if a, err := readAnswer(bufio.NewReader(conn), "POST"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Fatalf("got %s %v", a.status, err)
		}
		if got := r.count("sluice_proxy_fast_requests_total") - before; got != 1 {
			t.Errorf("fast requests %d, want 1", got)
		}
	})
	t.Run("takes a body larger than its buffers", func(t *testing.T) {
		before := r.count("sluice_proxy_fast_requests_total")
		conn := r.dial(t)
		reader := bufio.NewReader(conn)
		for range 2 {
			body := "idsite=1&rec=1&a=" + strings.Repeat("x", 300_000)
			go io.WriteString(conn, post("/matomo.php", body, formType, chrome)+get("/matomo.php?idsite=2&rec=1")) // ends with the connection
			for range 2 {
				if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
					t.Fatalf("got %s %v", a.status, err)
				}
			}
			sets := r.queue.take()
			if n := len(sets); n < 2 || string(sets[n-2].Hits[0].Params) != body || sets[n-2].Environment.UserAgent != chrome[12:] {
				t.Fatalf("stored %d sets, not the large body", n)
			}
		}
		// The memory is given back before the next request is read.
		io.WriteString(conn, get("/matomo.php?idsite=1&rec=1"))
		if _, err := readAnswer(reader, "GET"); err != nil {
			t.Fatal(err)
		}
		if used := r.bodies.used.Load(); used != 0 {
			t.Errorf("%d bytes of body memory are still taken", used)
		}
		if got := r.count("sluice_proxy_fast_requests_total") - before; got != 5 {
			t.Errorf("fast requests %d, want 5", got)
		}
	})
	t.Run("goes over to net/http and stays there", func(t *testing.T) {
		before, handed := r.count("sluice_proxy_fast_requests_total"), r.count("sluice_proxy_handed_connections_total")
		conn := r.dial(t)
		hitRequest := get("/matomo.php?idsite=1&rec=1")
		// All at once: what was read beyond the first request must not be lost.
		io.WriteString(conn, hitRequest+get("/index.php?x")+hitRequest+hitRequest)
		reader := bufio.NewReader(conn)
		for _, want := range []string{" 200 ", " 418 ", " 200 ", " 200 "} {
			if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, want) {
				t.Fatalf("got %s %v, want %s", a.status, err, want)
			}
		}
		if got := r.count("sluice_proxy_fast_requests_total") - before; got != 1 {
			t.Errorf("fast requests %d, want 1", got)
		}
		// It is counted when it has been handed over, which may be after the answers.
		r.until(t, func() bool { return r.count("sluice_proxy_handed_connections_total")-handed == 1 })
	})
	t.Run("ends with the request that asks for it", func(t *testing.T) {
		conn := r.dial(t)
		io.WriteString(conn, get("/matomo.php?idsite=1&rec=1", "Connection: close"))
		all, err := io.ReadAll(conn)
		if err != nil || !bytes.HasPrefix(all, []byte("HTTP/1.1 200 ")) {
			t.Errorf("got %q %v", all, err)
		}
	})
	t.Run("speaks TLS", func(t *testing.T) {
		before := r.count("sluice_proxy_fast_requests_total")
		secure, _ := r.Addrs()
		conn, err := tls.Dial("tcp", secure.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		reader := bufio.NewReader(conn)
		for _, target := range []string{"/matomo.php?idsite=1&rec=1", "/index.php"} {
			io.WriteString(conn, get(target))
			a, err := readAnswer(reader, "GET")
			if err != nil {
				t.Fatal(err)
			}
			if target == "/index.php" && !strings.Contains(a.line("X-Seen"), "proto=https") {
				t.Errorf("Matomo saw %q, want it to learn of HTTPS", a.line("X-Seen"))
			}
		}
		if got := r.count("sluice_proxy_fast_requests_total") - before; got != 1 {
			t.Errorf("fast requests %d, want 1", got)
		}
	})
	t.Run("tells plain HTTP from TLS", func(t *testing.T) {
		secure, _ := r.Addrs()
		conn, err := net.Dial("tcp", secure.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, get("/matomo.php?idsite=1&rec=1"))
		all, _ := io.ReadAll(conn)
		if !bytes.Contains(all, []byte("400 Bad Request")) {
			t.Errorf("got %q, want a 400", all)
		}
	})
}

func TestMetrics(t *testing.T) {
	r := newRig(t, nil)
	r.exchange(t, get("/matomo.php?idsite=1&rec=1"))
	r.exchange(t, get("/matomo.php?idsite=1&rec=0"))
	r.exchange(t, get("/matomo.php?idsite=1&rec=1&cip=1"))
	r.exchange(t, get("/index.php"))
	// What net/http serves is counted when its handler ends: the client may be faster.
	r.until(t, func() bool { return r.count(`sluice_proxy_requests_total{code="4xx"}`) >= 2 })
	for name, want := range map[string]int{
		`sluice_proxy_hits_total{answer="stored"}`:            1,
		`sluice_proxy_hits_total{answer="dropped"}`:           1,
		`sluice_proxy_hits_total{answer="refused"}`:           0,
		`sluice_proxy_requests_total{code="2xx"}`:             2,
		`sluice_proxy_requests_total{code="4xx"}`:             2,
		`sluice_proxy_bad_input_total{reason="privileged"}`:   1,
		`sluice_proxy_request_seconds_count`:                  3,
		`sluice_proxy_request_seconds_bucket{le="+Inf"}`:      3,
		`sluice_proxy_request_seconds_bucket{le="10"}`:        3,
		`sluice_proxy_hits_total{answer="passed"}`:            0,
		`sluice_proxy_requests_total{code="5xx"}`:             0,
		`sluice_proxy_bad_input_total{reason="site"}`:         0,
		`sluice_proxy_request_seconds_bucket{le="not there"}`: 0,
	} {
		if got := r.count(name); got != want {
			t.Errorf("%s = %d, want %d", name, got, want)
		}
	}
}

// TestConcurrentClients is for the race detector: many connections of both kinds
// at once, and every hit is stored once.
func TestConcurrentClients(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Now = nil })
	const clients, requests = 16, 50
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { // ends with its requests
			conn := r.dial(t)
			reader := bufio.NewReader(conn)
			if i%4 == 0 {
				io.WriteString(conn, get("/-/livez"))
				readAnswer(reader, "GET")
			}
			for n := range requests {
				io.WriteString(conn, get("/matomo.php?rec=1&idsite="+itoa(1+i%9)+"&n="+itoa(n), "User-Agent: client "+itoa(i)))
				if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
					t.Errorf("client %d: %s %v", i, a.status, err)
					return
				}
			}
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for _, s := range r.queue.take() {
		seen[s.Environment.UserAgent+string(s.Hits[0].Params)] = true
	}
	if len(seen) != clients*requests {
		t.Errorf("%d different hits stored, want %d", len(seen), clients*requests)
	}
}

var _ http.Handler = (*Server)(nil)
