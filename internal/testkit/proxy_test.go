package testkit_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/internal/testkit"
)

func TestProxyFaults(t *testing.T) {
	tests := []struct {
		name     string
		fault    testkit.Fault
		answered bool
		recorded int
		want     error // nil = any
	}{
		{"passes", testkit.Pass(), true, 1, nil},
		{"cuts before", testkit.CutBefore(), false, 0, io.EOF},
		{"resets before", testkit.ResetBefore(), false, 0, syscall.ECONNRESET},
		{"loses the answer", testkit.LoseAnswer(), false, 1, io.EOF},
		{"loses the answer by reset", testkit.LoseAnswerByReset(), false, 1, syscall.ECONNRESET},
		{"cuts the answer", testkit.CutAnswer(20), false, 1, nil},
		{"is late", testkit.Late(time.Millisecond), true, 1, nil},
		{"answers late", testkit.LateAnswer(time.Millisecond), true, 1, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			p := testkit.NewProxy(t, strings.TrimPrefix(m.Serve(t), "http://"))
			p.Next(tt.fault)
			got := post(t.Context(), "http://"+p.Addr(), bulk("a"))
			if (got.err == nil) != tt.answered || tt.want != nil && !errors.Is(got.err, tt.want) {
				t.Errorf("error = %v, want %v", got.err, tt.want)
			}
			if got := m.Commits("a"); got != tt.recorded {
				t.Errorf("recorded %d times, want %d", got, tt.recorded)
			}
			if got := post(t.Context(), "http://"+p.Addr(), bulk("b")); got.body != success(1) {
				t.Errorf("the next exchange answered %q %v, want success", got.body, got.err)
			}
		})
	}
}

func TestProxySilence(t *testing.T) {
	for _, tt := range []struct {
		fault    testkit.Fault
		recorded int64
	}{{testkit.BlackHole(), 0}, {testkit.Silence(), 1}} {
		t.Run(tt.fault.Name, func(t *testing.T) {
			m := testkit.NewMatomo(testkit.MatomoConfig{})
			p := testkit.NewProxy(t, strings.TrimPrefix(m.Serve(t), "http://"))
			p.Always(tt.fault)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if got := post(ctx, "http://"+p.Addr(), bulk("a")); !errors.Is(got.err, context.DeadlineExceeded) {
				t.Errorf("error = %v, want the client's own timeout", got.err)
			}
			if got := m.Counts().Recorded; got != tt.recorded {
				t.Errorf("recorded %d hits, want %d", got, tt.recorded)
			}
		})
	}
}

func TestProxyFaultsEveryExchangeOfOneConnection(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	p := testkit.NewProxy(t, strings.TrimPrefix(m.Serve(t), "http://"))
	p.Next(testkit.Pass(), testkit.Pass(), testkit.LoseAnswer())
	conn, err := net.Dial("tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := make([]byte, 4096)
	for i := range 3 {
		if _, err := io.WriteString(conn, "GET /matomo.php?idsite=1&rec=1&send_image=0 HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(b)
		if lost := i == 2; lost != (n == 0) || lost != (err == io.EOF) {
			t.Errorf("exchange %d: read %d bytes, error %v", i, n, err)
		}
	}
	if got := m.Counts().Recorded; got != 3 {
		t.Errorf("recorded %d hits, want 3", got)
	}
}

func TestProxyDownAndUp(t *testing.T) {
	m := testkit.NewMatomo(testkit.MatomoConfig{})
	p := testkit.NewProxy(t, strings.TrimPrefix(m.Serve(t), "http://"))
	p.Down()
	if got := post(t.Context(), "http://"+p.Addr(), bulk("a")); !errors.Is(got.err, syscall.ECONNREFUSED) {
		t.Errorf("error = %v, want refused", got.err)
	}
	if err := p.Up(); err != nil {
		t.Fatal(err)
	}
	if got := post(t.Context(), "http://"+p.Addr(), bulk("a")); got.body != success(1) {
		t.Errorf("answered %q %v, want success", got.body, got.err)
	}
}
