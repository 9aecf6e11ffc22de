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
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// directTimeout is how long a client waits for Matomo when its hit passes the
	// queue by.
	directTimeout = 30 * time.Second
	// maxRelayed bounds Matomo's answer to one hit, in bytes.
	maxRelayed = 1 << 20
)

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
	url := *out.URL
	url.Path, url.RawPath = cleanPath(url.Path), "" // as the hit was read, and never above Matomo's base
	out.URL = &url
	out.Header = out.Header.Clone()
	out.Header.Del("Upgrade")
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
