package proxy

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
)

// A Server is the public listener with everything behind it.
type Server struct {
	// Set by New.
	cfg      Config
	log      *slog.Logger
	detail   *slog.Logger // for errors that may name a client's address
	metrics  *instruments
	endpoint endpoint
	passing  *httputil.ReverseProxy
	gate     *turnstile // in front of passing
	buffers  copyBuffers
	direct   *httputil.ReverseProxy // for hits that pass the queue by
	bodies   budget
	places   *places
	access   *accessWriter
	started  chan struct{} // closed when the listeners are open
	dateLine atomic.Pointer[dateLine]

	// Set by Run before started is closed.
	http, https net.Addr
	handed      *handOff
	hard        context.Context // done when the grace period is over

	arrivals arrivals
	crowd    crowd

	reloading sync.Mutex // held by Reload

	stopping atomic.Bool // the stop was asked for
	draining atomic.Bool // nothing new is accepted any more

	mu    sync.Mutex
	conns map[*countedConn]struct{} // guarded by mu: all open connections
	fast  map[*fastConn]struct{}    // guarded by mu: those on the fast path
}

// New checks cfg and returns an idle server. It opens nothing; Run does. Sites
// may be nil when nothing is known of them.
func New(cfg Config, q Appender, sites Sites, log *slog.Logger, set *metrics.Set) (*Server, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if q == nil {
		return nil, errors.New("proxy: no queue")
	}
	s := &Server{
		cfg:     cfg,
		log:     log.With("part", "proxy"),
		metrics: newInstruments(set),
		places:  newPlaces(cfg.Limits.Connections),
		crowd:   crowd{count: make(map[netip.Addr]int)},
		started: make(chan struct{}),
		hard:    context.Background(),
		conns:   make(map[*countedConn]struct{}),
		fast:    make(map[*fastConn]struct{}),
	}
	s.detail = s.log
	if cfg.MaskAddress > 0 {
		s.detail = slog.New(slog.DiscardHandler)
	}
	s.bodies.limit.Store(cfg.Limits.BodyMemory)
	s.access = newAccessWriter(s.log, s.metrics.lostLines)
	s.endpoint = endpoint{cfg: &s.cfg, queue: q, sites: sites, metrics: s.metrics, pass: s.passDirectly,
		live: new(atomic.Pointer[tuned]), addresses: newBuckets(maxBuckets), bySite: newBuckets(maxSites)}
	s.endpoint.live.Store(tune(cfg.tunables(), cfg.MaskAddress))
	if cfg.CollapseRetries {
		s.endpoint.retries = newRetries()
	}
	s.usePaths((&net.Dialer{Timeout: cfg.Way.ConnectTimeout}).DialContext)
	return s, nil
}

// usePaths makes the two ways to Matomo. A hit that passes the queue by is never sent
// twice, so its way keeps no connection that could break.
func (s *Server) usePaths(dial dialer) {
	s.gate = newTurnstile(s.cfg.Way)
	fresh := newTransport(s.cfg.Way, dial, false)
	s.passing = s.newForwarder(repeater{kept: newTransport(s.cfg.Way, dial, true), fresh: fresh}, s.notForwarded)
	s.direct = s.newForwarder(fresh, func(w http.ResponseWriter, _ *http.Request, err error) {
		w.(*recorder).err = err // nobody else calls it
	})
}

// Started is closed when the listeners are open.
func (s *Server) Started() <-chan struct{} { return s.started }

// Addrs gives the listeners' addresses, nil for one that is off. It is valid
// after [Server.Started] is closed.
func (s *Server) Addrs() (https, http net.Addr) {
	select {
	case <-s.started:
		return s.https, s.http
	default:
		return nil, nil
	}
}

// Connections gives how many are open on the public listeners. It may be called at any
// time, from any goroutine.
func (s *Server) Connections() int { return int(s.metrics.connections.Load()) }

// Run listens and serves until ctx is done. Then it is not ready any more, goes
// on serving for Config.ShutdownDelay, stops accepting, lets requests in hand
// finish for at most Config.Grace, closes what is left and returns nil. It
// returns an error when it cannot listen. Call Run once.
func (s *Server) Run(ctx context.Context) error {
	hard, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	s.hard = hard

	if err := s.access.start(s.tuned().AccessLog); err != nil {
		return err
	}
	defer s.access.stop()
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	accepting, stopAccepting := context.WithCancel(hard)
	defer stopAccepting()

	server := s.newHTTPServer()
	var acceptors, conns, library sync.WaitGroup
	// It ends with Shutdown or Close below.
	library.Go(func() { _ = server.Serve(s.handed) }) // always ErrServerClosed or the listener's end
	for _, l := range listeners {
		// It ends when its listener is closed.
		acceptors.Go(func() { s.accept(accepting, l.Listener, l.config, &conns) })
	}
	close(s.started)

	<-ctx.Done()
	s.stopping.Store(true)
	s.log.Info("stopping", "delay", s.cfg.ShutdownDelay, "grace", s.cfg.Grace)
	wait(hard, s.cfg.ShutdownDelay)

	s.draining.Store(true)
	stopAccepting()
	for _, l := range listeners {
		_ = l.Close() // nothing more is accepted either way
	}
	finished := make(chan struct{})
	// It ends with the acceptors, of which abandon leaves none, and the connections, of
	// which closeAll leaves none.
	library.Go(func() { acceptors.Wait(); conns.Wait(); close(finished) })
	s.stop(server, finished)
	abandon()
	s.closeAll()
	library.Wait()
	return nil
}

// A publicListener is a listener with its certificates, nil for plain HTTP.
type publicListener struct {
	net.Listener
	config *tls.Config
}

func (s *Server) listen(ctx context.Context) ([]publicListener, error) {
	var open []publicListener
	var config net.ListenConfig
	for _, l := range []struct {
		address string
		given   *net.TCPListener
		tls     *tls.Config
		bound   *net.Addr
	}{
		{s.cfg.Listen, s.cfg.Listeners.HTTPS, withProtocols(s.cfg.TLSConfig), &s.https},
		{s.cfg.ListenHTTP, s.cfg.Listeners.HTTP, nil, &s.http},
	} {
		if l.address == "" {
			continue
		}
		var listener net.Listener = l.given
		var err error
		if l.given == nil {
			listener, err = config.Listen(ctx, "tcp", l.address)
		}
		if err != nil {
			for _, o := range open {
				_ = o.Close() // nothing was accepted from it yet
			}
			return nil, fmt.Errorf("listen on %q: %w", l.address, err)
		}
		*l.bound = listener.Addr()
		open = append(open, publicListener{listener, l.tls})
	}
	var address net.Addr = &net.TCPAddr{}
	if len(open) > 0 {
		address = open[0].Addr()
	}
	s.handed = newHandOff(address)
	return open, nil
}

// withProtocols offers HTTP/2 and HTTP/1.1 unless the certificates' owner has
// said so itself.
func withProtocols(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	for _, protocol := range []string{"h2", "http/1.1"} {
		if !slices.Contains(c.NextProtos, protocol) {
			c.NextProtos = append(c.NextProtos, protocol)
		}
	}
	return c
}

func (s *Server) newHTTPServer() *http.Server {
	l := s.limits()
	return &http.Server{
		Handler:           s,
		ReadHeaderTimeout: l.HeaderTimeout,
		ReadTimeout:       l.ProxyTimeout,
		WriteTimeout:      l.ProxyTimeout,
		IdleTimeout:       l.IdleTimeout,
		MaxHeaderBytes:    l.HeaderBytes,
		// Its answer would leave the connection open behind a body that nobody follows.
		DisableGeneralOptionsHandler: true,
		// Its lines carry visitors' addresses, and their causes are counted.
		ErrorLog:    slog.NewLogLogger(s.detail.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return s.hard },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, countedOf(conn))
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			if counted := countedOf(conn); counted != nil && state == http.StateIdle {
				counted.rest(time.Now())
			}
		},
		// A client that does not read its answers holds no connection for ever.
		HTTP2: &http.HTTP2Config{WriteByteTimeout: l.WriteTimeout},
	}
}

// stop lets requests in hand finish, for at most the grace period.
func (s *Server) stop(server *http.Server, finished <-chan struct{}) {
	ctx, cancel := context.WithTimeout(s.hard, s.cfg.Grace)
	defer cancel()
	s.mu.Lock()
	for c := range s.fast {
		if c.idle.Load() {
			// The wait ends; a request that has begun meanwhile is read to its end.
			until := time.Unix(1, 0)
			if c.fresh.Load() {
				until = time.Now().Add(firstRequest)
			}
			_ = c.conn.SetReadDeadline(until) // a closed connection has ended already
		}
	}
	s.mu.Unlock()

	select {
	case <-finished:
	case <-ctx.Done():
	}
	if err := server.Shutdown(ctx); err != nil {
		s.log.Warn("requests cut off at the end of the grace period", "err", err)
		_ = server.Close() // its listener is closed already
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	left := make([]*countedConn, 0, len(s.conns))
	for c := range s.conns {
		left = append(left, c)
	}
	s.mu.Unlock()
	for _, c := range left {
		_ = c.Close() // it is cut off
	}
}

func (s *Server) remember(c *countedConn) {
	s.mu.Lock()
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	s.metrics.connections.Add(1)
}

func (s *Server) forget(c *countedConn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.metrics.connections.Add(-1)
}

func (s *Server) track(c *fastConn) {
	s.mu.Lock()
	s.fast[c] = struct{}{}
	s.mu.Unlock()
}

func (s *Server) untrack(c *fastConn) {
	s.mu.Lock()
	delete(s.fast, c)
	s.mu.Unlock()
}

// now gives the wall clock; read is a reading of the process's own.
func (s *Server) now(read time.Time) time.Time {
	if s.cfg.Now == nil {
		return read
	}
	return s.cfg.Now()
}

// A dateLine is the Date header's value for one second.
type dateLine struct {
	second int64
	text   []byte
}

// date gives the Date header's value. The bytes must not be changed.
func (s *Server) date(now time.Time) []byte {
	second := now.Unix()
	line := s.dateLine.Load()
	if line == nil || line.second != second {
		line = &dateLine{second: second, text: appendDate(nil, now)}
		s.dateLine.Store(line)
	}
	return line.text
}

// refusedByLibrary tells the answers that net/http gives to requests that it
// does not hand to a handler, and says why. Those of a handler begin with the
// same words and go on with other headers.
func refusedByLibrary(b []byte) string {
	const start, tail = "HTTP/1.1 ", "\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
	if len(b) < len(start)+3 || string(b[:len(start)]) != start {
		return ""
	}
	line, rest, _ := bytes.Cut(b, []byte("\r\n"))
	if !bytes.HasPrefix(rest, []byte(tail[2:])) {
		return ""
	}
	switch string(line[len(start) : len(start)+3]) {
	case "431":
		return "header_too_large"
	case "400":
		return "request"
	case "501":
		return "transfer_encoding"
	case "505":
		return "version"
	}
	return "other"
}
