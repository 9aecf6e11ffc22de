package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestStreaming: each piece arrives before the next is sent, both ways, also when the
// whole takes longer than the stall timeout.
func TestStreaming(t *testing.T) {
	next := make(chan struct{})
	const stall = 150 * time.Millisecond
	r := passTo(t, func(w http.ResponseWriter, in *http.Request) {
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		if in.Method == http.MethodGet {
			w.Header().Set("Content-Type", "text/event-stream")
			if in.URL.Path == "/base/export" {
				w.Header().Set("Content-Type", "text/csv")
				w.Header().Set("Content-Length", "36")
			}
			for range 4 {
				<-next
				io.WriteString(w, "data: x\n\n")
				control.Flush()
			}
			return
		}
		if in.URL.Path == "/base/late" {
			b, _ := io.ReadAll(in.Body)
			wait(in.Context(), 3*stall) // longer than a client may stall
			fmt.Fprintf(w, "got %s", b)
			return
		}
		for lines := bufio.NewScanner(in.Body); lines.Scan(); {
			fmt.Fprintf(w, "got %s\n", lines.Text())
			control.Flush()
		}
	}, func(c *Config) { c.Way.StallTimeout = stall })

	for _, protocol := range []string{"http/1.1", "h2"} {
		client := &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: protocol == "h2",
		}}
		t.Cleanup(client.CloseIdleConnections)
		https, _ := r.Addrs()
		base := "https://" + https.String()
		for _, target := range []string{"/events", "/export"} {
			t.Run(target+" over "+protocol, func(t *testing.T) {
				first := time.AfterFunc(2*stall, func() { next <- struct{}{} }) // Matomo may be silent for longer
				defer first.Stop()
				a, err := client.Get(base + target)
				if err != nil {
					t.Fatal(err)
				}
				defer a.Body.Close()
				if a.ProtoMajor == 2 != (protocol == "h2") {
					t.Fatalf("got %s", a.Proto)
				}
				lines := bufio.NewReader(a.Body)
				for i := range 4 {
					if i > 0 {
						next <- struct{}{}
					}
					if line, err := lines.ReadString('\n'); line != "data: x\n" {
						t.Fatalf("event %d: got %q, %v", i, line, err)
					}
					lines.ReadString('\n')
					wait(t.Context(), 2*stall)
				}
			})
		}
		t.Run("a late answer over "+protocol, func(t *testing.T) {
			a, err := client.Post(base+"/late", "text/plain", strings.NewReader("piece 0\n"))
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			if b, err := io.ReadAll(a.Body); a.StatusCode != http.StatusOK || string(b) != "got piece 0\n" {
				t.Errorf("got %s, %q, %v", a.Status, b, err)
			}
		})
		t.Run("a body over "+protocol, func(t *testing.T) {
			body, send := io.Pipe()
			request, _ := http.NewRequestWithContext(t.Context(), "POST", base+"/upload", body)
			go io.WriteString(send, "piece 0\n") // ends when the client reads it
			a, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer a.Body.Close()
			lines := bufio.NewReader(a.Body)
			for i := range 4 {
				if line, err := lines.ReadString('\n'); line != fmt.Sprintf("got piece %d\n", i) {
					t.Fatalf("piece %d: got %q, %v", i, line, err)
				}
				wait(t.Context(), stall/2)
				if i < 3 {
					fmt.Fprintf(send, "piece %d\n", i+1)
				}
			}
			send.Close()
			if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
				t.Errorf("at the end: %q, %v", rest, err)
			}
		})
	}
}

// TestStalledClients: one that sends no more of its body, and one that takes no more
// of its answer, are given up.
func TestStalledClients(t *testing.T) {
	const stall = 100 * time.Millisecond
	ended := make(chan struct{}, 1)
	r := passTo(t, func(w http.ResponseWriter, in *http.Request) {
		defer func() { ended <- struct{}{} }()
		if _, err := io.Copy(io.Discard, in.Body); err != nil {
			return
		}
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}, func(c *Config) { c.Way.StallTimeout = stall })
	t.Run("sending", func(t *testing.T) {
		a := r.exchange(t, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nab")
		if !strings.Contains(a.status, " 408 ") || a.line("Connection") != "close" {
			t.Errorf("got\n%s\nwant 408", a)
		}
		<-ended
		if n := r.count(`sluice_proxy_bad_input_total{reason="slow_body"}`); n != 1 {
			t.Errorf("counted %d", n)
		}
	})
	t.Run("sending what nobody wants any more", func(t *testing.T) {
		early := passTo(t, func(w http.ResponseWriter, in *http.Request) {
			control := http.NewResponseController(w)
			_ = control.EnableFullDuplex()
			w.WriteHeader(http.StatusForbidden)
			control.Flush()
			_, _ = io.Copy(io.Discard, in.Body)
		}, func(c *Config) { c.Way.StallTimeout = stall })
		conn := early.dial(t)
		io.WriteString(conn, "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nab")
		began := time.Now()
		all, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 403 ") || strings.Contains(string(all), " 408 ") || time.Since(began) > 30*stall {
			t.Errorf("after %v: got %.200q, %v", time.Since(began), all, err)
		}
	})
	t.Run("the rest of a body that was given up is no request", func(t *testing.T) {
		early := passTo(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, func(c *Config) { c.Way.StallTimeout, c.Limits.BodyTimeout = stall, stall })
		for _, path := range []string{"/x", "/matomo.php?idsite=1&rec=1"} { // passed on, and answered here
			conn := early.dial(t)
			io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nab")
			reader := bufio.NewReader(conn)
			if a, err := readAnswer(reader, "POST"); err != nil || strings.Contains(a.status, " 200 ") {
				t.Fatalf("%s: got %s %v", path, a.status, err)
			}
			wait(t.Context(), 3*stall) // until net/http waits for the rest no longer
			io.WriteString(conn, get(okHit)+get(okHit))
			if rest, _ := io.ReadAll(reader); len(rest) > 0 { // a reset is an end, too
				t.Errorf("%s: got another answer: %.100q", path, rest)
			}
		}
		if sets := early.queue.take(); len(sets) > 0 {
			t.Errorf("%d hits are stored", len(sets))
		}
	})
	t.Run("taking", func(t *testing.T) {
		conn := r.dial(t).(*net.TCPConn)
		conn.SetReadBuffer(4096)
		io.WriteString(conn, get("/x"))
		<-ended
		r.until(t, func() bool { return r.count(`sluice_proxy_bad_input_total{reason="slow_reader"}`) == 1 })
	})
}

// echoMatomo speaks a protocol of its own after 101, and echoes.
func echoMatomo(ended chan<- struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, in *http.Request) {
		if in.Header.Get("Upgrade") == "" {
			io.WriteString(w, "not upgraded")
			return
		}
		conn, both, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer func() { conn.Close(); ended <- struct{}{} }()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", in.Header.Get("Upgrade"))
		_, _ = io.Copy(conn, both) // until the other side ends
	}
}

func TestWebSocket(t *testing.T) {
	ended := make(chan struct{}, 1)
	const short = 100 * time.Millisecond
	r := passTo(t, echoMatomo(ended), func(c *Config) { c.Way.StallTimeout, c.Limits.ProxyTimeout = short, 2*short })
	upgrade := func(protocol string) string { return get("/ws", "Connection: Upgrade", "Upgrade: "+protocol) }
	t.Run("no other protocol", func(t *testing.T) {
		for _, protocol := range []string{"h2c", "tls/1.0", "websocket, h2c"} {
			if a := r.exchange(t, upgrade(protocol)); !strings.Contains(a.status, " 200 ") || a.body != "not upgraded" {
				t.Errorf("%s: got\n%s", protocol, a)
			}
		}
	})
	t.Run("outlives the timeouts and ends with the server", func(t *testing.T) {
		conn := r.dial(t)
		io.WriteString(conn, upgrade("websocket"))
		reader := bufio.NewReader(conn)
		if status := readHead(t, reader); !strings.Contains(status, " 101 ") {
			t.Fatalf("got %s, want 101", status)
		}
		for i := range 3 {
			wait(t.Context(), 2*short)
			fmt.Fprintf(conn, "%d\n", i)
			if line, err := reader.ReadString('\n'); line != fmt.Sprintf("%d\n", i) {
				t.Fatalf("got %q, %v", line, err)
			}
		}
		r.stop()
		if err := <-r.done; err != nil {
			t.Fatal(err)
		}
		if _, err := reader.ReadByte(); err == nil || isTimeout(err) {
			t.Errorf("the connection is still open: %v", err)
		}
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("Matomo's side is still open")
		}
	})
}

func TestCutAnswer(t *testing.T) {
	r := passTo(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "part")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}, nil)
	conn := r.dial(t)
	io.WriteString(conn, get("/x"))
	if b, _ := io.ReadAll(conn); !strings.HasSuffix(string(b), "part") {
		t.Errorf("got %q", b)
	}
	if n := r.count(`sluice_proxy_upstream_errors_total{cause="cut"}`); n != 1 {
		t.Errorf("counted %d, want 1", n)
	}
}
