package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Limits bounds what one client and all clients together may use. A reload
// changes all of it for new requests on the fast path. What net/http serves keeps
// HeaderBytes, HeaderTimeout and IdleTimeout as they were at the start.
type Limits struct {
	HeaderBytes   int           // request line and headers; default 32 KiB
	BodyBytes     int64         // body of a tracking request; default 8 MiB, as PHP's post_max_size
	BodyMemory    int64         // bodies above 64 KiB, all connections together; default 64 MiB
	Connections   int           // open connections; default 16384
	HeaderTimeout time.Duration // TLS handshake, and headers from their first byte; default 10 s
	BodyTimeout   time.Duration // body of a tracking request; default 30 s
	WriteTimeout  time.Duration // answer of a tracking request; default 30 s
	IdleTimeout   time.Duration // between requests; default 2 min
	ProxyTimeout  time.Duration // a forwarded request with its answer; default 30 min

	// PerAddress is how many connections one IPv4 address or one IPv6 /64 may have
	// open; default 1000, negative is no limit. Trusted peers have none.
	PerAddress int
}

const (
	defaultHeaderBytes   = 32 << 10
	defaultBodyBytes     = 8 << 20
	defaultBodyMemory    = 64 << 20
	defaultConnections   = 16384
	defaultPerAddress    = 1000
	defaultHeaderTimeout = 10 * time.Second
	defaultBodyTimeout   = 30 * time.Second
	defaultWriteTimeout  = 30 * time.Second
	defaultIdleTimeout   = 2 * time.Minute
	defaultProxyTimeout  = 30 * time.Minute

	minHeaderBytes = 1 << 10 // below it ordinary browsers would be refused
)

// Tunables is what can be changed while the server runs.
type Tunables struct {
	Trusted    []netip.Prefix // peers whose forwarding headers are believed
	Limits     Limits         // zero fields take their defaults
	RateLimits RateLimits
	AccessLog  AccessLog

	// ProxyProtocol are the peers that begin each connection with a header of the PROXY
	// protocol. It is required of them, and read from nobody else.
	ProxyProtocol []netip.Prefix

	// ResponseHeaders are on every answer but those to input that is not HTTP, and replace
	// Matomo's of the same name. None may be one that answers have with a value of their own.
	ResponseHeaders []Header
	// HSTS is the max-age of Strict-Transport-Security on answers over TLS; 0 is none.
	HSTS time.Duration
}

// tunables gives what cfg says.
func (c *Config) tunables() Tunables {
	return Tunables{Trusted: c.Trusted, Limits: c.Limits, RateLimits: c.RateLimits, AccessLog: c.AccessLog,
		ProxyProtocol: c.ProxyProtocol, ResponseHeaders: c.ResponseHeaders, HSTS: c.HSTS}
}

// withDefaults fills in what the caller left open and names every fault. The
// result shares no memory with t.
func (t Tunables) withDefaults() (Tunables, error) {
	t.Trusted = slices.Clone(t.Trusted)
	t.ProxyProtocol = slices.Clone(t.ProxyProtocol)
	t.ResponseHeaders = slices.Clone(t.ResponseHeaders)
	t.RateLimits.Exempt = slices.Clone(t.RateLimits.Exempt)
	l := &t.Limits
	setDefault(&l.HeaderBytes, defaultHeaderBytes)
	setDefault(&l.BodyBytes, defaultBodyBytes)
	setDefault(&l.BodyMemory, defaultBodyMemory)
	setDefault(&l.Connections, defaultConnections)
	setDefault(&l.PerAddress, defaultPerAddress)
	setDefault(&l.HeaderTimeout, defaultHeaderTimeout)
	setDefault(&l.BodyTimeout, defaultBodyTimeout)
	setDefault(&l.WriteTimeout, defaultWriteTimeout)
	setDefault(&l.IdleTimeout, defaultIdleTimeout)
	setDefault(&l.ProxyTimeout, defaultProxyTimeout)
	setDefault(&t.AccessLog.Format, AccessLogOff)
	setDefault(&t.AccessLog.File, standardOutput)

	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("proxy: "+format, args...))
	}
	if l.HeaderBytes < minHeaderBytes {
		fault("header limit %d bytes, want at least %d", l.HeaderBytes, minHeaderBytes)
	}
	if l.BodyBytes < 0 || l.BodyMemory < 0 || l.Connections < 0 {
		fault("a limit is negative")
	}
	if slices.Min([]time.Duration{l.HeaderTimeout, l.BodyTimeout, l.WriteTimeout, l.IdleTimeout, l.ProxyTimeout, t.HSTS}) < 0 {
		fault("a duration is negative")
	}
	r := &t.RateLimits
	for _, n := range []int{r.PerAddress, r.AddressBurst, r.PerSite, r.SiteBurst} {
		if n < 0 || n > maxRate {
			fault("rate or burst %d, want 0 to %d", n, maxRate)
		}
	}
	for _, p := range slices.Concat(t.Trusted, r.Exempt, t.ProxyProtocol) {
		if !p.IsValid() {
			fault("a range of addresses is not valid")
		}
	}
	for _, h := range t.ResponseHeaders {
		if !validHeader(h) {
			fault("response header %q is not valid", h.Name)
		}
	}
	a := &t.AccessLog
	if a.Format != AccessLogOff && a.Format != AccessLogCombined && a.Format != AccessLogJSON {
		fault("access log %q, want %q, %q or %q", a.Format, AccessLogOff, AccessLogCombined, AccessLogJSON)
	}
	if a.MaskAddress < 0 || a.MaskAddress > maxMask {
		fault("%d bytes of addresses to mask in the access log, want 0 to %d", a.MaskAddress, maxMask)
	}
	return t, errors.Join(faults...)
}

// A tuned is one version of the tunables with what is made of them. It never
// changes.
type tuned struct {
	Tunables
	rates  rates
	access *accessFormat // nil when there is no access log

	plain, secure *headerSet // what answers in the clear and over TLS have besides their own
}

// tune makes a version of checked tunables. The access log masks at least as much
// as is masked on disk.
func tune(t Tunables, masked int) *tuned {
	v := &tuned{Tunables: t, rates: t.RateLimits.rates()}
	v.plain, v.secure = headerSets(t.ResponseHeaders, t.HSTS)
	if t.AccessLog.Format != AccessLogOff {
		v.access = &accessFormat{
			json:  t.AccessLog.Format == AccessLogJSON,
			mask:  max(t.AccessLog.MaskAddress, masked),
			query: t.AccessLog.Query,
		}
	}
	return v
}

// Reload puts t into effect as a whole, or returns an error and changes nothing.
// New requests and connections see it; connections that are open stay open. It may
// be called from any goroutine, and blocks while a log file is opened.
func (s *Server) Reload(t Tunables) error {
	t, err := t.withDefaults()
	if err != nil {
		return err
	}
	s.reloading.Lock()
	defer s.reloading.Unlock()
	v := tune(t, s.cfg.MaskAddress)
	if err := s.access.use(v.AccessLog); err != nil {
		return err
	}
	s.endpoint.live.Store(v)
	s.bodies.limit.Store(t.Limits.BodyMemory)
	s.places.resize(t.Limits.Connections)
	return nil
}

// tuned gives the present version of the tunables.
func (s *Server) tuned() *tuned { return s.endpoint.live.Load() }

// limits gives the present limits, which must not be changed.
func (s *Server) limits() *Limits { return &s.endpoint.live.Load().Limits }
