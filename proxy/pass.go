package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	dialTimeout = 5 * time.Second
	// directTimeout is how long a client waits for Matomo when its hit passes the
	// queue by.
	directTimeout = 30 * time.Second
	// idleToUpstream is how many connections to Matomo are kept open.
	idleToUpstream = 64
	// maxRelayed bounds Matomo's answer to one hit, in bytes.
	maxRelayed = 1 << 20
)

// newTransport makes a way to Matomo. Without reuse a request is never sent
// twice: net/http repeats one whose kept connection breaks, and Matomo could
// have recorded the first.
func newTransport(timeout time.Duration, reuse bool) *http.Transport {
	return &http.Transport{
		DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSHandshakeTimeout:   2 * dialTimeout,
		ResponseHeaderTimeout: timeout,
		MaxIdleConnsPerHost:   idleToUpstream,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true, // answers go to the client as they come
		DisableKeepAlives:     !reuse,
	}
}

// reverseProxy forwards requests to Matomo as they are. Matomo learns the
// client's address, and the host and scheme that the client used, from
// X-Forwarded headers; those that came from an untrusted peer are dropped.
func (s *Server) reverseProxy(transport *http.Transport) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1, // whatever Matomo sends is passed on at once
		ErrorLog:      nil,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(s.cfg.Upstream)
			if s.trustsRemote(r.In.RemoteAddr) {
				r.Out.Header["X-Forwarded-For"] = r.In.Header["X-Forwarded-For"]
			}
			r.SetXForwarded()
			if proto := r.In.Header["X-Forwarded-Proto"]; len(proto) > 0 && s.trustsRemote(r.In.RemoteAddr) {
				r.Out.Header["X-Forwarded-Proto"] = proto
			}
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if recorder, ok := w.(*recorder); ok {
				recorder.err = err
				return
			}
			if r.Context().Err() == nil {
				s.metrics.badInput("upstream")
				s.detail.Debug("request not forwarded", "err", err)
			}
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			w.WriteHeader(http.StatusBadGateway)
			_, _ = io.WriteString(w, "Matomo does not answer.\n") // the client may be gone
		},
	}
}

func (s *Server) trustsRemote(remote string) bool {
	ap, err := netip.ParseAddrPort(remote)
	return err == nil && s.endpoint.trusts(canonical(ap.Addr()))
}

// A relay is Matomo's answer to a hit that passed the queue by.
type relay struct {
	status int
	header http.Header
	body   []byte
}

// passDirectly sends a tracking request to Matomo, once, and returns the answer.
// An error means that Matomo gave none, so that it may or may not have the hit.
func (s *Server) passDirectly(ctx context.Context, r *request) (*relay, error) {
	ctx, cancel := context.WithTimeout(ctx, directTimeout)
	defer cancel()
	out := r.original
	if out == nil {
		var err error
		if out, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(r.head))); err != nil {
			return nil, fmt.Errorf("pass a hit: %w", err)
		}
		out.RemoteAddr = netip.AddrPortFrom(r.peer, 0).String()
		if r.https {
			out.TLS = new(tls.ConnectionState)
		}
	}
	out = out.WithContext(ctx)
	out.Body = io.NopCloser(bytes.NewReader(r.body))
	out.ContentLength = int64(len(r.body))
	out.TransferEncoding = nil

	w := &recorder{relay: relay{header: make(http.Header)}}
	s.direct.ServeHTTP(w, out)
	if w.err != nil {
		return nil, fmt.Errorf("pass a hit: %w", w.err)
	}
	return &w.relay, nil
}

// A recorder is the response writer that keeps an answer.
type recorder struct {
	relay
	err error
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if status >= http.StatusOK { // hints on the way are not for a tracking client
		w.status = status
	}
}

var errLongAnswer = errors.New("answer is too long")

func (w *recorder) Write(b []byte) (int, error) {
	if len(w.body)+len(b) > maxRelayed {
		w.err = errLongAnswer
		return 0, errLongAnswer
	}
	w.body = append(w.body, b...)
	return len(b), nil
}

// lines gives the answer's header lines, without those that each way writes by
// itself.
func (a *relay) lines(yield func(name, value string)) {
	for _, name := range slices.Sorted(maps.Keys(a.header)) {
		if is(name, "content-length") || is(name, "date") || is(name, "connection") || is(name, "transfer-encoding") || is(name, "trailer") {
			continue
		}
		for _, v := range a.header[name] {
			yield(name, strings.NewReplacer("\r", " ", "\n", " ").Replace(v))
		}
	}
}

// append appends the answer as HTTP/1.1 has it.
func (a *relay) append(b, date []byte, last bool, extra *headerSet) []byte {
	b = appendStatusLine(b, a.status)
	a.lines(func(name, value string) {
		if !extra.replaces([]byte(name), false) {
			b = append(append(append(append(b, name...), ": "...), value...), "\r\n"...)
		}
	})
	b = append(b, extra.lines()...)
	bodyless := a.status == http.StatusNoContent || a.status == http.StatusNotModified
	if !bodyless {
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), int64(len(a.body)), 10), "\r\n"...)
	}
	b = append(append(append(b, "Date: "...), date...), "\r\n"...)
	if last {
		b = append(b, "Connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if bodyless {
		return b
	}
	return append(b, a.body...)
}

// write sends the answer through net/http.
func (a *relay) write(w http.ResponseWriter) {
	h := w.Header()
	h["Content-Type"] = nil // nothing is guessed
	a.lines(func(name, value string) { h[name] = append(h[name], value) })
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body) // the client may be gone; Matomo has the hit
}
