package proxy

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// The paths of the edge's own that the public may see.
const (
	livePath  = "/-/livez"
	readyPath = "/-/readyz"
	ownPrefix = "/-/"
	// challengePrefix begins the paths where authorities ask for proof (RFC 8555, 8.3).
	challengePrefix = "/.well-known/acme-challenge/"
)

var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// ServeHTTP answers what net/http has read: whatever the fast path did not take.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if counted, _ := r.Context().Value(connKey{}).(*countedConn); counted != nil && !counted.begin() {
		panic(http.ErrAbortHandler) // the connection is closed, and nothing has been looked at
	}
	counting := &countingWriter{ResponseWriter: w, extra: s.tuned().extra(r.TLS != nil),
		last: r.ProtoMajor == 1 && (len(r.TransferEncoding) > 0 || r.Header["Upgrade"] != nil)}
	note := accessNote{began: time.Now(), handled: handledProxy}
	defer func() {
		if counting.code == 0 {
			counting.finish(http.StatusOK) // an answer without a word
		}
		s.metrics.code(counting.status())
		s.logRequest(r, counting, &note)
	}()
	w = counting

	if r.TLS == nil && s.cfg.AnswerChallenge != nil && strings.HasPrefix(r.URL.Path, challengePrefix) && s.cfg.AnswerChallenge(w, r) {
		return
	}
	p := cleanPath(r.URL.Path)
	switch {
	case r.Method == http.MethodTrace || r.Method == http.MethodConnect || r.RequestURI == "*":
		s.metrics.badInput("method")
		http.Error(w, "This method is not served.", http.StatusMethodNotAllowed)
	case len(p) >= len(ownPrefix) && p[:len(ownPrefix)] == ownPrefix:
		note.handled = handledOwn
		s.serveOwn(w, r, p)
	default:
		if at := placeOf(p); at.tracks(r.Method, []byte(r.URL.RawQuery)) {
			note.handled = handledTracking
			note.hits = s.serveTracking(w, r, at)
			return
		}
		r = s.identified(r)
		if mayLeave(r) {
			s.metrics.badInput("path")
			s.page(w, r, http.StatusBadRequest)
			return
		}
		if r.TLS == nil && s.redirects(w, r) || !s.mayForward(w, r) {
			return
		}
		if r.Host != "" && !plainHost(r.Host) {
			s.metrics.badInput("host")
			s.page(w, r, http.StatusBadRequest)
			return
		}
		if s.cfg.Expose == ExposeTrackingOnly && !s.exposed(w, r) {
			s.page(w, r, http.StatusNotFound)
			return
		}
		if s.cfg.Files != nil && s.cfg.Files.Claims(r) {
			note.handled, counting.file = handledAsset, true
			s.cfg.Files.Serve(w, r, http.HandlerFunc(s.forward))
			return
		}
		s.forward(w, r)
	}
}

// serveOwn answers the two questions of a load balancer, in one word.
func (s *Server) serveOwn(w http.ResponseWriter, r *http.Request, p string) {
	status, word := http.StatusOK, "live\n"
	switch p {
	case livePath:
	case readyPath:
		word = "ready\n"
		if s.stopping.Load() || s.cfg.Ready != nil && s.cfg.Ready() != nil {
			status, word = http.StatusServiceUnavailable, "unready\n"
		}
	default:
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "GET and HEAD only.", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, word) // whoever asked is gone if this fails
}

// connKey is under which a request's context has its connection.
type connKey struct{}

// serveTracking brings net/http's request into the common form and answers it. It
// returns how many hits were stored.
func (s *Server) serveTracking(w http.ResponseWriter, r *http.Request, at place) int {
	request := request{method: r.Method, place: at, query: []byte(r.URL.RawQuery), https: r.TLS != nil, original: r, peer: remoteOf(r)}
	request.fill(r, s.cfg.KeepHeaders)
	request.peerText = request.peer.String()

	limits := s.limits()
	control := http.NewResponseController(w)
	// A connection that cannot keep deadlines ends with its own error.
	_ = control.SetWriteDeadline(time.Now().Add(limits.BodyTimeout + limits.WriteTimeout))
	a, ok := s.readBody(w, r, control, &request)
	if ok {
		scratch := scratchPool.Get().(*scratch)
		a = s.receive(&request, scratch)
		if cap(scratch.set.Hits) <= keptHits {
			scratchPool.Put(scratch)
		}
	}
	s.bodies.give(request.charged)
	a.write(w, request.origin, s.stopping.Load())
	return request.stored
}

// receive answers a tracking request that is complete from now on.
func (s *Server) receive(r *request, scratch *scratch) answer {
	epoch := s.arrivals.enter()
	defer s.arrivals.leave(epoch)
	began := time.Now()
	r.receivedAt = s.now(began)
	// A client that hangs up has still sent its hit, as with PHP.
	a := s.endpoint.serve(s.hard, r, scratch)
	s.metrics.latency.observe(time.Since(began))
	return a
}

// readBody reads a request's body within the limits. When it cannot, it answers
// false with what to tell the client.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, control *http.ResponseController, into *request) (failure answer, ok bool) {
	limits := s.limits()
	limit := limits.BodyBytes
	get := r.Method == http.MethodGet
	if r.Body == nil || r.Body == http.NoBody {
		return answer{}, true
	}
	if r.ContentLength > limit {
		s.metrics.badInput("body_too_large")
		a := fault(http.StatusRequestEntityTooLarge, tooLarge, get)
		a.close = true
		return a, false
	}
	_ = control.SetReadDeadline(time.Now().Add(limits.BodyTimeout)) // as above
	body := http.MaxBytesReader(w, r.Body, limit)
	buffer := make([]byte, 0, baseBuffer)
	for {
		if len(buffer) == cap(buffer) {
			bigger := int64(2 * cap(buffer))
			if bigger > keptBuffer {
				if !s.bodies.take(bigger - into.charged) {
					return s.noMemory(get), false
				}
				into.charged = bigger
			}
			buffer = append(make([]byte, 0, bigger), buffer...)
		}
		n, err := body.Read(buffer[len(buffer):cap(buffer)])
		buffer = buffer[:len(buffer)+n]
		if err == io.EOF {
			into.body = buffer
			return answer{}, true
		}
		if err == nil {
			continue
		}
		if _, tooBig := errors.AsType[*http.MaxBytesError](err); tooBig {
			s.metrics.badInput("body_too_large")
			a := fault(http.StatusRequestEntityTooLarge, tooLarge, get)
			a.close = true
			return a, false
		}
		return s.lostBody(err, get), false
	}
}

// A countingWriter remembers the status and the size for metrics and access log, and
// gives answers their further headers.
type countingWriter struct {
	http.ResponseWriter
	code  int
	bytes int64 // of bodies
	extra *headerSet
	file  bool // a copy of ours is sent
	last  bool // the connection ends with the answer, if it goes on as HTTP at all
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.code == 0 {
		w.WriteHeader(http.StatusOK)
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

func (w *countingWriter) WriteHeader(code int) {
	if w.code == 0 && code >= http.StatusOK || code == http.StatusSwitchingProtocols {
		w.code = code
		w.finish(code)
	}
	w.ResponseWriter.WriteHeader(code)
}

// finish completes the headers of the answer.
func (w *countingWriter) finish(code int) {
	w.extra.apply(w.Header(), w.file)
	if w.last && code != http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
	}
}

// Unwrap lets [http.ResponseController] reach what the writer itself can do.
func (w *countingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *countingWriter) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}
