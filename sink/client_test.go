package sink

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"sluice/internal/testkit"
)

func clientFor(t *testing.T, endpoint string) *client {
	t.Helper()
	c, err := newClient(endpoint, 5*time.Second, 4, &clock{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.CloseIdleConnections)
	return c
}

func TestClientSendsNoHeaderThatMatomoReads(t *testing.T) {
	var got *http.Request
	var body string
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got, body = r, string(b)
	}))
	defer srv.Close()
	c := clientFor(t, srv.URL+"/sub/matomo.php")
	tests := []struct {
		name string
		g    group
		want map[string]string
	}{
		{"plain", group{}, map[string]string{"Content-Type": "application/json", "Content-Length": "5"}},
		{"do not track", group{doNotTrack: true}, map[string]string{"Content-Type": "application/json", "Content-Length": "5", "Dnt": "1"}},
		{"headers that plugins need", group{headers: "x-bar: a, b\nx-foo: caf\xe9: 1\n"}, map[string]string{"Content-Type": "application/json", "Content-Length": "5", "X-Bar": "a, b", "X-Foo": "caf\xe9: 1"}},
		{"data saver", group{dataSaver: true}, map[string]string{"Content-Type": "application/json", "Content-Length": "5", "Via": "1.1 chrome-compression-proxy"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c.bulk(t.Context(), []byte("hello"), tt.g, "")
			if got.Method != http.MethodPost || got.URL.String() != "/sub/matomo.php?queuedtracking=0" || body != "hello" {
				t.Errorf("%s %s %q, want POST /sub/matomo.php?queuedtracking=0 hello", got.Method, got.URL, body)
			}
			for name, values := range got.Header {
				if len(values) != 1 || values[0] != tt.want[name] {
					t.Errorf("header %s: %q, want %q", name, values, tt.want[name])
				}
			}
			if len(got.Header) != len(tt.want) {
				t.Errorf("%d headers, want %d", len(got.Header), len(tt.want))
			}
		})
	}
}

func TestClientFindsTheReportingAPI(t *testing.T) {
	for endpoint, want := range map[string]string{
		"https://a.example/matomo.php":           "https://a.example/index.php",
		"https://a.example/sub/piwik.php?x=1":    "https://a.example/sub/index.php",
		"http://a.example":                       "http://a.example/index.php",
		"http://a.example:8080/m/js/tracker.php": "http://a.example:8080/m/js/index.php",
	} {
		if c := clientFor(t, endpoint); c.apiURL != want {
			t.Errorf("the API of %s is %s, want %s", endpoint, c.apiURL, want)
		}
	}
	for _, bad := range []string{"", "a.example/matomo.php", "ftp://a/", "http://", "http://a b/", "https:///matomo.php"} {
		if _, err := newClient(bad, time.Second, 1, &clock{}); err == nil {
			t.Errorf("endpoint %q is accepted", bad)
		}
	}
}

func TestClientDoesNotFollowRedirects(t *testing.T) {
	visited := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/other" {
			visited = true
		}
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	a := clientFor(t, srv.URL+"/matomo.php").bulk(t.Context(), []byte("{}"), group{}, "")
	if a.status != http.StatusTemporaryRedirect || visited {
		t.Errorf("status %d, followed %v; want 307 and not followed", a.status, visited)
	}
}

// TestClientTellsNeverSentFromUnknown provokes each way in which a request can
// fail, on real sockets.
func TestClientTellsNeverSentFromUnknown(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	target := strings.TrimPrefix(m.Serve(t), "http://")
	body := []byte(`{"requests":["?idsite=1&rec=0"]}`)
	faults := []struct {
		name string
		f    testkit.Fault
		sent bool
	}{
		{"connection cut when the request is read", testkit.CutBefore(), true},
		{"connection reset when the request is read", testkit.ResetBefore(), true},
		{"answer lost", testkit.LoseAnswer(), true},
		{"answer lost by a reset", testkit.LoseAnswerByReset(), true},
		{"answer cut in its head", testkit.CutAnswer(20), true},
		{"nobody reads", testkit.BlackHole(), true},
		{"nobody answers", testkit.Silence(), true},
	}
	for _, tt := range faults {
		t.Run(tt.name, func(t *testing.T) {
			p := testkit.NewProxy(t, target)
			c := clientFor(t, "http://"+p.Addr()+"/matomo.php")
			c.timeout = 300 * time.Millisecond
			p.Next(tt.f)
			a := c.bulk(t.Context(), body, group{}, "")
			if a.err == nil || a.sent != tt.sent {
				t.Errorf("err %v, sent %v; want an error and sent %v", a.err, a.sent, tt.sent)
			}
		})
	}
	never := func(name, endpoint string) {
		t.Run(name, func(t *testing.T) {
			c := clientFor(t, endpoint)
			c.timeout = 2 * time.Second
			a := c.bulk(t.Context(), body, group{}, "")
			if a.err == nil || a.sent {
				t.Errorf("err %v, sent %v; want an error and nothing sent", a.err, a.sent)
			}
			if strings.Contains(a.err.Error(), "secret") {
				t.Errorf("the error %q holds the URL", a.err)
			}
		})
	}
	p := testkit.NewProxy(t, target)
	p.Down()
	never("connection refused", "http://user:secret@"+p.Addr()+"/matomo.php?secret")
	never("no such host", "http://user:secret@host.invalid/matomo.php")
	never("no TLS there", "https://"+target+"/matomo.php")
	t.Run("a server that cannot be trusted", func(t *testing.T) {
		srv := httptest.NewTLSServer(m)
		defer srv.Close()
		if a := clientFor(t, srv.URL+"/matomo.php").bulk(t.Context(), body, group{}, ""); a.err == nil || a.sent {
			t.Errorf("err %v, sent %v; want an error and nothing sent", a.err, a.sent)
		}
	})
	t.Run("cancelled before it began", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if a := clientFor(t, "http://"+target+"/matomo.php").bulk(ctx, body, group{}, ""); a.err == nil || a.sent {
			t.Errorf("err %v, sent %v; want an error and nothing sent", a.err, a.sent)
		}
	})
}

// TestClientOnAKeptConnectionThatTheServerClosed checks that behind a connection that was
// closed while idle a request goes out once, on another, or is in doubt.
func TestClientOnAKeptConnectionThatTheServerClosed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	closed := make(chan struct{})
	requests := make(chan string, 10)
	go func() { // ends when l is closed
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				io.Copy(io.Discard, req.Body)
				requests <- req.URL.Path
				io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
			}
			conn.Close()
			if n == 0 {
				close(closed)
			}
		}
	}()
	c := clientFor(t, "http://"+l.Addr().String()+"/matomo.php")
	for i := range 2 {
		if i == 1 {
			<-closed
		}
		a := c.bulk(t.Context(), []byte("{}"), group{}, "")
		// The second may meet the end of the connection; then it is sent once, or not at all.
		if n := len(requests); n > i+1 || a.err == nil && n != i+1 || a.err != nil && (i == 0 || !a.sent && n > i) {
			t.Errorf("request %d: err %v, sent %v, %d requests have arrived", i, a.err, a.sent, n)
		}
	}
}

func TestClientBoundsAnswers(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for range 100 {
			io.WriteString(w, strings.Repeat("x", 10<<10))
		}
	}))
	defer srv.Close()
	a := clientFor(t, srv.URL+"/matomo.php").bulk(t.Context(), nil, group{}, "")
	if len(a.body) != maxAnswerBody || !a.truncated {
		t.Errorf("%d bytes, truncated %v; want %d and true", len(a.body), a.truncated, maxAnswerBody)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		value string
		want  time.Duration
	}{
		{"", 0}, {"5", 5 * time.Second}, {" 7 ", 7 * time.Second}, {"-3", 0}, {"x", 0}, {"999999", maxRetryAfter},
		{"Fri, 02 Jan 2026 03:05:05 GMT", time.Minute}, {"Fri, 02 Jan 2026 03:03:05 GMT", 0},
	} {
		if got := retryAfter(tt.value, now); got != tt.want {
			t.Errorf("retryAfter(%q) = %v, want %v", tt.value, got, tt.want)
		}
	}
}

func TestClock(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ms := func(n int) time.Time { return at.Add(time.Duration(n) * time.Millisecond) }
	t.Run("one answer gives a second", func(t *testing.T) {
		var c clock
		c.note(ms(2000), ms(100), ms(200)) // Date between 2 s and 3 s ahead of at
		least, about, known := c.offset()
		if least != 1800*time.Millisecond || about != 2350*time.Millisecond || !known {
			t.Errorf("least %v about %v known %v, want 1.8s 2.35s true", least, about, known)
		}
	})
	t.Run("answers narrow it", func(t *testing.T) {
		var c clock
		for i := range 40 { // Matomo is 250 ms ahead
			c.note(ms(i*137+250).Truncate(time.Second), ms(i*137-2), ms(i*137+2))
		}
		if least, _, _ := c.offset(); least > 250*time.Millisecond || least < 200*time.Millisecond {
			t.Errorf("least %v, want just under 250ms", least)
		}
	})
	t.Run("a clock set back is believed at once", func(t *testing.T) {
		var c clock
		c.note(ms(0), ms(0), ms(10))
		c.note(ms(-10000), ms(100), ms(110))
		if least, _, _ := c.offset(); least > -10*time.Second {
			t.Errorf("least %v, want under -10s", least)
		}
	})
	t.Run("a clock set forward is believed when the old answers are gone", func(t *testing.T) {
		var c clock
		c.note(ms(0), ms(0), ms(10))
		c.note(ms(10000), ms(100), ms(110))
		if least, _, _ := c.offset(); least > 0 {
			t.Errorf("least %v, want the old one at first", least)
		}
		for i := range 4 {
			began := at.Add(time.Duration(i+1) * 61 * time.Second)
			c.note(began.Add(10*time.Second).Truncate(time.Second), began, began)
		}
		if least, _, _ := c.offset(); least < 9*time.Second {
			t.Errorf("least %v, want about 10s", least)
		}
	})
}
