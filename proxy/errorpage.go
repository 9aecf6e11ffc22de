package proxy

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"strconv"
	"strings"
)

// silent is for what is counted and logged elsewhere.
func silent() *log.Logger { return log.New(io.Discard, "", 0) }

// notForwarded answers a request of which Matomo gave no answer.
func (s *Server) notForwarded(w http.ResponseWriter, r *http.Request, err error) {
	ctx := r.Context()
	gone := ctx.Err() != nil && !errors.Is(context.Cause(ctx), errForwardTimeout) && !errors.Is(ctx.Err(), context.DeadlineExceeded)
	f := forwardingOf(ctx)
	if client, ok := w.(*clientWriter); ok {
		w = client.ResponseWriter // which does not give up at the end of the request's time
	}
	// net/http ends the context, too, when a body does not come.
	if f != nil && (f.clientFailed.Load() || gone && f.awaiting.Load()) {
		w.Header().Set("Connection", "close")
		s.page(w, r, http.StatusRequestTimeout)
		return
	}
	cause, status := causeOf(ctx, err)
	if !gone {
		s.metrics.upstreamError(cause)
		s.detail.Debug("request not forwarded", "cause", cause, "err", err)
	}
	s.page(w, r, status)
}

// pageTexts are all that a page says of why.
var pageTexts = map[int]string{
	http.StatusBadRequest:         "This request is not served.",
	http.StatusNotFound:           "There is nothing here.",
	http.StatusRequestTimeout:     "The request's body did not come.",
	http.StatusBadGateway:         "Matomo does not answer.",
	http.StatusServiceUnavailable: "Matomo is busy. Please try again in a moment.",
	http.StatusGatewayTimeout:     "Matomo did not answer in time.",
}

// page answers with a short text of the edge's own: HTML for browsers, plain text for
// others. It names nothing but the request's id.
func (s *Server) page(w http.ResponseWriter, r *http.Request, status int) {
	text, id := pageTexts[status], requestID(r.Context())
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if status >= http.StatusInternalServerError {
		h.Set("Retry-After", strconv.Itoa(retryAfterSeconds))
	}
	var body string
	if strings.Contains(strings.ToLower(strings.Join(r.Header["Accept"], ",")), "text/html") {
		h.Set("Content-Type", "text/html; charset=utf-8")
		h.Set("Content-Security-Policy", "default-src 'none'")
		body = "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"robots\" content=\"noindex\">\n" +
			"<title>" + http.StatusText(status) + "</title>\n<h1>" + text + "</h1>\n"
		if id != "" {
			body += "<p>Request: <code>" + id + "</code></p>\n" // an id has no letter that HTML minds
		}
	} else {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		body = text + "\n"
		if id != "" {
			body += "Request: " + id + "\n"
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, body) // the client may be gone
	}
}
