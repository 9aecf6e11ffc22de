package proxy

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/hit"
)

// slowQueue holds Append until it is let go.
type slowQueue struct {
	entered chan struct{}
	release chan struct{}
}

func (q *slowQueue) Append(ctx context.Context, _ ...*hit.RequestSet) error {
	q.entered <- struct{}{}
	select {
	case <-q.release:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestStop(t *testing.T) {
	t.Run("is seen in readiness first, while requests are served", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.ShutdownDelay = time.Hour })
		idle := r.dial(t)
		reader := bufio.NewReader(idle)
		io.WriteString(idle, get("/matomo.php?idsite=1&rec=1"))
		if a, err := readAnswer(reader, "GET"); err != nil || a.line("Connection") != "" {
			t.Fatalf("got %s %v", a, err)
		}
		r.stopping.Store(true) // what Run does first
		if a := r.exchange(t, get("/-/readyz")); !strings.Contains(a.status, " 503 ") {
			t.Errorf("ready: got %s, want 503", a.status)
		}
		io.WriteString(idle, get("/matomo.php?idsite=1&rec=1"))
		if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") || a.line("Connection") != "close" {
			t.Errorf("got\n%s\n%v\nwant 200 and a wish to close", a, err)
		}
		if a := r.exchangeByLibrary(t, get("/matomo.php?idsite=1&rec=1")); !strings.Contains(a.status, " 200 ") {
			t.Errorf("a new connection: got %s, want 200", a.status)
		}
		r.abandonDelay(t)
	})
	for _, way := range []string{"fast", "library"} {
		t.Run("finishes requests in hand: "+way, func(t *testing.T) {
			r := newRig(t, nil)
			q := &slowQueue{make(chan struct{}), make(chan struct{})}
			r.endpoint.queue = q
			idle, busy := r.dial(t), r.dial(t)
			reader := bufio.NewReader(busy)
			if way == "library" {
				io.WriteString(busy, get("/-/livez"))
				readAnswer(reader, "GET")
			}
			io.WriteString(busy, get("/matomo.php?idsite=1&rec=1"))
			<-q.entered
			r.stop()
			if _, err := io.ReadAll(idle); err != nil {
				t.Errorf("idle connection: %v, want its end", err)
			}
			select {
			case <-r.done:
				t.Fatal("Run returned with a request in hand")
			default:
			}
			close(q.release)
			if a, err := readAnswer(reader, "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
				t.Errorf("got %s %v, want 200", a.status, err)
			}
			if err := <-r.done; err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
			r.done <- nil
		})
		t.Run("cuts off what outlasts the grace: "+way, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Grace = 30 * time.Millisecond })
			q := &slowQueue{make(chan struct{}), make(chan struct{})}
			r.endpoint.queue = q
			busy := r.dial(t)
			reader := bufio.NewReader(busy)
			if way == "library" {
				io.WriteString(busy, get("/-/livez"))
				readAnswer(reader, "GET")
			}
			io.WriteString(busy, get("/matomo.php?idsite=1&rec=1"))
			<-q.entered
			r.stop()
			if err := <-r.done; err != nil {
				t.Errorf("Run = %v, want nil", err)
			}
			r.done <- nil
			if a, err := readAnswer(reader, "GET"); err == nil && strings.Contains(a.status, " 200 ") {
				t.Errorf("got %s for a hit that was not stored", a.status)
			}
		})
	}
	t.Run("does not cut a request that has begun", func(t *testing.T) {
		r := newRig(t, nil)
		conn := r.dial(t)
		io.WriteString(conn, "GET /matomo.php?idsite=1&rec=1 HTTP/1.1\r\nHo")
		// What stop does to a connection that it has seen idle just before, again and
		// again, since nothing tells when the server reads.
		begun := false
		for until := time.Now().Add(20 * time.Millisecond); !begun || time.Now().Before(until); {
			r.mu.Lock()
			for c := range r.fast {
				if !c.idle.Load() {
					begun = true
					c.conn.SetReadDeadline(time.Unix(1, 0))
				}
			}
			r.mu.Unlock()
		}
		io.WriteString(conn, "st: a\r\n\r\n")
		if a, err := readAnswer(bufio.NewReader(conn), "GET"); err != nil || !strings.Contains(a.status, " 200 ") {
			t.Errorf("got %s %v, want 200", a.status, err)
		}
	})
	t.Run("ends when an address is taken", func(t *testing.T) {
		r := newRig(t, nil)
		_, plain := r.Addrs()
		other, err := New(Config{ListenHTTP: plain.String(), Upstream: r.cfg.Upstream}, r.queue, nil, slog.New(slog.DiscardHandler), metrics.NewSet())
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), plain.String()) {
			t.Errorf("Run = %v, want an error that names the address", err)
		}
	})
}

// abandonDelay ends a rig whose ShutdownDelay would outlast the test.
func (r *rig) abandonDelay(t *testing.T) {
	t.Helper()
	r.cfg.ShutdownDelay = 0 // Run reads it after the stop, which comes later
}
