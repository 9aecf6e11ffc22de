package admin

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// guard wraps everything: no caching, no sniffing, no foreign names (a web page
// whose name was rebound to this address), no orders from other web pages.
func (s *Server) guard(next http.Handler) http.Handler {
	protection := http.NewCrossOriginProtection()
	protection.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		refuse(w, http.StatusForbidden, "a request from another web page is refused", "")
	}))
	next = protection.Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'")
		if !s.hostAllowed(r.Host) {
			refuse(w, http.StatusForbidden, "this host name is not known here", "add it to admin.hosts, or use the address")
			return
		}
		limit := int64(maxBody)
		if r.URL.Path == importPath || strings.HasPrefix(r.URL.Path, logImportsPath+"/") {
			limit = MaxImport
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		next.ServeHTTP(w, r)
	})
}

// hostAllowed reports whether the Host header is one that DNS cannot have brought
// here against our will: an address, localhost, or a configured name. A request
// without one comes from an old health checker, never from a browser.
func (s *Server) hostAllowed(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.Trim(host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return host == "" || host == "localhost" || s.hosts[host]
}

// reading guards what anybody may read while no token is configured.
func (s *Server) reading(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if s.guarded() && !s.inControl(r) {
			unauthorized(w)
			return
		}
		next(w, r)
	}
}

// controlling guards what changes something.
func (s *Server) controlling(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !s.inControl(r) {
			unauthorized(w)
			return
		}
		next(w, r)
	}
}

// guarded reports whether something is configured that keeps strangers out.
func (s *Server) guarded() bool {
	return *s.token.Load() != "" || s.cfg.TLS != nil && s.cfg.TLS.ClientCAs != nil
}

// inControl reports whether the request carries the token or the control key, or comes
// from a client whose certificate was verified.
func (s *Server) inControl(r *http.Request) bool {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		return true
	}
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && (same(given, *s.token.Load()) || same(given, s.cfg.Control))
}

// same compares secrets in a time that tells nothing about them. An empty secret
// equals nothing.
func same(given, secret string) bool {
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256([]byte(secret))
	return secret != "" && subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func unauthorized(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="sluice"`)
	refuse(w, http.StatusUnauthorized, "this needs the admin token, a client certificate, or the control key in the data directory",
		"use the same --config or --data-dir as the running Sluice, as its user or as root")
}

// A Problem is the body of every answer that refuses.
type Problem struct {
	Error string `json:"error"`
	Try   string `json:"try,omitempty"`
}

func refuse(w http.ResponseWriter, code int, what, try string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(Problem{what, try}) // The client has gone: nobody to tell.
}

// answer writes one JSON object.
func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(v) // The client has gone: nobody to tell.
}
