package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"
)

// Upstream bounds what requests that are passed to Matomo may take. It stays as it
// was at the start.
type Upstream struct {
	ConnectTimeout  time.Duration // dialling, and then TLS; and waiting for a connection; default 5 s
	ResponseTimeout time.Duration // from the request's end to the head of Matomo's answer; default 5 min
	StallTimeout    time.Duration // without progress of the client's sending or taking; default 1 min
	Connections     int           // to Matomo at the same time; default 256
}

const (
	defaultConnectTimeout  = 5 * time.Second
	defaultResponseTimeout = 5 * time.Minute
	defaultStallTimeout    = time.Minute
	defaultUpstreamConns   = 256

	upstreamIdle = time.Minute // how long a connection to Matomo is kept without use
	copyBuffer   = 32 << 10    // bytes that are passed on at once
)

func (u Upstream) withDefaults() (Upstream, error) {
	setDefault(&u.ConnectTimeout, defaultConnectTimeout)
	setDefault(&u.ResponseTimeout, defaultResponseTimeout)
	setDefault(&u.StallTimeout, defaultStallTimeout)
	setDefault(&u.Connections, defaultUpstreamConns)
	if min(u.ConnectTimeout, u.ResponseTimeout, u.StallTimeout) < 0 || u.Connections < 0 {
		return u, errors.New("proxy: a limit of the way to Matomo is negative")
	}
	return u, nil
}

// dialer opens connections to Matomo.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// newTransport makes a way to Matomo. With reuse as many connections are kept as
// there may be, so that a busy edge does not dial for each request.
func newTransport(u Upstream, dial dialer, reuse bool) *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, &connectError{err}
			}
			return conn, nil
		},
		TLSHandshakeTimeout:   u.ConnectTimeout,
		ResponseHeaderTimeout: u.ResponseTimeout,
		MaxConnsPerHost:       u.Connections,
		MaxIdleConns:          u.Connections,
		MaxIdleConnsPerHost:   u.Connections,
		IdleConnTimeout:       upstreamIdle,
		DisableCompression:    true, // answers go to the client as they come
		DisableKeepAlives:     !reuse,
		ReadBufferSize:        copyBuffer, // a page and its head come with one call to the system
	}
}

// A connectError says that there is no connection, so Matomo saw nothing.
type connectError struct{ error }

func (e *connectError) Unwrap() error { return e.error }

// A repeater sends a request a second time, on a new connection, when the first one
// broke before any byte of an answer: only GET and HEAD without a body, and never
// after a timeout. net/http's own repeating, which goes on as long as there are
// kept connections that break, is off.
type repeater struct{ kept, fresh http.RoundTripper }

// RoundTrip is part of [http.RoundTripper].
func (t repeater) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil || r.Method == http.MethodPost || r.Method == http.MethodPut || r.Method == http.MethodPatch {
		// net/http repeats these only if nothing of them was written.
		return t.kept.RoundTrip(r)
	}
	var answered atomic.Bool
	trace := &httptrace.ClientTrace{GotFirstResponseByte: func() { answered.Store(true) }}
	first := r.WithContext(httptrace.WithClientTrace(r.Context(), trace))
	first.Body = noBody{} // net/http does not repeat what has a body
	response, err := t.kept.RoundTrip(first)
	safe := r.Method == http.MethodGet || r.Method == http.MethodHead
	if err == nil || !safe || answered.Load() || r.Context().Err() != nil || isLate(err) {
		return response, err
	}
	if _, ok := errors.AsType[*connectError](err); ok {
		return nil, err
	}
	return t.fresh.RoundTrip(r)
}

// noBody is an empty body that net/http does not know to be empty.
type noBody struct{}

func (noBody) Read([]byte) (int, error) { return 0, io.EOF }
func (noBody) Close() error             { return nil }

// A turnstile lets as many requests through to Matomo as there may be connections,
// and has as many more wait, for a bounded time. All methods may be called from any
// goroutine.
type turnstile struct {
	places   chan struct{} // one element for each request that is through
	waiting  atomic.Int64
	patience time.Duration
}

func newTurnstile(u Upstream) *turnstile {
	return &turnstile{places: make(chan struct{}, u.Connections), patience: u.ConnectTimeout}
}

// errBusy says that all connections to Matomo are taken.
var errBusy = errors.New("all connections to Matomo are in use")

// enter blocks until there is a place, for a bounded time. With nil the caller must
// call leave.
func (t *turnstile) enter(ctx context.Context) error {
	select {
	case t.places <- struct{}{}:
		return nil
	default:
	}
	defer t.waiting.Add(-1)
	if t.waiting.Add(1) > int64(cap(t.places)) {
		return errBusy
	}
	timer := time.NewTimer(t.patience)
	defer timer.Stop()
	select {
	case t.places <- struct{}{}:
		return nil
	case <-timer.C:
		return errBusy
	case <-ctx.Done():
		return fmt.Errorf("wait for a connection: %w", context.Cause(ctx))
	}
}

func (t *turnstile) leave() { <-t.places }

// copyBuffers are used again. It is an [httputil.BufferPool].
type copyBuffers struct{ pool sync.Pool }

// Get gives a buffer of copyBuffer bytes.
func (p *copyBuffers) Get() []byte {
	if b, ok := p.pool.Get().(*[copyBuffer]byte); ok {
		return b[:]
	}
	return new([copyBuffer]byte)[:]
}

// Put takes a buffer back.
func (p *copyBuffers) Put(b []byte) { p.pool.Put((*[copyBuffer]byte)(b)) }

// Why a request was not passed on or its answer not passed back, as the metric has
// it.
const (
	causeConnect = "connect" // no connection
	causeTimeout = "timeout" // no answer in time
	causeBusy    = "busy"    // no place among the connections
	causeBroken  = "broken"  // the connection broke, or what came was no answer
	causeCut     = "cut"     // the answer ended too soon
)

// errForwardTimeout is why a request's context ends when it has taken too long.
var errForwardTimeout = errors.New("the request with its answer took too long")

// isLate says whether an error means that some time was over, whosever it was.
func isLate(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout() || isTimeout(err) || errors.Is(err, context.DeadlineExceeded)
}

// causeOf says why there is no answer of Matomo's, and with which status to say so.
func causeOf(ctx context.Context, err error) (cause string, status int) {
	_, connect := errors.AsType[*connectError](err)
	_, distrusted := errors.AsType[*tls.CertificateVerificationError](err)
	late := isLate(err) || errors.Is(context.Cause(ctx), errForwardTimeout)
	status = http.StatusBadGateway
	if late {
		status = http.StatusGatewayTimeout
	}
	switch {
	case errors.Is(err, errBusy):
		return causeBusy, http.StatusServiceUnavailable
	case connect || distrusted:
		return causeConnect, status
	case late:
		return causeTimeout, status
	}
	return causeBroken, status
}
