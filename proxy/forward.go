package proxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"
)

// newForwarder makes what passes requests to Matomo over a transport. Failed answers
// what could not be passed.
func (s *Server) newForwarder(transport http.RoundTripper, failed func(http.ResponseWriter, *http.Request, error)) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      transport,
		ErrorLog:       silent(),
		BufferPool:     &s.buffers,
		Rewrite:        s.rewrite,
		ModifyResponse: s.received,
		ErrorHandler:   failed,
	}
}

// A forwarding is one request on its way to Matomo and back.
type forwarding struct {
	s       *Server
	control *http.ResponseController // of the client
	conn    *countedConn             // the client's in HTTP/1, nil else
	end     time.Time                // when all must be done
	stall   time.Duration
	timer   *time.Timer // ends the request's context
	done    atomic.Bool // the client's connection belongs to its next request

	awaiting     atomic.Bool // the client's body is being read
	clientFailed atomic.Bool // the client did not send it
	slow         atomic.Bool // the client did not take the answer
}

// forwardKey is under which a request's context has its forwarding.
type forwardKey struct{}

func forwardingOf(ctx context.Context) *forwarding {
	f, _ := ctx.Value(forwardKey{}).(*forwarding)
	return f
}

// forward passes a request to Matomo and the answer back, both as they come. It
// blocks until the answer has ended, at most [Limits.ProxyTimeout], or for as long as
// an upgraded connection lives.
func (s *Server) forward(w http.ResponseWriter, r *http.Request) {
	if id := requestID(r.Context()); id != "" {
		w.Header().Set(requestIDHeader, id)
	}
	if err := s.gate.enter(r.Context()); err != nil {
		s.notForwarded(w, r, err)
		return
	}
	defer s.gate.leave()

	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	took := s.limits().ProxyTimeout
	f := &forwarding{s: s, control: http.NewResponseController(w), end: time.Now().Add(took), stall: s.cfg.Way.StallTimeout}
	if r.ProtoMajor == 1 {
		f.conn, _ = r.Context().Value(connKey{}).(*countedConn)
	}
	f.timer = time.AfterFunc(took, func() { cancel(errForwardTimeout) })
	defer f.timer.Stop()
	defer f.done.Store(true)
	f.read(f.last())
	f.write(f.last())

	r = r.WithContext(context.WithValue(ctx, forwardKey{}, f))
	if !wantsWebSocket(r.Header) || s.cfg.Expose == ExposeTrackingOnly {
		r.Header.Del("Upgrade") // no other protocol is spoken past the checks here
	}
	if r.Body != nil && r.Body != http.NoBody {
		// The answer may begin before the body has ended. HTTP/2 can that by itself.
		_ = f.control.EnableFullDuplex()
		r.Body = &clientBody{r.Body, f}
		// net/http waits for the rest of a body that Matomo did not want.
		defer func() { f.read(f.soon()) }()
	}
	s.passing.ServeHTTP(&clientWriter{w, f}, r)
}

// read and write set when the client's side gives up. A writer that keeps no
// deadlines, such as one that gathers an answer, does without.
func (f *forwarding) read(t time.Time)  { _ = f.control.SetReadDeadline(t) }
func (f *forwarding) write(t time.Time) { _ = f.control.SetWriteDeadline(t) }

// pageTime is how long a client has to take a page that says why there is no answer.
const pageTime = 5 * time.Second

// last is when the connection ends by itself. Were it the end, the client would be
// taken for gone, and could not be told.
func (f *forwarding) last() time.Time { return f.end.Add(pageTime) }

// soon is when a client that makes no progress is given up.
func (f *forwarding) soon() time.Time {
	t := time.Now().Add(f.stall)
	if t.After(f.end) {
		return f.end
	}
	return t
}

// A clientBody is a request's body whose every piece must come within the stall
// timeout. While Matomo is slow to take it no time runs.
type clientBody struct {
	io.ReadCloser
	f *forwarding
}

// Read is part of [io.Reader].
func (b *clientBody) Read(p []byte) (int, error) {
	if b.f.done.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	b.f.read(b.f.soon())
	b.f.awaiting.Store(true)
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		b.f.awaiting.Store(false)
	}
	if err != nil && err != io.EOF && !b.f.done.Load() {
		b.f.clientFailed.Store(true)
		if isTimeout(err) {
			b.f.s.metrics.badInput("slow_body")
		} else {
			b.f.s.metrics.badInput("broken_body")
		}
	}
	if !b.f.done.Load() {
		b.f.read(b.f.last()) // an expired deadline would end the request
	}
	return n, err
}

// A clientWriter passes each piece of an answer on as it comes, which must be taken
// within the stall timeout. While Matomo sends nothing no time runs.
type clientWriter struct {
	http.ResponseWriter
	f *forwarding
}

// Write is part of [http.ResponseWriter].
func (w *clientWriter) Write(p []byte) (int, error) {
	w.f.write(w.f.soon())
	w.f.conn.hold()
	n, err := w.ResponseWriter.Write(p)
	if err == nil {
		err = w.f.flush()
	}
	if out := w.f.conn.release(); err == nil {
		err = out
	}
	w.finish(err)
	return n, err
}

// FlushError is how [http.ResponseController] flushes.
func (w *clientWriter) FlushError() error {
	w.f.write(w.f.soon())
	err := w.f.flush()
	w.finish(err)
	return err
}

func (f *forwarding) flush() error {
	err := f.control.Flush()
	if errors.Is(err, http.ErrNotSupported) {
		return nil // it gathers the answer
	}
	return err
}

func (w *clientWriter) finish(err error) {
	if isTimeout(err) {
		if w.f.slow.CompareAndSwap(false, true) { // each later write fails as well
			w.f.s.metrics.badInput("slow_reader")
		}
		return
	}
	w.f.write(w.f.last())
}

// Unwrap is how [http.ResponseController] finds the connection.
func (w *clientWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// received looks at Matomo's answer before it is passed back.
func (s *Server) received(response *http.Response) error {
	response.Header.Del(requestIDHeader) // the client has the one that the log has
	f := forwardingOf(response.Request.Context())
	if f == nil {
		return nil
	}
	if response.StatusCode == http.StatusSwitchingProtocols {
		f.timer.Stop() // it lives as long as both want
		return nil
	}
	response.Body = &matomoBody{response.Body, f, response.Request.Context()}
	return nil
}

// A matomoBody counts an answer that ends too soon.
type matomoBody struct {
	io.ReadCloser
	f   *forwarding
	ctx context.Context
}

// Read is part of [io.Reader].
func (b *matomoBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == nil || err == io.EOF {
		return n, err
	}
	switch cause := context.Cause(b.ctx); {
	case errors.Is(cause, errForwardTimeout):
		b.f.s.metrics.upstreamError(causeTimeout)
	case cause == nil: // else the client is gone
		b.f.s.metrics.upstreamError(causeCut)
	}
	return n, err
}

// wantsWebSocket says whether a request asks for the one protocol to which a
// connection may change.
func wantsWebSocket(h http.Header) bool {
	v := h["Upgrade"]
	return len(v) == 1 && strings.EqualFold(strings.TrimSpace(v[0]), "websocket")
}
