package sink

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync/atomic"
	"testing"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"sluice/internal/testkit"
)

// An inProcess is a RoundTripper that calls a fake Matomo without a network, so
// that a sink can live in a synctest bubble.
type inProcess struct {
	matomo  atomic.Pointer[testkit.Matomo]
	refuse  atomic.Bool // nobody listens
	posts   atomic.Int64
	flying  atomic.Int64
	highest atomic.Int64 // most requests at a time
}

func (p *inProcess) set(m *testkit.Matomo) { p.matomo.Store(m) }

var errRefused = errors.New("connection refused")

func (p *inProcess) RoundTrip(req *http.Request) (*http.Response, error) {
	p.posts.Add(1)
	if p.refuse.Load() {
		return nil, errRefused
	}
	if trace := httptrace.ContextClientTrace(req.Context()); trace != nil {
		trace.GetConn("")
		trace.GotConn(httptrace.GotConnInfo{})
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	// What Matomo does does not end when the client goes away.
	inner, err := http.NewRequestWithContext(context.WithoutCancel(req.Context()), req.Method, req.URL.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	inner.Header = req.Header.Clone()
	inner.RemoteAddr = "127.0.0.1:1"
	gone, leave := context.WithCancel(inner.Context())
	inner = inner.WithContext(gone)
	answered := make(chan *httptest.ResponseRecorder, 1)
	p.highest.Store(max(p.highest.Load(), p.flying.Add(1)))
	go func() { // ends with the handler
		defer p.flying.Add(-1)
		rec := httptest.NewRecorder()
		defer func() {
			if recover() != nil {
				rec = nil // the connection was reset
			}
			answered <- rec
		}()
		p.matomo.Load().ServeHTTP(rec, inner)
	}()
	select {
	case rec := <-answered:
		leave()
		if rec == nil {
			return nil, io.ErrUnexpectedEOF
		}
		return rec.Result(), nil
	case <-req.Context().Done():
		leave()
		return nil, req.Context().Err()
	}
}

// A bubble is a sink inside a synctest bubble.
type bubble struct {
	*running
	net *inProcess
}

// startBubble runs a sink against a fake Matomo without sockets. Call it inside
// synctest.Test, and stop before the bubble ends.
func startBubble(t *testing.T, m *testkit.Matomo, cfg Config, src *memorySource) *bubble {
	t.Helper()
	cfg.Endpoint = "http://matomo.example/matomo.php"
	s, err := New(cfg, src, testLog(t), metrics.NewSet())
	if err != nil {
		t.Fatal(err)
	}
	b := &bubble{net: &inProcess{}}
	b.net.set(m)
	s.client.http.Transport = b.net
	ctx, cancel := context.WithCancel(context.Background())
	b.running = &running{Sink: s, src: src, matomo: m, cancel: cancel, done: make(chan error, 1)}
	go func() { b.done <- s.Run(ctx) }()
	return b
}

// bubbleConfig is the defaults with a token.
func bubbleConfig() Config { return Config{Token: testkit.SuperToken} }

// within bounds a wait by the bubble's own time.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
