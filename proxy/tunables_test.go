package proxy

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/VictoriaMetrics/metrics"
)

func TestReload(t *testing.T) {
	t.Run("changes what new requests meet", func(t *testing.T) {
		r := newRig(t, nil)
		conn := r.dial(t)
		reader := bufio.NewReader(conn)
		ask := func(raw string) rawAnswer {
			t.Helper()
			io.WriteString(conn, raw)
			a, err := readAnswer(reader, "GET")
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		file := filepath.Join(t.TempDir(), "access.log")
		ask(get(okHit, "X-Forwarded-For: 192.0.2.9"))
		if sets := r.queue.take(); sets[0].Environment.ClientIP != "127.0.0.1" {
			t.Errorf("got %s, want the peer", sets[0].Environment.ClientIP)
		}
		next := Tunables{
			Trusted:    []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
			Limits:     Limits{BodyBytes: 100, Connections: 5, BodyMemory: 1},
			RateLimits: RateLimits{PerAddress: 1, AddressBurst: 1},
			AccessLog:  AccessLog{Format: AccessLogCombined, File: file},
		}
		if err := r.Reload(next); err != nil {
			t.Fatal(err)
		}
		next.Trusted[0] = netip.Prefix{} // it is the caller's
		ask(get(okHit, "X-Forwarded-For: 192.0.2.9"))
		if sets := r.queue.take(); sets[0].Environment.ClientIP != "192.0.2.9" {
			t.Errorf("got %s, want the visitor", sets[0].Environment.ClientIP)
		}
		if a := ask(get(okHit, "X-Forwarded-For: 192.0.2.9")); !strings.Contains(a.status, " 429 ") {
			t.Errorf("got %s, want 429", a.status)
		}
		if a := r.exchange(t, post(okHit, strings.Repeat("x", 101))); !strings.Contains(a.status, " 413 ") {
			t.Errorf("got %s, want 413", a.status)
		}
		r.places.mu.Lock()
		if r.places.limit != 5 || r.bodies.limit.Load() != 1 {
			t.Errorf("%d places and %d bytes, want 5 and 1", r.places.limit, r.bodies.limit.Load())
		}
		r.places.mu.Unlock()
		r.logLines(t, file, 3)
		if err := r.Reload(Tunables{}); err != nil {
			t.Fatal(err)
		}
		if v := r.tuned(); v.access != nil || v.Limits.Connections != defaultConnections || v.rates != (rates{}) {
			t.Errorf("got %+v, want the defaults", v.Tunables)
		}
	})
	t.Run("changes nothing when anything is wrong", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Limits.BodyBytes = 1234 })
		before := r.tuned()
		for name, wrong := range map[string]Tunables{
			"limit":    {Limits: Limits{Connections: -1}},
			"header":   {Limits: Limits{HeaderBytes: 1}},
			"time":     {Limits: Limits{IdleTimeout: -1}},
			"rate":     {RateLimits: RateLimits{PerSite: -1}},
			"much":     {RateLimits: RateLimits{PerSite: maxRate + 1}},
			"range":    {Trusted: make([]netip.Prefix, 1)},
			"exempt":   {RateLimits: RateLimits{Exempt: make([]netip.Prefix, 1)}},
			"log":      {AccessLog: AccessLog{Format: "common"}},
			"mask":     {AccessLog: AccessLog{MaskAddress: 5}},
			"log file": {Limits: Limits{BodyBytes: 1}, AccessLog: AccessLog{Format: AccessLogJSON, File: "/nowhere/at/all"}},
		} {
			if err := r.Reload(wrong); err == nil || r.tuned() != before {
				t.Errorf("%s: got %v, want an error and no change", name, err)
			}
		}
	})
	t.Run("goes on under load", func(t *testing.T) {
		r := newRig(t, nil)
		file := filepath.Join(t.TempDir(), "access.log")
		var clients sync.WaitGroup
		for range 4 {
			clients.Go(func() { // ends after its hits
				for range 20 {
					if a := r.exchange(t, get(okHit)); !strings.Contains(a.status, " 200 ") {
						t.Errorf("got %s", a.status)
					}
				}
			})
		}
		for i := range 200 {
			formats := []string{AccessLogOff, AccessLogJSON, AccessLogCombined}
			if err := r.Reload(Tunables{AccessLog: AccessLog{Format: formats[i%3], File: file}, RateLimits: RateLimits{PerAddress: i % 2 * maxRate}}); err != nil {
				t.Error(err)
			}
			if err := r.Reopen(); err != nil {
				t.Error(err)
			}
		}
		clients.Wait()
	})
	t.Run("with more places lets those in who wait", func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Limits.Connections = 1 })
		q := &slowQueue{make(chan struct{}, 2), make(chan struct{})}
		r.endpoint.queue = q
		first, second := r.dial(t), r.dial(t)
		io.WriteString(first, get(okHit))
		<-q.entered
		if err := r.Reload(Tunables{}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(second, get(okHit))
		<-q.entered
		close(q.release)
	})
	t.Run("starts with a file that cannot be written: an error of Run", func(t *testing.T) {
		r := newRig(t, nil)
		cfg := r.cfg
		cfg.AccessLog = AccessLog{Format: AccessLogJSON, File: filepath.Join(t.TempDir(), "no", "file")}
		other, err := New(cfg, r.queue, nil, r.log, metrics.NewSet())
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "access log") || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Run = %v, want an error that says what is missing", err)
		}
	})
}
