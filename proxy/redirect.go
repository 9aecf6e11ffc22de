package proxy

import (
	"net/http"
	"strconv"
)

// What [Config.HTTP] may say.
const (
	HTTPServe    = "serve"    // the plain listener serves all
	HTTPRedirect = "redirect" // it sends all but tracking to HTTPS
)

// redirectAge is how long a browser remembers where it was sent, in seconds, so that
// a mistake is not for ever.
const redirectAge = 300

// redirects sends a request that came without TLS to the same address with it, if
// that is wanted, and says so.
func (s *Server) redirects(w http.ResponseWriter, r *http.Request) bool {
	trusted := s.endpoint.trusts(remoteOf(r))
	if s.cfg.HTTP != HTTPRedirect || forwardedProto(r, trusted) == "https" {
		return false
	}
	host := forwardedHost(r, trusted)
	if host == "" {
		s.metrics.badInput("host")
		s.page(w, r, http.StatusBadRequest)
		return true
	}
	host, _ = splitHost(host)
	if s.cfg.HTTPSPort != defaultHTTPSPort {
		host += ":" + strconv.Itoa(s.cfg.HTTPSPort)
	}
	target := *r.URL
	target.Scheme, target.Host, target.User = "https", host, nil
	status := http.StatusPermanentRedirect // keeps method and body
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		status = http.StatusMovedPermanently
	}
	w.Header().Set("Location", target.String())
	w.Header().Set("Cache-Control", "max-age="+strconv.Itoa(redirectAge))
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(status)
	return true
}
