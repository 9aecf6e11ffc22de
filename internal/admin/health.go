package admin

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
)

// routeHealth serves what balancers, containers and humans look at first.
func (s *Server) routeHealth(mux *http.ServeMux) {
	for _, path := range []string{"/livez", "/healthz", "/-/healthy"} {
		mux.HandleFunc("GET "+path, s.live)
	}
	for _, path := range []string{"/readyz", "/-/ready"} {
		mux.HandleFunc("GET "+path, s.ready)
	}
	mux.HandleFunc("GET /sinkz", s.reading(s.sink))
	mux.HandleFunc("GET /{$}", s.reading(s.index))
}

// live says that the process runs and answers, and looks at nothing else.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintln(w, "ok")
}

// ready says whether a hit could be stored durably now. With ?verbose, or when it
// could not, it names each check; ?exclude=NAME leaves one out.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	var b strings.Builder
	ok := true
	for _, c := range s.parts.Checks {
		if slices.Contains(query["exclude"], c.Name) {
			fmt.Fprintf(&b, "[+]%s excluded: ok\n", c.Name)
			continue
		}
		if err := c.Probe(); err != nil {
			ok = false
			fmt.Fprintf(&b, "[-]%s failed: %v\n", c.Name, err)
			continue
		}
		fmt.Fprintf(&b, "[+]%s ok\n", c.Name)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	switch {
	case !ok:
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "%snot ready\n", b.String())
	case query.Has("verbose"):
		fmt.Fprintf(w, "%sready\n", b.String())
	default:
		fmt.Fprintln(w, "ok")
	}
}

// sink tells whether Matomo is being fed. The status is 200 while sending and 503
// otherwise: for alerts, never for a balancer, since hits are safe either way.
func (s *Server) sink(w http.ResponseWriter, _ *http.Request) {
	status := s.drainStatus()
	code := http.StatusOK
	if status.State != "sending" {
		code = http.StatusServiceUnavailable
	}
	answer(w, code, status)
}

// index names what is here.
func (s *Server) index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, `sluice %s, edge %s

/livez                     the process runs
/readyz?verbose            hits can be stored durably now
/sinkz                     is Matomo being fed, and why not
/metrics                   for Prometheus
/api/v1/queue/stats        what is kept: the sum, age, pace, disk
/api/v1/queue/sites        the sum per site and day
/api/v1/queue/hits         pending hits, one a line
/api/v1/queue/dead         buried hits, one a line
/api/v1/drain              how Matomo is fed
/gate/v1/complete?site=all are all days that are over in Matomo
/gate/v1/sites             the same for each site
/debug/pprof/              profiles
`, s.cfg.Version, s.cfg.Edge)
}

// routeDebug serves Go's profiles.
func (s *Server) routeDebug(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", s.reading(pprof.Index))
	mux.HandleFunc("GET /debug/pprof/cmdline", s.reading(pprof.Cmdline))
	mux.HandleFunc("GET /debug/pprof/profile", s.reading(pprof.Profile))
	mux.HandleFunc("GET /debug/pprof/symbol", s.reading(pprof.Symbol))
	mux.HandleFunc("GET /debug/pprof/trace", s.reading(pprof.Trace))
}
